//! Heddle on the nodes of a cluster.

use std::fs;
use std::path::{Path, PathBuf};

use heddle_lab::{Cmd, Process, await_ready, bin};

use crate::checks::Stage;
use crate::cluster::Cluster;
use crate::control_plane::SERVICE_RANGES;
use crate::error::{Error, Result};
use crate::node::{KubeNode, PLUGINS};

/// The daemons of one node. Dropped, they are killed.
#[derive(Debug)]
pub struct Daemons {
    vxland: Process,
    proxyd: Process,
}

/// Puts the CNI plugin where the nodes look for it, and starts both daemons on each.
///
/// # Errors
/// When a daemon cannot be started.
pub fn install(cluster: &Cluster) -> Result<Vec<Daemons>> {
    let kubeconfig = kubeconfig(cluster)?;
    cluster.nodes().iter().map(|node| start(node, &kubeconfig)).collect()
}

/// How the daemons get at the API server.
///
/// # Errors
/// When it cannot be written.
pub fn kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let plane = cluster.plane();
    Ok(plane.user("heddle", Some("system:masters"), &plane.url(true))?.0)
}

/// Starts the daemons of one node.
///
/// # Errors
/// As [`install`].
pub fn start(node: &KubeNode, kubeconfig: &Path) -> Result<Daemons> {
    for (name, program) in [("heddle", "heddle"), ("heddle-ipam", "heddle-ipam"), ("loopback", "heddle")] {
        let to = node.node().path(PLUGINS).join(name);
        fs::copy(bin(program), &to).map_err(|e| Error::new(format!("install the plugin {name}"), e))?;
    }
    let source = format!("kubernetes:{}", kubeconfig.display());
    let start = |program: &str, more: &[&str]| {
        let cmd = Cmd::new(bin(program)).args(["--source", &source, "--node-name", node.node().name()]);
        let ranges = SERVICE_RANGES.split(',').flat_map(|range| ["--service-range", range]);
        node.node().spawn(cmd.args(ranges).args(more.iter().copied()))
    };
    Ok(Daemons { vxland: start("vxland", &[])?, proxyd: start("proxyd", &["--mode", "ebpf"])? })
}

/// Starts the daemons of node `index` of a stage again, and waits until they are ready.
///
/// # Errors
/// As [`install`].
pub fn on_node(stage: &Stage, index: usize) -> Result<()> {
    let node = stage.cluster.node(index);
    let daemons = start(node, &kubeconfig(&stage.cluster)?)?;
    daemons.await_ready(node)?;
    let mut all = stage.daemons.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(slot) = all.get_mut(index - 1) {
        *slot = daemons;
    }
    Ok(())
}

impl Daemons {
    /// Waits until both are ready.
    ///
    /// # Errors
    /// When one ends before, or takes too long.
    pub fn await_ready(&self, node: &KubeNode) -> Result<()> {
        await_ready(node.node(), &self.vxland, "vxland")?;
        Ok(await_ready(node.node(), &self.proxyd, "proxyd")?)
    }
}
