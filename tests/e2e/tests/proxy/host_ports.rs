//! Host ports on 127.0.0.1 and ::1: for the node's own processes, and for nobody else.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use etherparse::PacketBuilder;
use heddle_lab::traffic::datagram_socket;
use heddle_lab::{Ask, Cluster, Error, Lab, Place, Plan, Result, Server, eventually};
use heddle_netlink::packet::Frames;
use heddle_netlink::{MacAddr, Socket, link};
use serde_json::{Value, json};

use crate::world::{BY, By, list, status};

const PORT: u16 = 8080;
/// Of one address of the node.
const ONE: u16 = 8081;
const LIMIT: Duration = Duration::from_secs(20);

fn loopback(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    (ip, port).into()
}

/// One node; pods that are added there next publish these ports.
fn publish_next(cluster: &Cluster, ports: &Value) -> Result<()> {
    let node = cluster.node(1);
    let text = node.run("cat /run/elsewhere/10-heddle.conflist")?;
    let mut conf: Value = serde_json::from_str(&text).map_err(|e| Error::Oracle(format!("{e}: {text}")))?;
    conf["plugins"][0]["runtimeConfig"] = json!({ "portMappings": ports });
    node.write_conflist(&conf.to_string())
}

fn start() -> Result<Cluster> {
    // No firewall: it would hide what a neighbour can do.
    let lab = Lab::builder().nodes(1).build()?;
    for node in lab.nodes() {
        lab.manifests().node(node)?;
        node.run("mkdir /run/elsewhere")?;
    }
    let plan = ["--cni-conf-dir", "/run/elsewhere"].into_iter().fold(Plan::default(), Plan::vxland_arg);
    Cluster::on(lab, plan)
}

/// How many frontends of host ports the kernel holds.
fn frontends(node: &Place) -> Result<usize> {
    let status = status(node)?;
    let ours =
        |frontend: &&Value| frontend["name"].as_str().is_some_and(|name| name.starts_with("hostport/"));
    Ok(list(&status["frontends"]).iter().filter(ours).count())
}

/// One question from a socket that is not connected: what came back, and from where it seems to.
fn unconnected(place: &Place, to: SocketAddr) -> Result<(String, SocketAddr)> {
    let ask = || -> io::Result<_> {
        let socket = datagram_socket(to, None, Duration::from_secs(5))?;
        socket.send_to(b"ask", to)?;
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
    };
    place.enter(ask)?.map_err(|e| Error::Oracle(format!("{to} from {}: {e}", place.name())))
}

/// The node's processes reach `web` at the port of both loopback addresses, in every way.
fn assert_answers(node: &Place) -> Result<()> {
    for v4 in [true, false] {
        let to = loopback(v4, PORT);
        for by in BY {
            assert_eq!(by.ask(Ask::new(to), node)?.server, "web", "{to} by {by:?}");
        }
        let (text, from) = unconnected(node, to)?;
        assert!(text.starts_with("web ") && from == to, "{text:?} from {from}");
    }
    Ok(())
}

fn refusal(by: By, place: &Place, to: SocketAddr) -> Option<ErrorKind> {
    by.ask(Ask::new(to), place).err().and_then(|error| error.kind())
}

fn assert_refused(place: &Place, port: u16) {
    for v4 in [true, false] {
        for by in BY {
            let found = refusal(by, place, loopback(v4, port));
            assert_eq!(found, Some(ErrorKind::ConnectionRefused), "{port} by {by:?} in {}", place.name());
        }
    }
}

#[test]
fn proxy_host_ports_on_loopback() -> Result<()> {
    let mut cluster = start()?;
    let node = cluster.node(1).clone();
    assert_refused(&node, PORT);
    let map = |proto: &str, port: u16| json!({ "hostPort": port, "containerPort": 80, "protocol": proto });
    let mut of_one = map("tcp", ONE);
    of_one["hostIP"] = json!(node.ip4());
    publish_next(&cluster, &json!([map("tcp", PORT), map("udp", PORT), of_one]))?;
    let web = cluster.pod(1, "web")?;
    publish_next(&cluster, &json!([]))?;
    let other = cluster.pod(1, "other")?;
    let server = web.serve("web", 80)?;
    eventually("host ports on loopback", LIMIT, || Ok(frontends(&node)? == 4))?;
    assert_answers(&node)?;

    // What is of one address of the node is not on loopback.
    assert_eq!(Ask::new((node.ip4(), ONE)).tcp(&node)?.server, "web");
    assert_eq!(refusal(By::Tcp, &node, loopback(true, ONE)), Some(ErrorKind::ConnectionRefused));

    // A pod's loopback is its own, also that of the pod that publishes the port.
    assert_refused(&web, PORT);
    assert_refused(&other, PORT);
    {
        let _own = other.serve("other", PORT)?;
        for v4 in [true, false] {
            for by in BY {
                assert_eq!(by.ask(Ask::new(loopback(v4, PORT)), &other)?.server, "other");
            }
            assert!(unconnected(&other, loopback(v4, PORT))?.0.starts_with("other "));
        }
    }
    nothing_for_neighbours(&cluster, &server)?;

    // Without the daemon the kernel goes on; the next one finds the record.
    cluster.kill_daemon(1, "proxyd");
    assert_answers(&node)?;
    cluster.start_daemon_on(1, "proxyd")?;
    assert_answers(&node)?;
    assert_eq!(frontends(&node)?, 4);

    web.cni_del()?;
    eventually("no host ports", LIMIT, || Ok(frontends(&node)? == 0))?;
    assert_refused(&node, PORT);
    Ok(())
}

/// CVE-2020-8558: a neighbour sends to 127.0.0.1 and ::1 by the node's Ethernet address.
fn nothing_for_neighbours(cluster: &Cluster, server: &Server) -> Result<()> {
    let (node, client) = (cluster.node(1), cluster.client());
    let device = |place: &Place| -> Result<(u32, MacAddr)> {
        let found = place.enter(|| link::by_name(&mut Socket::open()?, "eth0"))?;
        let found = found.map_err(|e| Error::Oracle(e.to_string()))?;
        found
            .and_then(|link| Some((link.index, link.mac?)))
            .ok_or_else(|| Error::Oracle("no device eth0".into()))
    };
    let ((index, own), (_, theirs)) = (device(client)?, device(node)?);
    for v4 in [true, false] {
        let (from, to) = (client.ip(v4), loopback(v4, PORT).ip());
        let frame = PacketBuilder::ethernet2(own, theirs);
        let frame = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => frame.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => frame.ipv6(from.octets(), to.octets(), 64),
            _ => return Err(Error::Oracle("two families".into())),
        };
        let mut bytes = Vec::new();
        frame.udp(5000, PORT).write(&mut bytes, b"ask").map_err(|e| Error::Oracle(e.to_string()))?;
        let before = server.answered();
        let sent = client.enter(|| {
            let frames = Frames::open()?;
            (0..5).try_for_each(|_| frames.send(index, &bytes))
        })?;
        sent.map_err(|e| Error::Oracle(e.to_string()))?;
        // What is sent after them is answered; they were not.
        assert_eq!(Ask::new((node.ip(v4), PORT)).udp(client)?.server, "web");
        assert_eq!(server.answered(), before + 1, "v4 {v4}");
    }
    Ok(())
}
