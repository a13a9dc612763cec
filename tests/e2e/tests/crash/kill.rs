//! Killed before its K-th system call.

use heddle_netlink::link;

use super::sweep::{is_full, sweep};
use super::world::World;

/// How a runtime goes on after an ADD or a DEL that did not come to its end.
const WAYS: [fn(&World, &str); 3] = [
    |world, what| {
        world.host.del(&world.pod, &world.conf);
        world.assert_clean(what);
    },
    |world, what| {
        world.assert_no_address_twice(what);
        let collected = world.gc();
        assert!(collected.success, "{what}: {collected:?}");
        world.assert_clean(what);
    },
    |world, what| {
        let again = world.host.call(&world.pod, "ADD", &world.conf);
        // Only if the interface was complete, and the answer was all that was missing.
        assert!(again.success || again.msg().contains("attached already"), "{what}: {again:?}");
        world.host.del(&world.pod, &world.conf);
        world.assert_clean(what);
    },
];

/// The ways to try at a moment: in turn, or each.
fn ways(k: usize) -> impl Iterator<Item = (usize, fn(&World, &str))> {
    let all = WAYS.into_iter().enumerate();
    all.filter(move |(n, _)| is_full() || *n == k % WAYS.len())
}

pub fn add(stride: usize, world: fn() -> World) -> usize {
    sweep(stride, world, |world, k| {
        for (n, way) in ways(k) {
            let killed = world.killed_at(k, "ADD", &world.conf);
            way(world, &format!("ADD killed at {k}, way {n}"));
            if !killed {
                world.assert_other_lives();
                return false;
            }
        }
        true
    })
}

pub fn del(stride: usize, world: fn() -> World) -> usize {
    sweep(stride, world, |world, k| {
        for (n, way) in ways(k) {
            let what = format!("DEL killed at {k}, way {n}");
            world.host.add(&world.pod, &world.conf);
            let killed = world.killed_at(k, "DEL", &world.conf);
            let wired = link::by_name(&mut world.pod.socket(), "eth0").unwrap().is_some();
            let leased = world.host.leases().iter().any(|lease| {
                let path = lease.split_once(' ').unwrap().1;
                !path.contains(".heddle") && std::fs::read_to_string(path).unwrap().starts_with("abc\r\n")
            });
            assert!(leased || !wired, "{what}: the address is free, and the pod has it still");
            way(world, &what);
            if !killed {
                world.assert_other_lives();
                return false;
            }
        }
        true
    })
}

pub fn gc(stride: usize, world: fn() -> World) -> usize {
    sweep(stride, world, |world, k| {
        for (n, way) in ways(k) {
            world.host.add(&world.pod, &world.conf);
            let killed = world.killed_at(k, "GC", &world.gc_conf());
            way(world, &format!("GC killed at {k}, way {n}"));
            if !killed {
                world.assert_other_lives();
                return false;
            }
        }
        true
    })
}

#[test]
fn fault_041_kill_at_every_syscall_of_add() {
    let moments = add(1, World::ptp);
    assert!(moments > 100, "{moments}");
}

#[test]
fn fault_041_kill_at_every_syscall_of_add_on_a_bridge() {
    let moments = add(7, World::bridge);
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_042_kill_at_every_syscall_of_del() {
    let moments = del(1, World::ptp);
    assert!(moments > 50, "{moments}");
}

#[test]
fn fault_042_kill_at_every_syscall_of_del_on_a_bridge() {
    let moments = del(5, World::bridge);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_043_kill_at_every_syscall_of_gc() {
    let moments = gc(1, World::ptp);
    assert!(moments > 50, "{moments}");
}

#[test]
fn fault_043_kill_at_every_syscall_of_gc_on_a_bridge() {
    let moments = gc(5, World::bridge);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_041_kill_at_every_syscall_of_add_with_host_ports_and_limits() {
    let moments = add(13, World::equipped);
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_042_kill_at_every_syscall_of_del_with_host_ports_and_limits() {
    let moments = del(9, World::equipped);
    assert!(moments > 10, "{moments}");
}

#[test]
fn fault_043_kill_at_every_syscall_of_gc_with_host_ports_and_limits() {
    let moments = gc(17, World::equipped);
    assert!(moments > 10, "{moments}");
}
