//! Every kind of service, from everywhere, TCP and UDP, IPv4 and IPv6.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use heddle_lab::{Ask, Place, Result};

use crate::world::{BY, By, HOST, NONE, SOLO, WEB, World, ask, assert_no_foreign, servers, strict};

const FAMILIES: [bool; 2] = [true, false];

#[test]
fn proxy_rp_filter_0() -> Result<()> {
    everything(0)
}

#[test]
fn proxy_rp_filter_1() -> Result<()> {
    everything(1)
}

#[test]
fn proxy_rp_filter_2() -> Result<()> {
    everything(2)
}

fn everything(rp_filter: u8) -> Result<()> {
    let world = World::start(strict().rp_filter(rp_filter))?;
    from_inside(&world)?;
    from_outside(&world)?;
    let insiders: Vec<&Place> = world.insiders().iter().map(|(place, _)| *place).collect();
    host_network(&world, &insiders)?;
    hairpin(&world, |ip| ip)?;
    nobody(&world, &insiders)?;
    assert_no_foreign(&world.cluster)
}

/// ClusterIP and node port of every node, from every pod and every node's own processes: both backends
/// answer, and see a pod's own address.
pub fn from_inside(world: &World) -> Result<()> {
    for (place, own) in world.insiders() {
        for v4 in FAMILIES {
            let nodes = world.cluster.nodes().iter().map(|node| WEB.published(node.ip(v4)));
            for to in nodes.chain([WEB.cluster(v4)]) {
                for by in BY {
                    let replies = ask(20, by, to, place)?;
                    let who = format!("{} -> {to} by {by:?}", place.name());
                    assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{who}");
                    if let Some((ip4, ip6)) = own {
                        let own = if v4 { ip4 } else { ip6 };
                        let seen = |reply: &heddle_lab::Reply| reply.client.ip();
                        let foreign: Vec<_> =
                            replies.iter().filter(|r| seen(r) != own && !is_self(r, place)).collect();
                        assert!(foreign.is_empty(), "{who} seen as {foreign:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// A pod that reaches itself may be seen by the address of the hairpin.
fn is_self(reply: &heddle_lab::Reply, place: &Place) -> bool {
    place.name().ends_with(&format!("/{}", reply.server))
}

/// The published port through every node's address: all backends answer, and see the client's own address,
/// wherever they are.
pub fn from_outside(world: &World) -> Result<()> {
    let client = world.cluster.client();
    for v4 in FAMILIES {
        for node in world.cluster.nodes() {
            for by in BY {
                let replies = ask(20, by, WEB.published(node.ip(v4)), client)?;
                let way = format!("through {} by {by:?}, v4 {v4}", node.name());
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{way}");
                for reply in &replies {
                    assert_eq!(reply.client, reply.local, "{way}: the client's own address and port");
                    assert_eq!(reply.client.ip(), client.ip(v4), "{way}");
                }
            }
        }
    }
    Ok(())
}

/// A backend in the host network: of the node that the client talks to, and of another.
pub fn host_network(world: &World, insiders: &[&Place]) -> Result<()> {
    let client = world.cluster.client();
    for v4 in FAMILIES {
        for by in BY {
            for node in world.cluster.nodes() {
                for reply in ask(3, by, HOST.published(node.ip(v4)), client)? {
                    assert_eq!(reply.server, "host-2");
                    assert_eq!(reply.client, reply.local, "through {} by {by:?}", node.name());
                }
            }
            for place in insiders {
                for reply in ask(2, by, HOST.cluster(v4), place)? {
                    assert_eq!(reply.server, "host-2", "from {}", place.name());
                }
            }
        }
    }
    Ok(())
}

/// A pod reaches itself through its own service. `seen`: the address that it sees itself by.
pub fn hairpin(world: &World, seen: impl Fn(IpAddr) -> IpAddr) -> Result<()> {
    let pod = world.web1.pod();
    for v4 in FAMILIES {
        let own = if v4 { pod.ip4() } else { pod.ip6() };
        for by in BY {
            for to in [SOLO.cluster(v4), SOLO.published(world.cluster.node(1).ip(v4))] {
                for reply in ask(3, by, to, pod)? {
                    assert_eq!(reply.server, "web-1");
                    assert_eq!(reply.client.ip(), seen(own), "{to} by {by:?}");
                }
            }
        }
    }
    Ok(())
}

/// A service without backends says so at once: RST to TCP, ICMP port unreachable to UDP.
pub fn nobody(world: &World, insiders: &[&Place]) -> Result<()> {
    let client = world.cluster.client();
    for v4 in FAMILIES {
        for by in BY {
            for node in world.cluster.nodes() {
                refused(by, Ask::new(NONE.published(node.ip(v4))), client)?;
            }
            for place in insiders {
                refused(by, Ask::new(NONE.cluster(v4)), place)?;
            }
        }
    }
    Ok(())
}

fn refused(by: By, ask: Ask, place: &Place) -> Result<()> {
    // The first may wait for a neighbour's address.
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        let error = by.ask(ask, place).expect_err("nobody is there");
        assert_eq!(error.kind(), Some(ErrorKind::ConnectionRefused), "{error}");
        shortest = shortest.min(start.elapsed());
    }
    assert!(shortest < Duration::from_millis(100), "{ask:?} by {by:?} refused after {shortest:?}");
    Ok(())
}
