//! A program that the configuration names for a part of the work (section 4, "Plugin Delegation"): IPAM plugins
//! other than those built in.
//!
//! The only place of the product that starts a program. It is one by a plain name in a directory of `CNI_PATH`,
//! never by a path that somebody sent, and never ourselves. It gets our environment and our input, and its
//! standard error is ours. What it answers is bounded in size, and how long it takes in time.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use heddle_spec::{Command, Failure, Success, Version, code};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a delegate may take. Kubelet waits two minutes for a pod's network.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than this is no answer (bytes).
const LARGEST_ANSWER: usize = 1 << 20;

/// Whether a delegate may be called this: the name of a file, and of no other directory's.
pub fn name_is_valid(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// A program that was found.
#[derive(Debug)]
pub struct Delegate {
    name: String,
    program: PathBuf,
    patience: Duration,
}

impl Delegate {
    /// Looks for the program in the directories of `path` (`CNI_PATH`), as they come; those that are no absolute
    /// paths are passed over.
    ///
    /// # Errors
    /// Code 7 for a name that is none, and for ourselves under another name (we would start each other for ever);
    /// code 103 if there is no such program.
    pub fn find(name: &str, path: &str) -> Result<Self, Failure> {
        if !name_is_valid(name) {
            let shown: String = name.chars().take(64).collect();
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("ipam.type: {shown:?} cannot be the name of a plugin"),
            ));
        }
        let directories = path.split(':').map(Path::new).filter(|directory| directory.is_absolute());
        let found = directories.map(|directory| directory.join(name)).find_map(|program| {
            let meta = fs::metadata(&program).ok()?;
            (meta.is_file() && meta.permissions().mode() & 0o111 != 0).then_some((program, meta))
        });
        let Some((program, meta)) = found else {
            return Err(Failure::new(
                code::DELEGATE,
                format!("ipam.type: there is no program {name} in CNI_PATH ({path})"),
            )
            .with_details(
                "the directories of CNI_PATH are absolute paths; host-local and heddle-ipam are built in",
            ));
        };
        let own = fs::metadata("/proc/self/exe");
        if own.is_ok_and(|own| (own.dev(), own.ino()) == (meta.dev(), meta.ino())) {
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("ipam.type: {} is heddle itself, which is no IPAM plugin", program.display()),
            ));
        }
        Ok(Self { name: name.to_owned(), program, patience: PATIENCE })
    }

    /// ADD. What fails is followed by DEL, as the specification wants it.
    ///
    /// # Errors
    /// The delegate's own, or code 103 if it did not answer as a plugin does.
    pub fn add(&self, input: &[u8], version: Version) -> Result<Success, Failure> {
        let answered = self.run(Command::Add, input).and_then(|output| self.read(&output, version));
        answered.inspect_err(|_| drop(self.call(Command::Del, input)))
    }

    /// Any command without a result.
    pub fn call(&self, command: Command, input: &[u8]) -> Result<(), Failure> {
        self.run(command, input).map(drop)
    }

    fn read(&self, output: &[u8], version: Version) -> Result<Success, Failure> {
        let value: Value = serde_json::from_slice(output)
            .map_err(|error| self.failed(&format!("its answer cannot be read: {error}")))?;
        Success::from_json(&value, version).map_err(|reason| self.failed(&format!("its answer: {reason}")))
    }

    fn run(&self, command: Command, input: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut child = self.start(command)?;
        let answered = exchange(&mut child, input, Instant::now() + self.patience);
        if answered.is_err() {
            // It has a process group of its own: what it started ends with it, and it itself wherever it went.
            killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).ok();
            child.kill().ok();
        }
        let status = child.wait().map_err(|error| self.failed(&format!("cannot wait for it: {error}")))?;
        match answered {
            Err(Broken::Late) => {
                Err(self
                    .failed(&format!("it did not end within {} s, and was killed", self.patience.as_secs())))
            }
            Err(Broken::Large) => {
                Err(self
                    .failed(&format!("it answered more than {} KiB, and was killed", LARGEST_ANSWER / 1024)))
            }
            Err(Broken::Io(error)) => Err(self.failed(&format!("cannot hear it: {error}"))),
            Ok(output) if status.success() => Ok(output),
            Ok(output) => Err(self.own_failure(&output, status)),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a delegate is a program: the one exception of the product"
    )]
    fn start(&self, command: Command) -> Result<Child, Failure> {
        let mut program = Program::new(&self.program);
        program.env("CNI_COMMAND", command.as_str()).process_group(0);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        // It is to meet its signals as it would without us.
        let mut ours = SigSet::empty();
        ours.add(Signal::SIGXFSZ);
        let blocked = SigSet::thread_get_mask().is_ok_and(|mask| mask.contains(Signal::SIGXFSZ));
        if blocked {
            ours.thread_unblock().ok();
        }
        let child = program.spawn();
        if blocked {
            ours.thread_block().ok();
        }
        child.map_err(|error| self.failed(&format!("cannot start {}: {error}", self.program.display())))
    }

    /// The error object that it wrote, or how it ended without one.
    fn own_failure(&self, output: &[u8], status: ExitStatus) -> Failure {
        let object: Option<Value> = serde_json::from_slice(output).ok();
        let text = |key: &str| object.as_ref().and_then(|o| o.get(key)).and_then(Value::as_str);
        let number = object.as_ref().and_then(|o| o.get("code")).and_then(Value::as_u64);
        if let (Some(number), Some(msg)) = (number.and_then(|n| u32::try_from(n).ok()), text("msg")) {
            return Failure::new(number, format!("{}: {msg}", self.name))
                .with_details(text("details").unwrap_or_default());
        }
        match (status.code(), status.signal()) {
            (Some(code), _) => self.failed(&format!("it ended with exit status {code} and no error object")),
            (_, Some(signal)) => self.failed(&format!("signal {signal} ended it")),
            _ => self.failed("it failed"),
        }
    }

    fn failed(&self, reason: &str) -> Failure {
        Failure::new(code::DELEGATE, format!("{}: {reason}", self.name))
    }
}

