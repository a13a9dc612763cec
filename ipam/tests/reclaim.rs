//! What dead pods left is freed when it is needed, and nothing else is.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use heddle_ipam::{Error, Namespace};
use heddle_netlink::NetNs;

use bench::{Bench, PATIENCE, SMALL, World, owner};

/// A pod: its namespace, and what ADD notes of it.
struct Pod {
    ns: NetNs,
    noted: Namespace,
}

impl Pod {
    fn new() -> Self {
        let ns = NetNs::create().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
        Self { noted: Namespace::at(path.as_ref()).unwrap(), ns }
    }

    /// The pod is gone, nobody called DEL.
    fn die(self) -> Namespace {
        drop(self.ns);
        self.noted
    }
}

/// A machine on which every namespace can be seen, and none of these lives.
fn all_dead() -> World {
    World { living: Some(BTreeMap::new()), ..World::default() }
}

/// A /29 (five addresses) with one dead pod, `dead`, on .2, and living pods on the rest.
fn full_with_one_dead(bench: &Bench) -> (Namespace, Vec<Pod>) {
    let dead = Pod::new();
    bench.add_in(&mut World::default(), "dead", Some(&dead.noted)).unwrap();
    let living: Vec<Pod> = (0..4).map(|_| Pod::new()).collect();
    for (n, pod) in living.iter().enumerate() {
        bench.add_in(&mut World::default(), &format!("c{n}"), Some(&pod.noted)).unwrap();
    }
    (dead.die(), living)
}

#[test]
fn fault_056_the_address_of_a_dead_pod_is_given_when_no_other_is_free() {
    let bench = Bench::new(SMALL);
    let (_, _living) = full_with_one_dead(&bench);
    let mut world = all_dead();
    assert_eq!(bench.add_in(&mut world, "late", None).unwrap(), ["10.1.0.2/29"]);
    assert_eq!(world.looked, 1, "one look at all processes, for the one suspect");
    assert_eq!(bench.del("dead"), 0);
    assert!(matches!(bench.add_in(&mut world, "later", None), Err(Error::Exhausted { .. })));
    assert_eq!(
        bench.del("c0") + bench.del("c1") + bench.del("c2") + bench.del("c3"),
        4,
        "the living kept theirs"
    );
}

#[test]
fn a_full_range_of_living_pods_looks_at_no_process() {
    let bench = Bench::new(SMALL);
    let living: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
    for (n, pod) in living.iter().enumerate() {
        bench.add_in(&mut World::default(), &format!("c{n}"), Some(&pod.noted)).unwrap();
    }
    let mut world = all_dead();
    bench.add_in(&mut world, "late", None).unwrap_err();
    assert_eq!(world.looked, 0);
}

/// Each of these is a reason to keep the lease of a pod whose path is gone.
#[test]
fn what_may_still_live_is_kept() {
    let bench = Bench::new(SMALL);
    let (dead, _living) = full_with_one_dead(&bench);
    let (inode, cookie) = numbers(&dead);
    let elsewhere =
        |found: Option<u64>| World { living: Some(BTreeMap::from([(inode, found)])), ..World::default() };
    let cases = [
        ("held by a process, a descriptor or a mount elsewhere", elsewhere(Some(cookie))),
        ("held, but what it is cannot be told", elsewhere(None)),
        ("not all processes can be seen", World::default()),
        ("a route leads to it", World { wired: ["10.1.0.2".parse().unwrap()].into(), ..all_dead() }),
    ];
    for (why, mut world) in cases {
        let error = bench.add_in(&mut world, "late", None).expect_err(why).to_string();
        assert!(
            error.contains("1 are of pods that are not where they were, but still there"),
            "{why}: {error}"
        );
    }
    let mut another = elsewhere(Some(cookie + 1));
    assert_eq!(
        bench.add_in(&mut another, "late", None).unwrap(),
        ["10.1.0.2/29"],
        "the number is another's by now"
    );
}

fn numbers(namespace: &Namespace) -> (u64, u64) {
    // As they stand in the note: `netns DEVICE:INODE COOKIE PATH`.
    let text = format!("{namespace:?}");
    let numbers: Vec<u64> =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    let [.., inode, cookie] = numbers.as_slice() else { panic!("{text}") };
    (*inode, *cookie)
}

