//! Going over all system calls of a program.

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// As many worlds as processors are likely to be there.
const WORKERS: usize = 2;
/// After so many failures, more say no more.
const MOST_FAILURES: usize = 50;

/// Whether every call is tried in every way.
pub fn is_full() -> bool {
    env::var("HEDDLE_SWEEP").is_ok_and(|how| how == "all")
}

/// Calls `moment` for each K, or each `stride`-th, in worlds of their own, until one says that the program came to its
/// end before its K-th call. Returns how many there were.
///
/// After a moment that fails comes the next, in a new world: one run tells all that is wrong.
pub fn sweep<W>(
    stride: usize,
    world: impl Fn() -> W + Sync,
    moment: impl Fn(&W, usize) -> bool + Sync,
) -> usize {
    let stride = if is_full() { 1 } else { stride };
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (moments, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut here = world();
        while !over.load(Ordering::Relaxed) {
            let k = next.fetch_add(stride, Ordering::Relaxed);
            match panic::catch_unwind(AssertUnwindSafe(|| moment(&here, k))) {
                Ok(true) => _ = moments.fetch_add(1, Ordering::Relaxed),
                Ok(false) => over.store(true, Ordering::Relaxed),
                Err(_) => {
                    over.fetch_or(failed.fetch_add(1, Ordering::Relaxed) == MOST_FAILURES, Ordering::Relaxed);
                    here = world();
                }
            }
        }
    };
    thread::scope(|scope| (0..WORKERS).for_each(|_| _ = scope.spawn(work)));
    let (moments, failed) = (moments.into_inner(), failed.into_inner());
    println!("{moments} moments");
    assert_eq!(failed, 0, "moments that failed; each said why");
    moments
}
