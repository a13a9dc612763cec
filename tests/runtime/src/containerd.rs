//! containerd on a node of the Lab, with root, state, socket, plugins and configuration of its own, called as
//! kubelet calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use heddle_lab::{Cmd, Lab, Node, Process, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cri::Cri;
use crate::cri::proto;
use crate::error::{Error, Result};
use crate::etc;
use crate::image;
use crate::plugins;
use crate::programs::{libraries, missing, program};

/// Where it listens, on its node.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The namespace in which containerd keeps what CRI makes.
const NAMESPACE: &str = "k8s.io";
/// How long it may take to serve, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A containerd. Dropped, it is killed; its containers go with the Lab.
#[derive(Debug)]
pub struct Containerd {
    pub node: Node,
    dir: PathBuf,
    process: Mutex<Process>,
    cri: Mutex<Arc<Cri>>,
}

impl Containerd {
    /// Why it cannot be started on this machine.
    pub fn missing() -> Option<String> {
        missing(&["containerd", "containerd-shim-runc-v2", "ctr", "runc"])
    }

    /// Starts it on node 1 of `lab`, with `conflist` as the only network (`None`: what the node has already), and
    /// imports the image. The plugins that it finds are ours and no others.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn start(lab: &Lab, conflist: Option<&Value>) -> Result<Self> {
        let node = lab.node(1);
        let dir = lab.dir().join("containerd");
        let plugins = plugins::link(&dir)?;
        if let Some(conflist) = conflist {
            node.write_conflist(&conflist.to_string())?;
        }
        let archive = image::write(node.place(), lab.dir())?;
        Self::start_on(node, &dir, &plugins, image::IMAGE, &[archive])
    }

    /// Starts it on `node`, which has its networks already. `dir`: for its configuration, seen by the node under the
    /// same path. `plugins`: where it looks for CNI plugins. `pause`: the image that holds a pod's namespaces, one of
    /// those in `archives`, which are imported.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn start_on(
        node: &Node,
        dir: &Path,
        plugins: &Path,
        pause: &str,
        archives: &[PathBuf],
    ) -> Result<Self> {
        let file = dir.join("config.toml");
        fs::create_dir_all(dir).map_err(|e| Error::new(format!("create {}", dir.display()), e))?;
        fs::write(&file, config(plugins, pause)?).map_err(|e| Error::new("write config.toml", e))?;
        etc::complete(node)?;
        let process = spawn(node, dir)?;
        let cri = connect(node, &process)?;
        let containerd = Self {
            node: node.clone(),
            dir: dir.to_owned(),
            process: Mutex::new(process),
            cri: Mutex::new(Arc::new(cri)),
        };
        for archive in archives {
            containerd.ctr(&["images", "import", &archive.display().to_string()])?;
        }
        Ok(containerd)
    }

    /// Runs `ctr` against it.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let ctr = program("ctr").ok_or_else(|| Error::new("find ctr", "it is not installed"))?;
        Ok(self.node.run(Cmd::new(ctr).args(["-a", SOCKET, "-n", NAMESPACE]).args(args.iter().copied()))?)
    }

    /// Its directory of CNI plugins.
    pub fn plugins(&self) -> PathBuf {
        self.dir.join("cni")
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().expect("nobody panics with it")
    }

    /// Sends it `signal`, of which it ends, and waits until it has. Its containers run on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self, signal: Signal) -> Result<()> {
        let process = self.process();
        process.signal(signal)?;
        process.wait(LIMIT)?;
        Ok(())
    }

    /// Starts it again after [`end`](Self::end), and waits until it serves.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(&self) -> Result<()> {
        let mut process = self.process();
        *process = spawn(&self.node, &self.dir)?;
        *self.cri.lock().expect("nobody panics with it") = Arc::new(connect(&self.node, &process)?);
        Ok(())
    }

    /// The connection to it.
    pub fn cri(&self) -> Arc<Cri> {
        Arc::clone(&self.cri.lock().expect("nobody panics with it"))
    }

    /// The pods that it knows.
    ///
    /// # Errors
    /// Its own.
    pub fn sandboxes(&self) -> Result<Vec<proto::PodSandbox>> {
        let list: proto::ListPodSandboxResponse = self.cri().call("ListPodSandbox", &proto::Nothing {})?;
        Ok(list.items)
    }
}

fn spawn(node: &Node, dir: &Path) -> Result<Process> {
    let containerd =
        program("containerd").ok_or_else(|| Error::new("find containerd", "it is not installed"))?;
    // It looks for its shim, and the shim for runc, in PATH.
    let mut path = containerd.parent().map(|dir| dir.display().to_string()).unwrap_or_default();
    for other in ["containerd-shim-runc-v2", "runc"].iter().filter_map(|name| program(name)) {
        path += &format!(":{}", other.parent().unwrap_or(&other).display());
    }
    path += &format!(":{}", std::env::var("PATH").unwrap_or_default());
    // Its cgroups are named from the root that it sees mounted.
    let cmd =
        Cmd::new("unshare").arg("--cgroup").arg(containerd).arg("--config").arg(dir.join("config.toml"));
    Ok(node.spawn(cmd.env("PATH", path).env("LD_LIBRARY_PATH", libraries()))?)
}

/// Waits until it answers.
fn connect(node: &Node, process: &Process) -> Result<Cri> {
    let socket = node.path(SOCKET);
    let mut connected = None;
    eventually("containerd serving", LIMIT, || {
        if let Some(status) = process.try_wait() {
            let log = process.log();
            return Err(heddle_lab::Error::Oracle(format!("it ended: {status}\n{log}")));
        }
        let Ok(cri) = Cri::connect(&socket) else { return Ok(false) };
        let version: Result<proto::Nothing> = cri.call("Version", &proto::Nothing {});
        let serves = version.is_ok();
        connected = serves.then_some(cri);
        Ok(serves)
    })?;
    connected.ok_or_else(|| Error::new("connect to containerd", "it does not answer"))
}

/// `disable_cgroup`: a node's group has no controllers where the machine has them in version 1.
/// `restrict_oom_score_adj`: not every machine lets us lower it.
fn config(plugins: &Path, pause: &str) -> Result<String> {
    let runc = program("runc").ok_or_else(|| Error::new("find runc", "it is not installed"))?;
    Ok(format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[debug]
  level = "error"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  disable_cgroup = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "/etc/cni/net.d"
"#,
        runc = runc.display(),
        plugins = plugins.display(),
    ))
}
