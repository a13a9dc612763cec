//! Keys of the bridge plugin, and masquerading, which ptp has too.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use heddle_netlink::link::{self, Bridge};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{Socket, addr};
use serde_json::json;

use crate::bench::Pod;
use crate::stage::{HOST4, HOST6, OUTSIDE4, OUTSIDE6, Stage, ips, said};
use crate::subject::{BRIDGE, Check, WIRED};
use crate::traffic::{Echo, tcp};

pub const CHECKS: &[Check] = &[
    Check { section: "bridge", parts: BRIDGE, name: "the bridge is made, and is up", run: made },
    Check { section: "bridge", parts: BRIDGE, name: "a bridge that is there is taken", run: taken },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "a device of the bridge's name that is none is refused",
        run: no_bridge,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "isGateway: the bridge has the gateway's address",
        run: gateway,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "isDefaultGateway: the pod has a default route to it",
        run: default_gateway,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "an address of the bridge in the same subnet is an error without forceAddress",
        run: other_address,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "forceAddress: the bridge's address in the same subnet is replaced",
        run: forced_address,
    },
    Check { section: "bridge", parts: BRIDGE, name: "hairpinMode is set at the pod's port", run: hairpin },
    Check { section: "bridge", parts: BRIDGE, name: "promiscMode is set at the bridge", run: promiscuous },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "hairpinMode and promiscMode together are refused",
        run: both_modes,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "macspoofchk: a frame with another Ethernet address is dropped",
        run: spoofed_mac,
    },
    Check {
        section: "2 DEL",
        parts: BRIDGE,
        name: "after DEL of a pod with macspoofchk nothing is left",
        run: nothing_of_macspoofchk,
    },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "portIsolation: pods do not reach each other, but the host",
        run: isolated,
    },
    Check { section: "bridge", parts: BRIDGE, name: "DEL leaves the bridge", run: bridge_stays },
    Check {
        section: "ptp, bridge",
        parts: WIRED,
        name: "ipMasq: outside the host's address is seen",
        run: masqueraded,
    },
    Check {
        section: "ptp, bridge",
        parts: WIRED,
        name: "ipMasq: outside the host's address is seen over IPv6",
        run: masqueraded6,
    },
    Check {
        section: "ptp, bridge",
        parts: WIRED,
        name: "ipMasq: a pod of the same network sees the pod's own address",
        run: not_masqueraded,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after DEL of a pod with ipMasq nothing is left",
        run: nothing_of_masquerading,
    },
];

/// Where the kernel filters VLANs at bridges (CONFIG_BRIDGE_VLAN_FILTERING).
pub const VLANS: &[Check] = &[
    Check { section: "bridge", parts: BRIDGE, name: "vlan: the pod's port is in that VLAN", run: vlan },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "vlan: two pods of different VLANs do not reach each other",
        run: vlans_apart,
    },
];

fn bridge(stage: &Stage) -> link::Link {
    link::by_name(&mut stage.host.socket(), "br0").unwrap().unwrap()
}

fn made(stage: &Stage) -> Result<()> {
    stage.add_one("abc", &stage.list())?;
    let bridge = bridge(stage);
    ensure!(bridge.kind.as_deref() == Some("bridge") && bridge.up, "it is no bridge, or down");
    Ok(())
}

fn prepare(stage: &Stage, address: Option<&str>) -> Socket {
    let mut host = stage.host.socket();
    link::create_bridge(&mut host, &Bridge { name: "br0", ..Bridge::default() }).unwrap();
    let index = bridge(stage).index;
    if let Some(address) = address {
        addr::add(&mut host, &addr::Addr::new(index, address.parse().unwrap())).unwrap();
    }
    host
}

fn taken(stage: &Stage) -> Result<()> {
    drop(prepare(stage, Some("192.0.2.99/24")));
    let before = bridge(stage).index;
    let result = stage.add_one("abc", &stage.list())?;
    ensure!(bridge(stage).index == before, "it is made anew");
    ensure!(stage.host_side(&result)?.master == Some(before), "the pod is not at it");
    Ok(())
}

