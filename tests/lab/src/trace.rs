//! A program under the debugger's system call, which decides call by call what becomes of it.
//!
//! strace can do so too, but it counts every kind of call and every thread by itself: the K-th call of all is out
//! of its reach.

use std::collections::HashMap;
use std::ffi::{c_int, c_long, c_void};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program that runs for longer hangs.
const LIMIT: Duration = Duration::from_secs(30);
/// `PTRACE_GET_SYSCALL_INFO` and what it may say (include/uapi/linux/ptrace.h).
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;
const EXIT: u8 = 2;
/// A stop for a system call, told from other traps (PTRACE_O_TRACESYSGOOD).
const AT_CALL: c_int = libc::SIGTRAP | 0x80;

/// A system call that is about to be made, by any thread of the program.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The first one is 0: the first of the program, not the execve(2) that began it.
    pub index: usize,
    /// `libc::SYS_*`.
    pub number: c_long,
    pub args: [u64; 6],
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    /// It passes, and nobody looks at those after it.
    PassesAsTheRest,
    /// The process dies before it (SIGKILL).
    Kills,
    /// It is not made, and the program is told so.
    Fails(Errno),
}

/// A program that came to its end.
#[derive(Debug)]
pub struct Traced {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The most memory that it had at once, in KiB; 0 if it was killed.
    pub peak: u64,
}

/// `struct ptrace_syscall_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    _pad: [u8; 3],
    _arch: u32,
    _instruction_pointer: u64,
    _stack_pointer: u64,
    number: u64,
    args: [u64; 6],
    _rest: [u64; 4],
}

/// Whether calls can be made to fail on this machine: registers are written for that.
pub const fn is_possible() -> bool {
    cfg!(target_arch = "x86_64")
}

/// Runs `command` with `input`, of at most a pipe's size, and asks `fate` before each system call. Programs that
/// it starts are not looked at. Streams that are not pipes are not touched.
///
/// # Errors
/// If it cannot be started or followed.
pub fn trace(command: &mut Command, input: &[u8], fate: impl FnMut(&Call) -> Fate) -> io::Result<Traced> {
    // SAFETY: between fork and exec, one system call that needs no memory of ours.
    unsafe {
        command.pre_exec(|| {
            Errno::result(libc::ptrace(libc::PTRACE_TRACEME)).map(drop).map_err(io::Error::from)
        });
    }
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let pid = Pid::from_raw(child.id().cast_signed());
    let (ended, end) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            // It may have come to its end in this moment.
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let ended_with = Follower { pid, fate, index: 0, looks: true, failing: HashMap::new(), peak: 0 }.follow();
    drop(ended);
    drop(watch.join());
    let (status, peak) = ended_with?;
    collect(&mut child, status, peak)
}

fn collect(child: &mut Child, status: ExitStatus, peak: u64) -> io::Result<Traced> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    if let Some(pipe) = &mut child.stdout {
        pipe.read_to_end(&mut stdout)?;
    }
    if let Some(pipe) = &mut child.stderr {
        pipe.read_to_end(&mut stderr)?;
    }
    Ok(Traced { status, stdout, stderr, peak })
}

struct Follower<F> {
    pid: Pid,
    fate: F,
    index: usize,
    looks: bool,
    /// What the call that a thread is in will be said to have come to.
    failing: HashMap<Pid, Errno>,
    peak: u64,
}

