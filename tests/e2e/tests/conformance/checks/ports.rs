//! Host ports: the capability `portMappings` (conventions), as the plugin portmap has it.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{HOST4, HOST6, Stage, ips, said};
use crate::subject::{Check, WIRED};
use crate::traffic::{self, Echo, tcp, udp};

pub const CHECKS: &[Check] = &[
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached from outside",
        run: outside,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached from outside over IPv6",
        run: outside6,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "who comes from outside is seen with its own address",
        run: own_address,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a UDP port is reached from outside",
        run: datagrams,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached from the node by its own address",
        run: from_the_node,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached from another pod by the node's address",
        run: from_a_pod,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached from the node and from another pod over IPv6",
        run: from_here6,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port is reached by the pod itself by the node's address (hairpin)",
        run: hairpin,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port with a hostIP is reached by that address only",
        run: one_address,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "two ports of one pod",
        run: two_ports,
    },
    Check {
        section: "CVE-2025-67499",
        parts: WIRED,
        name: "a packet that passes through the node to the same port elsewhere is left alone",
        run: third_party,
    },
    Check {
        section: "CVE-2019-9946",
        parts: WIRED,
        name: "a pod's packet to the same port of a machine outside is left alone",
        run: out_of_a_pod,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a port that another pod has is refused",
        run: taken,
    },
    Check {
        section: "conventions: portMappings",
        parts: WIRED,
        name: "a protocol that does not exist is refused",
        run: no_protocol,
    },
    Check { section: "2 DEL", parts: WIRED, name: "after DEL a host port is closed", run: closed },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after DEL of a pod with host ports nothing is left",
        run: nothing_left,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after DEL without prevResult a host port is closed",
        run: closed_without_result,
    },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "CHECK finds that the rules of a host port are gone",
        run: rules_gone,
    },
];

const PORT: u16 = 8080;

fn mapping(container: u16, protocol: &str) -> Value {
    json!([{"hostPort": PORT, "containerPort": container, "protocol": protocol}])
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// A pod whose server is reached at the host's port 8080.
fn published(stage: &Stage, base: List, protocol: &str, family: usize) -> Result<(Pod, Echo, List, Value)> {
    let pod = Pod::new("server");
    // The server's port must be known before its address is.
    let any: IpAddr = if family == 0 { "0.0.0.0".parse()? } else { "::".parse()? };
    let echo = Echo::new(&pod.ns, any);
    let list = stage.with_ports(base, mapping(echo.at.port(), protocol));
    let result = stage.add(&pod, &list)?;
    stage.await_addresses(&[&pod])?;
    Ok((pod, echo, list, result))
}

fn outside(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let _server = published(stage, stage.list(), "tcp", 0)?;
    tcp(&outside.ns, at(HOST4, PORT)).map(drop).map_err(Into::into)
}

fn outside6(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let _server = published(stage, stage.dual(), "tcp", 1)?;
    tcp(&outside.ns, at(HOST6, PORT)).map(drop).map_err(Into::into)
}

fn own_address(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let _server = published(stage, stage.list(), "tcp", 0)?;
    let seen = tcp(&outside.ns, at(HOST4, PORT))?;
    ensure!(seen == crate::stage::OUTSIDE4, "it is seen as {seen}");
    Ok(())
}

fn datagrams(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let _server = published(stage, stage.list(), "udp", 0)?;
    udp(&outside.ns, at(HOST4, PORT)).map(drop).map_err(Into::into)
}

fn from_the_node(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    let _server = published(stage, stage.list(), "tcp", 0)?;
    tcp(&stage.host.ns, at(HOST4, PORT)).map(drop).map_err(Into::into)
}

fn from_a_pod(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    let _server = published(stage, stage.list(), "tcp", 0)?;
    let other = Pod::new("other");
    stage.add(&other, &stage.list())?;
    tcp(&other.ns, at(HOST4, PORT)).map(drop).map_err(Into::into)
}

fn from_here6(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    let _server = published(stage, stage.dual(), "tcp", 1)?;
    tcp(&stage.host.ns, at(HOST6, PORT)).context("from the node")?;
    let other = Pod::new("other");
    stage.add(&other, &stage.dual())?;
    stage.await_addresses(&[&other])?;
    tcp(&other.ns, at(HOST6, PORT)).map(drop).context("from another pod")
}

fn hairpin(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    // The reference bridge lets frames back out of the port they came from only if it is told so.
    let base = if stage.ptp() { stage.list() } else { stage.list().with("hairpinMode", json!(true)) };
    let (pod, _echo, ..) = published(stage, base, "tcp", 0)?;
    tcp(&pod.ns, at(HOST4, PORT)).map(drop).map_err(Into::into)
}

fn one_address(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let pod = Pod::new("server");
    let echo = Echo::new(&pod.ns, "0.0.0.0".parse()?);
    let mut mappings = mapping(echo.at.port(), "tcp");
    mappings[0]["hostIP"] = json!("192.0.2.77");
    let mut host = stage.host.socket();
    let up0 = heddle_netlink::link::by_name(&mut host, "up0").unwrap().unwrap().index;
    heddle_netlink::addr::add(&mut host, &heddle_netlink::addr::Addr::new(up0, "192.0.2.77/24".parse()?))
        .unwrap();
    stage.add(&pod, &stage.with_ports(stage.list(), mappings))?;
    tcp(&outside.ns, at("192.0.2.77", PORT)).context("by that address")?;
    let other =
        outside.ns.run(|| std::net::TcpStream::connect_timeout(&at(HOST4, PORT), traffic::DEADLINE))?;
    ensure!(other.is_err(), "by another address too");
    Ok(())
}

fn two_ports(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let pod = Pod::new("server");
    let (first, second) = (Echo::new(&pod.ns, "0.0.0.0".parse()?), Echo::new(&pod.ns, "0.0.0.0".parse()?));
    let mappings = json!([
        {"hostPort": 8080, "containerPort": first.at.port(), "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": second.at.port(), "protocol": "udp"}
    ]);
    stage.add(&pod, &stage.with_ports(stage.list(), mappings))?;
    tcp(&outside.ns, at(HOST4, 8080)).context("the first")?;
    udp(&outside.ns, at(HOST4, 8081)).map(drop).context("the second")
}

/// A pod of another network on this host that listens at the published port itself.
fn elsewhere(stage: &Stage) -> Result<(Pod, IpAddr, std::net::TcpListener)> {
    let mut list = stage.list().ranges(json!([[{"subnet": "10.2.0.0/24"}]]));
    list.name = "elsewhere".into();
    if !stage.ptp() {
        list = list.with("bridge", json!("br1"));
    }
    let pod = Pod::new("elsewhere");
    let ip = ips(&stage.add(&pod, &list)?)[0];
    let listener = pod.ns.run(|| std::net::TcpListener::bind((ip, PORT)))??;
    Ok((pod, ip, listener))
}

fn third_party(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let (_pod, ip, listener) = elsewhere(stage)?;
    let (_server, echo, ..) = published(stage, stage.list(), "tcp", 0)?;
    let stream = outside
        .ns
        .run(|| std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, PORT), traffic::DEADLINE))?;
    stream.context("it does not get there")?;
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_ok(), "it ends at the pod that has the host port");
    drop(echo);
    Ok(())
}

