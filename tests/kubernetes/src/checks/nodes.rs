//! Nodes that come, are drained, die, and come back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use heddle_lab::oracle::converges;
use heddle_lab::{Ask, Node, eventually};
use serde_json::{Value, json};

use super::ensure;
use super::life::{clients, open};
use super::load::unnoticed;
use super::stage::{FAMILIES, Stage};
use crate::cluster::LIMIT;
use crate::error::{Error, Result};
use crate::pods::{self, PORT};

/// How long nodes may take from their start until they are ready.
const READY: Duration = Duration::from_secs(60);
/// How soon routes and FDB follow the nodes of the API.
const SOON: Duration = Duration::from_secs(2);
/// Heddle's VXLAN device.
const DEVICE: &str = "heddle.1";

pub fn ready_within_a_minute(stage: &Stage) -> Result<()> {
    stage.cluster.await_ready(READY)?;
    let took = stage.cluster.begun().elapsed();
    println!("    {} nodes ready {:.1} s after their start", stage.cluster.nodes().len(), took.as_secs_f32());
    ensure(took <= heddle_lab::patient(READY), || format!("they took {took:?}"))
}

/// What a node's overlay leads to: routes by range, FDB entries by the node behind them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    routes: BTreeSet<String>,
    peers: BTreeSet<IpAddr>,
}

/// What it must be on `node`, of the nodes that the API server has: a pure function of the input.
fn expected(nodes: &[Value], node: &Node) -> Overlay {
    let mut overlay = Overlay::default();
    for other in nodes.iter().filter(|other| pods::name(other) != node.name()) {
        let ranges = other["spec"]["podCIDRs"].as_array().into_iter().flatten();
        overlay.routes.extend(ranges.filter_map(Value::as_str).map(str::to_owned));
        let addresses = other["status"]["addresses"].as_array().into_iter().flatten();
        let internal = addresses.filter(|address| address["type"] == "InternalIP");
        let ips = internal.filter_map(|address| address["address"].as_str()?.parse::<IpAddr>().ok());
        // The packets between nodes are IPv4 where nodes have it.
        overlay.peers.extend(ips.filter(IpAddr::is_ipv4));
    }
    overlay
}

/// What the kernel has.
fn found(node: &Node) -> heddle_lab::Result<Overlay> {
    let mut overlay = Overlay::default();
    for family in ["-4", "-6"] {
        let text = node.run(format!("ip {family} route show dev {DEVICE} proto static"))?;
        let text = text + &node.run(format!("ip {family} route show dev {DEVICE}"))?;
        let ranges = text.lines().filter_map(|line| line.split_whitespace().next());
        overlay.routes.extend(ranges.filter(|range| is_remote(range)).map(str::to_owned));
    }
    let text = node.run(format!("bridge fdb show dev {DEVICE}"))?;
    let peers = text.lines().filter_map(|line| line.split_once(" dst ")?.1.split_whitespace().next());
    overlay.peers.extend(peers.filter_map(|ip| ip.parse::<IpAddr>().ok()));
    Ok(overlay)
}

/// Not the device's own: link-local and multicast.
fn is_remote(range: &str) -> bool {
    range.contains('/') && !range.starts_with("fe80:") && !range.starts_with("ff00:")
}

/// The convergence oracle: on each of these nodes the overlay is what the API's nodes say.
pub fn overlay_is_right(stage: &Stage, on: &[usize], limit: Duration) -> Result<()> {
    for index in on {
        let nodes = stage.cluster.api().list("v1/Node", None, "")?;
        let node = stage.cluster.node(*index).node();
        let what = format!("the overlay of {}", node.name());
        converges(&what, limit, &expected(&nodes, node), || found(node))?;
    }
    Ok(())
}

