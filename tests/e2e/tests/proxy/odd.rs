//! Connections that are unlike others: ports used again, segments out of place, ports that two want.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use heddle_lab::manifests::node_yaml;
use heddle_lab::traffic::{connect, datagram_socket};
use heddle_lab::{Ask, Cmd, Error, Place, Result, eventually, patient};
use heddle_netlink::packet::Frames;
use heddle_netlink::{MacAddr, Socket, link};

use crate::stale::Talk;
use crate::world::{BY, NONE, SOLO, World, status, strict};

const LIMIT: Duration = Duration::from_secs(20);

fn failed(what: &str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Oracle(format!("{what}: {error}"))
}

pub fn device(place: &Place) -> Result<(u32, MacAddr)> {
    let found = place.enter(|| link::by_name(&mut Socket::open()?, "eth0"))?;
    let found = found.map_err(|e| Error::Oracle(e.to_string()))?;
    let found = found.and_then(|link| Some((link.index, link.mac?)));
    found.ok_or_else(|| Error::Oracle("no device eth0".into()))
}

pub fn counter(node: &Place, name: &str) -> Result<u64> {
    Ok(status(node)?["counters"][name].as_u64().unwrap_or(0))
}

/// Every port that `snat` may give to one backend is taken: only new conversations suffer, they are counted, and the
/// others go on.
#[test]
fn fault_072_ports_of_snat_run_out() -> Result<()> {
    const PORTS: usize = 1025;
    let builder = strict();
    let lab = builder.build()?;
    for node in lab.nodes() {
        lab.manifests().node(node)?;
        // Those above it are for snat.
        node.run(Cmd::new("sysctl").args(["-qw", "net.ipv4.ip_local_port_range=1024 64510"]))?;
    }
    let plan = heddle_lab::Plan::default().proxyd_arg("--remote").proxyd_arg("snat");
    let cluster = heddle_lab::Cluster::on(lab, plan)?;
    let web = cluster.backend(2, "web-1", SOLO.target)?;
    cluster.publish(&SOLO.service(), &[web.endpoint()])?;
    let (node, client) = (cluster.node(1), cluster.client());
    let to = SOLO.published(node.ip4());
    eventually("an answer", LIMIT, || {
        Ask::new(to).limit(Duration::from_millis(300)).tcp(client).map(|_| true)
    })?;
    let talk = |socket: &UdpSocket| -> io::Result<bool> {
        let mut buffer = [0; 128];
        socket.send(b"ask")?;
        match socket.recv(&mut buffer) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(false),
            Err(e) => Err(e),
        }
    };
    let (answered, refused) = client
        .enter(|| -> io::Result<_> {
            let mut answered = Vec::new();
            let mut refused = 0;
            // A port is looked for 16 times: near the end some are not found. 20 in a row say that it is full.
            while refused < 20 {
                let limit = if answered.len() < PORTS / 2 { LIMIT } else { Duration::from_millis(100) };
                let socket = datagram_socket(to, None, patient(limit))?;
                socket.connect(to)?;
                if talk(&socket)? {
                    answered.push(socket);
                } else {
                    refused += 1;
                }
            }
            Ok((answered, refused))
        })?
        .map_err(failed("conversations"))?;
    let count = answered.len();
    assert!((PORTS * 3 / 4..=PORTS).contains(&count), "{count} of {PORTS} ports were given");
    assert!(counter(node, "drop_no_port")? >= refused);
    let living = client.enter(|| -> io::Result<usize> {
        let mut living = 0;
        for socket in &answered {
            socket.set_read_timeout(Some(patient(LIMIT)))?;
            living += usize::from(talk(socket)?);
        }
        Ok(living)
    })?;
    assert_eq!(living.map_err(failed("again"))?, count, "those that stand go on");
    Ok(())
}

/// A port is used again as soon as its connection has ended, whoever closed first, or broke it off.
#[test]
fn fault_073_a_port_is_used_again_within_a_millisecond() -> Result<()> {
    const PORT: u16 = 46100;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for (number, node) in [1, 3].into_iter().enumerate() {
        let node = world.cluster.node(node);
        let to = SOLO.published(node.ip(number == 0));
        let port = PORT + number as u16;
        let rounds = client.enter(|| -> io::Result<()> {
            for round in 0..30 {
                let limit = patient(Duration::from_secs(5));
                let start = Instant::now();
                let mut stream = connect(to, Some(port), limit)?;
                let took = start.elapsed();
                // The server closes first: TIME_WAIT is on its side, and a SYN meets it there.
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                if !text.contains("web-1 ") || took > patient(Duration::from_millis(500)) {
                    return Err(io::Error::other(format!("round {round}, {took:?}: {text}")));
                }
            }
            Ok(())
        })?;
        rounds.map_err(failed(&format!("{to}, closed by the server")))?;
        // Broken off by the client.
        for _ in 0..30 {
            let ask = Ask::new(to).from_port(port + 10).limit(patient(Duration::from_millis(900)));
            assert_eq!(ask.tcp(client)?.server, "web-1");
        }
    }
    Ok(())
}

/// Segments outside the window, in both directions of an established connection: nobody answers them with a RST, and
/// the connection goes on.
#[test]
fn fault_074_a_segment_out_of_the_window_breaks_nothing() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for (node, v4) in [(1, true), (3, true), (1, false), (3, false)] {
        let node = world.cluster.node(node);
        let to = SOLO.published(node.ip(v4));
        let talk = Talk::stream(client, to)?;
        talk.assert_by(client, "web-1")?;
        let Talk::Stream(stream) = &talk else { continue };
        let local = stream.local_addr().map_err(failed("address"))?;
        let before = counter(node, "reject_stale")?;
        let ((index, own), (_, theirs)) = (device(client)?, device(node)?);
        for (sequence, acknowledged) in [(1, 1), (u32::MAX / 2, 7), (0xdead_beef, 0xfeed_beef)] {
            let bytes = segment((own, local), (theirs, to), sequence, acknowledged)?;
            let sent = client.enter(|| Frames::open()?.send(index, &bytes))?;
            sent.map_err(|e| Error::Oracle(e.to_string()))?;
            talk.assert_by(client, "web-1")?;
        }
        assert_eq!(counter(node, "reject_stale")?, before);
    }
    Ok(())
}

