//! Daemons die, services change: traffic goes on.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::slice::from_ref;
use std::time::{Duration, Instant};

use heddle_lab::traffic::connect;
use heddle_lab::{Condition, Error, Load, Place, Result, Running};

use crate::world::{SOLO, WEB, World, list, status, strict};

const LIMIT: Duration = Duration::from_secs(30);

/// Continuous clients of WEB: from outside through each node, and from a pod.
fn loads(world: &World, servers: &[&str]) -> Result<Vec<Running>> {
    let client = world.cluster.client();
    let mut loads = Vec::new();
    for node in world.cluster.nodes() {
        let to = WEB.published(node.ip4());
        loads.push(Load::connects(to).rate(100).expect(servers.iter().copied()).start(client)?);
    }
    let to = WEB.published(world.cluster.node(3).ip6());
    loads.push(Load::connects(to).rate(100).expect(servers.iter().copied()).start(client)?);
    loads.push(
        Load::connects(WEB.cluster(true)).rate(100).expect(servers.iter().copied()).start(&world.visitor)?,
    );
    loads.push(Load::streams(WEB.published(world.cluster.node(3).ip4()), 4).rate(50).start(client)?);
    loads.push(Load::datagrams(WEB.published(world.cluster.node(3).ip4())).rate(100).start(client)?);
    loads.push(Load::unconnected_datagrams(WEB.cluster(true)).rate(100).start(&world.visitor)?);
    Ok(loads)
}

fn wait_all(loads: &[Running], count: u64) -> Result<()> {
    loads.iter().try_for_each(|load| load.wait_for(count, LIMIT).map(drop))
}

fn stop_clean(loads: Vec<Running>) {
    for load in loads {
        load.stop().assert_clean();
    }
}

#[test]
fn proxy_killed_under_load() -> Result<()> {
    let mut world = World::start(strict())?;
    let loads = loads(&world, &["web-1", "web-2"])?;
    wait_all(&loads, 50)?;
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
    }
    wait_all(&loads, 100)?;
    let before: Vec<_> = world.cluster.nodes().iter().map(|node| status(node)).collect::<Result<_>>()?;
    for node in 1..=3 {
        world.cluster.start_daemon_on(node, "proxyd")?;
    }
    wait_all(&loads, 50)?;
    // The restarted daemons have adopted everything: the same tables, the same numbers of flows and more.
    for (node, before) in world.cluster.nodes().iter().zip(&before) {
        let after = status(node)?;
        assert_eq!(without_flows(&before["frontends"]), without_flows(&after["frontends"]));
        assert_eq!(list(&before["hooks"]).len(), list(&after["hooks"]).len());
        let count = |status: &serde_json::Value| status["counters"]["request"].as_u64();
        assert!(count(&after) >= count(before), "counters go on");
    }
    for node in 1..=3 {
        world.cluster.stop_daemon(node, "proxyd")?;
    }
    wait_all(&loads, 50)?;
    stop_clean(loads);
    Ok(())
}

/// Frontends and backends, without what they have to do at the moment.
fn without_flows(frontends: &serde_json::Value) -> serde_json::Value {
    let mut frontends = frontends.clone();
    for frontend in frontends.as_array_mut().into_iter().flatten() {
        for backend in frontend["backends"].as_array_mut().into_iter().flatten() {
            backend["flows"].take();
        }
    }
    frontends
}

#[test]
fn proxy_scaled_under_load() -> Result<()> {
    let world = World::start(strict())?;
    let web3 = world.cluster.backend(3, "web-3", WEB.target)?;
    let loads = loads(&world, &["web-1", "web-2", "web-3"])?;
    let (loads, others) = {
        let mut loads = loads;
        // Streams and connected datagrams stay with their backend, and end with it.
        let others = loads.split_off(5);
        (loads, others)
    };
    drop(others);
    let [one, two, three] = [world.web1.endpoint(), world.web2.endpoint(), web3.endpoint()];
    let leaving = |endpoint: &heddle_lab::Endpoint| endpoint.clone().condition(Condition::Terminating);
    wait_all(&loads, 20)?;
    for _ in 0..3 {
        world.publish(WEB, &[one.clone(), two.clone(), three.clone()])?;
        wait_all(&loads, 20)?;
        // As a cluster does it: first no new flows, and when those under way have ended, gone.
        drain(&world, from_ref(&one), &[leaving(&two), leaving(&three)])?;
        wait_all(&loads, 20)?;
        world.publish(WEB, from_ref(&one))?;
        wait_all(&loads, 20)?;
        world.publish(WEB, &[one.clone(), two.clone()])?;
        wait_all(&loads, 20)?;
        drain(&world, from_ref(&two), &[leaving(&one)])?;
        wait_all(&loads, 20)?;
        world.publish(WEB, from_ref(&two))?;
        wait_all(&loads, 20)?;
    }
    stop_clean(loads);
    Ok(())
}

