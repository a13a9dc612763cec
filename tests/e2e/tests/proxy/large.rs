//! What does not fit: MSS, path MTU, fragments.

use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use heddle_lab::traffic::{connect, datagram_socket};
use heddle_lab::{Error, Result};

use crate::world::{WEB, World, servers, strict};

/// A megabyte each way, through every node, to every backend, by a client that believes in 1500 bytes; and
/// the same from pods.
#[test]
fn proxy_a_megabyte_each_way() -> Result<()> {
    const BYTES: usize = 1 << 20;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let question = "x".repeat(BYTES) + "\n";
    for v4 in [true, false] {
        let nodes = world.cluster.nodes().iter();
        let outside = nodes.map(|node| (client.place(), WEB.published(node.ip(v4))));
        let inside = [(world.visitor.place(), WEB.cluster(v4)), (world.web1.pod().place(), WEB.cluster(v4))];
        for (place, to) in outside.chain(inside) {
            let mut answers = Vec::new();
            for _ in 0..6 {
                let line = place.enter(|| -> io::Result<String> {
                    let stream = connect(to, None, Duration::from_secs(5))?;
                    (&stream).write_all(question.as_bytes())?;
                    let mut line = String::new();
                    BufReader::new(&stream).read_line(&mut line)?;
                    Ok(line)
                })?;
                let line = line.map_err(|e| Error::Oracle(format!("{} -> {to}: {e}", place.name())))?;
                assert!(line.ends_with(&question), "{} -> {to}: {} bytes came back", place.name(), line.len());
                answers.push(line.split(' ').next().unwrap_or_default().to_owned());
            }
            answers.sort();
            answers.dedup();
            assert_eq!(answers, ["web-1", "web-2"], "{} -> {to}", place.name());
        }
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
    let _ = servers;
    Ok(())
}