fn no_bridge(stage: &Stage) -> Result<()> {
    let end = |name| link::VethEnd { name, ..link::VethEnd::default() };
    link::create_veth(&mut stage.host.socket(), &end("br0"), &end("far")).unwrap();
    let answer = stage.try_add(&Pod::new("abc"), &stage.list());
    ensure!(!answer.success, "ADD succeeds");
    ensure!(stage.leases().is_empty(), "an address stays leased");
    Ok(())
}

fn addresses(stage: &Stage) -> Vec<String> {
    let all = addr::list(&mut stage.host.socket(), Some(bridge(stage).index)).unwrap();
    all.iter().filter(|a| a.ip.is_ipv4()).map(|a| a.ip.to_string()).collect()
}

fn gateway(stage: &Stage) -> Result<()> {
    stage.add_one("abc", &stage.list())?;
    ensure!(addresses(stage) == ["10.1.0.1/24"], "it has {:?}", addresses(stage));
    Ok(())
}

fn default_gateway(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &stage.list().with("isDefaultGateway", json!(true)).ipam("routes", json!([])))?;
    let filter = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut pod.socket(), &filter).unwrap();
    let via = routes.iter().find(|route| route.dst.prefix() == 0 && route.dst.is_ipv4());
    ensure!(via.is_some_and(|route| route.gateway == "10.1.0.1".parse().ok()), "it has not");
    Ok(())
}

fn other_address(stage: &Stage) -> Result<()> {
    drop(prepare(stage, Some("10.1.0.99/24")));
    let answer = stage.try_add(&Pod::new("abc"), &stage.list());
    ensure!(!answer.success, "ADD succeeds");
    ensure!(answer.msg().contains("10.1.0.99"), "it is not named: {}", said(&answer));
    Ok(())
}

fn forced_address(stage: &Stage) -> Result<()> {
    drop(prepare(stage, Some("10.1.0.99/24")));
    stage.add_one("abc", &stage.list().with("forceAddress", json!(true)))?;
    ensure!(addresses(stage) == ["10.1.0.1/24"], "it has {:?}", addresses(stage));
    Ok(())
}

/// What `bridge -d link show` says of the pod's port.
fn port(stage: &Stage, result: &serde_json::Value) -> Result<String> {
    let near = stage.host_side(result)?;
    let show = ["-d", "link", "show", "dev", &near.name];
    let output = stage.host.ns.run(|| std::process::Command::new("bridge").args(show).output())??;
    Ok(String::from_utf8(output.stdout)?)
}

fn hairpin(stage: &Stage) -> Result<()> {
    let result = stage.add_one("abc", &stage.list().with("hairpinMode", json!(true)))?;
    ensure!(port(stage, &result)?.contains("hairpin on"), "it is off");
    Ok(())
}

fn promiscuous(stage: &Stage) -> Result<()> {
    stage.add_one("abc", &stage.list().with("promiscMode", json!(true)))?;
    ensure!(bridge(stage).promiscuous, "it is not");
    Ok(())
}

fn both_modes(stage: &Stage) -> Result<()> {
    let list = stage.list().with("promiscMode", json!(true)).with("hairpinMode", json!(true));
    ensure!(!stage.try_add(&Pod::new("abc"), &list).success, "ADD succeeds");
    Ok(())
}

fn vlan(stage: &Stage) -> Result<()> {
    let list = stage.list().with("vlan", json!(7)).with("isGateway", json!(false));
    let result = stage.add_one("abc", &list)?;
    let near = stage.host_side(&result)?;
    let show = ["-c", "vlan", "show", "dev", &near.name];
    let output = stage.host.ns.run(|| std::process::Command::new("bridge").args(show).output())??;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("7 PVID") || text.contains("7 PVID Egress Untagged"), "it is in none");
    Ok(())
}

