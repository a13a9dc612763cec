//! Other settings, a source that is not there, rules and settings of the system that others change.

use heddle_lab::{Cmd, Error, Result, await_ready, bin};

use crate::traffic::{Traffic, start_proxyd};
use crate::world::{WEB, World, status, strict, tables};

/// FAULT 106: another way to backends on other nodes; connections that stand keep theirs.
#[test]
fn fault_106_other_settings_under_traffic() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let mut running = Vec::new();
    for remote in ["snat", "tunnel", "snat"] {
        for node in 1..=3 {
            world.cluster.kill_daemon(node, "proxyd");
        }
        running.clear();
        for node in 1..=3 {
            let process = start_proxyd(&world, node, &["--remote", remote])?;
            await_ready(world.cluster.node(node), &process, "proxyd")?;
            running.push(process);
        }
        traffic.wait(15)?;
    }
    traffic.stop_clean();
    Ok(())
}

/// FAULT 111: a source that cannot be read leaves the datapath that there is.
#[test]
fn fault_111_started_before_its_source_is_there() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let manifests = world.cluster.lab().manifests().dir().to_owned();
    let before = status(world.cluster.node(1))?;
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
    }
    // What is told is not all that there is: one file is broken.
    world.cluster.lab().manifests().put("broken.yaml", "kind: [")?;
    let mut running = Vec::new();
    for node in 1..=3 {
        running.push(start_proxyd(&world, node, &[])?);
    }
    traffic.wait(60)?;
    for (node, process) in world.cluster.nodes().iter().zip(&running) {
        assert!(process.is_running(), "{}", process.log());
        let ready = node.output("test -e /run/heddle/proxyd.ready")?;
        assert!(!ready.status.success(), "ready without its source {}", manifests.display());
    }
    assert_eq!(tables(&before), tables(&status(world.cluster.node(1))?));
    world.cluster.lab().manifests().remove("broken.yaml")?;
    for (node, process) in world.cluster.nodes().iter().zip(&running) {
        await_ready(node, process, "proxyd")?;
    }
    world.publish(WEB, &[world.web1.endpoint(), world.web2.endpoint()])?;
    traffic.stop_clean();
    Ok(())
}

/// FAULT 62: a firewall that is reloaded takes no service away.
#[test]
fn fault_062_flushed_rules_are_nothing_to_services() -> Result<()> {
    let world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    for _ in 0..3 {
        for node in world.cluster.nodes() {
            node.run("nft flush ruleset")?;
        }
        traffic.wait(10)?;
    }
    traffic.stop_clean();
    Ok(())
}

/// FAULT 63: settings that services do not live on may be what they are; what they live on is put back by whoever has
/// set it, and until then no packet is sent another way.
#[test]
fn fault_063_settings_are_changed_behind_us() -> Result<()> {
    let world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    for (name, value) in [("rp_filter", "1"), ("rp_filter", "2"), ("proxy_arp", "1"), ("accept_local", "0")] {
        for node in world.cluster.nodes() {
            let set =
                format!("for f in /proc/sys/net/ipv4/conf/*/{name}; do echo {value} > $f || exit 1; done");
            node.run(Cmd::new("sh").args(["-c", &set]))?;
        }
        traffic.wait(10)?;
    }
    traffic.stop_clean();
    Ok(())
}

/// What the tests above rely on: a proxyd that is told nonsense does not start.
#[test]
fn fault_106_settings_that_cannot_be_are_refused() -> Result<()> {
    let world = World::start(strict())?;
    let node = world.cluster.node(1);
    for bad in [["--remote", "magic"], ["--vni", "0"], ["--port", "0"], ["--max-flows", "1"]] {
        let output = node.output(Cmd::new(bin("proxyd")).args(bad))?;
        if output.status.code() != Some(2) {
            return Err(Error::Oracle(format!("{bad:?}: {}: {}", output.status, output.stderr)));
        }
    }
    Ok(())
}
