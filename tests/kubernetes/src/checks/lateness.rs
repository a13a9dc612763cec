//! How long after a pod was told to end its service's endpoints said so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::stage::Stage;
use crate::cluster::LIMIT;
use crate::error::Result;
use crate::pods;

pub const SLICE: &str = "discovery.k8s.io/v1/EndpointSlice";

/// When each pod, by its name, was first seen in a state, in the endpoints of each family.
type Moments = Arc<Mutex<BTreeMap<(String, String), Instant>>>;

fn note(moments: &Moments, names: Vec<(String, String)>) {
    let mut moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
    for name in names {
        moments.entry(name).or_insert_with(Instant::now);
    }
}

/// The pods that end.
fn ending(pods: &[&Value]) -> Vec<(String, String)> {
    let ending = pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
    ending.map(|pod| (pods::name(pod).to_owned(), String::new())).collect()
}

/// The pods of endpoints that get no new connections.
fn leaving(slices: &[&Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for slice in slices {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let leaving = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == false);
        found.extend(
            leaving.map(|endpoint| (text(&endpoint["targetRef"]["name"]), text(&slice["addressType"]))),
        );
    }
    found
}

/// Carries `f` out; gives what it gives, and the longest time that passed between the end of a pod with the label
/// `app=NAME` and the word of it in the endpoints of the service NAME, as a client of the API server sees both.
///
/// # Errors
/// Those of `f`, and the API server's.
pub fn measured<T>(stage: &Stage, name: &str, f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let api = stage.cluster.api();
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, left) = (Moments::default(), Moments::default());
    let follow = |resource: &'static str,
                  selector: String,
                  moments: &Moments,
                  of: fn(&[&Value]) -> Vec<(String, String)>| {
        let (stop, moments) = (Arc::clone(&stop), Arc::clone(moments));
        api.wait_all(resource, Some("default"), &selector, LIMIT, move |objects| {
            note(&moments, of(objects));
            stop.load(Ordering::Relaxed)
        })
    };
    let result = thread::scope(|scope| {
        scope.spawn(|| follow("v1/Pod", format!("app={name}"), &ended, ending));
        scope.spawn(|| follow(SLICE, format!("kubernetes.io/service-name={name}"), &left, leaving));
        let result = f();
        stop.store(true, Ordering::Relaxed);
        // Those who follow look whether they are to stop when something changes.
        let change =
            json!({ "metadata": { "annotations": { "measured": format!("{:?}", Instant::now()) } } });
        for (resource, selector) in
            [("v1/Pod", format!("app={name}")), (SLICE, format!("kubernetes.io/service-name={name}"))]
        {
            for object in api.list(resource, Some("default"), &selector)?.iter().take(1) {
                api.patch(resource, &format!("default/{}", pods::name(object)), &change)?;
            }
        }
        result
    })?;
    let left = left.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
    let late = left.iter().filter_map(|((pod, _), left)| {
        Some(left.saturating_duration_since(*ended.get(&(pod.clone(), String::new()))?))
    });
    Ok((result, late.max().unwrap_or_default()))
}