fn vlans_apart(stage: &Stage) -> Result<()> {
    let list = |id: u16| {
        stage.list().with("vlan", json!(id)).with("isGateway", json!(false)).ipam("routes", json!([]))
    };
    let (one, same, other) = (Pod::new("one"), Pod::new("same"), Pod::new("other"));
    stage.add(&one, &list(7))?;
    let (near, far) = (ips(&stage.add(&same, &list(7))?)[0], ips(&stage.add(&other, &list(8))?)[0]);
    let echo = Echo::new(&same.ns, near);
    tcp(&one.ns, echo.at)?;
    let echo = Echo::new(&other.ns, far);
    let soon = std::time::Duration::from_millis(500);
    let reached = one.ns.run(|| std::net::TcpStream::connect_timeout(&echo.at, soon))?;
    ensure!(reached.is_err(), "they do");
    Ok(())
}

fn spoofed_mac(stage: &Stage) -> Result<()> {
    let list = stage.list().with("macspoofchk", json!(true));
    let (pod, other) = (Pod::new("abc"), Pod::new("other"));
    stage.add(&pod, &list)?;
    let echo = Echo::new(&other.ns, ips(&stage.add(&other, &list)?)[0]);
    tcp(&pod.ns, echo.at)?;
    let mut socket = pod.socket();
    let eth0 = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    let lie = link::Change { mac: Some([2, 0, 0, 0, 0, 9]), ..link::Change::default() };
    link::change(&mut socket, eth0, &lie).unwrap();
    let soon = std::time::Duration::from_millis(500);
    let reached = pod.ns.run(|| std::net::TcpStream::connect_timeout(&echo.at, soon))?;
    ensure!(reached.is_err(), "it passes");
    Ok(())
}

fn isolated(stage: &Stage) -> Result<()> {
    let list = stage.list().with("portIsolation", json!(true));
    let (pod, other) = (Pod::new("abc"), Pod::new("other"));
    stage.add(&pod, &list)?;
    let echo = Echo::new(&other.ns, ips(&stage.add(&other, &list)?)[0]);
    tcp(&stage.host.ns, echo.at)?;
    let soon = std::time::Duration::from_millis(500);
    let reached = pod.ns.run(|| std::net::TcpStream::connect_timeout(&echo.at, soon))?;
    ensure!(reached.is_err(), "they do");
    Ok(())
}

fn nothing_left(stage: &Stage, key: &str) -> Result<()> {
    let list = stage.list().with(key, json!(true));
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    stage.nothing_more_than(&before)
}

fn nothing_of_macspoofchk(stage: &Stage) -> Result<()> {
    nothing_left(stage, "macspoofchk")
}

fn nothing_of_masquerading(stage: &Stage) -> Result<()> {
    nothing_left(stage, "ipMasq")
}

fn bridge_stays(stage: &Stage) -> Result<()> {
    stage.settle(&stage.list())?;
    ensure!(link::by_name(&mut stage.host.socket(), "br0").unwrap().is_some(), "it is gone");
    Ok(())
}

/// What the machine outside sees of a pod whose network masquerades.
fn seen_outside(stage: &Stage, family: usize) -> Result<String> {
    let outside = stage.outside();
    let pod = Pod::new("abc");
    stage.add(&pod, &stage.dual().with("ipMasq", json!(true)))?;
    stage.await_addresses(&[&pod])?;
    let there: IpAddr = [OUTSIDE4, OUTSIDE6][family].parse()?;
    let echo = Echo::new(&outside.ns, there);
    Ok(tcp(&pod.ns, echo.at)?)
}

fn masqueraded(stage: &Stage) -> Result<()> {
    let seen = seen_outside(stage, 0)?;
    ensure!(seen == HOST4, "{seen} is seen");
    Ok(())
}

fn masqueraded6(stage: &Stage) -> Result<()> {
    let seen = seen_outside(stage, 1)?;
    ensure!(seen == HOST6, "{seen} is seen");
    Ok(())
}

fn not_masqueraded(stage: &Stage) -> Result<()> {
    let list = stage.list().with("ipMasq", json!(true));
    let (pod, other) = (Pod::new("abc"), Pod::new("other"));
    let own = ips(&stage.add(&pod, &list)?)[0];
    let echo = Echo::new(&other.ns, ips(&stage.add(&other, &list)?)[0]);
    let seen = tcp(&pod.ns, echo.at)?;
    ensure!(seen == own.to_string(), "it sees {seen}");
    Ok(())
}
