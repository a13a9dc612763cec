//! Namespaces without a name: made by a thread, held by a descriptor, gone with the last one of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

use crate::error::{Context, Result};

/// A network namespace.
#[derive(Clone, Debug)]
pub struct NetNs(Arc<OwnedFd>);

impl NetNs {
    /// A new one, with `lo` down and nothing else in it.
    ///
    /// # Errors
    /// The kernel's; it wants CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context(|| "create a network namespace".into())?;
            Self::current()
        })
    }

    /// That of the calling thread.
    pub(crate) fn current() -> Result<Self> {
        let file =
            File::open("/proc/thread-self/ns/net").context(|| "open /proc/thread-self/ns/net".into())?;
        Ok(Self(Arc::new(file.into())))
    }

    /// The one that `file` stands for.
    pub(crate) fn open(file: &Path) -> Result<Self> {
        let file = File::open(file).context(|| format!("open {}", file.display()))?;
        Ok(Self(Arc::new(file.into())))
    }

    /// A path to it that any process of root can open while this one lives.
    pub fn path(&self) -> String {
        proc_path(&self.0)
    }

    /// Its number, as in `/proc/<pid>/ns/net`.
    pub fn inode(&self) -> u64 {
        std::fs::metadata(self.path()).map(|m| m.ino()).unwrap_or(0)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// A mount namespace, and the directory in it that is our root (which is not that of the namespace when
/// this process lives in a chroot).
#[derive(Clone, Debug)]
pub(crate) struct MountNs {
    ns: Arc<OwnedFd>,
    root: Arc<OwnedFd>,
}

impl MountNs {
    /// Moves the calling thread into a new mount namespace whose mounts nobody else sees.
    pub(crate) fn unshare_thread() -> Result<Self> {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .context(|| "create a mount namespace".into())?;
        let open_dir = |path: &str| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let root = open_dir("/").context(|| "open /".into())?;
        let ns = File::open("/proc/thread-self/ns/mnt").context(|| "open /proc/thread-self/ns/mnt".into())?;
        // Entering the namespace makes its topmost mount our root, and only a mount point can be made
        // private: the root of a chroot need not be one.
        setns(&ns, CloneFlags::CLONE_NEWNS).context(|| "enter the new mount namespace".into())?;
        mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>)
            .context(|| "make the mounts of the new namespace private".into())?;
        let new = Self { ns: Arc::new(ns.into()), root: Arc::new(root) };
        new.go_to_root().context(|| "return to the root directory".into())?;
        Ok(new)
    }

    /// What it is held by: the namespace, its root directory.
    pub(crate) fn fds(&self) -> [RawFd; 2] {
        [self.ns.as_raw_fd(), self.root.as_raw_fd()]
    }

    /// The same, from copies of its descriptors.
    pub(crate) fn from_fds(ns: OwnedFd, root: OwnedFd) -> Self {
        Self { ns: Arc::new(ns), root: Arc::new(root) }
    }

    fn go_to_root(&self) -> Result<(), Errno> {
        fchdir(&*self.root)?;
        chroot(".")
    }

    /// A path to it that any process of root can open while this one lives.
    pub(crate) fn path(&self) -> String {
        proc_path(&self.ns)
    }

    /// A path to its root directory that any process of root can open while this one lives.
    pub(crate) fn root_path(&self) -> String {
        proc_path(&self.root)
    }

    /// Moves the calling thread into it. Async-signal-safe, so that a child may use it before exec.
    pub(crate) fn enter(&self) -> io::Result<()> {
        setns(self.ns.as_fd(), CloneFlags::CLONE_NEWNS)?;
        self.go_to_root()?;
        Ok(())
    }
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// Runs `f` on a thread of its own, whose namespaces may be changed at will; a panic there is one here.
pub(crate) fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
