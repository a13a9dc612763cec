//! Going over all system calls of a program.

use std::env;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// As many worlds as processors are likely to be there.
const WORKERS: usize = 2;

/// Whether every call is tried in every way.
pub fn is_full() -> bool {
    env::var("HEDDLE_SWEEP").is_ok_and(|how| how == "all")
}

/// Calls `moment` for each K, or each `stride`-th, in worlds of their own, until one says that the program came to its
/// end before its K-th call. Returns how many there were.
pub fn sweep<W>(
    stride: usize,
    world: impl Fn() -> W + Sync,
    moment: impl Fn(&W, usize) -> bool + Sync,
) -> usize {
    let stride = if is_full() { 1 } else { stride };
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let moments = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let world = world();
                while !over.load(Ordering::Relaxed) {
                    let k = next.fetch_add(stride, Ordering::Relaxed);
                    if moment(&world, k) {
                        moments.fetch_add(1, Ordering::Relaxed);
                    } else {
                        over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    moments.into_inner()
}