/// Declares `stay` and `leave` and waits until nobody gives new flows to those that leave.
fn drain(world: &World, stay: &[heddle_lab::Endpoint], leave: &[heddle_lab::Endpoint]) -> Result<()> {
    world.cluster.publish(&WEB.service(), &[stay, leave].concat())?;
    let wanted = stay.iter().flat_map(|e| e.ips.iter().copied()).collect();
    world.cluster.nodes().iter().try_for_each(|node| world.await_backends(node, WEB, &wanted))
}

/// A datagram conversation moves to another backend when its own goes: from outside (conntrack), from a
/// pod's unconnected socket.
#[test]
fn proxy_udp_moves() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let both = [(world.web1.endpoint(), "web-1"), (world.web2.endpoint(), "web-2")];
    let starts: [(&str, &dyn Fn() -> Result<Running>); 3] = [
        ("outside, local", &|| Load::datagrams(WEB.published(world.cluster.node(1).ip4())).start(client)),
        ("outside, through n3", &|| {
            Load::datagrams(WEB.published(world.cluster.node(3).ip6())).start(client)
        }),
        ("a pod", &|| Load::unconnected_datagrams(WEB.cluster(true)).start(&world.visitor)),
    ];
    for (who, start) in starts {
        let load = start()?;
        let first = load.wait_for(20, LIMIT)?;
        assert_eq!(first.by_backend.len(), 1, "{who}: a conversation has one backend: {first}");
        let (_, stays) = both
            .iter()
            .find(|(_, name)| !first.by_backend.contains_key(*name))
            .expect("two backends, one of them answers");
        let rest: Vec<_> = both.iter().filter(|(_, name)| name == stays).map(|(e, _)| e.clone()).collect();
        world.publish(WEB, &rest)?;
        // With its next datagram, not when the flow is collected some seconds later.
        let start = Instant::now();
        let moved = load.wait_until(LIMIT, |report| report.by_backend.contains_key(*stays))?;
        assert!(start.elapsed() < Duration::from_secs(1), "{who}: moved after {:?}", start.elapsed());
        assert_eq!(moved.misdelivered, 0, "{who}: {moved}");
        drop(load);
        world.publish(WEB, &both.clone().map(|(endpoint, _)| endpoint))?;
    }
    Ok(())
}

/// A connection whose backend was removed is reset by its next segment, not left to wait.
#[test]
fn proxy_tcp_to_a_removed_backend_is_reset() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for v4 in [true, false] {
        for node in world.cluster.nodes() {
            world.publish(SOLO, &[world.web1.endpoint()])?;
            let to = SOLO.published(node.ip(v4));
            let stream = client.enter(|| connect(to, None, Duration::from_secs(2)))?;
            let stream = stream.map_err(|e| Error::Oracle(format!("{to}: {e}")))?;
            let say = |place: &Place| -> Result<io::Result<String>> {
                place.enter(|| {
                    (&stream).write_all(b"hello\n")?;
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line)?;
                    Ok(line)
                })
            };
            let answer = say(client)?.map_err(|e| Error::Oracle(format!("{to}: {e}")))?;
            assert!(answer.starts_with("web-1 "), "{answer}");
            world.publish(SOLO, &[])?;
            let start = Instant::now();
            let error = say(client)?.expect_err("the backend is gone");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "through {}: {error}", node.name());
            assert!(start.elapsed() < Duration::from_millis(500), "after {:?}", start.elapsed());
        }
    }
    Ok(())
}
