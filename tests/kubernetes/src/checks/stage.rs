//! A cluster with a pod on each node, before which services stand.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use heddle_lab::{Ask, Place, eventually};
use serde_json::Value;

use super::ensure;
use crate::cluster::{Cluster, LIMIT, condition};
use crate::error::{Error, Result, mkdir, write};
use crate::pods;

/// IPv4, IPv6.
pub const FAMILIES: [bool; 2] = [true, false];

/// What does pods and services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Heddle,
    /// The reference plugins and kube-proxy.
    Reference,
}

/// Where checks are carried out.
#[derive(Debug)]
pub struct Stage {
    pub subject: Subject,
    pub cluster: Cluster,
}

/// A pod that runs, and a place in its network.
#[derive(Debug)]
pub struct Standing {
    pub pod: Value,
    pub place: Place,
}

impl Standing {
    pub fn name(&self) -> &str {
        pods::name(&self.pod)
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn ip(&self, v4: bool) -> Result<IpAddr> {
        let status = &self.pod["status"]["podIPs"];
        pods::ip(&self.pod, v4).ok_or_else(|| Error::new("find a pod's address", status))
    }
}

impl Stage {
    /// A stage on a cluster whose network is being installed.
    pub fn new(cluster: Cluster, subject: Subject) -> Self {
        Self { subject, cluster }
    }

    /// Writes what all programs have printed into `dir`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_logs(&self, dir: &Path) -> Result<()> {
        mkdir(dir)?;
        self.cluster.lab().logs().iter().try_for_each(|(name, text)| write(&dir.join(name), text))
    }

    /// The pods with the label `app`, once there are so many and all are ready.
    ///
    /// # Errors
    /// After a while, with the pods.
    pub fn await_pods(&self, app: &str, count: usize) -> Result<Vec<Value>> {
        let selector = format!("app={app}");
        self.cluster.api().wait_all("v1/Pod", Some("default"), &selector, LIMIT, move |pods| {
            let leaving = |pod: &&&Value| !pod["metadata"]["deletionTimestamp"].is_null();
            pods.iter().filter(|pod| condition(pod, "Ready")).count() == count
                && pods.len() == count
                && !pods.iter().any(|pod| leaving(&pod))
        })
    }

    /// Waits until no pod has the label.
    ///
    /// # Errors
    /// After a while, with the pods.
    pub fn await_no_pods(&self, app: &str) -> Result<()> {
        let selector = format!("app={app}");
        self.cluster.api().wait_all("v1/Pod", Some("default"), &selector, LIMIT, |pods| pods.is_empty())?;
        Ok(())
    }

    /// One pod on each node, `web-1` on the first: made once, used by many checks, made again when it is gone.
    ///
    /// # Errors
    /// When they do not become ready.
    pub fn web(&self) -> Result<Vec<Standing>> {
        let nodes = self.cluster.nodes();
        let pod = |(index, node): (usize, &crate::KubeNode)| {
            pods::pod(&format!("web-{}", index + 1), "web", node.node().name())
        };
        let there = self.cluster.api().list("v1/Pod", Some("default"), "app=web")?;
        let wanted = nodes.iter().enumerate().map(pod);
        let missing = wanted.filter(|pod| !there.iter().any(|one| pods::name(one) == pods::name(pod)));
        self.cluster.api().apply_all(missing.collect::<Vec<_>>())?;
        self.await_pods("web", nodes.len())?.into_iter().map(|pod| self.standing(pod)).collect()
    }

    /// A place in the network of `pod`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn standing(&self, pod: Value) -> Result<Standing> {
        let place = self.cluster.place_of(&pod)?;
        Ok(Standing { pod, place })
    }

    /// Applies a service, and gives it with the addresses that it has got.
    ///
    /// # Errors
    /// The API server's.
    pub fn service(&self, service: &Value) -> Result<Value> {
        self.cluster.api().apply(service)
    }

    /// Removes a service.
    ///
    /// # Errors
    /// The API server's.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        self.cluster.api().delete("v1/Service", &format!("default/{name}"))
    }

    /// Waits until a question to `to` is answered: the first sign that a service has arrived there.
    ///
    /// # Errors
    /// After a while, with what the client saw last.
    pub fn await_answer(&self, place: &Place, to: SocketAddr) -> Result<()> {
        let ask = Ask::new(to).limit(Duration::from_millis(500));
        let what = format!("an answer of {to} to {}", place.name());
        Ok(eventually(&what, Duration::from_secs(20), || ask.tcp(place).map(|_| true))?)
    }

    /// Asks `to` so often, from a process of `place` that the node's socket programs see: who answered, and whom they
    /// saw.
    ///
    /// # Errors
    /// When a question stays without an answer.
    pub fn ask(
        &self,
        place: &Place,
        proto: &str,
        to: SocketAddr,
        count: usize,
    ) -> Result<Vec<(String, IpAddr)>> {
        let args = ["ask", proto, &to.to_string(), &count.to_string()];
        let printed = self.cluster.inmate_in(place, &args)?;
        replies(&printed, count, &format!("{} {proto} {to}", place.name()))
    }
}

/// Takes what the inmate printed apart.
///
/// # Errors
/// When there are not so many answers.
pub fn replies(printed: &str, count: usize, what: &str) -> Result<Vec<(String, IpAddr)>> {
    let reply = |line: &str| {
        let (server, client) = line.split_once(' ')?;
        Some((server.to_owned(), client.trim().parse::<SocketAddr>().ok()?.ip()))
    };
    let replies: Vec<_> = printed.lines().filter_map(reply).collect();
    ensure(replies.len() == count, || format!("{count} questions, {what}: {printed}"))?;
    Ok(replies)
}

/// Who answered.
pub fn servers(replies: &[(String, IpAddr)]) -> BTreeSet<&str> {
    replies.iter().map(|(server, _)| server.as_str()).collect()
}
