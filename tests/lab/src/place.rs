//! A place where things run: a node, a pod, a client. A network namespace, a mount namespace and a cgroup.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::cgroup::{self, Cgroup};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};
use crate::namespace::{MountNs, NetNs, on_thread};
use crate::process::{Output, Process, indent};
use crate::spawner::{Spawner, Streams};

/// How long [`Place::run`] lets a program run.
pub const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Where a program, a thread or a closure runs. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    net: NetNs,
    mounts: Option<MountNs>,
    cgroup: Cgroup,
    spawner: Arc<Spawner>,
}

impl Place {
    pub(crate) fn new(
        name: impl Into<String>,
        net: NetNs,
        mounts: Option<MountNs>,
        cgroup: Cgroup,
        spawner: Arc<Spawner>,
    ) -> Self {
        Self { name: name.into(), net, mounts, cgroup, spawner }
    }

    /// The same with another network and cgroup: a pod on its node.
    pub(crate) fn inside(&self, name: &str, net: NetNs, cgroup: Cgroup) -> Self {
        Self { name: name.into(), net, cgroup, ..self.clone() }
    }

    /// The same place with the network namespace that `file`, as this place sees it, stands for: that of a pod
    /// which somebody else made.
    ///
    /// # Errors
    /// The kernel's.
    pub fn in_netns(&self, name: &str, file: &Path) -> Result<Self> {
        let net = self.enter(|| NetNs::open(file))??;
        Ok(self.inside(&format!("{}/{name}", self.name), net, self.cgroup.clone()))
    }

    /// `n1`, `client`, `n1/web`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// Its cgroup, as this process sees it. Programs in the place see their node's as `/sys/fs/cgroup`.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    fn start(&self, cmd: impl Into<Cmd>, streams: Streams) -> Result<Process> {
        // `self` keeps open what is fetched, until the child is there.
        let (net, cgroup) = (self.net.fd().as_raw_fd(), self.cgroup.procs());
        let mounts = self.mounts.as_ref().map(MountNs::fds);
        self.spawner.spawn(&self.name.replace('/', "-"), cmd, streams, move |table| {
            let (net, cgroup) = (table.fetch(net)?, table.fetch(cgroup)?);
            let mounts = match mounts {
                Some([ns, root]) => Some(MountNs::from_fds(table.fetch(ns)?, table.fetch(root)?)),
                None => None,
            };
            Ok(move || {
                cgroup::join_process(&cgroup)?;
                setns(&net, CloneFlags::CLONE_NEWNET)?;
                mounts.as_ref().map_or(Ok(()), MountNs::enter)
            })
        })
    }

    /// Starts a program and lets it run. What it prints is kept, and shown when the test fails.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, cmd: impl Into<Cmd>) -> Result<Process> {
        self.start(cmd, Streams::Log)
    }

    /// Runs a program to its end (at most [`RUN_LIMIT`]), whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn output(&self, cmd: impl Into<Cmd>) -> Result<Output> {
        self.start(cmd, Streams::Apart)?.output(RUN_LIMIT)
    }

    /// Runs a program to its end and gives what it printed.
    ///
    /// # Errors
    /// As [`output`](Self::output), and [`Error::Command`] with what it printed when it fails.
    pub fn run(&self, cmd: impl Into<Cmd>) -> Result<String> {
        let cmd = cmd.into();
        let command = cmd.to_string();
        let output = self.output(cmd)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let printed = format!("{}{}", output.stdout, output.stderr);
        let status = output.status.to_string();
        Err(Error::Command { command, place: self.name.clone(), status, output: indent(&printed) })
    }

    /// Runs `f` on a thread in this place (network, mounts, cgroup). A panic in it is one of the caller's.
    ///
    /// # Errors
    /// The kernel's, when the thread cannot get there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            self.move_thread()?;
            Ok(f())
        })
    }

    /// As [`enter`](Self::enter) for a closure that runs on: gives the thread, which is there already.
    ///
    /// # Errors
    /// The kernel's, when the thread cannot get there.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Option<T>>> {
        let (arrived, arrival) = std::sync::mpsc::sync_channel(1);
        let place = self.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let moved = place.move_thread();
            drop(place);
            let there = moved.is_ok();
            let _ = arrived.send(moved);
            there.then(f)
        });
        let thread = thread.context(|| format!("start thread {name}"))?;
        arrival.recv().unwrap_or(Ok(()))?;
        Ok(thread)
    }

    /// Moves the calling thread here, for good.
    fn move_thread(&self) -> Result<()> {
        self.cgroup.join_thread()?;
        setns(self.net.fd(), CloneFlags::CLONE_NEWNET)
            .context(|| format!("enter the network namespace of {}", self.name))?;
        match &self.mounts {
            None => Ok(()),
            Some(mounts) => {
                nix::sched::unshare(CloneFlags::CLONE_FS).context(|| "unshare the root directory".into())?;
                mounts.enter().context(|| format!("enter the mount namespace of {}", self.name))
            }
        }
    }

    /// Paths to its mount namespace and to its root directory, for processes of root.
    pub(crate) fn mount_paths(&self) -> Option<(String, String)> {
        self.mounts.as_ref().map(|mounts| (mounts.path(), mounts.root_path()))
    }

    /// Where a file of this place's mount namespace can be opened from this process.
    pub fn path(&self, inside: &str) -> PathBuf {
        let root = self.mounts.as_ref().map_or_else(|| "/".into(), MountNs::root_path);
        PathBuf::from(root).join(inside.trim_start_matches('/'))
    }
}
