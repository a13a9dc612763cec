//! An address that changes its meaning: what is for one service never reaches another's backends, nor somebody who is no
//! backend any more.

use std::net::SocketAddr;
use std::time::Duration;

use heddle_lab::{Ask, Load, Place, Proto, Result, Running, eventually};

use crate::stale::Talk;
use crate::world::{By, Named, SOLO, World, strict};

const LIMIT: Duration = Duration::from_secs(20);
/// Takes over what SOLO had.
const HEIR: Named = Named { name: "heir", ..SOLO };

/// SOLO without addresses.
const HEADLESS: &str = "apiVersion: v1
kind: Service
metadata:
  name: solo
  namespace: default
spec:
  clusterIP: None
  clusterIPs: [None]
  ports:
    - name: tcp
      port: 80
      targetPort: 8080
";

/// SOLO somewhere else.
const ELSEWHERE: &str = "apiVersion: v1
kind: Service
metadata:
  name: solo
  namespace: default
spec:
  type: ExternalName
  externalName: example.org
";

struct Asked<'a> {
    place: &'a Place,
    to: SocketAddr,
}

fn asked(world: &World) -> Vec<Asked<'_>> {
    let client = world.cluster.client().place();
    vec![
        Asked { place: client, to: SOLO.published(world.cluster.node(1).ip4()) },
        Asked { place: client, to: SOLO.published(world.cluster.node(3).ip6()) },
        Asked { place: world.visitor.place(), to: SOLO.cluster(true) },
        Asked { place: world.visitor.place(), to: SOLO.cluster(false) },
    ]
}

/// Continuous clients of all of them; `servers`: who may answer at all.
fn loads(world: &World, servers: &[&str]) -> Result<Vec<Running>> {
    let limit = Duration::from_millis(500);
    let mut loads = Vec::new();
    for Asked { place, to } in asked(world) {
        for load in [Load::connects(to), Load::unconnected_datagrams(to)] {
            loads.push(load.rate(100).limit(limit).expect(servers.iter().copied()).start(place)?);
        }
    }
    Ok(loads)
}

fn await_server(world: &World, by: By, server: &str) -> Result<()> {
    asked(world).iter().try_for_each(|Asked { place, to }| {
        eventually(&format!("{server} at {to} by {by:?}"), LIMIT, || {
            Ok(by.ask(Ask::new(*to).limit(Duration::from_millis(300)), place)?.server == server)
        })
    })
}

fn await_nobody(world: &World, by: By) -> Result<()> {
    asked(world).iter().try_for_each(|Asked { place, to }| {
        eventually(&format!("nobody at {to} by {by:?}"), LIMIT, || {
            Ok(by.ask(Ask::new(*to).limit(Duration::from_millis(100)), place).is_err())
        })
    })
}

#[test]
fn fault_089_a_service_that_changes_its_kind_reaches_nobody_else() -> Result<()> {
    let world = World::start(strict())?;
    let manifests = world.cluster.manifests();
    let one = [world.web1.endpoint()];
    let loads = loads(&world, &["web-1"])?;
    for by in [By::Tcp, By::Udp] {
        await_server(&world, by, "web-1")?;
    }
    for other in [HEADLESS, ELSEWHERE] {
        manifests.put("service-solo.yaml", other)?;
        for by in [By::Tcp, By::Udp] {
            await_nobody(&world, by)?;
        }
        manifests.service(&SOLO.service())?;
        for by in [By::Tcp, By::Udp] {
            await_server(&world, by, "web-1")?;
        }
    }
    // Its ports get other names, in the service and in the slice: connections do not notice.
    let stream = Talk::stream(&world.visitor, SOLO.cluster(true))?;
    stream.assert_by(&world.visitor, "web-1")?;
    let mut renamed = SOLO.service();
    for (port, name) in renamed.ports.iter_mut().zip(["stream", "letter"]) {
        port.name = name.into();
    }
    world.cluster.publish(&renamed, &one)?;
    for by in [By::Tcp, By::Udp] {
        await_server(&world, by, "web-1")?;
    }
    stream.assert_by(&world.visitor, "web-1")?;
    // It speaks UDP alone.
    let mut letters = renamed.clone();
    letters.ports.retain(|port| port.proto == Proto::Udp);
    world.cluster.publish(&letters, &one)?;
    await_nobody(&world, By::Tcp)?;
    await_server(&world, By::Udp, "web-1")?;
    for load in loads {
        let report = load.stop();
        assert_eq!(report.misdelivered, 0, "{report}");
        assert!(report.received > 0, "{report}");
    }
    Ok(())
}

/// Its ClusterIPs and node ports are another's in one step, there and back: connections of before end, none of them is
/// ever answered by the other's backends.
#[test]
fn fault_089_addresses_go_to_another_service_at_once() -> Result<()> {
    let world = World::start(strict())?;
    let _helper = crate::stale::helper(&world, 3)?;
    let manifests = world.cluster.manifests();
    let ends = [(SOLO, world.web1.endpoint(), "web-1"), (HEIR, world.web2.endpoint(), "web-2")];
    let loads = loads(&world, &["web-1", "web-2"])?;
    for round in 0..4 {
        let (old, _, server) = &ends[round % 2];
        let (new, endpoint, heir) = &ends[(round + 1) % 2];
        await_server(&world, By::Tcp, server)?;
        await_server(&world, By::Udp, server)?;
        let streams: Vec<_> = asked(&world)
            .into_iter()
            .map(|Asked { place, to }| Ok((place, Talk::stream(place, to)?)))
            .collect::<Result<_>>()?;
        streams.iter().try_for_each(|(place, talk)| talk.assert_by(place, server))?;
        manifests.remove(&format!("service-{}.yaml", old.name))?;
        world.cluster.publish(&new.service(), std::slice::from_ref(endpoint))?;
        await_server(&world, By::Tcp, heir)?;
        await_server(&world, By::Udp, heir)?;
        for (place, talk) in &streams {
            // One that the socket hook made ends when the helper has come round.
            eventually("the end of a connection of before", LIMIT, || {
                let answer = talk.ask(place)?;
                assert_ne!(answer.as_deref().ok(), Some(*heir), "{talk:?} of {server}");
                Ok(answer.is_err())
            })?;
        }
    }
    for load in loads {
        let report = load.stop();
        assert_eq!(report.misdelivered, 0, "{report}");
    }
    Ok(())
}
