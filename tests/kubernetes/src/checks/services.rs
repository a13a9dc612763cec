//! Addresses of services, asked from everywhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use heddle_lab::{Ask, Place};
use serde_json::{Value, json};

use super::ensure;
use super::stage::{FAMILIES, Stage, Standing, Subject, replies, servers};
use crate::error::{Error, Result};
use crate::pods::{self, PORT};

/// So many questions leave none of three backends out by chance (in 1 of 10 million).
const QUESTIONS: usize = 40;

fn names(web: &[Standing]) -> BTreeSet<&str> {
    web.iter().map(Standing::name).collect()
}

fn vip(service: &Value, v4: bool) -> Result<SocketAddr> {
    let ip = pods::ip(service, v4);
    Ok(SocketAddr::new(ip.ok_or_else(|| Error::new("find a service's address", service))?, 80))
}

fn node_port(service: &Value) -> Result<u16> {
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| port.try_into().ok());
    port.ok_or_else(|| Error::new("find a service's node port", service))
}

/// From threads (packets of pods), from processes (sockets), from within containers, from nodes.
pub fn cluster_ip(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let service = stage.service(&pods::service("web", "web"))?;
    for v4 in FAMILIES {
        let to = vip(&service, v4)?;
        for standing in &web {
            stage.await_answer(&standing.place, to)?;
        }
        let nodes = stage.cluster.nodes().iter().map(|node| node.node().place());
        for place in web.iter().map(|standing| &standing.place).chain(nodes) {
            for proto in ["tcp", "udp"] {
                let replies = stage.ask(place, proto, to, QUESTIONS)?;
                let who = || format!("{} {proto} {to}: {replies:?}", place.name());
                ensure(servers(&replies) == names(&web), who)?;
            }
        }
        for standing in &web {
            for _ in 0..QUESTIONS / 4 {
                let reply = Ask::new(to).tcp(&standing.place)?;
                ensure(names(&web).contains(reply.server.as_str()), || format!("{reply:?}"))?;
                let own = standing.ip(v4)?;
                let itself = reply.server == standing.name();
                ensure(itself || reply.client.ip() == own, || format!("the client is {own}: {reply:?}"))?;
            }
        }
        let printed = stage.cluster.kubectl(&format!("exec web-1 -- /inmate ask tcp {to} {QUESTIONS}"))?;
        let replies = replies(&printed, QUESTIONS, "within web-1")?;
        ensure(servers(&replies) == names(&web), || format!("within web-1: {replies:?}"))?;
    }
    stage.withdraw("web")
}

fn typed(name: &str, kind: &str, policy: &str) -> Value {
    let mut service = pods::service(name, "web");
    service["spec"]["type"] = kind.into();
    service["spec"]["externalTrafficPolicy"] = policy.into();
    service
}

/// Asks from outside until all of `expected` have answered, and `sees` is content with each reply.
fn from_outside(stage: &Stage, to: SocketAddr, expected: &BTreeSet<&str>, keeps: bool) -> Result<()> {
    let client = stage.cluster.lab().client();
    stage.await_answer(client, to)?;
    for udp in [false, true] {
        let mut seen = BTreeSet::new();
        for _ in 0..QUESTIONS {
            let reply = if udp { Ask::new(to).udp(client)? } else { Ask::new(to).tcp(client)? };
            let own = client.ip(to.is_ipv4());
            ensure(!keeps || reply.client.ip() == own, || format!("{to}: the client is {own}: {reply:?}"))?;
            seen.insert(reply.server);
        }
        let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
        ensure(&seen == expected, || format!("{to} is answered by {seen:?}, not {expected:?}"))?;
    }
    Ok(())
}

fn at_each_node(stage: &Stage, policy: &str, keeps: bool) -> Result<()> {
    let web = stage.web()?;
    let service = stage.service(&typed("outside", "NodePort", policy))?;
    let port = node_port(&service)?;
    for (index, node) in stage.cluster.nodes().iter().enumerate() {
        let own = BTreeSet::from([web[index].name()]);
        let expected = if policy == "Local" { own } else { names(&web) };
        for v4 in FAMILIES {
            from_outside(stage, SocketAddr::new(node.node().ip(v4), port), &expected, keeps)?;
        }
    }
    stage.withdraw("outside")
}

