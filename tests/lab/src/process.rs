//! Programs that run in the lab.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::owner::patient;

/// What a program left when it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor that stands for a process.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it, nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A program that runs in the lab. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    line: String,
    place: String,
    pid: u32,
    pidfd: OwnedFd,
    child: Mutex<Child>,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    pub(crate) fn new(line: String, place: &str, child: Child, out: PathBuf, err: PathBuf) -> Result<Self> {
        let pidfd = pidfd_open(child.id()).context(|| format!("open a pidfd of `{line}`"))?;
        Ok(Self { line, place: place.to_owned(), pid: child.id(), pidfd, child: Mutex::new(child), out, err })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has printed so far (both streams, when it was started as a daemon).
    pub fn log(&self) -> String {
        fs::read(&self.out).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.raw_pid(), signal).context(|| format!("send {signal} to `{}` in {}", self.line, self.place))
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX))
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.try_wait().is_none()
    }

    /// Waits for its end, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`], with what it printed.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        if wait_readable(&[self.pidfd.as_fd()], Instant::now() + patient(limit))
            && let Some(status) = self.try_wait()
        {
            return Ok(status);
        }
        let what = format!("the end of `{}` in {}", self.line, self.place);
        Err(Error::Timeout { what, waited: limit, detail: indent(&self.log()) })
    }

    /// Waits for its end and takes what it printed; kills it after `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn output(&self, limit: Duration) -> Result<Output> {
        let status = self.wait(limit)?;
        let stderr = if self.err == self.out { String::new() } else { read_lossy(&self.err) };
        let output = Output { status, stdout: read_lossy(&self.out), stderr };
        let _ = fs::remove_file(&self.out);
        let _ = fs::remove_file(&self.err);
        Ok(output)
    }

    /// Asks it to end (SIGTERM) and waits, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        match self.try_wait() {
            Some(status) => Ok(status),
            None => self.signal(Signal::SIGTERM).and_then(|()| self.wait(limit)),
        }
    }

    /// Kills it and its process group (SIGKILL) and reaps it.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        if matches!(child.try_wait(), Ok(None)) {
            let _ = killpg(self.raw_pid(), Signal::SIGKILL);
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its command line.
    pub fn line(&self) -> &str {
        &self.line
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// `text` as the indented end of an error message: its last 40 lines.
pub(crate) fn indent(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].iter().map(|line| format!("\n    | {line}")).collect()
}

/// Waits until one of `fds` can be read, until `end` at the latest; whether one can.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not a busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() < end => {}
            Ok(n) => return n > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}
