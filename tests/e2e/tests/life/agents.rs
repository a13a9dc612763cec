//! Agents that stop, restart, come twice, and go for good.

use std::time::Duration;

use heddle_lab::{Cmd, Result, Snapshot, await_ready, bin, eventually};
use nix::sys::signal::Signal;

use crate::traffic::{LIMIT, Traffic, rounds, start_proxyd};
use crate::world::{SOLO, WEB, World, list, status, strict};

/// FAULT 101: one that does not run for a while does what has come up meanwhile when it runs again.
#[test]
fn fault_101_stopped_and_continued() -> Result<()> {
    let world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let daemons = || (1..=3).filter_map(|node| world.cluster.daemon(node, "proxyd"));
    daemons().try_for_each(|daemon| daemon.signal(Signal::SIGSTOP))?;
    world.cluster.publish(&SOLO.service(), &[world.web2.endpoint()])?;
    traffic.wait(40)?;
    daemons().try_for_each(|daemon| daemon.signal(Signal::SIGCONT))?;
    world.publish(SOLO, &[world.web2.endpoint()])?;
    traffic.wait(10)?;
    traffic.stop_clean();
    Ok(())
}

/// FAULT 102: again and again.
#[test]
fn fault_102_restarted_again_and_again() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    for round in 0..rounds(4).min(100) {
        let node = 1 + round % 3;
        world.cluster.stop_daemon(node, "proxyd")?;
        world.cluster.start_daemon_on(node, "proxyd")?;
    }
    traffic.wait(10)?;
    // Nothing piles up.
    for node in world.cluster.nodes() {
        let count = |what: &str| {
            let line = format!("ls /sys/fs/bpf/heddle/*/{what} | wc -l");
            node.run(Cmd::new("sh").args(["-c", &line]))
        };
        let (programs, places) = (count("progs")?, count("links")?);
        let links = list(&status(node)?["hooks"]).len();
        assert!(programs.trim().parse::<usize>().is_ok_and(|count| count < 25), "{programs}");
        assert_eq!(places.trim(), links.to_string());
    }
    traffic.stop_clean();
    Ok(())
}

/// FAULT 109: the second waits for the first, and takes over without a gap.
#[test]
fn fault_109_two_at_once() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let node = world.cluster.node(1);
    let second = start_proxyd(&world, 1, &[])?;
    eventually("the second one waits", LIMIT, || Ok(second.log().contains("another proxyd runs")))?;
    let first = world.cluster.daemon(1, "proxyd").map(|first| first.pid());
    let ready = node.run("cat /run/heddle/proxyd.ready")?;
    assert_eq!(ready.trim().parse().ok(), first, "the first one is who is ready");
    traffic.wait(5)?;
    world.cluster.kill_daemon(1, "proxyd");
    await_ready(world.cluster.node(1), &second, "proxyd")?;
    traffic.wait(10)?;
    second.terminate(Duration::from_secs(30))?;
    traffic.stop_clean();
    Ok(())
}

/// FAULT 110: after `proxyd cleanup` a node is as it was.
#[test]
fn fault_110_nothing_is_left() -> Result<()> {
    let mut world = World::start(strict())?;
    for node in 1..=3 {
        world.cluster.stop_daemon(node, "proxyd")?;
    }
    let cleanup = |world: &World| {
        let clean = |node: &heddle_lab::Node| node.run(Cmd::new(bin("proxyd")).arg("cleanup")).map(drop);
        world.cluster.nodes().iter().try_for_each(clean)
    };
    cleanup(&world)?;
    let pristine = Snapshot::of(world.cluster.lab())?;
    for node in 1..=3 {
        world.cluster.start_daemon_on(node, "proxyd")?;
    }
    let both = [world.web1.endpoint(), world.web2.endpoint()];
    world.publish(WEB, &both)?;
    let traffic = Traffic::start(&world)?;
    assert!(
        pristine.same_as(&Snapshot::of(world.cluster.lab())?).is_err(),
        "the snapshot sees what is there"
    );
    drop(traffic);
    let busy = world.cluster.node(1).output(Cmd::new(bin("proxyd")).arg("cleanup"))?;
    assert!(!busy.status.success() && busy.stderr.contains("stop it first"), "{}", busy.stderr);
    for node in 1..=3 {
        world.cluster.stop_daemon(node, "proxyd")?;
    }
    cleanup(&world)?;
    let gone = |node: &heddle_lab::Node| node.run("test ! -e /sys/fs/bpf/heddle").is_ok();
    assert!(world.cluster.nodes().iter().all(gone));
    // Links go a moment after their pins.
    let mut last = None;
    eventually("nothing is left", LIMIT, || {
        let outcome = pristine.same_as(&Snapshot::of(world.cluster.lab())?);
        let same = outcome.is_ok();
        last = outcome.err();
        Ok(same)
    })
    .map_err(|timeout| last.take().unwrap_or(timeout))
}
