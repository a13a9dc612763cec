//! Nodes of a cluster: containerd and kubelet on a node of the Lab.

mod filesystem;
mod kubelet;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_lab::{Cmd, Node, Place, Process};
use heddle_runtime::{Containerd, Plan};

use crate::control_plane::ControlPlane;
use crate::error::{Error, Result, mkdir, write};
use crate::programs::program;

/// Where the plugins of a node are, and where its owner puts them.
pub const PLUGINS: &str = "/opt/cni/bin";
/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// How long a program may take to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A node with containerd and kubelet. Dropped, both are killed; its containers go with the Lab.
#[derive(Debug)]
pub struct KubeNode {
    node: Node,
    dir: PathBuf,
    kubeconfig: PathBuf,
    kubelet: Mutex<Option<Process>>,
    containerd: Mutex<Option<Containerd>>,
    archives: Vec<PathBuf>,
}

impl KubeNode {
    /// Starts both on `node`, which is registered under its own name. `archives`: images to import, [`PAUSE`] among them.
    ///
    /// # Errors
    /// When containerd does not serve, or kubelet cannot be started.
    pub fn start(node: &Node, plane: &ControlPlane, dir: &Path, archives: &[PathBuf]) -> Result<Self> {
        let dir = dir.join(format!("kubelet-{}", node.name()));
        mkdir(&dir)?;
        filesystem::prepare(node, &dir)?;
        let user = format!("system:node:{}", node.name());
        let (kubeconfig, _) = plane.user(&user, Some("system:nodes"), &plane.url(true))?;
        write(&dir.join("kubelet.json"), kubelet::configuration(&plane.ca(), &dir).to_string())?;
        let node = Self {
            node: node.clone(),
            dir,
            kubeconfig,
            kubelet: Mutex::default(),
            containerd: Mutex::default(),
            archives: archives.to_vec(),
        };
        node.boot()?;
        Ok(node)
    }

    /// Starts containerd and kubelet (again, after [`power_off`](Self::power_off)).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn boot(&self) -> Result<()> {
        let (dir, plugins) = (self.dir.join("containerd"), Path::new(PLUGINS));
        let containerd = Containerd::start_on(&self.node, &dir, plugins, PAUSE, &self.archives)?;
        *lock(&self.containerd) = Some(containerd);
        self.start_kubelet()
    }

    /// Starts kubelet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_kubelet(&self) -> Result<()> {
        let addresses = format!("{},{}", self.node.ip4(), self.node.ip6());
        // As containerd: its cgroups are named from the root that it sees mounted.
        let cmd = Cmd::new("unshare")
            .arg("--cgroup")
            .arg(program("kubelet")?)
            .arg(format!("--config={}", self.dir.join("kubelet.json").display()))
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .args([format!("--hostname-override={}", self.node.name()), format!("--node-ip={addresses}")])
            .args(["--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2"]);
        *lock(&self.kubelet) = Some(self.node.spawn(cmd)?);
        Ok(())
    }

    /// Asks kubelet to end, and waits until it has. Its pods run on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_kubelet(&self) -> Result<()> {
        if let Some(kubelet) = lock(&self.kubelet).take() {
            kubelet.terminate(LIMIT)?;
        }
        Ok(())
    }

    /// What kubelet has printed.
    pub fn log(&self) -> String {
        lock(&self.kubelet).as_ref().map(Process::log).unwrap_or_default()
    }

    /// As when the power goes: every process of the node is killed at once, pods and all, and what it had in memory
    /// (devices, rules, BPF objects, `/run`) and its images and pods are gone. Its own address and links stay.
    ///
    /// # Errors
    /// The kernel's.
    pub fn power_off(&self) -> Result<()> {
        write(&self.node.cgroup().path().join("cgroup.kill"), "1")?;
        drop(lock(&self.kubelet).take());
        drop(lock(&self.containerd).take());
        filesystem::forget(&self.node)
    }

    /// The node of the Lab.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A place in the network of the pod called `pod`, which runs here.
    ///
    /// # Errors
    /// When it does not.
    pub fn pod(&self, pod: &str) -> Result<Place> {
        let containerd = lock(&self.containerd);
        let containerd =
            containerd.as_ref().ok_or_else(|| Error::new("ask containerd", "it does not run"))?;
        let name = |sandbox: &heddle_runtime::cri::proto::PodSandbox| {
            sandbox.metadata.as_ref().is_some_and(|metadata| metadata.name == pod)
        };
        let sandboxes = containerd.sandboxes()?;
        let found = sandboxes.iter().find(|sandbox| name(sandbox) && sandbox.state == READY);
        let why = || format!("it does not run on {}", self.node.name());
        let found = found.ok_or_else(|| Error::new(format!("find the pod {pod}"), why()))?;
        Ok(containerd.pod(&Plan::new(pod), &found.id)?.place)
    }

    /// How many pods run, as containerd sees it.
    ///
    /// # Errors
    /// containerd's.
    pub fn sandboxes(&self) -> Result<usize> {
        let Some(containerd) = &*lock(&self.containerd) else { return Ok(0) };
        Ok(containerd.sandboxes()?.iter().filter(|sandbox| sandbox.state == READY).count())
    }
}

/// SANDBOX_READY.
const READY: i32 = 0;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