/// An Ethernet frame with some data.
pub fn segment(
    (from_mac, from): (MacAddr, SocketAddr),
    (to_mac, to): (MacAddr, SocketAddr),
    sequence: u32,
    acknowledged: u32,
) -> Result<Vec<u8>> {
    let frame = PacketBuilder::ethernet2(from_mac, to_mac);
    let frame = match (from.ip().to_canonical(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => frame.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => frame.ipv6(from.octets(), to.octets(), 64),
        _ => return Err(Error::Oracle("two families".into())),
    };
    let mut bytes = Vec::new();
    let frame = frame.tcp(from.port(), to.port(), sequence, 1000).ack(acknowledged);
    frame.write(&mut bytes, b"out of place\n").map_err(|e| Error::Oracle(e.to_string()))?;
    Ok(bytes)
}

/// Nobody is there: TCP is told by a RST, UDP by ICMP, within a millisecond, from everywhere.
#[test]
fn fault_077_nobody_is_there_and_says_so_within_a_millisecond() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client().place();
    let node = world.cluster.node(1);
    for v4 in [true, false] {
        let asks = [
            (client, NONE.published(node.ip(v4))),
            (world.visitor.place(), NONE.cluster(v4)),
            (node.place(), NONE.cluster(v4)),
        ];
        for (place, to) in asks {
            for by in BY {
                let once = || {
                    let start = Instant::now();
                    let open = || match by {
                        crate::world::By::Tcp => connect(to, None, LIMIT).map(drop),
                        crate::world::By::Udp => {
                            let socket = datagram_socket(to, None, LIMIT)?;
                            socket.connect(to)?;
                            socket.send(b"ask")?;
                            socket.recv(&mut [0; 8]).map(drop)
                        }
                    };
                    (open(), start.elapsed())
                };
                // The first may wait for a neighbour's address, any for its turn on the processor.
                let all: Vec<_> = place.enter(|| (0..40).map(|_| once()).collect())?;
                let kinds = all.iter().map(|(result, _)| result.as_ref().err().map(io::Error::kind));
                let refused = kinds.filter(|kind| *kind == Some(ErrorKind::ConnectionRefused)).count();
                assert_eq!(refused, all.len(), "{} -> {to} by {by:?}: {:?}", place.name(), all[0].0);
                let shortest = all.iter().map(|(_, took)| *took).min().unwrap_or_default();
                let limit = patient(Duration::from_millis(1));
                assert!(shortest < limit, "{} -> {to} by {by:?}: {shortest:?}", place.name());
            }
        }
    }
    Ok(())
}

/// A process of the node listens at a node port: clients of the service reach the service, through every node, and the
/// process has the port again when the service is gone.
#[test]
fn fault_094_a_process_of_the_node_has_the_port_of_a_service() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let _squatter = node.serve("squatter", SOLO.node_port())?;
    for v4 in [true, false] {
        for by in BY {
            let to = SOLO.published(node.ip(v4));
            for place in [client.place(), world.visitor.place(), node.place(), world.cluster.node(2).place()]
            {
                assert_eq!(
                    by.ask(Ask::new(to), place)?.server,
                    "web-1",
                    "{to} by {by:?} from {}",
                    place.name()
                );
            }
        }
    }
    world.cluster.manifests().remove("service-solo.yaml")?;
    for v4 in [true, false] {
        for by in BY {
            let to = SOLO.published(node.ip(v4));
            eventually("the process has its port", LIMIT, || {
                Ok(by.ask(Ask::new(to).limit(Duration::from_millis(300)), client)?.server == "squatter")
            })?;
        }
    }
    Ok(())
}

/// A node gets another address, and loses it: node ports are there, and no more; those of the first never stop.
#[test]
fn fault_095_node_ports_follow_the_addresses_of_a_node() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let steady = heddle_lab::Load::connects(SOLO.published(node.ip4())).rate(50).start(client)?;
    let (octets, more) = match node.ip4() {
        IpAddr::V4(ip) => (ip.octets(), 77),
        IpAddr::V6(_) => return Err(Error::Oracle("no IPv4 address".into())),
    };
    let extra = IpAddr::from([octets[0], octets[1], octets[2], more]);
    world.cluster.switch().admit(extra)?;
    node.run(format!("ip addr add {extra}/24 dev eth0").as_str())?;
    let declared = node_yaml(node) + &format!("    - type: InternalIP\n      address: \"{extra}\"\n");
    world.cluster.manifests().put("node-n1.yaml", &declared)?;
    let to = SOLO.published(extra);
    for by in BY {
        eventually("an answer at the new address", LIMIT, || {
            Ok(by.ask(Ask::new(to).limit(Duration::from_millis(300)), client)?.server == "web-1")
        })?;
    }
    world.cluster.manifests().node(node)?;
    node.run(format!("ip addr del {extra}/24 dev eth0").as_str())?;
    eventually("no answer any more", LIMIT, || {
        Ok(Ask::new(to).limit(Duration::from_millis(300)).udp(client).is_err())
    })?;
    steady.wait_for(10, LIMIT)?;
    steady.stop().assert_clean();
    Ok(())
}