#[test]
fn a_range_that_runs_low_is_cleared_before_it_is_full() {
    // 61 addresses, 60 of dead pods.
    let bench = Bench::new(r#"{"subnet":"10.1.0.0/26"}"#);
    let pod = Pod::new();
    for n in 0..60 {
        bench.add_in(&mut World::default(), &format!("d{n}"), Some(&pod.noted)).unwrap();
    }
    drop(pod.die());
    fs::write(bench.path("last_reserved_ip.0"), "10.1.0.1").unwrap();
    let leases = || bench.files().iter().filter(|name| name.starts_with("10.")).count();
    let mut world = all_dead();
    assert_eq!(bench.add_in(&mut world, "c0", None).unwrap(), ["10.1.0.62/26"], "the last that is free");
    // The pod has its address and waits: so many are cleared away at a time, those that come next in turn.
    assert_eq!((leases(), world.looked), (61 - 16, 1));
    let mut given = Vec::new();
    for n in 1..=16 {
        given.extend(bench.add_in(&mut world, &format!("c{n}"), None).unwrap());
    }
    assert_eq!(given.iter().collect::<std::collections::BTreeSet<_>>().len(), 16);
    assert_eq!(world.looked, 1, "while addresses are free, nobody looks for the dead");
    // And when none is, they are found.
    for n in 17..61 {
        bench.add_in(&mut world, &format!("c{n}"), None).unwrap();
    }
    assert_eq!(leases(), 61);
    assert!(matches!(bench.add_in(&mut world, "late", None), Err(Error::Exhausted { .. })));
}

#[test]
fn a_lease_that_host_local_made_is_judged_by_nobodys_note() {
    let bench = Bench::new(SMALL);
    let (_, _living) = full_with_one_dead(&bench);
    // host-local freed our lease and gave the same address to a new interface that is called the same.
    fs::remove_file(bench.path("10.1.0.2")).unwrap();
    fs::write(bench.path("10.1.0.2"), "dead\r\neth0").unwrap();
    let error = bench.add_in(&mut all_dead(), "late", None).unwrap_err().to_string();
    assert!(error.contains("of 1 it is not known where they went"), "{error}");
    assert_eq!(bench.del("dead"), 1, "DEL frees it");
}

#[test]
fn a_container_that_came_back_with_a_new_namespace_is_alive() {
    let bench = Bench::new(SMALL);
    let (_, _living) = full_with_one_dead(&bench);
    let reborn = Pod::new();
    assert_eq!(bench.add_in(&mut World::default(), "dead", Some(&reborn.noted)).unwrap(), ["10.1.0.2/29"]);
    bench.add_in(&mut all_dead(), "late", None).unwrap_err();
}

#[test]
fn fault_046_leases_of_nobody_are_freed_when_they_are_needed() {
    let bench = Bench::new(SMALL);
    for n in 0..5 {
        bench.add(&format!("c{n}")).unwrap();
    }
    for name in ["10.1.0.4", "10.1.0.6"] {
        fs::set_permissions(bench.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(bench.path(name), if name == "10.1.0.4" { "" } else { "\r\n" }).unwrap();
    }
    let mut given = [bench.add("late").unwrap(), bench.add("later").unwrap()].concat();
    given.sort();
    assert_eq!(given, ["10.1.0.4/29", "10.1.0.6/29"]);
}

/// Far behind where the search begins: not by chance, but because the full range is looked through.
#[test]
fn fault_046_a_lease_of_nobody_is_found_anywhere_in_a_full_range() {
    let bench = Bench::new(r#"{"subnet":"10.1.0.0/25"}"#);
    bench.add("a").unwrap();
    for n in 3..127 {
        let content = if n == 99 { String::new() } else { format!("c{n}\r\neth0") };
        fs::write(bench.path(&format!("10.1.0.{n}")), content).unwrap();
    }
    assert_eq!(bench.add("late").unwrap(), ["10.1.0.99/25"]);
}

#[test]
fn fault_025_gc_keeps_what_is_valid_and_nothing_else() {
    let bench = Bench::new(SMALL);
    for container in ["a", "b"] {
        bench.add(container).unwrap();
    }
    fs::write(bench.path("10.1.0.4"), "old").unwrap();
    fs::write(bench.path("10.1.0.5"), "").unwrap();
    fs::write(bench.path("10.1.0.6"), "not a lease of anybody").unwrap();
    fs::write(bench.path(".heddle/.heddle-new-x"), "half made").unwrap();
    let collect = |valid: &[&str]| {
        let store = bench.store("boot-1");
        let valid = valid.iter().map(|container| owner(container)).collect();
        store.lock(PATIENCE).unwrap().collect(&valid).unwrap();
        bench.files().into_iter().filter(|name| name.contains('.')).collect::<Vec<_>>()
    };
    assert_eq!(collect(&["a", "old", "unknown"]), ["10.1.0.2", "10.1.0.4", "10.1.0.6"]);
    assert_eq!(collect(&[]), ["10.1.0.6"], "what names nobody is not ours to judge");
    assert_eq!(bench.files().len(), 1, "no note is left: {:?}", bench.files());
}

/// The mark on the directory, and what takes it away.
#[test]
fn what_somebody_else_leased_is_found_without_a_note() {
    let bench = Bench::new(SMALL);
    bench.add("a").unwrap();
    assert_eq!(bench.del("nobody"), 0);
    for n in 0..3 {
        let ip = format!("10.1.0.{}", 4 + n);
        fs::write(bench.path(&ip), format!("theirs{n}\r\neth0")).unwrap();
        bench.add("b").unwrap();
        bench.del("b");
        assert_eq!(bench.del(&format!("theirs{n}")), 1);
        assert!(!bench.path(&ip).exists());
    }
    // A note of ours is in the way of none of theirs.
    bench.add("c").unwrap();
    let ours = bench.files().into_iter().find(|name| name.starts_with("10.") && name != "10.1.0.2").unwrap();
    fs::remove_file(bench.path(&ours)).unwrap();
    fs::write(bench.path("10.1.0.6"), "c\r\neth0").unwrap();
    assert_eq!(bench.del("c"), 1);
}
