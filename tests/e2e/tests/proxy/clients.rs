//! Who asks, and by which way the answer comes: this node past the socket hooks, clients of external addresses, `dsr`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use heddle_lab::addresses::cluster_ip;
use heddle_lab::{Ask, Firewall, Lab, Proto, Result, Service, eventually};

use crate::world::{BY, HOST, SOLO, WEB, World, ask, servers, strict};

const FAMILIES: [bool; 2] = [true, false];

/// Processes of the nodes that no socket hook sees reach ClusterIPs: backends here, on another node, in the host
/// network of another one and of their own. (They need a way to send to a ClusterIP at all: a default route.)
fn own_packets(rp_filter: u8) -> Result<()> {
    let world = World::start_unhooked(Lab::builder().firewall(Firewall::Strict).rp_filter(rp_filter))?;
    for v4 in FAMILIES {
        for node in world.cluster.nodes() {
            for by in BY {
                let who = format!("{} by {by:?}, v4 {v4}", node.name());
                // Enough that chance leaves none of the two out.
                let replies = ask(40, by, WEB.cluster(v4), node)?;
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{who}");
                assert_eq!(servers(&ask(2, by, SOLO.cluster(v4), node)?), ["web-1"].into(), "{who}");
                assert_eq!(servers(&ask(2, by, HOST.cluster(v4), node)?), ["host-2"].into(), "{who}");
            }
            // A port that the service does not have is refused at once, to the node as well.
            let undefined = SocketAddr::new(WEB.cluster(v4).ip(), 81);
            let error = Ask::new(undefined).tcp(node).expect_err("nobody is there").to_string();
            assert!(error.contains("refused"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn the_nodes_own_packets_rp_filter_0() -> Result<()> {
    own_packets(0)
}

#[test]
fn the_nodes_own_packets_rp_filter_1() -> Result<()> {
    own_packets(1)
}

#[test]
fn the_nodes_own_packets_rp_filter_2() -> Result<()> {
    own_packets(2)
}

fn external(v4: bool) -> IpAddr {
    if v4 { [203, 0, 113, 7].into() } else { "2001:db8:7::7".parse().expect("an address") }
}

/// A client outside asks an external address by every node; the backends, on two of them, see its own address.
fn external_addresses(remote: &str) -> Result<()> {
    let args =
        ["--remote", remote, "--external-range", "203.0.113.0/24", "--external-range", "2001:db8:7::/64"];
    let world = World::start_with(strict().rp_filter(1), &args)?;
    let service = Service::new("public")
        .cluster_ip(cluster_ip(20, true))
        .cluster_ip(cluster_ip(20, false))
        .spec("externalIPs: [203.0.113.7, \"2001:db8:7::7\"]")
        .port("tcp", Proto::Tcp, 80, WEB.target)
        .port("udp", Proto::Udp, 80, WEB.target);
    world.cluster.publish(&service, &[world.web1.endpoint(), world.web2.endpoint()])?;
    let client = world.cluster.client();
    for v4 in FAMILIES {
        let at = SocketAddr::new(external(v4), 80);
        let len = if v4 { 32 } else { 128 };
        // The address has been given to these nodes, by whom it may concern.
        world.cluster.switch().admit(at.ip())?;
        for node in world.cluster.nodes() {
            client.run(format!("ip route replace {}/{len} via {}", at.ip(), node.ip(v4)).as_str())?;
            eventually("an answer", Duration::from_secs(20), || Ok(Ask::new(at).tcp(client).is_ok()))?;
            for by in BY {
                let replies = ask(20, by, at, client)?;
                let way = format!("through {} by {by:?}, {remote}", node.name());
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{way}");
                for reply in &replies {
                    assert_eq!(reply.client, reply.local, "{way}: the client's own address and port");
                }
            }
            // Pods are inside, whatever the address.
            let replies = ask(40, BY[0], at, world.visitor.place())?;
            assert_eq!(servers(&replies), ["web-1", "web-2"].into());
        }
    }
    Ok(())
}

#[test]
fn external_addresses_by_tunnel() -> Result<()> {
    external_addresses("tunnel")
}

#[test]
fn external_addresses_by_dsr() -> Result<()> {
    external_addresses("dsr")
}

/// Node ports by `dsr`: backends in pods and in the host network, every node as the entry.
#[test]
fn node_ports_by_dsr() -> Result<()> {
    let world = World::start_with(strict().rp_filter(1).default_route(true), &["--remote", "dsr"])?;
    crate::everywhere::from_outside(&world)?;
    crate::everywhere::host_network(&world, &[])
}
