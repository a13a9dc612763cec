//! What a program takes: time of the clock, time of the processors.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

/// A program that came to its end.
#[derive(Debug)]
pub struct Used {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// From before its start until it was reaped.
    pub wall: Duration,
    /// In user space and in the kernel, with the programs that it started and waited for.
    pub cpu: Duration,
}

/// Runs `command` with `input`, of at most a pipe's size.
///
/// # Errors
/// If it cannot be started.
pub fn measure(command: &mut Command, input: &[u8]) -> io::Result<Used> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have seen enough.
        match stdin.write_all(input) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut stdout = Vec::new();
    if let Some(pipe) = &mut child.stdout {
        pipe.read_to_end(&mut stdout)?;
    }
    let mut status = 0;
    // SAFETY: all zeros is a `rusage`, a struct of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both are ours and live through the call.
        let reaped = unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) };
        match Errno::result(reaped) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let wall = start.elapsed();
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    let cpu = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Used { status: ExitStatus::from_raw(status), stdout, wall, cpu })
}