/// `kubectl drain`: its pods go elsewhere, nothing is lost, and its routes stay while the node does.
pub fn drained_under_load(stage: &Stage) -> Result<()> {
    const COUNT: usize = 6;
    let web = stage.web()?;
    let api = stage.cluster.api();
    api.apply(&pods::deployment("drained", COUNT))?;
    let service = stage.service(&open("drained"))?;
    let scale = |count: usize| {
        let change = json!({ "spec": { "replicas": count } });
        api.patch("apps/v1/Deployment", "default/drained", &change)
    };
    unnoticed(stage, "drained", |_| {
        // Spread over all nodes, also when the attempt before has emptied one.
        scale(0)?;
        stage.await_no_pods("drained")?;
        scale(COUNT)?;
        let spread = stage.await_pods("drained", COUNT)?;
        ensure(spread.iter().any(|pod| pods::node(pod) == "n3"), || "no pod is on n3".into())?;
        // Whose pods of `web` belong to nobody who would make them anew: the third one goes for good.
        let clients = clients(stage, &service, &web[..2])?;
        stage.cluster.kubectl("drain n3 --ignore-daemonsets --force --delete-emptydir-data --timeout=60s")?;
        let moved = stage.await_pods("drained", COUNT)?;
        ensure(moved.iter().all(|pod| pods::node(pod) != "n3"), || "a pod is still on n3".into())?;
        overlay_is_right(stage, &[1, 2, 3], SOON)?;
        clients.go_on(Duration::from_secs(1))?;
        stage.cluster.kubectl("uncordon n3")?;
        Ok(clients)
    })?;
    api.delete("apps/v1/Deployment", "default/drained")?;
    stage.withdraw("drained")?;
    stage.await_no_pods("drained")
}

/// The power of node 3 goes. Nobody forgets the way to it, until its Node object is deleted.
pub fn fault_126_a_node_that_is_dead_is_kept_until_it_is_deleted(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let api = stage.cluster.api();
    overlay_is_right(stage, &[1, 2, 3], SOON)?;
    stage.cluster.node(3).power_off()?;
    // As the controller manager says after its grace period.
    let unknown = json!([{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown" }]);
    api.patch_status("v1/Node", "n3", &json!({ "status": { "conditions": unknown } }))?;
    overlay_is_right(stage, &[1, 2], SOON)?;
    let kept = found(stage.cluster.node(1).node())?;
    ensure(kept.peers.len() == 2, || format!("the way to a dead node is gone: {kept:?}"))?;
    api.delete("v1/Node", "n3")?;
    let begun = Instant::now();
    overlay_is_right(stage, &[1, 2], SOON)?;
    println!("    routes and FDB right {:?} after the node was deleted", begun.elapsed());
    let left = found(stage.cluster.node(1).node())?;
    ensure(left.peers.len() == 1, || format!("the way to a deleted node is still there: {left:?}"))?;
    // The others go on.
    let (one, two) = (&web[0], &web[1]);
    for v4 in FAMILIES {
        let reply = Ask::new((two.ip(v4)?, PORT)).tcp(&one.place)?;
        ensure(reply.server == two.name(), || format!("{reply:?}"))?;
    }
    api.raw("DELETE", "/api/v1/namespaces/default/pods/web-3?gracePeriodSeconds=0", None)?;
    Ok(())
}

/// Node 3 is set up anew: another range of pods, another device, the same name and address.
pub fn fault_127_a_node_that_comes_back_under_its_name(stage: &Stage) -> Result<()> {
    if stage.cluster.api().get("v1/Node", "n3")?.is_some() {
        stage.cluster.node(3).power_off()?;
        stage.cluster.api().delete("v1/Node", "n3")?;
    }
    let node = stage.cluster.node(3);
    node.boot()?;
    stage.cluster.await_ready(READY)?;
    overlay_is_right(stage, &[1, 2, 3], SOON)?;
    let pod = pods::pod("web-3", "web", "n3");
    eventually("a pod for the node that came back", LIMIT, || {
        let applied = stage.cluster.api().apply(&pod);
        applied.map(|_| true).map_err(|e| heddle_lab::Error::Oracle(e.to_string()))
    })?;
    let web = stage.web()?;
    for v4 in FAMILIES {
        for from in &web {
            for to in &web {
                let reply = Ask::new((to.ip(v4)?, PORT)).tcp(&from.place)?;
                let right = reply.server == to.name() && reply.client.ip() == from.ip(v4)?;
                ensure(right, || format!("{} asks {}: {reply:?}", from.name(), to.name()))?;
            }
        }
    }
    let service = stage.service(&pods::service("again", "web"))?;
    for v4 in FAMILIES {
        let vip = pods::ip(&service, v4).ok_or_else(|| Error::new("read a service", &service))?;
        for from in &web {
            stage.await_answer(&from.place, (vip, 80).into())?;
            let replies = stage.ask(&from.place, "tcp", (vip, 80).into(), 40)?;
            ensure(super::stage::servers(&replies).len() == web.len(), || format!("{replies:?}"))?;
        }
    }
    stage.withdraw("again")
}
