//! The kernel says no, once, at the K-th system call.

use std::os::unix::process::ExitStatusExt;

use heddle_lab::trace::{self, Call, Fate};
use nix::errno::Errno;
use nix::libc;
use serde_json::Value;

use super::sweep::{is_full, sweep};
use super::world::{Outcome, World};

const ERRNOS: [Errno; 7] =
    [Errno::ENOSPC, Errno::EIO, Errno::EROFS, Errno::EMFILE, Errno::EDQUOT, Errno::ENOMEM, Errno::EINTR];

/// Calls that cannot fail, or only of a program that is wrong about itself: the ends of threads and processes, signal
/// handling, what the C library tells the kernel of its threads, giving memory back; brk(2) has no errors, and close(2)
/// lets the descriptor go whatever it says.
const NEVER_FAIL: [libc::c_long; 20] = [
    libc::SYS_brk,
    libc::SYS_close,
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
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
];
/// Without memory a program of Rust aborts: as if it had been killed, and without an answer.
const MEMORY: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mremap];

/// The errnos to try at a call: in turn, or each.
fn errnos(k: usize) -> impl Iterator<Item = Errno> {
    let all = ERRNOS.into_iter().enumerate();
    // Calls come in patterns, and so may seven errnos.
    all.filter(move |(n, _)| is_full() || *n == (k + k / 7) % ERRNOS.len()).map(|(_, errno)| errno)
}

/// What happened to a run.
struct Run {
    outcome: Outcome,
    /// The call that failed; `None`: the program came to its end before, or it is of those that never fail.
    failed: Option<Call>,
    /// There was a K-th call.
    reached: bool,
    /// The call was one of the loader or the runtime library, before `main`.
    early: bool,
}

fn run(world: &World, k: usize, errno: Errno, command: &str, conf: &Value) -> Run {
    let (mut failed, mut reached, mut early, mut own) = (None, false, true, false);
    let outcome = world.traced(command, conf, |call| {
        // The first thing that the plugin does is to look at its standard input.
        own |= matches!(call.number, libc::SYS_read | libc::SYS_ioctl) && call.args[0] == 0;
        if call.index < k {
            return Fate::Passes;
        }
        if call.index > k {
            return Fate::PassesAsTheRest;
        }
        (reached, early) = (true, !own);
        if NEVER_FAIL.contains(&call.number) {
            return Fate::PassesAsTheRest;
        }
        failed = Some(*call);
        Fate::Fails(errno)
    });
    Run { outcome, failed, reached, early }
}

impl Run {
    /// What failed is told as the specification wants it.
    fn assert_told(&self, what: &str) {
        let Run { outcome, failed, .. } = self;
        let Some(call) = failed else {
            assert!(outcome.answer.success, "{what}: {outcome:?}");
            return;
        };
        let aborts = MEMORY.contains(&call.number) && outcome.status.signal() == Some(libc::SIGABRT);
        let mute = call.number == libc::SYS_write && call.args[0] == 1;
        if self.early || aborts {
            return;
        }
        assert!(!outcome.answer.stderr.contains("panicked"), "{what}: {outcome:?}");
        if outcome.answer.success || mute {
            return;
        }
        let answer = &outcome.answer;
        let code = answer.json["code"].as_u64();
        assert!(matches!(code, Some(5 | 101)), "{what}: call {}: {answer:?}", call.number);
        assert!(!answer.msg().is_empty() && answer.json["cniVersion"] == "1.1.0", "{what}: {answer:?}");
    }

    /// It was stopped where it stood, and could clean nothing up.
    fn died(&self) -> bool {
        self.outcome.status.signal().is_some()
    }
}

fn over_all(stride: usize, world: fn() -> World, moment: fn(&World, usize, Errno) -> Run) -> usize {
    if !trace::is_possible() {
        heddle_lab::skip("system calls cannot be made to fail on this processor");
        return usize::MAX;
    }
    sweep(stride, world, |world, k| {
        let runs: Vec<Run> = errnos(k).map(|errno| moment(world, k, errno)).collect();
        let reached = runs.iter().any(|run| run.reached);
        if !reached {
            world.assert_other_lives();
        }
        reached
    })
}

fn add(world: &World, k: usize, errno: Errno) -> Run {
    let what = format!("ADD with {errno} at {k}");
    let run = run(world, k, errno, "ADD", &world.conf);
    run.assert_told(&what);
    if run.outcome.answer.success || run.died() {
        world.host.del(&world.pod, &world.conf);
    }
    world.assert_clean(&what);
    run
}

fn del(world: &World, k: usize, errno: Errno) -> Run {
    let what = format!("DEL with {errno} at {k}");
    world.host.add(&world.pod, &world.conf);
    let run = run(world, k, errno, "DEL", &world.conf);
    run.assert_told(&what);
    if !run.outcome.answer.success {
        // A runtime that is told of a failure tries again.
        world.host.del(&world.pod, &world.conf);
    }
    world.assert_clean(&what);
    run
}

fn gc(world: &World, k: usize, errno: Errno) -> Run {
    let what = format!("GC with {errno} at {k}");
    world.host.add(&world.pod, &world.conf);
    let run = run(world, k, errno, "GC", &world.gc_conf());
    run.assert_told(&what);
    if !run.outcome.answer.success {
        let again = world.gc();
        assert!(again.success, "{what}: {again:?}");
    }
    world.assert_clean(&what);
    run
}

#[test]
fn fault_044_every_call_of_add_may_fail() {
    let moments = over_all(1, World::ptp, add);
    assert!(moments > 100, "{moments}");
}

#[test]
fn fault_044_every_call_of_add_on_a_bridge_may_fail() {
    let moments = over_all(5, World::bridge, add);
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_044_every_call_of_del_may_fail() {
    let moments = over_all(1, World::ptp, del);
    assert!(moments > 50, "{moments}");
}

#[test]
fn fault_044_every_call_of_del_on_a_bridge_may_fail() {
    let moments = over_all(5, World::bridge, del);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_044_every_call_of_gc_may_fail() {
    let moments = over_all(3, World::ptp, gc);
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_044_every_call_of_gc_on_a_bridge_may_fail() {
    let moments = over_all(7, World::bridge, gc);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_044_every_call_of_add_with_host_ports_and_limits_may_fail() {
    let moments = over_all(11, World::equipped, add);
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_044_every_call_of_del_with_host_ports_and_limits_may_fail() {
    let moments = over_all(9, World::equipped, del);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_044_every_call_of_gc_with_host_ports_and_limits_may_fail() {
    let moments = over_all(17, World::equipped, gc);
    assert!(moments > 10, "{moments}");
}
