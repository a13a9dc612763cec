//! Runs of the plugin, and what may disturb one.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use heddle_lab::trace::{self, Fate};
use nix::errno::Errno as Number;
use nix::libc;
use serde_json::Value;

use super::bench::{Answer, Host};
use super::op::Errno;

/// How a command ended.
pub struct Ended {
    pub answer: Answer,
    pub killed: bool,
    /// A call was made to fail.
    pub failed: bool,
}

/// When a command is disturbed, and how.
#[derive(Clone, Copy, Debug)]
pub enum Disturbance {
    None,
    Kill(u16),
    Fail(u16, Errno),
}

/// Runs the plugin on `host`.
///
/// # Errors
/// If it cannot be followed, or panicked.
pub fn run(
    host: &Host,
    variables: &[(String, String)],
    conf: &Value,
    disturbance: Disturbance,
) -> Result<Ended, String> {
    let input = conf.to_string();
    let (at, fate) = match disturbance {
        Disturbance::None => {
            let answer = host.raw(variables, input.as_bytes());
            return sane(Ended { answer, killed: false, failed: false });
        }
        Disturbance::Kill(at) => (at, Fate::Kills),
        Disturbance::Fail(at, errno) => (at, Fate::Fails(number(errno))),
    };
    let mut program = Command::new(heddle_lab::bin("heddle"));
    program.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut done = false;
    let run = host.ns.run(|| {
        trace::trace(&mut program, input.as_bytes(), |call| {
            if done {
                Fate::PassesAsTheRest
            } else if call.index < at.into() || (matches!(fate, Fate::Fails(_)) && never_fails(call.number)) {
                Fate::Passes
            } else {
                done = true;
                fate
            }
        })
    });
    let run = run.unwrap().map_err(|error| format!("cannot follow the plugin: {error}"))?;
    let stdout = String::from_utf8(run.stdout).unwrap();
    let answer = Answer {
        success: run.status.success(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
        stderr: String::from_utf8_lossy(&run.stderr).into_owned(),
    };
    let killed = run.status.signal().is_some();
    sane(Ended { answer, killed, failed: done && !killed })
}

fn sane(ended: Ended) -> Result<Ended, String> {
    if ended.answer.stderr.contains("panicked") {
        return Err(format!("it panicked: {}", ended.answer.stderr));
    }
    Ok(ended)
}

fn number(errno: Errno) -> Number {
    match errno {
        Errno::NoSpace => Number::ENOSPC,
        Errno::Io => Number::EIO,
        Errno::NoMemory => Number::ENOMEM,
        Errno::TooManyFiles => Number::EMFILE,
        Errno::ReadOnly => Number::EROFS,
    }
}

/// Calls of the runtime library: they cannot fail, or nothing can be done then.
fn never_fails(call: libc::c_long) -> bool {
    const NEVER: [libc::c_long; 24] = [
        libc::SYS_brk,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prctl,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_futex,
        libc::SYS_sched_getaffinity,
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_mprotect,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_close,
    ];
    NEVER.contains(&call)
}
