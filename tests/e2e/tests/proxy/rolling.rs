//! All backends of a service are replaced while it is asked: not one request fails.

use std::time::{Duration, Instant};

use heddle_lab::{Backend, Condition, Endpoint, Load, Result};

use crate::world::{WEB, World, strict};

/// How long a pod goes on serving after it was told to end, as its program must do.
const DRAIN: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);

/// How many backends, and how many requests at least: `HEDDLE_ROLLING=50,100000` is the whole.
fn size() -> (usize, u64) {
    let told = std::env::var("HEDDLE_ROLLING").ok();
    let numbers = told.as_deref().and_then(|text| text.split_once(','));
    let numbers = numbers.and_then(|(pods, asks)| Some((pods.parse().ok()?, asks.parse().ok()?)));
    numbers.unwrap_or((6, 1500))
}

#[test]
fn fault_092_a_rolling_replacement_fails_no_request() -> Result<()> {
    let (count, requests) = size();
    let surge = (count / 4).clamp(1, 8);
    let world = World::start(strict())?;
    let cluster = &world.cluster;
    let fresh = |round: usize, n: usize| cluster.backend(n % 3 + 1, &format!("r{round}-{n}"), WEB.target);
    let mut old: Vec<Backend> = (0..count).map(|n| fresh(0, n)).collect::<Result<_>>()?;
    let endpoints = |backends: &[Backend]| backends.iter().map(Backend::endpoint).collect::<Vec<_>>();
    world.publish(WEB, &endpoints(&old))?;

    let nodes = cluster.nodes();
    let mut loads = Vec::new();
    let mut start = |to, place| -> Result<()> {
        loads.push(Load::connects(to).rate(400).limit(Duration::from_secs(10)).start(place)?);
        Ok(())
    };
    start(WEB.published(nodes[0].ip4()), cluster.client().place())?;
    start(WEB.published(nodes[2].ip6()), cluster.client().place())?;
    start(WEB.cluster(true), world.visitor.place())?;
    start(WEB.cluster(false), nodes[1].place())?;

    let mut new: Vec<Backend> = Vec::new();
    let mut round = 1;
    let asked = |loads: &[heddle_lab::Running]| loads.iter().map(|l| l.report().received).sum::<u64>();
    while !old.is_empty() || asked(&loads) < requests {
        if old.is_empty() {
            std::mem::swap(&mut old, &mut new);
            round += 1;
        }
        let step = surge.min(old.len());
        for _ in 0..step {
            new.push(fresh(round, new.len())?);
        }
        cluster.publish(&WEB.service(), &[endpoints(&old), endpoints(&new)].concat())?;
        let leaving: Vec<Backend> = old.drain(..step).collect();
        let ending: Vec<Endpoint> =
            endpoints(&leaving).into_iter().map(|e| e.condition(Condition::Terminating)).collect();
        let told = Instant::now();
        cluster.publish(&WEB.service(), &[endpoints(&old), endpoints(&new), ending].concat())?;
        // They serve on for so long; the traffic passes the time.
        let left = DRAIN.saturating_sub(told.elapsed());
        let _ = loads[0].wait_until(left, |_| false);
        cluster.publish(&WEB.service(), &[endpoints(&old), endpoints(&new)].concat())?;
        for backend in leaving {
            backend.pod().cni_del()?;
        }
    }
    let mut total = 0;
    for load in loads {
        load.wait_for(1, LIMIT)?;
        let report = load.stop();
        report.assert_clean();
        total += report.received;
    }
    assert!(total >= requests, "{total} requests");
    println!("{total} requests while {count} backends were replaced {round} times, {surge} at once");
    Ok(())
}