/// Why nothing was heard of a delegate.
#[derive(Debug)]
enum Broken {
    Late,
    Large,
    Io(io::Error),
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Gives `child` its input and takes its output until it ends. Whether it reads the one, writes the other, or
/// leaves both to a process of its own, is its business.
fn exchange(child: &mut Child, input: &[u8], deadline: Instant) -> Result<Vec<u8>, Broken> {
    let mut output = Vec::new();
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { return Ok(output) };
    let mut stdout = fs::File::from(without_waiting(stdout.into())?);
    let mut stdin = Some((fs::File::from(without_waiting(stdin.into())?), input));
    // The end of a process is no event of a file (but of a pidfd, for which there is no safe call): a thread
    // waits for it and then closes a pipe.
    let (ended, ends) = io::pipe().map_err(Broken::Io)?;
    let id = Pid::from_raw(child.id().cast_signed());
    thread::Builder::new()
        .spawn(move || {
            // It stays a zombie, so that its number remains its own until we have killed what is left.
            while waitid(Id::Pid(id), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
            drop(ends);
        })
        .map_err(Broken::Io)?;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Late);
        }
        let mut waiting = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if open {
            waiting.push(PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
        }
        if let Some((pipe, _)) = &stdin {
            waiting.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let over = waiting.first().and_then(|first| first.any()).unwrap_or_default();
        open = open && take(&mut stdout, &mut output)?;
        if over {
            return Ok(output);
        }
        stdin = stdin.and_then(|(pipe, rest)| give(pipe, rest));
    }
}

/// Reads what is there. False at the end of it.
fn take(from: &mut fs::File, output: &mut Vec<u8>) -> Result<bool, Broken> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => output.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(Broken::Io(error)),
        }
        if output.len() > LARGEST_ANSWER {
            return Err(Broken::Large);
        }
    }
}

/// Writes what there is room for. What is left, if anybody still reads.
fn give(mut to: fs::File, mut rest: &[u8]) -> Option<(fs::File, &[u8])> {
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some((to, rest)),
            // It has seen enough.
            Err(_) => return None,
        }
    }
    None
}

fn without_waiting(pipe: OwnedFd) -> Result<OwnedFd, Broken> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(pipe)
}

#[cfg(test)]
mod tests;