fn out_of_a_pod(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let listener = outside.ns.run(|| std::net::TcpListener::bind((crate::stage::OUTSIDE4, PORT)))??;
    let _server = published(stage, stage.list(), "tcp", 0)?;
    let other = Pod::new("other");
    stage.add(&other, &stage.list())?;
    let to = at(crate::stage::OUTSIDE4, PORT);
    other
        .ns
        .run(|| std::net::TcpStream::connect_timeout(&to, traffic::DEADLINE))?
        .context("it does not get there")?;
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_ok(), "it ends at the pod that has the host port");
    Ok(())
}

fn taken(stage: &Stage) -> Result<()> {
    let _server = published(stage, stage.list(), "tcp", 0)?;
    let late = Pod::new("late");
    let answer = stage.try_add(&late, &stage.with_ports(stage.list(), mapping(80, "tcp")));
    ensure!(!answer.success, "ADD succeeds");
    ensure!(answer.msg().contains("8080"), "it says: {}", said(&answer));
    Ok(())
}

fn no_protocol(stage: &Stage) -> Result<()> {
    let answer =
        stage.try_add(&Pod::new("abc"), &stage.with_ports(stage.list(), mapping(80, "carrier-pigeon")));
    ensure!(!answer.success, "ADD succeeds");
    Ok(())
}

fn is_closed(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    let open =
        outside.ns.run(|| std::net::TcpStream::connect_timeout(&at(HOST4, PORT), traffic::DEADLINE))?;
    let refused = open.err().map(|error| error.kind());
    ensure!(refused == Some(std::io::ErrorKind::ConnectionRefused), "it is not: {refused:?}");
    Ok(())
}

fn closed(stage: &Stage) -> Result<()> {
    let (pod, _echo, list, result) = published(stage, stage.list(), "tcp", 0)?;
    stage.del(&pod, &list, Some(&result))?;
    is_closed(stage)
}

fn closed_without_result(stage: &Stage) -> Result<()> {
    let (pod, _echo, mut list, _) = published(stage, stage.list(), "tcp", 0)?;
    list.runtime.clear();
    stage.del(&pod, &list, None)?;
    is_closed(stage)
}

fn nothing_left(stage: &Stage) -> Result<()> {
    let list = stage.with_ports(stage.list(), mapping(80, "tcp"));
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    stage.nothing_more_than(&before)
}

fn rules_gone(stage: &Stage) -> Result<()> {
    let (pod, _echo, list, result) = published(stage, stage.list(), "tcp", 0)?;
    let whole = stage.check(&pod, &list, &result);
    ensure!(whole.success, "CHECK fails before: {}", said(&whole));
    let flushed = stage.host.ns.run(|| Command::new("nft").args(["flush", "ruleset"]).status())??;
    ensure!(flushed.success(), "nft flush ruleset");
    ensure!(!stage.check(&pod, &list, &result).success, "CHECK succeeds");
    Ok(())
}
