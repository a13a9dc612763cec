//! The cgroup of a lab, a node, a pod: what the socket programs of a node are attached to.
//!
//! The groups are *threaded* where the kernel lets us (below the group that this process is in), because a
//! test that opens a socket in a thread must be able to put that thread alone into a node's group. A lab may
//! have ordinary groups instead: the kernel does not tell the processes of a threaded one, which container
//! runtimes ask for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::owner::{self, kill_hard, poll_until};

/// A group and the right to put tasks into it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
    threaded: bool,
    /// `cgroup.procs`, open: written by a child between fork and exec, when it can open nothing.
    procs: Arc<File>,
}

/// Where cgroup2 is mounted, with the group that the mount shows as its root; as this thread sees it.
pub(crate) fn mount_points() -> Vec<(PathBuf, PathBuf)> {
    let info = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mount_point = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then(|| (PathBuf::from(at), PathBuf::from(root)))
    };
    info.lines().filter_map(mount_point).collect()
}

/// The groups that labs of this machine may be in: our own, and the topmost that we see.
pub(crate) fn bases() -> Vec<PathBuf> {
    let Some((at, root)) = mount_points().into_iter().next() else { return Vec::new() };
    let own = fs::read_to_string("/proc/self/cgroup").ok().and_then(|list| {
        let path = list.lines().find_map(|line| line.strip_prefix("0::"))?;
        let below = Path::new(path).strip_prefix(&root).ok()?;
        Some(at.join(below))
    });
    let mut bases: Vec<_> = own.into_iter().filter(|dir| dir.is_dir()).collect();
    if !bases.contains(&at) {
        bases.push(at);
    }
    bases
}

impl Cgroup {
    /// A new group called `name` for a lab.
    ///
    /// # Errors
    /// When cgroup2 is not mounted or may not be written; when it cannot be what it is to be.
    pub(crate) fn for_lab(name: &str, threaded: bool) -> Result<Self> {
        let mut bases = bases();
        if !threaded {
            // Beside threaded groups only the root of all can have others.
            bases.reverse();
        }
        let mut last =
            Error::Unsupported("no cgroup2 is mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)".into());
        for base in bases {
            match Self::create(base.join(name), threaded) {
                Ok(group) => return Ok(group),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn create(path: PathBuf, threaded: bool) -> Result<Self> {
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(e).context(|| format!("create cgroup {}", path.display()));
            }
            _ => {}
        }
        let kind = path.join("cgroup.type");
        let threaded = threaded && fs::write(&kind, "threaded").is_ok();
        if !threaded && fs::read_to_string(&kind).is_ok_and(|kind| kind.trim() == "domain invalid") {
            let _ = fs::remove_dir(&path);
            let why = format!("cgroup {} can only be a threaded one", path.display());
            return Err(Error::Unsupported(why));
        }
        let procs = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"))
            .context(|| format!("open cgroup.procs of {}", path.display()))?;
        Ok(Self { path, threaded, procs: Arc::new(procs) })
    }

    /// A group below this one; the one that is there, if there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name), self.threaded)
    }

    /// Where it is on the machine.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the calling thread into the group. Where threads cannot be told apart (the group is not
    /// threaded) nothing happens: sockets of this thread are then not seen by the node's socket programs.
    pub(crate) fn join_thread(&self) -> Result<()> {
        if !self.threaded {
            return Ok(());
        }
        let file = self.path.join("cgroup.threads");
        OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut f| f.write_all(b"0"))
            .context(|| format!("put a thread into {}", file.display()))
    }

    /// Its list of processes, open for [`join_process`].
    pub(crate) fn procs(&self) -> RawFd {
        self.procs.as_raw_fd()
    }

    /// Whether threads can be put into it one by one.
    pub fn is_threaded(&self) -> bool {
        self.threaded
    }

    /// Kills what is in it, and removes it.
    pub(crate) fn remove(&self) {
        kill_and_remove(&self.path, Duration::from_secs(10));
    }
}

/// For a child between fork and exec: puts the calling process into the group whose list of processes this is.
pub(crate) fn join_process(procs: &OwnedFd) -> io::Result<()> {
    nix::unistd::write(procs, b"0")?;
    Ok(())
}

/// The tasks of a group and all below it.
fn tasks(dir: &Path, found: &mut Vec<i32>) {
    if let Ok(list) = fs::read_to_string(dir.join("cgroup.threads")) {
        found.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            tasks(&entry.path(), found);
        }
    }
}

/// The tasks of the group `dir` and all below it, without the threads of this process.
pub(crate) fn tasks_of(dir: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    tasks(dir, &mut found);
    found.retain(|task| !is_own_thread(*task));
    found
}

fn is_own_thread(task: i32) -> bool {
    Path::new("/proc/self/task").join(task.to_string()).exists()
}

/// Kills the processes in the group `dir` and below, moves threads of this process out, and removes it.
pub(crate) fn kill_and_remove(dir: &Path, limit: Duration) {
    // The group above the lab's.
    let out = dir.ancestors().find(|above| !above.to_string_lossy().contains(owner::PREFIX));
    let out = out.unwrap_or(dir).join("cgroup.threads");
    poll_until(limit, || {
        let mut found = Vec::new();
        tasks(dir, &mut found);
        for task in found {
            if is_own_thread(task) {
                let _ = fs::write(&out, task.to_string());
            } else {
                kill_hard(task);
            }
        }
        remove_tree(dir)
    });
}

/// Removes empty groups, the innermost first; whether all are gone.
fn remove_tree(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !remove_tree(&entry.path()) {
            return false;
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}
