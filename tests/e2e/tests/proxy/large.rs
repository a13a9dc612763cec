//! What does not fit: MSS, path MTU, fragments.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use heddle_lab::traffic::{connect, datagram_socket};
use heddle_lab::{Error, Result};

use crate::world::{HOST, WEB, World, status, strict};

/// A megabyte each way, through every node, to every backend, by a client that believes in 1500 bytes; and
/// the same from pods.
#[test]
fn proxy_a_megabyte_each_way() -> Result<()> {
    const LINES: usize = 256;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let question = "x".repeat(4095) + "\n";
    for v4 in [true, false] {
        let nodes = world.cluster.nodes().iter();
        let outside = nodes.map(|node| (client.place(), WEB.published(node.ip(v4))));
        let inside = [(world.visitor.place(), WEB.cluster(v4)), (world.web1.pod().place(), WEB.cluster(v4))];
        // Where both ends are in host networks nobody but the datapath knows how much less the tunnel carries.
        let hosts = world.cluster.nodes().iter().map(|node| (client.place(), HOST.published(node.ip(v4))));
        for (place, to) in outside.chain(inside).chain(hosts) {
            let servers: &[&str] =
                if to.port() == HOST.node_port() { &["host-2"] } else { &["web-1", "web-2"] };
            let mut answers = BTreeSet::new();
            // Until both have been met, each at least once.
            for _ in 0..30 {
                if answers.len() == servers.len() {
                    break;
                }
                let server = place.enter(|| -> io::Result<String> {
                    let stream = connect(to, None, Duration::from_secs(20))?;
                    let mut server = String::new();
                    std::thread::scope(|scope| {
                        let send = scope.spawn(|| -> io::Result<()> {
                            (0..LINES).try_for_each(|_| (&stream).write_all(question.as_bytes()))
                        });
                        let mut lines = BufReader::new(&stream);
                        for number in 0..LINES {
                            let mut line = String::new();
                            lines.read_line(&mut line)?;
                            if !line.ends_with(&question) {
                                return Err(io::Error::other(format!("line {number}: {} bytes", line.len())));
                            }
                            server = line;
                        }
                        send.join().expect("it does not panic")
                    })?;
                    Ok(server)
                })?;
                let line = server.map_err(|e| Error::Oracle(format!("{} -> {to}: {e}", place.name())))?;
                answers.insert(line.split(' ').next().unwrap_or_default().to_owned());
            }
            assert!(answers.iter().eq(servers), "{} -> {to}: {answers:?}", place.name());
        }
    }
    for node in world.cluster.nodes() {
        let said = status(node)?;
        assert_eq!(said["counters"]["too_big"], 0, "every segment fitted: {}", said["counters"]);
    }
    Ok(())
}

/// Datagrams up to several fragments, through every node. The first that is too large for the tunnel may be
/// lost while the client learns the path's MTU, as on any path.
#[test]
fn proxy_large_datagrams() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for v4 in [true, false] {
        for node in world.cluster.nodes() {
            let to = WEB.published(node.ip(v4));
            for size in [100, 1400, 1430, 1472, 4000, 9000] {
                let talk = || -> io::Result<String> {
                    let socket = datagram_socket(to, None, Duration::from_millis(500))?;
                    socket.connect(to)?;
                    let question = "y".repeat(size);
                    let mut last = io::Error::from(io::ErrorKind::TimedOut);
                    for _ in 0..4 {
                        // EMSGSIZE tells what ICMP has told; the next one is cut to fit.
                        if let Err(e) = socket.send(question.as_bytes()) {
                            last = e;
                            continue;
                        }
                        let mut buffer = vec![0; 65536];
                        match socket.recv(&mut buffer) {
                            Ok(length) if buffer[..length].ends_with(question.as_bytes()) => {
                                return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
                            }
                            Ok(length) => return Err(io::Error::other(format!("{length} bytes came back"))),
                            Err(e) => last = e,
                        }
                    }
                    Err(last)
                };
                // Enough ports that both backends are met.
                for _ in 0..4 {
                    let answer = client.enter(talk)?;
                    answer.map_err(|e| {
                        Error::Oracle(format!("{size} bytes through {}, v4 {v4}: {e}", node.name()))
                    })?;
                }
            }
        }
    }
    Ok(())
}
