//! One client port, many ways.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use heddle_lab::traffic::{connect, datagram_socket};
use heddle_lab::{Ask, Error, Result};

use crate::world::{SOLO, WEB, World, strict};

/// One port of one client, through all three nodes at once, to one backend: the same five-tuple there. All
/// three connections work, side by side.
#[test]
fn proxy_one_client_port_through_all_nodes_at_once() -> Result<()> {
    const PORT: u16 = 45000;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for v4 in [true, false] {
        let targets: Vec<_> = world.cluster.nodes().iter().map(|node| SOLO.published(node.ip(v4))).collect();
        let talk = || -> io::Result<Vec<Vec<String>>> {
            let mut streams: Vec<TcpStream> = Vec::new();
            for to in &targets {
                streams.push(connect(*to, Some(PORT), Duration::from_secs(3))?);
            }
            let mut heard = Vec::new();
            for round in 0..5 {
                let mut lines = Vec::new();
                for (number, stream) in streams.iter_mut().enumerate() {
                    writeln!(stream, "round {round} stream {number}")?;
                }
                for stream in &streams {
                    let mut line = String::new();
                    BufReader::new(stream).read_line(&mut line)?;
                    lines.push(line);
                }
                heard.push(lines);
            }
            Ok(heard)
        };
        let heard = client.enter(talk)?;
        let heard = heard.map_err(|e| Error::Oracle(format!("streams of one port, v4 {v4}: {e}")))?;
        for (round, lines) in heard.iter().enumerate() {
            for (number, line) in lines.iter().enumerate() {
                let end = format!(" round {round} stream {number}\n");
                assert!(line.starts_with("web-1 ") && line.ends_with(&end), "{line:?}");
                assert!(line.contains(&client.ip(v4).to_string()), "the client's address is kept: {line:?}");
            }
        }

        let talk = || -> io::Result<Vec<String>> {
            let socket = datagram_socket(targets[0], Some(PORT), Duration::from_secs(3))?;
            let mut heard = Vec::new();
            for to in targets.iter().chain(&targets) {
                socket.send_to(b"hello", to)?;
                let mut buffer = [0; 256];
                let (length, from) = socket.recv_from(&mut buffer)?;
                assert_eq!(from, *to, "the answer comes from where it was asked");
                heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            Ok(heard)
        };
        let heard = client.enter(talk)?;
        let heard = heard.map_err(|e| Error::Oracle(format!("datagrams of one port, v4 {v4}: {e}")))?;
        assert!(heard.iter().all(|answer| answer.starts_with("web-1 ")), "{heard:?}");
    }
    Ok(())
}

/// One port of one client, through two services at once that have one backend between them: the same five-tuple there.
#[test]
fn proxy_one_client_port_through_two_services_at_once() -> Result<()> {
    const PORT: u16 = 45100;
    let world = World::start(strict())?;
    world.publish(WEB, &[world.web1.endpoint()])?;
    let client = world.cluster.client();
    for (node, v4) in [(1, true), (3, true), (1, false), (3, false)] {
        let node = world.cluster.node(node);
        let targets = [SOLO, WEB].map(|named| named.published(node.ip(v4)));
        let talk = || -> io::Result<()> {
            let limit = Duration::from_secs(3);
            let streams = [connect(targets[0], Some(PORT), limit)?, connect(targets[1], Some(PORT), limit)?];
            let letters = datagram_socket(targets[0], Some(PORT), limit)?;
            for round in 0..5 {
                for (number, mut stream) in streams.iter().enumerate() {
                    writeln!(stream, "round {round} stream {number}")?;
                }
                for (number, stream) in streams.iter().enumerate() {
                    let mut line = String::new();
                    BufReader::new(stream).read_line(&mut line)?;
                    let end = format!(" round {round} stream {number}\n");
                    assert!(line.starts_with("web-1 ") && line.ends_with(&end), "{line:?}");
                }
                for to in &targets {
                    letters.send_to(b"hello", to)?;
                    let (_, from) = letters.recv_from(&mut [0; 256])?;
                    assert_eq!(from, *to, "the answer comes from where it was asked");
                }
            }
            Ok(())
        };
        let heard = client.enter(talk)?;
        heard.map_err(|e| Error::Oracle(format!("through {}, v4 {v4}: {e}", node.name())))?;
    }
    Ok(())
}

/// A port that is used again at once, over and over: the old connection is in TIME_WAIT or gone, the new
/// one must not wait.
#[test]
fn proxy_a_port_used_again_at_once() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for node in world.cluster.nodes() {
        for _ in 0..20 {
            let to = SOLO.published(node.ip4());
            let reply = Ask::new(to).from_port(46000).limit(Duration::from_millis(900)).tcp(client)?;
            assert_eq!(reply.server, "web-1", "through {}", node.name());
        }
    }
    Ok(())
}

/// All nodes choose alike: one client and port reaches the same backend through every node, also where two are
/// on one node and a third node has to be obeyed.
#[test]
fn proxy_all_nodes_choose_alike() -> Result<()> {
    let world = World::start(strict())?;
    let beside = world.cluster.backend(1, "web-1b", WEB.target)?;
    let endpoints = [world.web1.endpoint(), beside.endpoint(), world.web2.endpoint()];
    world.publish(WEB, &endpoints)?;
    let client = world.cluster.client();
    for v4 in [true, false] {
        let mut met = BTreeSet::new();
        for port in 47000..47024 {
            let through = world.cluster.nodes().iter().map(|node| {
                let to = WEB.published(node.ip(v4));
                Ok(Ask::new(to).from_port(port).tcp(client)?.server)
            });
            let servers: BTreeSet<String> = through.collect::<Result<_>>()?;
            assert_eq!(servers.len(), 1, "port {port} reached {servers:?}");
            met.extend(servers);
        }
        assert_eq!(met.len(), 3, "24 ports met only {met:?}");
    }
    Ok(())
}

/// How many connections: `HEDDLE_CONNECTIONS=100000` is the whole.
fn connections() -> usize {
    std::env::var("HEDDLE_CONNECTIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(3000)
}

/// Short connections over all nodes from a range of a hundred client ports: each port is used again and again, through
/// another node each time, and meets at the backends what is left of its earlier connections.
#[test]
fn proxy_short_connections_from_a_hundred_ports() -> Result<()> {
    const FIRST: u16 = 48000;
    const THREADS: u16 = 4;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let nodes = world.cluster.nodes();
    let each = connections() / usize::from(THREADS);
    std::thread::scope(|scope| -> Result<()> {
        let work = |thread: u16| {
            move || -> Result<()> {
                for number in 0..each {
                    let port = FIRST + thread * 25 + (number % 25) as u16;
                    // Through each node in turn with the same port.
                    let to = WEB.published(nodes[number / 25 % nodes.len()].ip(number % 2 == 0));
                    let ask = Ask::new(to).from_port(port).limit(Duration::from_secs(5));
                    let reply = ask.tcp(client)?;
                    assert!(reply.server.starts_with("web-"), "{reply:?}");
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no answer of a stranger"))
    })
}
