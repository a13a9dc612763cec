//! `proxyd monitor`: what happens is told while somebody listens.

use std::time::Duration;

use heddle_lab::{Ask, Cmd, Error, Place, Process, Result, bin, eventually};
use serde_json::Value;

use crate::world::{By, NONE, WEB, World, ask, status, strict};

const LIMIT: Duration = Duration::from_secs(20);

/// A monitor that listens.
fn listen(node: &Place, args: &[&str]) -> Result<Process> {
    let monitor = node.spawn(Cmd::new(bin("proxyd")).args(["monitor", "-o", "json"]).args(args))?;
    eventually("it listens", LIMIT, || Ok(monitor.log().contains("listening")))?;
    Ok(monitor)
}

/// The events that it has shown.
fn events(monitor: &Process) -> Vec<Value> {
    monitor.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn await_event(monitor: &Process, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = None;
    eventually(what, LIMIT, || {
        found = events(monitor).into_iter().find(|event| wanted(event));
        match &found {
            Some(_) => Ok(true),
            None => Err(Error::Oracle(monitor.log())),
        }
    })?;
    Ok(found.unwrap_or_default())
}

#[test]
fn seeing_monitor_tells_flows_sockets_and_refusals() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(3), world.cluster.client());
    let monitor = listen(node, &[])?;
    let second = node.output(Cmd::new(bin("proxyd")).arg("monitor"))?;
    assert!(!second.status.success() && second.stderr.contains("another `proxyd monitor`"), "{second:?}");

    let to = WEB.published(node.ip4());
    let from = (client.ip(true), 23456).into();
    Ask::new(to).from_port(23456).tcp(client)?;
    let from: std::net::SocketAddr = from;
    let flow = await_event(&monitor, "the flow", |e| e["event"] == "flow" && e["from"] == from.to_string())?;
    assert_eq!((&flow["to"], &flow["proto"]), (&to.to_string().into(), &"tcp".into()), "{flow}");
    assert_eq!(flow["service"], "default/web:tcp", "{flow}");
    assert!(flow["time"].as_f64().is_some_and(|time| time > 1.7e9), "{flow}");

    ask(1, By::Tcp, WEB.cluster(true), &world.visitor)?;
    let asked = WEB.cluster(true).to_string();
    let socket = await_event(&monitor, "the socket", |e| e["event"] == "socket" && e["to"] == asked)?;
    let backends = [world.web1.pod().ip4(), world.web2.pod().ip4()].map(|ip| format!("{ip}:{}", WEB.target));
    assert!(backends.iter().any(|backend| socket["backend"] == *backend), "{socket}");

    assert!(Ask::new(NONE.published(node.ip4())).from_port(23457).tcp(client).is_err());
    let reject = await_event(&monitor, "the refusal", |e| e["event"] == "reject" && e["device"] == "eth0")?;
    assert_eq!((&reject["reason"], &reject["detail"]), (&"no_backend".into(), &"S".into()), "{reject}");
    assert_eq!(reject["service"], "default/none:tcp", "{reject}");
    assert!(reject["from"].as_str().is_some_and(|from| from.ends_with(":23457")), "{reject}");
    assert!(Ask::new(NONE.cluster(true)).tcp(&world.visitor).is_err());
    await_event(&monitor, "the refused socket", |e| {
        e["event"] == "reject" && e["to"] == NONE.cluster(true).to_string()
    })?;
    Ok(())
}

/// Filters, an end after so many, and text; and nobody is told anything when nobody listens.
#[test]
fn seeing_monitor_shows_what_is_asked_for() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let filtered =
        listen(node, &["default/none", "--only", "reject", "--reason", "no_backend", "--count", "2"])?;
    ask(3, By::Tcp, WEB.published(node.ip4()), client)?;
    for _ in 0..2 {
        assert!(Ask::new(NONE.published(node.ip4())).tcp(client).is_err());
    }
    assert!(filtered.wait(LIMIT)?.success(), "{}", filtered.log());
    let shown = events(&filtered);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown.iter().all(|event| event["service"] == "default/none:tcp"), "{shown:?}");

    let text = node.spawn(Cmd::new(bin("proxyd")).args(["monitor", "--count", "1", "--only", "flow"]))?;
    eventually("it listens", LIMIT, || Ok(text.log().contains("listening")))?;
    ask(1, By::Tcp, WEB.published(node.ip4()), client)?;
    assert!(text.wait(LIMIT)?.success());
    let line = text.log().lines().last().unwrap_or_default().to_owned();
    let said = format!("> {} tcp -> ", WEB.published(node.ip4()));
    assert!(line.contains(" flow ") && line.contains(&said) && line.ends_with("[default/web:tcp]"), "{line}");

    // A packet that has run out of hops is dropped, with its headers.
    let drops = listen(node, &["--only", "drop"])?;
    let before = status(node)?["counters"]["drop_ttl"].as_u64().unwrap_or(0);
    let sent = client.enter(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:24567")?;
        socket.set_ttl(1)?;
        socket.send_to(b"x", WEB.published(node.ip4())).map(drop)
    })?;
    assert!(sent.is_ok(), "{sent:?}");
    eventually("the drop is counted", LIMIT, || {
        Ok(status(node)?["counters"]["drop_ttl"].as_u64().unwrap_or(0) > before)
    })?;
    let drop = await_event(&drops, "the drop", |e| e["reason"] == "ttl")?;
    assert_eq!(
        (&drop["ttl"], &drop["proto"], &drop["device"]),
        (&1.into(), &"udp".into(), &"eth0".into()),
        "{drop}"
    );
    assert!(drop["from"].as_str().is_some_and(|from| from.ends_with(":24567")), "{drop}");
    Ok(())
}
