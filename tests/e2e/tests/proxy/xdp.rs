//! `--xdp`: what only passes through a node goes on before there is a socket buffer; everything else as ever.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use heddle_lab::traffic::connect;
use heddle_lab::{Error, Load, Place, Result};
use serde_json::Value;

use crate::world::{BY, HOST, WEB, World, ask, assert_no_foreign, servers, status, strict};

/// Packets that XDP has passed on, on all nodes.
fn passed_on(world: &World) -> Result<u64> {
    let counters = world.cluster.nodes().iter().map(|node| Ok(status(node)?["counters"]["xdp"].clone()));
    counters.map(|count| count.map(|value: Value| value.as_u64().unwrap_or(0))).sum()
}

/// Every node answers for every backend; the client's address stays, or (`snat`) goes where the backend is remote.
fn answers(world: &World, keeps_address: bool) -> Result<()> {
    let client = world.cluster.client();
    for v4 in [true, false] {
        for node in world.cluster.nodes() {
            for by in BY {
                let way = format!("through {} by {by:?}, v4 {v4}", node.name());
                let replies = ask(20, by, WEB.published(node.ip(v4)), client)?;
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{way}");
                for reply in &replies {
                    let local = reply.server.strip_prefix("web-") == node.name().strip_prefix('n');
                    assert_eq!(
                        reply.client.ip() == client.ip(v4),
                        keeps_address || local,
                        "{way}: {reply:?}"
                    );
                }
                let replies = ask(3, by, HOST.published(node.ip(v4)), client)?;
                assert_eq!(servers(&replies), ["host-2"].into(), "{way}");
            }
        }
    }
    Ok(())
}

/// Lines both ways on one connection through each node, until every backend was met.
fn streams(world: &World) -> Result<()> {
    const LINES: usize = 64;
    let client: &Place = world.cluster.client();
    let question = "x".repeat(4095) + "\n";
    for v4 in [true, false] {
        for node in world.cluster.nodes() {
            let to = WEB.published(node.ip(v4));
            let mut met = BTreeSet::new();
            for _ in 0..30 {
                if met.len() == 2 {
                    break;
                }
                let line = client.enter(|| -> io::Result<String> {
                    let stream = connect(to, None, Duration::from_secs(20))?;
                    let mut lines = BufReader::new(&stream);
                    let mut line = String::new();
                    for _ in 0..LINES {
                        (&stream).write_all(question.as_bytes())?;
                        line.clear();
                        lines.read_line(&mut line)?;
                        if !line.ends_with(&question) {
                            return Err(io::Error::other(format!("{} bytes", line.len())));
                        }
                    }
                    Ok(line)
                })?;
                let line = line.map_err(|e| Error::Oracle(format!("{to}: {e}")))?;
                met.insert(line.split(' ').next().unwrap_or_default().to_owned());
            }
            assert_eq!(met.len(), 2, "{to}: {met:?}");
        }
    }
    Ok(())
}

/// All is answered, and what streams send goes by XDP.
fn passes_on(args: &[&str], keeps_address: bool) -> Result<()> {
    let world = World::start_xdp(strict(), args)?;
    answers(&world, keeps_address)?;
    let before = passed_on(&world)?;
    streams(&world)?;
    let passed = passed_on(&world)? - before;
    assert!(passed > 1000, "the streams went by XDP: {passed}");
    assert_no_foreign(&world.cluster)
}

#[test]
fn proxy_xdp_native_passes_on_what_is_for_other_nodes() -> Result<()> {
    passes_on(&["--xdp", "native"], true)
}

#[test]
fn proxy_xdp_native_by_snat() -> Result<()> {
    passes_on(&["--xdp", "native", "--remote", "snat"], false)
}

#[test]
fn proxy_xdp_generic_on_any_device() -> Result<()> {
    passes_on(&["--xdp", "generic"], true)
}

/// The mode is changed, and XDP taken away, while connections run.
#[test]
fn proxy_xdp_comes_and_goes_under_traffic() -> Result<()> {
    let mut world = World::start_xdp(strict(), &[])?;
    let client = world.cluster.client();
    let to = WEB.published(world.cluster.node(3).ip(true));
    let load = Load::streams(to, 8).expect(["web-1", "web-2"]).start(client)?;
    load.wait_for(100, Duration::from_secs(20))?;
    for mode in ["native", "generic", "off", "native"] {
        world.cluster.stop_daemon(3, "proxyd")?;
        world.cluster.plan_proxyd(&["--mode", "ebpf", "--xdp", mode]);
        world.cluster.start_daemon_on(3, "proxyd")?;
        load.wait_for(500, Duration::from_secs(20))?;
    }
    load.stop().assert_clean();
    assert!(passed_on(&world)? > 100);
    Ok(())
}
