//! Programs that run in the lab, and the thread that starts them.
//!
//! The kernel sends a child its parent-death signal when the *thread* that forked it ends. So all children
//! of a lab are forked by one thread that lives as long as the lab.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};

/// A command line. From a string it is split at white space; no shell has a part in it.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    stdin: Vec<u8>,
}

impl Cmd {
    /// `program` without arguments; a bare name is looked for in PATH.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { command: Command::new(program.into()), stdin: Vec::new() }
    }

    /// One argument more.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.command.arg(arg.into());
        self
    }

    /// Some arguments more.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment; the rest is that of this process.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// What it reads from its standard input; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    fn program(&self) -> String {
        Path::new(self.command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl From<Command> for Cmd {
    fn from(command: Command) -> Self {
        Self { command, stdin: Vec::new() }
    }
}

impl From<&str> for Cmd {
    fn from(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or_default()).args(words)
    }
}

impl From<String> for Cmd {
    fn from(line: String) -> Self {
        Self::from(line.as_str())
    }
}

impl<S: Into<OsString> + Clone> From<&[S]> for Cmd {
    fn from(words: &[S]) -> Self {
        let mut words = words.iter().cloned().map(Into::into);
        Self::new(words.next().unwrap_or_default()).args(words)
    }
}

impl<S: Into<OsString> + Clone, const N: usize> From<[S; N]> for Cmd {
    fn from(words: [S; N]) -> Self {
        Self::from(&words[..])
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program())?;
        self.command.get_args().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

/// What a program left when it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that forks, and the directory that output goes to.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    logs: PathBuf,
    next: AtomicU64,
}

impl Spawner {
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || work.iter().for_each(|job| job()))
            .context(|| "start the lab's spawner thread".into())?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            logs,
            next: AtomicU64::new(1),
        })
    }

    /// A new file for what a program prints.
    fn file(&self, place: &str, program: &str, kind: &str) -> Result<(PathBuf, File)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.logs.join(format!("{number:04}.{place}.{program}.{kind}"));
        let file = OpenOptions::new().create_new(true).read(true).append(true).open(&path);
        Ok((path.clone(), file.context(|| format!("create {}", path.display()))?))
    }

    /// Starts `cmd`, calling `before_exec` in the child.
    pub(crate) fn spawn(
        &self,
        place: &str,
        cmd: impl Into<Cmd>,
        streams: Streams,
        before_exec: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Process> {
        let cmd = cmd.into();
        let (line, program) = (cmd.to_string(), cmd.program());
        let Cmd { mut command, stdin } = cmd;
        let (out, stdout) =
            self.file(place, &program, if streams == Streams::Log { "log" } else { "out" })?;
        let (err, stderr) = match streams {
            Streams::Log => (out.clone(), stdout.try_clone().context(|| "duplicate a descriptor".into())?),
            Streams::Apart => self.file(place, &program, "err")?,
        };
        command.stdin(match stdin.as_slice() {
            [] => Stdio::null(),
            input => Stdio::from(self.input(place, &program, input)?),
        });
        command.stdout(stdout).stderr(stderr).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls on descriptors that are open are made; nothing
        // allocates or takes a lock.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                before_exec()
            });
        }
        let (answer, started) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = answer.send(command.spawn());
        });
        let gone = || Error::Unsupported("the lab is down: nothing can be started in it".into());
        lock(&self.jobs).as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        let child = started
            .recv()
            .map_err(|_| gone())?
            .context(|| format!("start `{line}` in {place} (is it installed or built?)"))?;
        let pidfd = pidfd_open(child.id()).context(|| format!("open a pidfd of `{line}`"))?;
        Ok(Process {
            line,
            place: place.to_owned(),
            pid: child.id(),
            pidfd,
            child: Mutex::new(child),
            out,
            err,
        })
    }

    /// A file with `input` in it, read from its start, without a name.
    fn input(&self, place: &str, program: &str, input: &[u8]) -> Result<File> {
        let (path, mut file) = self.file(place, program, "in")?;
        file.write_all(input).and_then(|()| file.rewind()).context(|| format!("write {}", path.display()))?;
        let _ = fs::remove_file(path);
        Ok(file)
    }

    /// Ends the thread; the kernel then kills the children that are left.
    pub(crate) fn stop(&self) {
        drop(lock(&self.jobs).take());
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// The logs written so far, by file name.
    pub(crate) fn logs(&self) -> Vec<(String, String)> {
        let mut logs: Vec<_> = fs::read_dir(&self.logs)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().ends_with(".log"))
            .filter_map(|e| Some((e.file_name().into_string().ok()?, fs::read_to_string(e.path()).ok()?)))
            .collect();
        logs.sort();
        logs
    }
}

/// Where what a program prints goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Standard output and error to a file each.
    Apart,
    /// Both to one log, shown when a test fails.
    Log,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
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
        if wait_readable(&[self.pidfd.as_fd()], Instant::now() + limit)
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
