//! The daemons under test, started as on a real node; ready is what they say is ready.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::bin::bin;
use crate::cmd::Cmd;
use crate::confine::shipped;
use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::node::Node;
use crate::owner::patient;
use crate::place::Place;
use crate::process::{Process, indent, wait_readable};

/// How long a daemon may take until it is ready.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

impl Lab {
    /// Starts `program` (`vxland`, `proxyd`) on `node` with `args` after the source and the node's name, and with the
    /// capabilities that it is [shipped] with.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon<A: AsRef<str>>(&self, node: &Node, program: &str, args: &[A]) -> Result<Process> {
        let source = format!("manifests:{}", self.manifests().dir().display());
        let cmd = Cmd::new(bin(program))
            .args(["--source", &source, "--node-name", node.name()])
            .args(args.iter().map(AsRef::as_ref))
            .capabilities(shipped(program));
        node.spawn(cmd)
    }

    /// Starts `vxland` on `node` and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready within [`READY_LIMIT`].
    pub fn start_vxland(&self, node: &Node, args: &[&str]) -> Result<Process> {
        let daemon = self.start_daemon(node, "vxland", args)?;
        await_ready(node, &daemon, "vxland")?;
        Ok(daemon)
    }

    /// Starts `proxyd` on `node` (`args` name the mode) and waits until it is ready.
    ///
    /// # Errors
    /// As [`start_vxland`](Self::start_vxland).
    pub fn start_proxyd(&self, node: &Node, args: &[&str]) -> Result<Process> {
        let daemon = self.start_daemon(node, "proxyd", args)?;
        await_ready(node, &daemon, "proxyd")?;
        Ok(daemon)
    }
}

/// Waits until `process` has written `/run/heddle/<program>.ready` with its pid.
///
/// # Errors
/// When it ends before, or [`READY_LIMIT`] is over.
pub fn await_ready(node: &Place, process: &Process, program: &str) -> Result<()> {
    let file = format!("/run/heddle/{program}.ready");
    let ready = || {
        let pid = std::fs::read_to_string(&file).unwrap_or_default();
        pid.trim().parse() == Ok(process.pid())
    };
    node.enter(|| await_file(Path::new("/run/heddle"), process, program, ready))?
}

/// Awaits changes below `dir`, in the mount namespace of this thread, until `ready`.
fn await_file(dir: &Path, process: &Process, program: &str, ready: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + patient(READY_LIMIT);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context(|| "initialise inotify".into())?;
    let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
    let parent = dir.parent().unwrap_or(dir);
    inotify.add_watch(parent, flags).context(|| format!("watch {}", parent.display()))?;
    loop {
        // Fails until the daemon has made the directory, which the watch of its parent tells.
        let _ = inotify.add_watch(dir, flags);
        if ready() {
            return Ok(());
        }
        if !process.is_running() {
            return Err(Error::Oracle(format!(
                "{program} ended before it was ready:{}",
                indent(&process.log())
            )));
        }
        if !wait_readable(&[inotify.as_fd(), process.pidfd().as_fd()], end) {
            let what = format!("`ready` of {program}");
            return Err(Error::Timeout { what, waited: READY_LIMIT, detail: indent(&process.log()) });
        }
        let _ = inotify.read_events();
    }
}
