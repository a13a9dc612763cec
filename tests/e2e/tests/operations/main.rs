//! Random operations against a model of who must hold what.
//!
//! Everything that happens to a node's pods, in any order: ADD, DEL, CHECK, GC, STATUS; the plugin killed before a
//! system call, or a system call that fails; a full disk; a reboot; a pod's namespace or device that goes without a
//! word; two networks (ptp and bridge, both families), in one of them the reference host-local as well. After each:
//! no address is held twice, the leases are those of the model, and no device, route or rule is without an owner.
//! In the end nothing is left at all.
//!
//! `HEDDLE_OPERATIONS` says how many, `HEDDLE_SEED` which, `HEDDLE_WORKERS` how many at once. What fails is made as
//! short as it can be, and printed so that it can be pasted into [`regressions`].
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../cni/bench.rs"]
#[expect(dead_code, reason = "the tests of the plugin use all of it")]
mod bench;
mod invariants;
mod model;
mod op;
mod program;
mod regressions;
mod shrink;
mod surroundings;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use op::{Op, Random};
use world::World;

/// From a fresh host to an empty one.
const EPISODE: usize = 200;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_operations_leave_nothing_and_give_no_address_twice() {
    let operations = number("HEDDLE_OPERATIONS", 300);
    let seed = number("HEDDLE_SEED", std::process::id().into());
    let begin = Instant::now();
    let episodes = operations.div_ceil(EPISODE as u64);
    let next = AtomicU64::new(0);
    let counts = Mutex::new(BTreeMap::new());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..number("HEDDLE_WORKERS", 2) {
            scope.spawn(|| {
                surroundings::own();
                loop {
                    let episode = next.fetch_add(1, Ordering::Relaxed);
                    if episode >= episodes || failed.lock().unwrap().is_some() {
                        break;
                    }
                    let mut random = Random::new(seed.wrapping_add(episode << 32));
                    let length = EPISODE.min(usize::try_from(operations - episode * EPISODE as u64).unwrap());
                    let ops: Vec<Op> = (0..length).map(|_| Op::random(&mut random)).collect();
                    if let Err(why) = World::play(&ops, &counts) {
                        failed.lock().unwrap().get_or_insert((episode, ops, why));
                    }
                    if episode % 10 == 9 {
                        println!(
                            "{} of {operations} after {:?}",
                            (episode + 1) * EPISODE as u64,
                            begin.elapsed()
                        );
                    }
                }
            });
        }
    });
    println!("{operations} operations in {:?}, seed {seed}", begin.elapsed());
    for (what, count) in &*counts.lock().unwrap() {
        println!("{count:8} {what}");
    }
    let failed = failed.into_inner().unwrap();
    if let Some((episode, ops, why)) = failed {
        let (ops, why) = std::thread::scope(|scope| {
            let shorten = || {
                surroundings::own();
                shrink::shrink(ops, why, |ops| World::play(ops, &Mutex::default()))
            };
            scope.spawn(shorten).join().unwrap()
        });
        panic!("seed {seed}, episode {episode}: {why}\n{}", op::as_regression(&ops));
    }
}
