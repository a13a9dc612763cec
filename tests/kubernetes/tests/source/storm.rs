//! More events than anybody needs.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use heddle_kubernetes::fault_proxy::Fault;
use serde_json::{Value, json};

use crate::world::{LIMIT, World};

/// Events, of so many slices.
const EVENTS: usize = 20_000;
const SLICES: usize = 100;

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn slice(space: &str, n: usize, version: u64, ip: [u8; 4]) -> Value {
    let ip = ip.map(|byte| byte.to_string()).join(".");
    let endpoints: Vec<_> = (0..10)
        .map(|_| json!({ "addresses": [ip], "conditions": { "ready": true }, "nodeName": "n1", "zone": "z" }))
        .collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("s{n}"), "namespace": space, "resourceVersion": version.to_string(),
            "labels": { "kubernetes.io/service-name": "storm" },
            "managedFields": [{ "manager": "m", "fieldsV1": { "f:endpoints": { "x".repeat(200): {} } } }],
        },
        "addressType": "IPv4", "ports": [{ "port": 80 }], "endpoints": endpoints,
    })
}

#[test]
fn fault_118_and_123_a_storm_of_events_is_weathered_and_nobody_needs_to_keep_up() {
    let Some(world) = World::new("118") else { return };
    let space = world.space.clone();
    let first = 1_000_000;
    let lines: Vec<String> = (0..EVENTS)
        .map(|n| {
            let version = first + 1 + n as u64;
            let ip = [10, 1, (n >> 8) as u8, n as u8];
            json!({ "type": "MODIFIED", "object": slice(&space, n % SLICES, version, ip) }).to_string()
        })
        .collect();
    let bytes: usize = lines.iter().map(String::len).sum();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    world.proxy.rule(move |seen| match () {
        // The API server is at another place.
        () if seen.lists("endpointslices") => {
            let list = json!({ "kind": "EndpointSliceList", "items": [], "metadata": { "resourceVersion": first.to_string() } });
            Some(Fault::Answer { code: 200, retry_after: None, body: list.to_string() })
        }
        () if seen.watches("endpointslices") => {
            count.fetch_add(1, Ordering::Relaxed);
            Some(Fault::Told(lines.clone()))
        }
        () => None,
    });
    let subject = world.source();
    // A consumer that looks at what there is once in a while.
    subject.eventually("the storm begins", LIMIT, |now| now.endpoints.len() >= 2);
    let (began, before) = (Instant::now(), resident());
    let last = (first + EVENTS as u64).to_string();
    let most = Cell::new(before);
    subject.eventually("all of it", Duration::from_secs(30), |_| {
        most.set(most.get().max(resident()));
        subject.contact().versions.get("endpointslices").is_some_and(|version| **version == *last)
    });
    let most = most.get();
    let took = began.elapsed();
    subject.eventually("the last of them", LIMIT, |_| {
        let n = EVENTS - 1;
        subject.endpoints("storm").contains(&[10, 1, (n >> 8) as u8, n as u8].into())
    });
    let now = subject.now();
    assert_eq!(now.endpoints.len(), SLICES);
    // Told together: far fewer snapshots than events.
    let rate = EVENTS as f64 / took.as_secs_f64();
    println!(
        "{EVENTS} events ({} MiB) in {took:?}: {rate:.0}/s, {} snapshots, {} KiB more",
        bytes >> 20,
        now.revision,
        most - before
    );
    assert!(rate > 5_000.0 || cfg!(debug_assertions), "{rate:.0}/s");
    assert!(now.revision < EVENTS as u64, "{}", now.revision);
    assert!(most - before < 64 << 10, "{} KiB", most - before);
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one stream");
}
