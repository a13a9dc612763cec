//! Many at once, of both programs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use serde_json::json;

use super::bench::{Host, Program, finish};

/// 64 at once add and delete, every fourth by host-local; what is held at any moment is held once, and nothing is left.
#[test]
fn fault_036_sixty_four_at_once_with_host_local_in_between() {
    let rounds: usize = std::env::var("HEDDLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let host = Host::new();
    let confs = ["net", "other"].map(|name| {
        let mut conf = host.conf(json!([[{"subnet": "10.1.0.0/24"}]]));
        conf["name"] = json!(name);
        conf
    });
    // Whoever has been told that it has an address, until it begins to give it back.
    let held: [Mutex<BTreeMap<String, String>>; 2] = Default::default();
    thread::scope(|scope| {
        for worker in 0..64 {
            let (host, confs, held) = (&host, &confs, &held);
            scope.spawn(move || {
                let network = worker % 2;
                for round in 0..rounds {
                    let container = format!("c{worker}-{round}");
                    let giver = if worker % 4 == 1 { Program::Reference } else { Program::Ours };
                    let taker = if (worker + round) % 4 == 1 { giver.other() } else { giver };
                    let ip = host.add(giver, &container, &confs[network]).remove(0);
                    let before = held[network].lock().unwrap().insert(ip.clone(), container.clone());
                    assert_eq!(before, None, "{ip} has two owners, {container} is the second");
                    held[network].lock().unwrap().remove(&ip);
                    host.del(taker, &container, &confs[network]);
                }
            });
        }
    });
    assert!(host.leases().is_empty(), "{:?}", host.leases());
    let left = std::fs::read_dir(host.path("networks/other")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with("10.")).count(), 0);
}

/// Who waits for the lock gets it: of calls that are started together, none waits for more than all the others.
#[test]
fn the_lock_is_given_to_everybody_in_the_end() {
    let host = Host::new();
    let conf = host.conf(json!([[{"subnet": "10.1.0.0/24"}]]));
    let started: Vec<_> = (0..24)
        .map(|n| {
            let program = Program::BOTH[n % 2];
            host.start(&program.path(), "ADD", &format!("c{n}"), &conf, &[])
        })
        .collect();
    let mut given: Vec<String> = started.into_iter().flat_map(|child| finish(child).ips()).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 24);
}
