//! One processor, and its time.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Run `measure` on a thread that stays on one processor: the last that we may use.
pub fn pinned(measure: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let thread = || {
        let this = Pid::from_raw(0);
        let allowed = sched_getaffinity(this).context("cannot read the processors of this thread")?;
        let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(last.context("this thread may use no processor")?)?;
        sched_setaffinity(this, &one).context("cannot pin this thread to a processor")?;
        measure()
    };
    std::thread::scope(|scope| match scope.spawn(thread).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The processor time that this thread has used: what others take of the processor is not in it.
pub fn used() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("cannot read the thread's time")?;
    Ok(time.into())
}

/// The processor time that a process has used (proc_pid_stat(5): `utime` and `stime`), in steps of the clock tick.
pub fn of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // Behind the name, which may hold anything: the state is field 3, `utime` 14 and `stime` 15.
    let rest = text.rsplit_once(") ").context("a process without a name")?.1;
    let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten().context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / rate as f64))
}
