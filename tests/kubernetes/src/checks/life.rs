//! Pods that go while they are asked.

use std::net::SocketAddr;
use std::time::Duration;

use heddle_lab::{Ask, eventually};
use serde_json::{Value, json};

use super::load::{Clients, unnoticed};
use super::stage::{FAMILIES, Stage, Standing};
use super::{ensure, size};
use crate::cluster::LIMIT;
use crate::error::{Error, Result};
use crate::pods;

/// The address of a service, and a node port's at each node.
pub fn doors(stage: &Stage, service: &Value, v4: bool) -> Result<(SocketAddr, Vec<SocketAddr>)> {
    let missing = || Error::new("read a service", service);
    let vip = SocketAddr::new(pods::ip(service, v4).ok_or_else(missing)?, 80);
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| port.try_into().ok());
    let port: u16 = port.ok_or_else(missing)?;
    let nodes = stage.cluster.nodes().iter();
    Ok((vip, nodes.map(|node| SocketAddr::new(node.node().ip(v4), port)).collect()))
}

/// Clients of `service` everywhere: outside by each node's port, pods by its address. It answers each of them first.
pub fn clients(stage: &Stage, service: &Value, web: &[Standing]) -> Result<Clients> {
    let mut clients = Clients::new();
    let outside = stage.cluster.lab().client();
    for v4 in FAMILIES {
        let (vip, ports) = doors(stage, service, v4)?;
        for port in &ports {
            stage.await_answer(outside, *port)?;
        }
        for standing in web {
            stage.await_answer(&standing.place, vip)?;
        }
        clients.connects(outside, ports[usize::from(v4)])?;
        clients.connects(&web[usize::from(v4)].place, vip)?;
        clients.process(stage, &web[usize::from(!v4)].place, vip)?;
    }
    Ok(clients)
}

/// A service with a node port before the pods of a Deployment.
pub fn open(name: &str) -> Value {
    let mut service = pods::service(name, name);
    service["spec"]["type"] = "NodePort".into();
    service
}

/// Ended at once, its network goes with it, and nobody is sent there any more.
pub fn pod_deleted_by_force(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let service = stage.service(&pods::service("forced", "forced"))?;
    for (index, node) in stage.cluster.nodes().iter().enumerate() {
        let pod = pods::pod(&format!("forced-{}", index + 1), "forced", node.node().name());
        stage.cluster.api().apply(&pod)?;
    }
    let pods = stage.await_pods("forced", stage.cluster.nodes().len())?;
    let gone =
        pods::ip(&pods[0], true).ok_or_else(|| Error::new("find a pod's address", &pods[0]["status"]))?;
    let before = stage.cluster.node(1).sandboxes()?;
    stage.cluster.kubectl("delete pod forced-1 --force --grace-period=0")?;
    for v4 in FAMILIES {
        let vip = pods::ip(&service, v4).ok_or_else(|| Error::new("read a service", &service))?;
        for standing in &web {
            let what = format!("forced-1 out of the service, seen from {}", standing.name());
            eventually(&what, Duration::from_secs(5), || {
                let mut asked = (0..20).map(|_| Ask::new((vip, 80)).tcp(&standing.place));
                asked.try_fold(true, |so_far, reply| Ok(so_far && reply?.server != "forced-1"))
            })?;
            let replies = stage.ask(&standing.place, "tcp", SocketAddr::new(vip, 80), 20)?;
            ensure(replies.iter().all(|(server, _)| server != "forced-1"), || format!("{replies:?}"))?;
        }
    }
    eventually("the end of the pod's sandbox", Duration::from_secs(30), || {
        let now = stage.cluster.node(1).sandboxes().map_err(|e| heddle_lab::Error::Oracle(e.to_string()))?;
        Ok(now < before)
    })?;
    let reply = Ask::new((gone, pods::PORT)).limit(Duration::from_millis(300)).tcp(&web[1].place);
    ensure(reply.is_err(), || format!("the pod is gone, but {reply:?}"))?;
    for pod in &pods[1..] {
        stage.cluster.api().delete("v1/Pod", &format!("default/{}", pods::name(pod)))?;
    }
    stage.withdraw("forced")?;
    stage.await_no_pods("forced")
}

/// A Deployment of `HEDDLE_KUBERNETES_ROLLING` (20) pods is replaced while it is asked from everywhere.
pub fn rolling_update_under_load(stage: &Stage) -> Result<()> {
    let count = size("HEDDLE_KUBERNETES_ROLLING", 20);
    let web = stage.web()?;
    let api = stage.cluster.api();
    api.apply(&pods::deployment("rolling", count))?;
    let service = stage.service(&open("rolling"))?;
    stage.await_pods("rolling", count)?;
    unnoticed(stage, "rolling", |attempt| {
        let first = stage.await_pods("rolling", count)?;
        let clients = clients(stage, &service, &web)?;
        let mut next = pods::deployment("rolling", count);
        next["spec"]["template"]["metadata"]["annotations"] = json!({ "release": attempt.to_string() });
        let generation = api.apply(&next)?["metadata"]["generation"].as_u64().unwrap_or_default();
        let all = count as u64;
        api.wait("apps/v1/Deployment", "default/rolling", LIMIT, move |deployment| {
            let Some(status) = deployment.map(|deployment| &deployment["status"]) else { return false };
            let is = |field: &str, number: u64| status[field].as_u64().unwrap_or_default() == number;
            is("observedGeneration", generation)
                && ["updatedReplicas", "availableReplicas", "replicas"].iter().all(|field| is(field, all))
        })?;
        let second = stage.await_pods("rolling", count)?;
        let stays = |old: &Value| second.iter().any(|new| pods::name(old) == pods::name(new));
        ensure(!first.iter().any(stays), || "a pod of the last release is still there".into())?;
        clients.go_on(Duration::from_secs(1))?;
        Ok(clients)
    })?;
    api.delete("apps/v1/Deployment", "default/rolling")?;
    stage.withdraw("rolling")?;
    stage.await_no_pods("rolling")
}

/// The DaemonSet of Heddle is rolled over all nodes: what its programs made stays, and goes on.
pub fn heddle_itself_replaced_under_load(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let mut service = open("kept");
    service["spec"]["selector"]["app"] = "web".into();
    let service = stage.service(&service)?;
    let mut clients = clients(stage, &service, &web)?;
    let (vip, ports) = doors(stage, &service, true)?;
    clients.streams(&web[2].place, vip)?;
    clients.streams(stage.cluster.lab().client(), ports[1])?;
    let daemons = format!("{}/heddle", crate::deploy::NAMESPACE);
    let change = json!({ "spec": { "template": { "metadata": { "annotations": { "release": "2" } } } } });
    let changed = stage.cluster.api().patch("apps/v1/DaemonSet", &daemons, &change)?;
    let generation = changed["metadata"]["generation"].as_u64().unwrap_or_default();
    let all = stage.cluster.nodes().len() as u64;
    stage.cluster.api().wait("apps/v1/DaemonSet", &daemons, LIMIT, move |set| {
        let Some(status) = set.map(|set| &set["status"]) else { return false };
        let is = |field: &str, number: u64| status[field].as_u64().unwrap_or_default() == number;
        is("observedGeneration", generation) && is("updatedNumberScheduled", all) && is("numberReady", all)
    })?;
    clients.go_on(Duration::from_secs(1))?;
    clients.assert_clean()?;
    stage.withdraw("kept")
}
