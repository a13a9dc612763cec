//! Network namespaces: open, create, enter, compare.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};

use crate::{Error, Result, Socket};

/// `NSFS_MAGIC` (include/uapi/linux/magic.h): the file system of namespaces.
const NSFS: FsType = FsType(0x6e73_6673);
/// `NS_GET_NSTYPE` (ioctl_nsfs(2)).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// A network namespace, kept alive by an open file.
///
/// Two values are equal if they are the same namespace (device and inode of its file).
#[derive(Debug)]
pub struct NetNs {
    file: OwnedFd,
    /// Device and inode: the kernel's name of the namespace.
    id: (u64, u64),
}

impl NetNs {
    /// Opens the namespace that the file at `path` stands for (a bind mount, or /proc/PID/ns/net).
    ///
    /// The file is looked at before it is opened for real, so that a FIFO does not block and a device
    /// is not touched.
    ///
    /// # Errors
    /// If there is no such file, or it is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed =
            |errno| Error::errno_of("open", format_args!("network namespace {}", path.display()), errno);
        let not_one = || {
            Error::invalid(
                "open",
                format_args!("network namespace {}", path.display()),
                "the file is not a network namespace",
            )
        };
        let seen = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        if fstatfs(&seen).map_err(failed)?.filesystem_type() != NSFS {
            return Err(not_one());
        }
        let through = format!("/proc/self/fd/{}", seen.as_raw_fd());
        let file =
            open(through.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        if kind(&file).map_err(failed)? != libc::CLONE_NEWNET {
            return Err(not_one());
        }
        Self::from_fd(file)
    }

    /// The namespace of the process `pid`.
    pub fn of_pid(pid: i32) -> Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        // What this leads to needs no look before.
        let file = open("/proc/thread-self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Error::errno_of("open", "own network namespace", errno))?;
        Self::from_fd(file)
    }

    /// The namespace that `file` is open on.
    pub fn from_fd(file: OwnedFd) -> Result<Self> {
        let stat = fstat(&file).map_err(|errno| Error::errno_of("examine", "network namespace", errno))?;
        Ok(Self { file, id: (stat.st_dev, stat.st_ino) })
    }

    /// Creates a namespace without a name. It lives as long as this value, a process in it, a socket of
    /// it or a mount does. Its loopback device is down.
    pub fn create() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::errno_of("create", "network namespace", errno))?;
            Self::current()
        })?
    }

    /// Runs `work` on a thread of its own inside this namespace, and waits for it. The calling thread
    /// never leaves its namespace, whatever happens. A panic of `work` is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::errno_of("enter", "network namespace", errno))?;
            Ok(work())
        })?
    }

    /// Runs `work` inside this namespace on the calling thread, which then comes back. For programs that live for a
    /// millisecond, of which a thread costs a fifth; everybody else wants [`NetNs::run`].
    ///
    /// If it cannot come back, the process is aborted: nothing may go on in the wrong namespace.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let home = Home(Self::current()?);
        self.enter()?;
        let done = work();
        drop(home);
        Ok(done)
    }

    /// Moves the calling thread into this namespace for the rest of its life. For threads that are
    /// started for just that; everybody else wants [`NetNs::run`].
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::errno_of("enter", "network namespace", errno))
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| Error::io("duplicate", "network namespace handle", source))?;
        Ok(Self { file, id: self.id })
    }

    /// Inode of the namespace, as `/proc/PID/ns/net` shows it.
    pub const fn inode(&self) -> u64 {
        self.id.1
    }

    /// Device and inode of its file: no two living namespaces share them, but the dead leave theirs to the next.
    pub const fn id(&self) -> (u64, u64) {
        self.id
    }

    /// The cookie by which eBPF programs know the namespace (`bpf_get_netns_cookie`), since Linux 5.14.
    pub fn cookie(&self) -> Result<u64> {
        Socket::open_in(self)?.namespace_cookie()
    }
}

impl Socket {
    /// The cookie of the namespace that the socket belongs to: [`NetNs::cookie`] for less. Unlike an inode, it
    /// is never another's before the next boot.
    pub fn namespace_cookie(&self) -> Result<u64> {
        netns_cookie(self.as_fd()).map_err(|source| Error::io("read", "network namespace cookie", source))
    }
}

/// Where a visitor comes from, and goes back to also if what he does panics.
struct Home(NetNs);

impl Drop for Home {
    fn drop(&mut self) {
        // Once more if the kernel was out of memory.
        if self.0.enter().or_else(|_| self.0.enter()).is_err() {
            std::process::abort();
        }
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl From<NetNs> for File {
    fn from(ns: NetNs) -> Self {
        ns.file.into()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::io("start", "thread in a network namespace", source))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The `CLONE_NEW*` flag of the namespace that `file` is open on.
fn kind(file: &OwnedFd) -> std::result::Result<i32, Errno> {
    // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; the descriptor is open.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) })
}

fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_thread_in_a_namespace_leaves_the_caller_where_it_was() {
        let host = NetNs::current().unwrap();
        let ns = NetNs::create().unwrap();
        assert_ne!(ns, host);
        let inside = ns.run(|| NetNs::current().unwrap()).unwrap();
        assert_eq!(inside, ns);
        assert_eq!(NetNs::current().unwrap(), host);
    }

    #[test]
    fn a_panic_inside_is_passed_on_and_the_caller_stays() {
        let host = NetNs::current().unwrap();
        let ns = NetNs::create().unwrap();
        let caught = std::panic::catch_unwind(|| ns.run(|| panic!("inside")));
        assert!(caught.is_err());
        assert_eq!(NetNs::current().unwrap(), host);
        let caught = std::panic::catch_unwind(|| ns.visit(|| panic!("inside")));
        assert!(caught.is_err());
        assert_eq!(NetNs::current().unwrap(), host);
        assert_eq!(ns.visit(|| NetNs::current().unwrap()).unwrap(), ns);
        assert_eq!(NetNs::current().unwrap(), host);
    }

    #[test]
    fn what_is_not_a_network_namespace_is_refused_and_does_not_block() {
        let dir = std::env::temp_dir().join(format!("heddle-netns-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let fifo = dir.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let link = dir.join("link");
        symlink("/etc/hostname", &link).unwrap();
        for path in [&fifo, &link, &dir, Path::new("/proc/self/ns/mnt"), Path::new("/dev/null")] {
            let error = NetNs::open(path).unwrap_err();
            assert!(error.to_string().contains("not a network namespace"), "{error}");
        }
        assert!(NetNs::open(dir.join("absent")).unwrap_err().not_found());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_namespace_can_be_found_through_proc() {
        let ns = NetNs::create().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
        assert_eq!(NetNs::open(path).unwrap(), ns);
        assert_ne!(ns.cookie().unwrap(), NetNs::current().unwrap().cookie().unwrap());
    }
}
