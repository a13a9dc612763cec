//! `proxyd explain`, compared with what real packets do.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use heddle_lab::{Ask, Cmd, Error, Place, Result, bin, eventually};
use serde_json::Value;

use crate::world::{By, HOST, NONE, Named, SOLO, WEB, World, ask, list, servers, strict};

/// What a node says of a connection.
fn explain(node: &Place, from: &str, to: SocketAddr, proto: &str) -> Result<Value> {
    let to = format!("{to}/{proto}");
    let text = node.run(Cmd::new(bin("proxyd")).args(["explain", "-o", "json", from, &to]))?;
    serde_json::from_str(&text).map_err(|error| Error::Oracle(format!("proxyd explain: {error}: {text}")))
}

/// The servers that it may go to, by name.
fn foretold(world: &World, said: &Value) -> BTreeSet<String> {
    let taking =
        list(&said["candidates"]).iter().filter(|c| c["share"].as_f64().is_some_and(|share| share > 0.0));
    let name = |candidate: &Value| {
        let at: SocketAddr = candidate["address"].as_str()?.parse().ok()?;
        let pods = [world.web1.pod(), world.web2.pod()];
        let pod = pods.iter().find(|pod| [pod.ip4(), pod.ip6()].contains(&at.ip()));
        Some(pod.map_or_else(|| "host-2".to_owned(), |pod| pod.name().to_owned()))
    };
    taking.filter_map(name).collect()
}

/// Every kind of client, every service: what is foretold is what answers.
#[test]
fn seeing_explain_foretells_who_answers() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let node = world.cluster.node(3);
    let mut clients: Vec<(&Place, String, &str)> = vec![
        (world.visitor.place(), world.visitor.ip4().to_string(), "pod"),
        (node.place(), "host".into(), "host"),
    ];
    clients.push((client.place(), client.ip(true).to_string(), "outside"));
    for (place, from, kind) in &clients {
        for named in [WEB, SOLO, HOST, NONE] {
            let to = match *kind {
                "outside" => named.published(node.ip4()),
                _ => named.cluster(true),
            };
            for (by, proto) in [(By::Tcp, "tcp"), (By::Udp, "udp")] {
                let what = format!("{kind} > {to}/{proto}");
                let said = explain(node, from, to, proto)?;
                assert_eq!(said["client"]["place"], **kind, "{what}: {said}");
                assert_eq!(
                    said["frontend"]["name"],
                    format!("default/{}:{proto}", named.name),
                    "{what}: {said}"
                );
                if named == NONE {
                    assert_eq!(said["verdict"], "reject", "{what}: {said}");
                    let refused = by.ask(Ask::new(to).limit(Duration::from_secs(5)), place);
                    let refused = refused.expect_err("nobody serves it").to_string();
                    assert!(refused.contains("refused"), "{what}: {refused}");
                    continue;
                }
                assert_eq!(said["verdict"], "backend", "{what}: {said}");
                let foretold = foretold(&world, &said);
                let seen = ask(if foretold.len() > 1 { 40 } else { 4 }, by, to, place)?;
                let seen: BTreeSet<String> = servers(&seen).into_iter().map(str::to_owned).collect();
                assert_eq!(seen, foretold, "{what}: {said}");
            }
        }
    }
    Ok(())
}

/// From outside the client's port decides: each port's backend is foretold exactly; and a flow that is there is told.
#[test]
fn seeing_explain_foretells_each_port_of_a_client_outside() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let mut seen = BTreeSet::new();
    for node in world.cluster.nodes() {
        for v4 in [true, false] {
            let to = WEB.published(node.ip(v4));
            for port in 20000..20008_u16 {
                let from = SocketAddr::new(client.ip(v4), port).to_string();
                let said = explain(node, &from, to, "udp")?;
                let foretold = foretold(&world, &said);
                let reply = Ask::new(to).from_port(port).udp(client)?;
                assert_eq!(foretold, [reply.server.clone()].into(), "{from} > {to}: {said}");
                seen.insert(reply.server);
            }
            // What was a new flow is one that goes on.
            let from = SocketAddr::new(client.ip(v4), 20000).to_string();
            let said = explain(node, &from, to, "udp")?;
            assert_eq!((&said["verdict"], &said["flow"]["stale"]), (&"flow".into(), &false.into()), "{said}");
        }
    }
    assert_eq!(seen.len(), 2, "both backends were met");
    Ok(())
}

/// Refusals, and what is none of ours.
#[test]
fn seeing_explain_says_why_not() -> Result<()> {
    let world = World::start(strict())?;
    let (one, three) = (world.cluster.node(1), world.cluster.node(3));
    let client = world.cluster.client().ip(true).to_string();
    let pod = world.visitor.ip4().to_string();
    let why = |node: &Place, from: &str, to: SocketAddr, proto: &str| -> Result<(String, String)> {
        let said = explain(node, from, to, proto)?;
        let why: Vec<&str> = list(&said["why"]).iter().filter_map(Value::as_str).collect();
        Ok((said["verdict"].as_str().unwrap_or("?").to_owned(), why.join("; ")))
    };
    let at = |named: Named, port: u16| SocketAddr::new(named.cluster(true).ip(), port);
    let (verdict, words) = why(three, &pod, at(WEB, 81), "tcp")?;
    assert!(verdict == "reject" && words.contains("80/tcp, 80/udp"), "{verdict}: {words}");
    assert!(Ask::new(at(WEB, 81)).tcp(&world.visitor).is_err());
    let (verdict, words) = why(one, &client, WEB.published(three.ip4()), "tcp")?;
    assert!(
        verdict == "notAService" && words.contains("an address of n3: that node decides"),
        "{verdict}: {words}"
    );
    let (verdict, words) = why(one, &client, (one.ip4(), 31999).into(), "tcp")?;
    assert!(verdict == "notAService" && words.contains("no node port of this number"), "{verdict}: {words}");
    let (verdict, words) = why(one, &client, WEB.cluster(true), "tcp")?;
    assert!(verdict == "notAService" && words.contains("for clients in the cluster"), "{verdict}: {words}");
    let (_, words) = why(one, &pod, WEB.cluster(true), "tcp")?;
    assert!(words.contains("n3 decides this"), "{words}");
    let pod2: IpAddr = world.web2.pod().ip4();
    let (_, words) = why(one, &client, (pod2, 8080).into(), "tcp")?;
    assert!(words.contains("a pod's own address"), "{words}");

    // externalTrafficPolicy Local: on the node without a backend nobody from outside, from inside all.
    let service = SOLO.service().spec("externalTrafficPolicy: Local");
    world.cluster.publish(&service, &[world.web1.endpoint()])?;
    let to = SOLO.published(three.ip4());
    eventually("the policy", Duration::from_secs(20), || Ok(why(three, &client, to, "tcp")?.0 == "drop"))?;
    let (_, words) = why(three, &client, to, "tcp")?;
    assert!(words.contains("externalTrafficPolicy Local") && words.contains("drop_no_backend"), "{words}");
    assert!(Ask::new(to).limit(Duration::from_millis(500)).tcp(world.cluster.client()).is_err());
    assert_eq!(why(three, &pod, to, "tcp")?.0, "backend");
    assert_eq!(why(one, &client, SOLO.published(one.ip4()), "tcp")?.0, "backend");
    let text = three.run(Cmd::new(bin("proxyd")).args(["explain", &client, &to.to_string()]))?;
    assert!(text.contains("answer   dropped") && text.contains("on another node, and"), "{text}");
    Ok(())
}
