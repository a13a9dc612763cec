//! Waiting for objects: listed once, then watched.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use heddle_lab::patient;
use kube::core::WatchEvent;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::session::{Session, failed};
use crate::error::{Error, Result};

/// How long to let the API server be after an error.
const PAUSE: Duration = Duration::from_millis(20);

type Objects = BTreeMap<String, Value>;

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// Waits until `done` says yes to the objects at `path` that `query` chooses.
pub(super) async fn until(
    session: &Session,
    path: &str,
    query: &str,
    what: &str,
    limit: Duration,
    done: impl Fn(&[&Value]) -> bool,
) -> Result<Vec<Value>> {
    let mut objects = Objects::new();
    let mut trouble = String::new();
    let follow = async {
        loop {
            match follow(session, path, query, &mut objects, &done).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => {
                    trouble = format!("\n    {e}");
                    sleep(PAUSE).await;
                }
            }
        }
    };
    let in_time = timeout(patient(limit), follow).await.is_ok();
    if in_time {
        return Ok(objects.into_values().collect());
    }
    let state = objects.values().map(|object| format!("\n    {} {}", key(object), object["status"]));
    let detail = state.collect::<String>() + &trouble;
    Err(heddle_lab::Error::Timeout { what: what.to_owned(), waited: limit, detail }.into())
}

/// One list and one watch after it; whether `done` said yes before the watch ended.
async fn follow(
    session: &Session,
    path: &str,
    query: &str,
    objects: &mut Objects,
    done: &impl Fn(&[&Value]) -> bool,
) -> Result<bool> {
    let line = format!("{path}?{query}");
    let mut list = session.json("GET", &line, None).await?;
    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    *objects = items.into_iter().map(|object| (key(&object), object)).collect();
    if done(&objects.values().collect::<Vec<_>>()) {
        return Ok(true);
    }
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let line = format!("{line}&watch=true&resourceVersion={version}");
    let request = http::Request::get(&line).body(Vec::new());
    let request = request.map_err(|e| Error::new(format!("write the request GET {line}"), e))?;
    let events = session.client.request_events::<Value>(request).await.map_err(|e| failed(&line, e))?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await.map_err(|e| failed(&line, e))? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                drop(objects.insert(key(&object), object))
            }
            WatchEvent::Deleted(object) => drop(objects.remove(&key(&object))),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(failed(&line, kube::Error::Api(status))),
        }
        if done(&objects.values().collect::<Vec<_>>()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until `/readyz` says `ok`.
pub(super) async fn ready(session: &Session, limit: Duration) -> Result<()> {
    let mut last = String::new();
    let asking = async {
        loop {
            let request = http::Request::get("/readyz").body(Vec::new());
            let request = request.map_err(|e| Error::new("write a request", e))?;
            match session.client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(e) => last = failed("GET /readyz", e).to_string(),
            }
            sleep(PAUSE).await;
        }
    };
    match timeout(patient(limit), asking).await {
        Ok(result) => result,
        Err(_) => {
            let what = "an API server that is ready".to_owned();
            Err(heddle_lab::Error::Timeout { what, waited: limit, detail: format!("\n    {last}") }.into())
        }
    }
}
