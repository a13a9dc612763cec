//! Threads that have the network of a place, but not its cgroup: the socket hooks do not see their sockets.

use std::fs::File;

use anyhow::{Context, Result};
use heddle_lab::Place;
use nix::sched::{CloneFlags, setns};

pub fn outside<T: Send>(place: &Place, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let thread = || {
        let path = place.net().path();
        let net = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(net, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", place.name()))?;
        f()
    };
    std::thread::scope(|scope| match scope.spawn(thread).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
