//! A cluster: a control plane and nodes, on a Lab, without a network for its pods until somebody installs one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use heddle_lab::{Cmd, Lab, Place};
use heddle_runtime::{Containerd, image};
use serde_json::Value;

use crate::api::Api;
use crate::control_plane::{ControlPlane, Options};
use crate::dns;
use crate::error::{Error, Result};
use crate::node::{KubeNode, PAUSE};
use crate::programs;

/// How long things of a cluster may take: pods to start, objects to be seen.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Nodes, and a control plane on a machine of its own. Dropped, everything ends and nothing is left.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<KubeNode>,
    plane: ControlPlane,
    /// When the nodes were started.
    begun: Instant,
    images: PathBuf,
    /// Last, so that it is dropped last.
    lab: Lab,
}

impl Cluster {
    /// Why it cannot be raised on this machine.
    pub fn missing() -> Option<String> {
        Containerd::missing()
            .or_else(ControlPlane::missing)
            .or_else(|| programs::missing(&["kubelet", "kubectl"]))
    }

    /// Raises one of so many nodes. They have containerd and kubelet, and no network for pods.
    ///
    /// # Errors
    /// When a program does not start.
    pub fn raise(nodes: usize) -> Result<Self> {
        Self::raise_with(nodes, |_| Ok(Vec::new()))
    }

    /// The same with further images, archives that `archives` writes into the directory of the lab.
    ///
    /// # Errors
    /// As [`raise`](Self::raise), and those of `archives`.
    pub fn raise_with(nodes: usize, archives: impl FnOnce(&Lab) -> Result<Vec<PathBuf>>) -> Result<Self> {
        // Container runtimes want groups of whole processes.
        let lab = Lab::builder().nodes(nodes).clients(2).threaded(false).build()?;
        // What changes within a moment is written once: the controller manager does not run ahead of its own cache.
        let batch = "--endpointslice-updates-batch-period=200ms".to_owned();
        // Longer than any test takes the API server away: when it is back, nodes that could not be heard of would be
        // declared dead, and the endpoints of their pods not ready, which nobody who does services may ignore.
        let grace = "--node-monitor-grace-period=300s".to_owned();
        let options =
            Options { controllers: true, controller_manager: vec![batch, grace], ..Options::default() };
        let plane = ControlPlane::raise(&lab, &lab.clients()[1], options)?;
        let images = lab.dir().join("inmate");
        let mut list = vec![image::write_named(lab.client(), &images, &[PAUSE, image::IMAGE])?];
        list.extend(dns::archives(&lab)?);
        list.extend(archives(&lab)?);
        let begun = Instant::now();
        let start = |node| KubeNode::start(node, &plane, lab.dir(), &list);
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = lab.nodes().iter().map(|node| scope.spawn(move || start(node))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<KubeNode>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            starting.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { nodes, plane, begun, images, lab })
    }

    /// Node `index`; 1 is the first.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, index: usize) -> &KubeNode {
        &self.nodes[index - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[KubeNode] {
        &self.nodes
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_called(&self, name: &str) -> Result<&KubeNode> {
        let node = self.nodes.iter().find(|node| node.node().name() == name);
        node.ok_or_else(|| Error::new(format!("find the node {name}"), "there is none"))
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The administrator's connection to the API server.
    pub fn api(&self) -> &Api {
        self.plane.api()
    }

    /// The Lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// When the nodes were started.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// The program that runs in pods, to be run in a pod's network by its node.
    pub fn inmate(&self) -> PathBuf {
        self.images.join("inmate")
    }

    /// Runs kubectl as administrator.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        self.plane.kubectl(&line.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    /// After `limit`, with what the nodes say of themselves.
    pub fn await_ready(&self, limit: Duration) -> Result<()> {
        let count = self.nodes.len();
        let ready = self.api().wait_all("v1/Node", None, "", limit, move |nodes| {
            nodes.len() == count && nodes.iter().all(|node| condition(node, "Ready"))
        });
        ready.map(drop)
    }

    /// A place in the network of a pod.
    ///
    /// # Errors
    /// When it does not run.
    pub fn place_of(&self, pod: &Value) -> Result<Place> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.node_called(&text(&pod["spec"]["nodeName"]))?.pod(&text(&pod["metadata"]["name"]))
    }

    /// Runs the inmate in a pod's network, as a process of its node: `ask tcp 10.96.0.1:443 3`. The node's socket
    /// programs see its sockets.
    ///
    /// # Errors
    /// When it fails.
    pub fn inmate_in(&self, place: &Place, args: &[&str]) -> Result<String> {
        Ok(place.run(Cmd::new(self.inmate()).args(args.iter().copied()))?)
    }

    /// A directory of this cluster that all nodes see under the same path.
    pub fn dir(&self) -> &Path {
        self.lab.dir()
    }
}

/// Whether a condition of an object's status is true.
pub fn condition(object: &Value, name: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|condition| condition["type"] == name && condition["status"] == "True")
}