pub fn node_port_cluster(stage: &Stage) -> Result<()> {
    at_each_node(stage, "Cluster", stage.subject == Subject::Heddle)
}

pub fn node_port_local_keeps_the_client(stage: &Stage) -> Result<()> {
    at_each_node(stage, "Local", true)
}

/// What nobody but the cluster's administrator has given: there is no cloud.
pub fn balancer_address_set_by_hand(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let lab = stage.cluster.lab();
    stage.service(&typed("balanced", "LoadBalancer", "Cluster"))?;
    let addresses: [IpAddr; 2] = [[203, 0, 113, 7].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into()];
    let ingress: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
    let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
    stage.cluster.api().patch_status("v1/Service", "default/balanced", &status)?;
    for ip in addresses {
        lab.switch().admit(ip)?;
        let via = stage.cluster.node(2).node().ip(ip.is_ipv4());
        lab.client().run(format!("ip route replace {ip} via {via}"))?;
        let to = SocketAddr::new(ip, 80);
        from_outside(stage, to, &names(&web), stage.subject == Subject::Heddle)?;
        // From inside it does not leave the node.
        let replies = stage.ask(&web[0].place, "tcp", to, QUESTIONS)?;
        ensure(servers(&replies) == names(&web), || format!("{to} from web-1: {replies:?}"))?;
        lab.client().run(format!("ip route del {ip}"))?;
    }
    stage.withdraw("balanced")
}

pub fn session_affinity(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let mut service = typed("sticky", "NodePort", "Cluster");
    service["spec"]["sessionAffinity"] = "ClientIP".into();
    let service = stage.service(&service)?;
    let port = node_port(&service)?;
    for v4 in FAMILIES {
        let to = vip(&service, v4)?;
        for standing in &web {
            stage.await_answer(&standing.place, to)?;
            let replies = stage.ask(&standing.place, "tcp", to, QUESTIONS / 2)?;
            ensure(servers(&replies).len() == 1, || format!("{} {to}: {replies:?}", standing.name()))?;
        }
        let client = stage.cluster.lab().client();
        let at = SocketAddr::new(stage.cluster.node(1).node().ip(v4), port);
        stage.await_answer(client, at)?;
        let first = Ask::new(at).tcp(client)?;
        for _ in 0..QUESTIONS / 2 {
            let reply = Ask::new(at).tcp(client)?;
            ensure(reply.server == first.server, || format!("{at}: {first:?}, then {reply:?}"))?;
        }
    }
    stage.withdraw("sticky")
}

/// From outside, from another node, from a pod elsewhere.
pub fn host_port(stage: &Stage) -> Result<()> {
    const HOST_PORT: u16 = 30999 - 1000;
    let web = stage.web()?;
    let node = stage.cluster.node(1).node();
    let mut pod = pods::pod("published", "published", node.name());
    pod["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": PORT, "hostPort": HOST_PORT, "protocol": "TCP" },
        { "containerPort": PORT, "hostPort": HOST_PORT, "protocol": "UDP" },
    ]);
    stage.cluster.api().apply(&pod)?;
    stage.await_pods("published", 1)?;
    let places: [&Place; 3] = [stage.cluster.lab().client(), stage.cluster.node(2).node(), &web[2].place];
    for v4 in FAMILIES {
        let to = SocketAddr::new(node.ip(v4), HOST_PORT);
        if stage.subject == Subject::Reference {
            // The host's end of its pair still looks for duplicates of its address.
            stage.await_answer(places[0], to)?;
        }
        for place in places {
            for proto in ["tcp", "udp"] {
                let replies = stage.ask(place, proto, to, 3)?;
                let who = || format!("{} {to}: {replies:?}", place.name());
                ensure(servers(&replies) == BTreeSet::from(["published"]), who)?;
            }
        }
    }
    stage.cluster.api().delete("v1/Pod", "default/published")?;
    stage.await_no_pods("published")
}
