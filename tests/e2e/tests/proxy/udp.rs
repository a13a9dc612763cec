//! Datagrams follow their service: whatever became of a backend, the next one goes to a living one, and none to
//! somebody whom the service does not have.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use heddle_lab::{Condition, Endpoint, Load, Place, Result, Running, Service, patient};

use crate::world::{Named, SOLO, WEB, World, strict};

const LIMIT: Duration = Duration::from_secs(20);
const OTHER_PORT: u16 = 8081;

/// Everybody who asks SOLO, each from one socket: outside clients (the hooks of the devices) and a pod's socket that
/// is not connected.
struct Askers {
    loads: Vec<(&'static str, Running)>,
}

impl Askers {
    fn start(world: &World) -> Result<Self> {
        let client: &Place = world.cluster.client().place();
        let nodes = world.cluster.nodes();
        let to = |node: usize, v4| SOLO.published(nodes[node].ip(v4));
        let datagrams = |place: &Place, to: SocketAddr| {
            Load::datagrams(to).rate(200).limit(patient(Duration::from_millis(300))).start(place)
        };
        let letters = |to: SocketAddr| {
            let load = Load::unconnected_datagrams(to).rate(200).limit(patient(Duration::from_millis(300)));
            load.start(&world.visitor)
        };
        Ok(Self {
            loads: vec![
                ("outside, backend beside", datagrams(client, to(0, true))?),
                ("outside, through the tunnel", datagrams(client, to(2, false))?),
                ("a pod", letters(SOLO.cluster(true))?),
                ("a pod, IPv6", letters(SOLO.cluster(false))?),
            ],
        })
    }

    /// From now on only these may answer.
    fn expect(&self, servers: &[&str]) {
        self.loads.iter().for_each(|(_, load)| load.expect(servers.iter().copied()));
    }

    /// Waits until all are answered by `server`; how long the last one took since `start`.
    fn await_server(&self, server: &str, start: Instant) -> Result<Duration> {
        let count = |load: &Running| load.report().by_backend.get(server).copied().unwrap_or(0);
        let before: Vec<u64> = self.loads.iter().map(|(_, load)| count(load)).collect();
        for ((_, load), before) in self.loads.iter().zip(before) {
            load.wait_until(LIMIT, |report| report.by_backend.get(server).copied().unwrap_or(0) > before)?;
        }
        Ok(start.elapsed())
    }

    /// Waits until all are told that nobody is there.
    fn await_refused(&self) -> Result<()> {
        let before: Vec<u64> = self.loads.iter().map(|(_, load)| load.report().refused).collect();
        for ((_, load), before) in self.loads.iter().zip(before) {
            load.wait_until(LIMIT, |report| report.refused > before)?;
        }
        Ok(())
    }