impl<F: FnMut(&Call) -> Fate> Follower<F> {
    fn follow(mut self) -> io::Result<(ExitStatus, u64)> {
        // The stop after execve(2).
        wait(self.pid)?;
        let options = libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEEXIT
            | libc::PTRACE_O_EXITKILL;
        request(libc::PTRACE_SETOPTIONS, self.pid, 0, options as usize)?;
        let mut known = vec![self.pid];
        self.resume(self.pid, 0)?;
        loop {
            // Only of this thread: tests beside this one have children of their own.
            let (thread, status) = wait(Pid::from_raw(-1))?;
            if !libc::WIFSTOPPED(status) {
                if thread == self.pid {
                    return Ok((ExitStatus::from_raw(status), self.peak));
                }
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            if signal == AT_CALL {
                self.at_call(thread)?;
                self.resume(thread, 0)?;
            } else if status >> 16 != 0 {
                if status >> 16 == libc::PTRACE_EVENT_EXIT {
                    self.peak = self.peak.max(peak(thread));
                }
                self.resume(thread, 0)?;
            } else if !known.contains(&thread) {
                // A thread begins with a SIGSTOP that nobody sent.
                known.push(thread);
                self.resume(thread, 0)?;
            } else {
                self.resume(thread, signal)?;
            }
        }
    }

    fn at_call(&mut self, thread: Pid) -> io::Result<()> {
        let mut info = Info::default();
        let read = request(GET_SYSCALL_INFO, thread, size_of::<Info>(), &raw mut info as usize);
        if read.is_err() {
            // It was killed meanwhile.
            return Ok(());
        }
        if info.op == EXIT
            && let Some(errno) = self.failing.remove(&thread)
        {
            return set_result(thread, errno);
        }
        if info.op != ENTRY || !self.looks {
            return Ok(());
        }
        let call = Call { index: self.index, number: info.number.cast_signed(), args: info.args };
        self.index += 1;
        match (self.fate)(&call) {
            Fate::Passes => {}
            Fate::PassesAsTheRest => self.looks = false,
            Fate::Kills => {
                self.looks = false;
                kill(self.pid, Signal::SIGKILL)?;
            }
            Fate::Fails(errno) => {
                skip_call(thread)?;
                self.failing.insert(thread, errno);
            }
        }
        Ok(())
    }

    fn resume(&self, thread: Pid, signal: c_int) -> io::Result<()> {
        let watched = self.looks || self.failing.contains_key(&thread);
        let how = if watched { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        match request(how, thread, 0, signal as usize) {
            // It was killed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

/// What the kernel says of a thread that is about to end.
fn peak(thread: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Waits for a thread that this thread follows.
fn wait(pid: Pid) -> io::Result<(Pid, c_int)> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is an integer of ours that lives through the call.
        let found = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match Errno::result(found) {
            Ok(found) => return Ok((Pid::from_raw(found), status)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn request(what: libc::c_uint, thread: Pid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests that are made here read numbers, or write at most `address` bytes at `data`, which the
    // caller owns.
    let result = unsafe { libc::ptrace(what, thread.as_raw(), address as *mut c_void, data as *mut c_void) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// There is no call of this number: the kernel makes none.
#[cfg(target_arch = "x86_64")]
fn skip_call(thread: Pid) -> io::Result<()> {
    request(libc::PTRACE_POKEUSER, thread, libc::ORIG_RAX as usize * 8, usize::MAX)
}

#[cfg(target_arch = "x86_64")]
fn set_result(thread: Pid, errno: Errno) -> io::Result<()> {
    request(libc::PTRACE_POKEUSER, thread, libc::RAX as usize * 8, (-(errno as isize)).cast_unsigned())
}

#[cfg(not(target_arch = "x86_64"))]
fn skip_call(_: Pid) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_arch = "x86_64"))]
fn set_result(_: Pid, _: Errno) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn cat(fate: impl FnMut(&Call) -> Fate) -> Traced {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        trace(&mut cat, b"words", fate).unwrap()
    }

    #[test]
    fn calls_pass_fail_and_kill() {
        let mut calls = 0;
        let all = cat(|_| {
            calls += 1;
            Fate::Passes
        });
        assert!(all.status.success() && all.stdout == b"words" && calls > 10 && all.peak > 100, "{all:?}");
        let refused = cat(|call| match call.number {
            libc::SYS_write if call.args[0] == 1 => Fate::Fails(Errno::ENOSPC),
            _ => Fate::Passes,
        });
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && told.contains("No space left"), "{refused:?}");
        for k in 0..calls {
            let killed = cat(|call| if call.index == k { Fate::Kills } else { Fate::Passes });
            assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{k}");
        }
        assert!(cat(|_| Fate::PassesAsTheRest).status.success());
    }
}
