//! Who owns what a lab leaves on the machine, and how it goes when the owner is gone.
//!
//! Nearly everything of a lab lives in namespaces that nothing but file descriptors hold, so the kernel
//! takes it away with the process, however that ends. Two things have a name: the lab's directory of
//! temporary files and its cgroup. Both are called `heddle-lab.<pid>-<start time>-<pid namespace>.<number>`. They are
//! removed when the lab is dropped; by the janitor, a child process that does nothing but wait for this
//! process to be gone, when it was killed; and by the next lab that is built, should the janitor have been
//! killed, too.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, setsid};

use crate::cgroup;
use crate::error::{Context, Result};

/// What the names of labs begin with.
pub(crate) const PREFIX: &str = "heddle-lab.";

/// The start of the names of everything that this process owns, with the dot before the number.
fn own_prefix() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let pid = std::process::id();
        format!("{PREFIX}{pid}-{}-{}.", start_time(pid).unwrap_or(0), pid_namespace())
    })
}

/// The number of our pid namespace: in another one the same pid is another process.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map(|ns| ns.ino()).unwrap_or(0)
}

/// A name that nothing else on the machine has: this process, when it started, a number.
pub(crate) fn new_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}{}", own_prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where the lab's directories are.
pub(crate) fn temp_base() -> PathBuf {
    let base = std::env::temp_dir();
    fs::canonicalize(&base).unwrap_or(base)
}

/// When `pid` started, in clock ticks since boot (proc_pid_stat(5), field 22): with the pid, an identity.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the owner of something called `name` is gone. Of names that are not ours, and of owners in another
/// pid namespace, we cannot tell.
fn is_stale(name: &str) -> bool {
    let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).map(|(owner, _)| owner);
    let Some(words) = owner.map(|owner| owner.split('-').collect::<Vec<_>>()) else { return false };
    let [pid, started, namespace] = words[..] else { return false };
    let (Ok(pid), Ok(started)) = (pid.parse(), started.parse()) else { return false };
    namespace == pid_namespace().to_string() && start_time(pid) != Some(started)
}

/// The entries of `dir` whose name fits.
fn entries(dir: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(dir) else { return Vec::new() };
    list.flatten().filter(|e| e.file_name().to_str().is_some_and(&fits)).map(|e| e.path()).collect()
}

/// Everything on this machine that belongs to a lab: directories and cgroups. For tests.
pub fn remains() -> Vec<PathBuf> {
    let mut found = entries(&temp_base(), |name| name.starts_with(PREFIX));
    for base in cgroup::bases() {
        found.extend(entries(&base, |name| name.starts_with(PREFIX)));
    }
    found
}

/// Removes what labs of processes that are gone left behind.
pub(crate) fn sweep() {
    remove_all(is_stale, &temp_base(), &cgroup::bases());
}

fn remove_all(fits: impl Fn(&str) -> bool, temp: &Path, cgroups: &[PathBuf]) {
    for dir in cgroups.iter().flat_map(|base| entries(base, &fits)) {
        cgroup::kill_and_remove(&dir, Duration::from_secs(10));
    }
    for dir in entries(temp, &fits) {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Starts this process's janitor unless it runs already.
///
/// # Errors
/// The kernel's, when it has no process or descriptor left.
pub(crate) fn start_janitor() -> Result<()> {
    static JANITOR: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    let started = JANITOR.get_or_init(|| fork_janitor().map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)));
    started.map_err(io::Error::from_raw_os_error).context(|| "start the lab's janitor".into())
}

fn fork_janitor() -> io::Result<()> {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (prefix, temp, cgroups) = (own_prefix(), temp_base(), cgroup::bases());
    // SAFETY: the child has one thread and may meet locks held by threads that it does not have. It calls
    // the kernel and allocates, no more: glibc makes malloc usable in the child of a process with threads.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            // The write end stays open, in this process alone, until it ends.
            let _ = theirs.into_raw_fd();
            Ok(())
        }
        ForkResult::Child => {
            let _ = setsid();
            let keep = detach(ours);
            let mut nothing = [0];
            let mut pipe = File::from(keep);
            while matches!(pipe.read(&mut nothing), Err(e) if e.kind() == io::ErrorKind::Interrupted) {}
            remove_all(|name| name.starts_with(prefix), &temp, &cgroups);
            // SAFETY: ends the process at once; destructors and exit handlers are the parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Closes every descriptor but `keep`, which becomes number 0, so that the janitor holds nothing open.
fn detach(keep: OwnedFd) -> OwnedFd {
    // SAFETY: plain system calls; no other thread exists in this process that could use a descriptor,
    // and the returned value is the only owner of number 0.
    unsafe {
        libc::dup2(keep.as_raw_fd(), 0);
        let _ = keep.into_raw_fd();
        libc::close_range(1, libc::c_uint::MAX, 0);
        let name = c"lab-janitor";
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        OwnedFd::from_raw_fd(0)
    }
}

/// How long to wait where a fast machine would give up after `limit`: so many times as long as HEDDLE_PATIENCE
/// says. An emulated machine is 10 to 20 times slower.
pub fn patient(limit: Duration) -> Duration {
    let times = std::env::var("HEDDLE_PATIENCE").ok().and_then(|times| times.parse::<u32>().ok());
    limit * times.unwrap_or(1).clamp(1, 100)
}

/// Waits until `done`, at most `limit` ([`patient`]); for things of the kernel that tell nobody when they have
/// happened.
pub(crate) fn poll_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patient(limit);
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "for what has no event; the callers say what")]
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills a process or thread by id; one that is gone already is no error.
pub(crate) fn kill_hard(pid: i32) {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => eprintln!("lab: cannot kill {pid}: {e}"),
    }
}
