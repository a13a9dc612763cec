//! Sequences that went wrong once.

use std::sync::Mutex;

use super::op::{Errno, Id, Op};
use super::surroundings;
use super::world::World;

fn play(ops: &[Op]) {
    let run = || {
        surroundings::own();
        World::play(ops, &Mutex::default())
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap()).unwrap();
}

/// Both networks at once, everything that can be lost lost.
#[test]
fn a_reboot_in_the_middle() {
    let id = |net, pod| Id { net, pod };
    play(&[
        Op::Add(id(0, 0)),
        Op::Add(id(1, 0)),
        Op::TheirAdd { pod: 0 },
        Op::Die { pod: 0 },
        Op::Reboot,
        Op::Add(id(0, 1)),
        Op::Check(id(0, 1)),
        Op::Status { net: 1 },
        Op::Add(id(1, 0)),
    ]);
}

/// DEL said that all was well while a call for the lease had failed.
#[test]
fn a_delete_whose_file_cannot_be_read_is_no_success() {
    let id = Id { net: 1, pod: 2 };
    let ops = (60..180).step_by(5).map(|at| [Op::Add(id), Op::FailDel(id, at, Errno::ReadOnly), Op::Del(id)]);
    play(&ops.flatten().collect::<Vec<_>>());
}

/// What a pod whose device vanished had in nf_tables was in the way of its next ADD.
#[test]
fn an_element_of_a_device_that_is_gone_is_replaced() {
    let id = |pod| Id { net: 1, pod };
    play(&[
        Op::Add(id(2)),
        Op::FailAdd(id(0), 39, Errno::Io),
        Op::Unplug(id(2)),
        Op::Add(id(2)),
        Op::Die { pod: 2 },
        Op::Add(id(2)),
    ]);
}

/// An address that a killed GC had freed was taken to be in use.
#[test]
fn what_a_killed_collection_freed_is_free() {
    let id = |pod| Id { net: 0, pod };
    for at in (120..270).step_by(30) {
        play(&[
            Op::Add(id(1)),
            Op::Add(id(3)),
            Op::TheirAdd { pod: 1 },
            Op::Add(id(2)),
            Op::Add(id(0)),
            Op::KillGc { net: 0, valid: 0xfffe, at },
            Op::Add(id(5)),
        ]);
    }
}

/// After a reboot, a lease that could not be looked at was taken for one of the reference plugin, for good.
#[test]
fn what_an_earlier_boot_left_is_swept_as_a_whole() {
    let id = |pod| Id { net: 1, pod };
    let mut ops = Vec::new();
    for at in 144..164 {
        ops.extend([Op::Add(id(0)), Op::Add(id(1)), Op::Add(id(2)), Op::Reboot]);
        ops.push(Op::FailAdd(id(5), at, Errno::NoSpace));
    }
    play(&ops);
}
