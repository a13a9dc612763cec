//! Maps that are full: what is new suffers, is counted by reason, and nothing that stands does.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use heddle_lab::traffic::datagram_socket;
use heddle_lab::{Error, Load, Place, Result, patient};
use heddle_netlink::MacAddr;
use heddle_netlink::packet::Frames;

use crate::odd::{counter, device};
use crate::world::{SOLO, World, strict};

const LIMIT: Duration = Duration::from_secs(20);

/// SYNs that nobody goes on with, more than the map of unanswered flows holds, through a node that the client's living
/// connections use too.
#[test]
fn fault_064_a_flood_of_syns_takes_no_connection_that_stands() -> Result<()> {
    // Two entries a flow; the map holds 65,536.
    const SYNS: u32 = 80_000;
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let to = SOLO.published(node.ip4());
    let streams = Load::streams(to, 8).rate(10).limit(patient(LIMIT)).start(client)?;
    let datagrams =
        Load::datagrams(SOLO.published(node.ip6())).rate(20).limit(patient(LIMIT)).start(client)?;
    streams.wait_for(16, LIMIT)?;
    datagrams.wait_for(5, LIMIT)?;
    let before = counter(node, "flow_new")?;
    let ((index, own), (_, theirs)) = (device(client)?, device(node)?);
    flood(client, index, own, theirs, to, SYNS)?;
    // The flood itself is served: each SYN is answered by the backend, into the void.
    heddle_lab::eventually("the flood has passed", LIMIT, || {
        Ok(counter(node, "flow_new")? >= before + u64::from(SYNS) / 2)
    })?;
    streams.wait_for(80, LIMIT)?;
    datagrams.wait_for(20, LIMIT)?;
    for load in [streams, datagrams] {
        load.stop().assert_clean();
    }
    // And whoever comes now is served.
    assert_eq!(heddle_lab::Ask::new(to).tcp(client)?.server, "web-1");
    Ok(())
}

/// Sends SYNs of addresses that are nobody's.
fn flood(
    client: &Place,
    index: u32,
    own: MacAddr,
    theirs: MacAddr,
    to: SocketAddr,
    count: u32,
) -> Result<()> {
    let std::net::IpAddr::V4(ip) = to.ip() else { return Err(Error::Oracle("IPv4 only".into())) };
    let std::net::IpAddr::V4(mine) = client_ip(client, to)? else { return Ok(()) };
    let frames: std::result::Result<Vec<Vec<u8>>, _> = (0..count.min(60_000))
        .map(|n| {
            let frame = PacketBuilder::ethernet2(own, theirs).ipv4(mine.octets(), ip.octets(), 64);
            let mut bytes = Vec::new();
            frame.tcp(2000 + n as u16, to.port(), n, 1000).syn().write(&mut bytes, &[]).map(|()| bytes)
        })
        .collect();
    let frames = frames.map_err(|e| Error::Oracle(e.to_string()))?;
    let sent = client.enter(|| {
        let socket = Frames::open()?;
        frames.iter().try_for_each(|frame| socket.send(index, frame))
    })?;
    sent.map_err(|e| Error::Oracle(e.to_string()))
}

fn client_ip(client: &Place, to: SocketAddr) -> Result<std::net::IpAddr> {
    let found = client.enter(|| -> io::Result<_> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    })?;
    found.map_err(|e| Error::Oracle(e.to_string()))
}

/// More conversations than the map of answered flows holds: those that fit go on, the others are refused and counted.
#[test]
fn fault_065_conversations_that_do_not_fit_are_refused_and_counted() -> Result<()> {
    const FLOWS: usize = 64;
    let world = World::start_with(strict(), &["--max-flows", "64"])?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let to = SOLO.published(node.ip4());
    let talk = |socket: &UdpSocket| socket.send(b"ask").is_ok() && socket.recv(&mut [0; 128]).is_ok();
    let opened = client.enter(|| -> io::Result<_> {
        let mut sockets = Vec::new();
        for number in 0..FLOWS + 20 {
            let limit = if number < FLOWS / 2 { LIMIT } else { Duration::from_millis(100) };
            let socket = datagram_socket(to, None, patient(limit))?;
            socket.connect(to)?;
            let answered = talk(&socket);
            sockets.push((socket, answered));
        }
        Ok(sockets)
    })?;
    let sockets = opened.map_err(|e| Error::Oracle(e.to_string()))?;
    let answered: Vec<_> = sockets.iter().filter(|(_, answered)| *answered).map(|(s, _)| s).collect();
    assert!((FLOWS * 3 / 4..=FLOWS + 2).contains(&answered.len()), "{} of {FLOWS}", answered.len());
    assert!(counter(node, "drop_ct_full")? > 0);
    for _ in 0..3 {
        let living = client.enter(|| {
            let again =
                |socket: &&&UdpSocket| socket.set_read_timeout(Some(patient(LIMIT))).is_ok() && talk(socket);
            answered.iter().filter(again).count()
        })?;
        assert_eq!(living, answered.len(), "those that stand go on");
    }
    Ok(())
}