    fn assert_nothing_misdelivered(self) {
        for (who, load) in self.loads {
            let report = load.stop();
            assert_eq!(report.misdelivered, 0, "{who}: {report}");
        }
    }
}

/// SOLO with its backends at another port.
fn retargeted(target: u16) -> Service {
    Named { target, ..SOLO }.service()
}

#[test]
fn fault_085_datagrams_follow_their_service() -> Result<()> {
    let world = World::start(strict())?;
    let [one, two] = [world.web1.endpoint(), world.web2.endpoint()];
    let askers = Askers::start(&world)?;
    askers.expect(&["web-1", "web-2"]);
    askers.await_server("web-1", Instant::now())?;
    let publish = |endpoints: &[Endpoint]| -> Result<Instant> {
        let start = Instant::now();
        world.cluster.publish(&SOLO.service(), endpoints)?;
        Ok(start)
    };

    // Its backend goes and another comes, in one step, there and back: from the manifest to the last of the askers it
    // takes no more than this, unless the machine has other things to do.
    let limit = patient(Duration::from_millis(100));
    let mut took = Vec::new();
    while took.iter().all(|took| *took > limit) && took.len() < 20 {
        took.push(askers.await_server("web-2", publish(std::slice::from_ref(&two))?)?);
        took.push(askers.await_server("web-1", publish(std::slice::from_ref(&one))?)?);
    }
    assert!(took.iter().any(|took| *took <= limit), "{took:?}");

    // From one to none, and back: no answer is left waiting for the flow of before.
    publish(&[])?;
    askers.await_refused()?;
    askers.await_server("web-1", publish(std::slice::from_ref(&one))?)?;

    // It is not ready any more: it may not answer, and must not be asked.
    let unready = one.clone().condition(Condition::NotReady);
    askers.await_server("web-2", publish(&[unready, two.clone()])?)?;
    let unready = two.clone().condition(Condition::NotReady);
    askers.await_server("web-1", publish(&[one.clone(), unready])?)?;

    // Another port of the same pod.
    let _other = world.web1.pod().serve("web-1-new", OTHER_PORT)?;
    askers.expect(&["web-1", "web-1-new"]);
    let start = Instant::now();
    world.cluster.publish(&retargeted(OTHER_PORT), std::slice::from_ref(&one))?;
    askers.await_server("web-1-new", start)?;
    askers.expect(&["web-1-new"]);
    askers.await_server("web-1-new", Instant::now())?;
    askers.assert_nothing_misdelivered();
    Ok(())
}

/// A service is deleted, and the address of its pod is another's at once, behind another service, at the same port.
#[test]
fn fault_085_an_address_that_is_used_again_gets_nothing_of_its_predecessor() -> Result<()> {
    let mut world = World::start(strict())?;
    let [one, two] = [world.web1.endpoint(), world.web2.endpoint()];
    world.publish(WEB, std::slice::from_ref(&two))?;
    let askers = Askers::start(&world)?;
    askers.expect(&["web-1"]);
    askers.await_server("web-1", Instant::now())?;

    world.cluster.manifests().remove("service-solo.yaml")?;
    world.cluster.manifests().remove("endpoints-solo.yaml")?;
    for node in world.cluster.nodes() {
        heddle_lab::eventually("no service solo", LIMIT, || {
            let status = crate::world::status(node)?;
            let frontends = crate::world::list(&status["frontends"]);
            Ok(!frontends.iter().any(|f| f["name"].as_str().is_some_and(|n| n.starts_with("default/solo:"))))
        })?;
    }
    // As if the pod had gone and another had come: the same address and port, another program.
    world.web1.stop_server();
    let _successor = world.web1.pod().serve("stranger", SOLO.target)?;
    world.publish(WEB, std::slice::from_ref(&one))?;
    let reply = heddle_lab::Ask::new(WEB.cluster(true)).udp(&world.visitor)?;
    assert_eq!(reply.server, "stranger");
    // The service comes back with another pod, at the same addresses.
    askers.expect(&["web-2"]);
    let before: Vec<u64> = askers.loads.iter().map(|(_, load)| load.report().sent).collect();
    world.publish(SOLO, std::slice::from_ref(&two))?;
    askers.await_server("web-2", Instant::now())?;
    assert!(askers.loads.iter().zip(before).all(|((_, load), before)| load.report().sent > before));
    askers.assert_nothing_misdelivered();
    Ok(())
}

/// proxyd is killed and started again: no conversation moves, none stops.
#[test]
fn fault_087_conversations_outlive_proxyd() -> Result<()> {
    let mut world = World::start(strict())?;
    world.publish(SOLO, &[world.web1.endpoint(), world.web2.endpoint()])?;
    let askers = Askers::start(&world)?;
    let mut partners = Vec::new();
    for (who, load) in &askers.loads {
        let report = load.wait_for(20, LIMIT)?;
        let mut by = report.by_backend.into_keys();
        partners.push(by.next().unwrap_or_default());
        assert_eq!(by.next(), None, "{who} has one backend");
    }
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
    }
    askers.loads.iter().try_for_each(|(_, load)| load.wait_for(20, LIMIT).map(drop))?;
    world.cluster.start_everywhere("proxyd")?;
    askers.loads.iter().try_for_each(|(_, load)| load.wait_for(20, LIMIT).map(drop))?;
    for ((who, load), partner) in askers.loads.into_iter().zip(partners) {
        let report = load.stop();
        report.assert_clean();
        assert_eq!(report.by_backend.into_keys().collect::<Vec<_>>(), [partner], "{who}");
    }
    Ok(())
}
