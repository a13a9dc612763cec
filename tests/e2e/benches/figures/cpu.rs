//! One processor, and its time.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

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
