//! What the demo's story happens on: the lab, the pods by name, the service.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use heddle_lab::{
    Backend, Cluster, Condition, Endpoint, Lab, Place, Plan, Proto, Service, addresses::cluster_ip,
};

/// The port that the pods listen on.
pub const POD_PORT: u16 = 8080;
/// The port that every node publishes.
pub const NODE_PORT: u16 = 30080;

const NODES: &str = include_str!("../../../../../deploy/demo/nodes.yaml");
const SERVICE: &str = include_str!("../../../../../deploy/demo/service.yaml");

/// The service of `deploy/demo/service.yaml`.
pub fn web() -> Service {
    Service::new("web")
        .cluster_ip(cluster_ip(10, true))
        .cluster_ip(cluster_ip(10, false))
        .port("http", Proto::Tcp, 80, POD_PORT)
        .node_port(NODE_PORT)
}

/// The lab and what runs on it.
#[derive(Debug)]
pub struct Stage {
    // Pods go before the cluster that they are in.
    pods: BTreeMap<String, Backend>,
    pub cluster: Cluster,
}

impl Stage {
    /// Three nodes, declared by the demo's manifests, with both daemons ready on each.
    pub fn raise(lab: Lab) -> Result<Self> {
        lab.manifests().put("nodes.yaml", NODES)?;
        Ok(Self { pods: BTreeMap::new(), cluster: Cluster::on(lab, Plan::default())? })
    }

    /// Wires a pod in which a server of its name listens.
    pub fn add(&mut self, node: usize, name: &str) -> Result<()> {
        let pod = self.cluster.backend(node, name, POD_PORT)?;
        self.pods.insert(name.into(), pod);
        Ok(())
    }

    /// Ends a pod as kubelet does: its process, then its network.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        let mut pod = self.pods.remove(name).with_context(|| format!("there is no pod {name}"))?;
        pod.stop_server();
        Ok(pod.pod().cni_del()?)
    }

    /// The names of all pods.
    pub fn names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// A pod.
    pub fn pod(&self, name: &str) -> Result<&Backend> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    /// Where a pod's programs run.
    pub fn place(&self, name: &str) -> Result<&Place> {
        Ok(self.pod(name)?.pod().place())
    }

    /// Makes `ready` the backends of the service; `leaving` are on their way out, `dead` on a dead node.
    pub fn scale(&self, ready: &[&str], leaving: &[&str], dead: &[&str]) -> Result<()> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let kinds =
            [(ready, Condition::Ready), (leaving, Condition::Terminating), (dead, Condition::NotReady)];
        for (names, condition) in kinds {
            for name in names {
                endpoints.push(self.pod(name)?.endpoint().condition(condition));
            }
        }
        Ok(self.cluster.manifests().endpoints(&web(), &endpoints)?)
    }

    /// Publishes the service of the demo's manifests.
    pub fn publish(&self) -> Result<()> {
        Ok(self.cluster.manifests().put("service.yaml", SERVICE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_comments(text: &str) -> String {
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn the_manifests_are_those_of_the_story() {
        assert_eq!(without_comments(SERVICE), web().to_yaml());
        for index in 1..=3 {
            for v4 in [true, false] {
                let range = heddle_lab::addresses::pod_range(index, v4);
                let address = heddle_lab::addresses::node_ip(index, v4);
                assert!(NODES.contains(&format!("\"{range}\"")) && NODES.contains(&format!("\"{address}\"")));
            }
        }
    }
}
