//! podman on a node of the Lab, with storage and configuration of its own, and the CNI backend.

use std::fs;
use std::path::{Path, PathBuf};

use heddle_lab::{Cmd, Lab, Node, Output};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::etc;
use crate::image;
use crate::plugins;
use crate::programs::{libraries, missing, program};

/// Podman on a node. It is no daemon: a container that it runs has a monitor of its own, which goes with the Lab.
#[derive(Debug)]
pub struct Podman {
    node: Node,
    program: PathBuf,
}

impl Podman {
    /// Why it cannot be used on this machine.
    pub fn missing() -> Option<String> {
        missing(&["podman", "conmon", "runc"])
    }

    /// Prepares node 1 of `lab` for it, with `conflists` as its networks, and loads the image.
    ///
    /// # Errors
    /// When it cannot load the image; [`heddle_lab::Error::Unsupported`] when it was built without CNI.
    pub fn prepare(lab: &Lab, conflists: &[Value]) -> Result<Self> {
        let node = lab.node(1).clone();
        let found = |name: &str| {
            program(name).ok_or_else(|| Error::new(format!("find {name}"), "it is not installed"))
        };
        let podman = Self { node, program: found("podman")? };
        let etc = podman.node.path("/etc/containers");
        // On a machine with a configuration of its own this is a link to it.
        drop(fs::remove_file(&etc));
        let write = |name: &str, text: &str| {
            fs::create_dir_all(&etc)
                .and_then(|()| fs::write(etc.join(name), text))
                .map_err(|e| Error::new(format!("write {name}"), e))
        };
        let plugins = plugins::link(&lab.dir().join("podman"))?;
        write("containers.conf", &config(&plugins, &found("conmon")?, &found("runc")?))?;
        write("policy.json", r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#)?;
        write("registries.conf", "")?;
        write(
            "storage.conf",
            "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
        )?;
        etc::complete(&podman.node)?;
        for list in conflists {
            let name = list["name"].as_str().unwrap_or_default();
            let file = podman.node.path(&format!("/etc/cni/net.d/{name}.conflist"));
            fs::write(file, list.to_string())
                .map_err(|e| Error::new(format!("write the network {name}"), e))?;
        }
        let backend = podman.output(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
        if backend.stdout.trim() != "cni" {
            let why = format!("this podman has no CNI backend: {}{}", backend.stdout, backend.stderr);
            return Err(heddle_lab::Error::Unsupported(why).into());
        }
        let archive = image::write(podman.node.place(), lab.dir())?;
        podman.run(&["load", "--quiet", "--input", &archive.display().to_string()])?;
        Ok(podman)
    }

    /// Runs `podman` with `args` to its end.
    ///
    /// # Errors
    /// With what it printed, when it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        Ok(self.node.run(self.command(args))?)
    }

    /// As [`run`](Self::run), whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        Ok(self.node.output(self.command(args))?)
    }

    fn command(&self, args: &[&str]) -> Cmd {
        // Its cgroups are named from the root that it sees mounted.
        let cmd = Cmd::new("unshare").arg("--cgroup").arg(&self.program).args(args.iter().copied());
        cmd.env("LD_LIBRARY_PATH", libraries()).env("HOME", "/root").env("XDG_RUNTIME_DIR", "/run")
    }
}

/// `pids_limit`: a node's group has no controllers where the machine has them in version 1. `default_ulimits`: not every
/// machine lets us raise them.
fn config(plugins: &Path, conmon: &Path, runc: &Path) -> String {
    format!(
        r#"[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
apparmor_profile = "unconfined"
log_driver = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
conmon_path = ["{conmon}"]
conmon_env_vars = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH={libraries}"]
[engine.runtimes]
runc = ["{runc}"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "/etc/cni/net.d"
"#,
        conmon = conmon.display(),
        libraries = libraries(),
        runc = runc.display(),
        plugins = plugins.display(),
    )
}
