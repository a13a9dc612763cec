//! Many pods at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use heddle_lab::{Ask, Snapshot, eventually};
use serde_json::json;

use super::stage::{FAMILIES, Stage};
use super::{ensure, size};
use crate::cluster::LIMIT;
use crate::error::Result;
use crate::pods::{self, PORT};

/// `HEDDLE_KUBERNETES_PODS` (30) on each node, each with addresses of its own, each asked by a pod of every node.
pub fn pods_on_each_node_and_each_reaches_each(stage: &Stage) -> Result<()> {
    let count = size("HEDDLE_KUBERNETES_PODS", 30);
    let nodes = stage.cluster.nodes();
    let web = stage.web()?;
    for node in nodes {
        let mut crowd = pods::deployment(&format!("crowd-{}", node.node().name()), count - 1);
        let template = &mut crowd["spec"]["template"];
        template["metadata"]["labels"]["crowd"] = "yes".into();
        template["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node.node().name() });
        // It is only asked whether they are there.
        template["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = 5.into();
        stage.cluster.api().apply(&crowd)?;
    }
    let total = (count - 1) * nodes.len();
    let ready = |pods: &[&serde_json::Value]| {
        pods.iter().filter(|pod| crate::cluster::condition(pod, "Ready")).count()
    };
    let api = stage.cluster.api();
    let crowd =
        api.wait_all("v1/Pod", Some("default"), "crowd=yes", LIMIT, move |pods| ready(pods) == total)?;
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for v4 in FAMILIES {
        for pod in crowd.iter().chain(web.iter().map(|standing| &standing.pod)) {
            let ip = pods::ip(pod, v4);
            let ip = ip.ok_or_else(|| crate::Error::new("find a pod's address", &pod["status"]["podIPs"]))?;
            ensure(seen.insert(ip), || format!("{ip} is given twice"))?;
            for from in &web {
                let reply = Ask::new((ip, PORT)).tcp(&from.place)?;
                let own = from.ip(v4)?;
                let right = reply.server == pods::name(pod) && reply.client.ip() == own;
                ensure(right, || format!("{} asks {ip} of {}: {reply:?}", from.name(), pods::name(pod)))?;
            }
        }
    }
    for node in nodes {
        api.delete("apps/v1/Deployment", &format!("default/crowd-{}", node.node().name()))?;
    }
    api.wait_all("v1/Pod", Some("default"), "crowd=yes", LIMIT, |pods| pods.is_empty())?;
    Ok(())
}

/// What pods leave behind on their nodes.
const KINDS: [&str; 4] = ["files", "tasks", "mounts", "cgroups"];

/// Pods and services come and go, and all is as it was: devices, addresses, routes, rules, programs, leases.
pub fn nothing_is_left_when_pods_are_gone(stage: &Stage) -> Result<()> {
    let (cluster, count) = (&stage.cluster, 3);
    stage.web()?;
    let look = || -> heddle_lab::Result<Snapshot> { Ok(Snapshot::of(cluster.lab())?.without(&KINDS)) };
    // What went before may still be going.
    let mut before = look()?;
    eventually("the nodes at rest", Duration::from_secs(30), || {
        let now = look()?;
        let rests = before.same_as(&now).is_ok();
        before = now;
        Ok(rests)
    })?;
    let leases = leases(stage);
    cluster.api().apply(&pods::deployment("passing", count))?;
    stage.service(&pods::service("passing", "passing"))?;
    stage.await_pods("passing", count)?;
    ensure(before.same_as(&look()?).is_err(), || "pods that leave no trace while they run".into())?;
    cluster.api().delete("apps/v1/Deployment", "default/passing")?;
    stage.withdraw("passing")?;
    stage.await_no_pods("passing")?;
    eventually("the nodes as before", Duration::from_secs(30), || before.same_as(&look()?).map(|()| true))?;
    let after = self::leases(stage);
    ensure(leases == after, || format!("leases before {leases:?}, after {after:?}"))
}

/// The files of addresses that are given.
fn leases(stage: &Stage) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for node in stage.cluster.nodes() {
        let mut dirs = vec![node.node().path("/var/lib/heddle")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push(entry.path());
                } else {
                    found.insert(format!("{} {}", node.node().name(), entry.file_name().to_string_lossy()));
                }
            }
        }
    }
    found
}
