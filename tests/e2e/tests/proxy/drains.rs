//! What becomes of connections when their backend leaves, dies, or its whole node does.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use heddle_lab::manifests::node_yaml;
use heddle_lab::{Ask, Condition, Load, Result, Running, patient};

use crate::stale::{Talk, helper};
use crate::world::{SOLO, WEB, World, list, status, strict};

const LIMIT: Duration = Duration::from_secs(20);

/// Connections to SOLO from everywhere: by the hooks of the devices, here and through the tunnel, and by the socket
/// hook.
fn streams(world: &World) -> Result<Vec<(&'static str, Running)>> {
    let client = world.cluster.client();
    let nodes = world.cluster.nodes();
    Ok(vec![
        ("outside", Load::streams(SOLO.published(nodes[0].ip4()), 2).rate(50).start(client)?),
        ("outside, tunnel", Load::streams(SOLO.published(nodes[2].ip6()), 2).rate(50).start(client)?),
        ("a pod", Load::streams(SOLO.cluster(true), 2).rate(50).start(&world.visitor)?),
        ("a node", Load::streams(SOLO.cluster(false), 2).rate(50).start(&nodes[1])?),
    ])
}

fn wait_all(loads: &[(&'static str, Running)], count: u64) -> Result<()> {
    loads.iter().try_for_each(|(_, load)| load.wait_for(count, LIMIT).map(drop))
}

/// It ends gracefully: its connections run on until they are closed, new ones go to others, and what is closed by
/// then has not noticed anything.
#[test]
fn fault_082_a_backend_that_ends_keeps_its_connections() -> Result<()> {
    let world = World::start(strict())?;
    let [one, two] = [world.web1.endpoint(), world.web2.endpoint()];
    let loads = streams(&world)?;
    wait_all(&loads, 20)?;
    let leaving = one.condition(Condition::Terminating);
    world.cluster.publish(&SOLO.service(), &[leaving, two.clone()])?;
    let wanted = two.ips.iter().copied().collect();
    world.cluster.nodes().iter().try_for_each(|node| world.await_backends(node, SOLO, &wanted))?;
    for to in [SOLO.published(world.cluster.node(1).ip4()), SOLO.published(world.cluster.node(3).ip6())] {
        for _ in 0..5 {
            assert_eq!(Ask::new(to).tcp(world.cluster.client())?.server, "web-2");
        }
    }
    wait_all(&loads, 50)?;
    for (who, load) in loads {
        let report = load.stop();
        report.assert_clean();
        assert_eq!(report.by_backend.into_keys().collect::<Vec<_>>(), ["web-1"], "{who}");
    }
    world.publish(SOLO, &[two])
}

/// Its process is killed: the connections break at once, by its own kernel, and so does a new one.
#[test]
fn fault_083_a_backend_whose_process_dies_breaks_its_connections_at_once() -> Result<()> {
    let mut world = World::start(strict())?;
    let loads = streams(&world)?;
    wait_all(&loads, 10)?;
    let start = Instant::now();
    world.web1.stop_server();
    for (who, load) in &loads {
        let report = load.wait_until(LIMIT, |report| report.resets >= 2 && report.refused >= 2)?;
        assert_eq!((report.lost, report.misdelivered), (0, 0), "{who}: {report}");
    }
    let took = start.elapsed();
    assert!(took < patient(Duration::from_secs(1)), "broken and refused after {took:?}");
    Ok(())
}

/// Its whole node dies, and the cluster says so: new connections avoid it, also those of services that have many
/// backends, by one write; old ones that get no answer are reset in seconds, not after the quarter of an hour that TCP
/// would try; those of others do not notice.
#[test]
fn fault_084_a_node_that_dies() -> Result<()> {
    let world = World::start(strict())?;
    let _helper = helper(&world, 3)?;
    let two = world.cluster.node(2);
    let client = world.cluster.client();
    // One that lives, of each kind, and one to the node that will die.
    let place = world.visitor.place();
    let through = |name: &str, open: &dyn Fn() -> Result<Talk>, place| -> Result<Talk> {
        loop {
            let talk = open()?;
            if talk.ask(place)?.is_ok_and(|by| by == name) {
                return Ok(talk);
            }
        }
    };
    let pods = || Talk::stream(place, WEB.cluster(true));
    let outsiders = || Talk::stream(client, WEB.published(world.cluster.node(1).ip4()));
    let [alive, dead] = ["web-1", "web-2"].map(|name| through(name, &pods, place));
    let (alive, dead) = (alive?, dead?);
    let [outer_alive, outer_dead] = ["web-1", "web-2"].map(|name| through(name, &outsiders, client));
    let (outer_alive, outer_dead) = (outer_alive?, outer_dead?);
    let datagrams = through("web-2", &|| Talk::datagrams(place, WEB.cluster(true)), place)?;

    two.run("ip link set eth0 down")?;
    let ready = "  conditions:\n    - type: Ready\n      status: Unknown\n";
    world.cluster.manifests().put("node-n2.yaml", &(node_yaml(two) + ready))?;
    let start = Instant::now();
    for node in [1, 3] {
        let node = world.cluster.node(node);
        heddle_lab::eventually("node n2 is down", LIMIT, || {
            Ok(list(&status(node)?["nodes"]).iter().any(|n| n["name"] == "n2" && n["down"] == true))
        })?;
    }
    for _ in 0..20 {
        for to in [WEB.published(world.cluster.node(1).ip4()), WEB.published(world.cluster.node(3).ip4())] {
            assert_eq!(Ask::new(to).tcp(client)?.server, "web-1");
        }
        assert_eq!(Ask::new(WEB.cluster(true)).tcp(place)?.server, "web-1");
    }
    datagrams.assert_ended();
    let waits = [(&dead, place), (&outer_dead, client.place())];
    std::thread::scope(|scope| -> Result<()> {
        let ends = waits.map(|(talk, place)| {
            scope.spawn(move || -> Result<Option<ErrorKind>> {
                // The connection may be tried longer than one question waits for its answer.
                let end = Instant::now() + patient(LIMIT);
                loop {
                    match talk.ask(place)? {
                        Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < end => {}
                        other => return Ok(other.err().map(|e| e.kind())),
                    }
                }
            })
        });
        let [inner, outer] = ends.map(|end| end.join().expect("it does not panic"));
        assert_eq!(inner?, Some(ErrorKind::ConnectionAborted), "the pod's");
        assert_eq!(outer?, Some(ErrorKind::ConnectionReset), "the outside client's");
        Ok(())
    })?;
    let took = start.elapsed();
    assert!(took < patient(LIMIT), "{took:?}");
    alive.assert_by(place, "web-1")?;
    outer_alive.assert_by(client, "web-1")
}
