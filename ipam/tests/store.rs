//! Leases on a real file system: the reference plugin's format, reboots, full ranges, hostile neighbours.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use heddle_ipam::{Error, Request, Store};
use heddle_spec::{Network, Owner};

use bench::{Bench, DUAL, PATIENCE, SMALL, World, owner};

#[test]
fn a_lease_is_what_the_reference_plugin_writes() {
    let bench = Bench::new(DUAL);
    assert_eq!(bench.add("abc").unwrap(), ["10.1.0.2/24", "fd00:1::2/64"]);
    assert_eq!(fs::read_to_string(bench.path("10.1.0.2")).unwrap(), "abc\r\neth0");
    assert_eq!(fs::read_to_string(bench.path("fd00:1::2")).unwrap(), "abc\r\neth0");
    assert_eq!(fs::read_to_string(bench.path("last_reserved_ip.0")).unwrap(), "10.1.0.2");
    assert_eq!(fs::read_to_string(bench.path("last_reserved_ip.1")).unwrap(), "fd00:1::2");
    assert!(bench.path("lock").is_file());
    assert_eq!(bench.del("abc"), 2);
    assert!(bench.files().is_empty(), "{:?}", bench.files());
    assert_eq!(bench.del("abc"), 0, "again is no error");
}

#[test]
fn fault_033_the_same_owner_gets_the_same_addresses() {
    let bench = Bench::new(DUAL);
    let first = bench.add("abc").unwrap();
    assert_eq!(bench.add("abc").unwrap(), first);
    assert_eq!(bench.files().len(), 3, "two leases and a note: {:?}", bench.files());
}

#[test]
fn fault_034_two_interfaces_of_one_container_are_two_owners() {
    let bench = Bench::new(SMALL);
    let store = bench.store("boot-1");
    let second = Owner::new("abc", "eth1").unwrap();
    bench.add("abc").unwrap();
    let request = Request { owner: &second, sets: &bench.pool.sets, ips: &[], namespace: None };
    let given = store.lease(PATIENCE, &request, &mut World::default(), &mut |_| false).unwrap();
    assert_eq!(given[0].ip.to_string(), "10.1.0.3/29");
    assert_eq!(bench.del("abc"), 1);
    assert_eq!(store.lock(PATIENCE).unwrap().held(&second).unwrap().len(), 1);
}

#[test]
fn fault_035_a_lease_is_freed_whatever_became_of_the_configuration() {
    let mut bench = Bench::new(SMALL);
    bench.add("abc").unwrap();
    bench.pool = Bench::new(r#"{"subnet":"192.168.0.0/24"}"#).pool;
    assert_eq!(bench.del("abc"), 1);
}

#[test]
fn addresses_go_round() {
    let bench = Bench::new(SMALL);
    let mut seen = Vec::new();
    for n in 0..7 {
        seen.push(bench.add(&format!("c{n}")).unwrap().remove(0));
        bench.del(&format!("c{n}"));
    }
    let wanted = [2, 3, 4, 5, 6, 2, 3].map(|n| format!("10.1.0.{n}/29"));
    assert_eq!(seen, wanted);
}

#[test]
fn fault_039_a_full_range_says_who_holds_it_and_recovers() {
    let bench = Bench::new(SMALL);
    for n in 0..5 {
        bench.add(&format!("c{n}")).unwrap();
    }
    let error = bench.add("late").unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }));
    let text = error.to_string();
    assert!(text.contains("no free address in 10.1.0.0/29 (10.1.0.1 to 10.1.0.6)"), "{text}");
    assert!(text.contains("5 leases of 5 containers (c0: 1, c1: 1, c2: 1, ...)"), "{text}");
    assert_eq!(bench.del("late"), 0, "nothing half given stays");
    bench.del("c3");
    assert_eq!(bench.add("late").unwrap(), ["10.1.0.5/29"]);
}

#[test]
fn fault_039_a_full_range_of_4000_says_so_and_the_one_that_is_freed_is_found() {
    let bench = Bench::new(r#"{"subnet":"10.0.0.0/20"}"#);
    let store = bench.store("boot-1");
    drop(store.lock(PATIENCE).unwrap());
    for n in 2..4095u32 {
        let ip = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        fs::write(bench.path(&ip.to_string()), format!("c{}\r\neth0", n % 2000)).unwrap();
    }
    let error = bench.add("late").unwrap_err().to_string();
    assert!(error.contains("4093 leases, of which 1024 were read, of 1024 containers"), "{error}");
    // The next call reads the next ones.
    let next = bench.add("late").unwrap_err().to_string();
    assert_ne!(next, error);
    // One is freed, far from where the search begins.
    fs::remove_file(bench.path("10.0.13.77")).unwrap();
    assert_eq!(bench.add("late").unwrap(), ["10.0.13.77/20"]);
}

#[test]
fn a_set_that_is_full_leaves_nothing_of_the_others() {
    let bench = Bench::new(r#"{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.2.0.0/30"}]]}"#);
    bench.add("one").unwrap();
    let before = bench.files();
    bench.add("two").unwrap_err();
    assert_eq!(bench.files(), before);
}

#[test]
fn fault_022_a_requested_address_is_given_only_if_it_can_be() {
    let bench = Bench::new(SMALL);
    assert_eq!(bench.add_at("boot-1", "a", &["10.1.0.5"]).unwrap(), ["10.1.0.5/29"]);
    let refused = |ip: &str| bench.add_at("boot-1", "b", &[ip]).unwrap_err().to_string();
    assert!(refused("10.1.0.5").contains("leased to a eth0"));
    assert!(refused("10.1.0.1").contains("it is the gateway"));
    assert!(refused("10.1.0.0").contains("address of the network itself"));
    assert!(refused("10.1.0.7").contains("broadcast address"));
    let two = bench.add_at("boot-1", "b", &["10.1.0.3", "10.1.0.4"]).unwrap_err().to_string();
    assert!(two.contains("another address of the same range set"), "{two}");
    assert_eq!(
        bench.add_at("boot-1", "b", &["10.1.0.3", "10.1.0.3"]).unwrap(),
        ["10.1.0.3/29"],
        "twice the same"
    );
    bench.del("b");
    assert!(refused("192.168.0.1").contains("none of the ranges"));
    assert_eq!(bench.files().len(), 2);
}

#[test]
fn fault_s23_what_the_node_uses_itself_is_given_to_nobody() {
    let bench = Bench::new(SMALL);
    let own = ["10.1.0.2", "10.1.0.4"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let wired = ["10.1.0.3".parse::<IpAddr>().unwrap()];
    let mut world = World { own: own.into(), wired: wired.into(), ..World::default() };
    assert_eq!(bench.add_in(&mut world, "a", None).unwrap(), ["10.1.0.5/29"]);
    assert_eq!(bench.add_in(&mut world, "b", None).unwrap(), ["10.1.0.6/29"]);
    let full = bench.add_in(&mut world, "c", None).unwrap_err().to_string();
    assert!(full.contains("2 leases of 2 containers") && full.contains("in use on this node"), "{full}");
    let mut ask = |ip: &str| bench.request(&mut world, "boot-1", "c", &[ip], None).unwrap_err().to_string();
    assert!(ask("10.1.0.2").contains("it is this node's own"));
    assert!(ask("10.1.0.3").contains("this node has a route to it alone"));
    // One that the pod itself holds is its own to have again.
    world.wired.insert("10.1.0.5".parse().unwrap());
    assert_eq!(bench.add_in(&mut world, "a", None).unwrap(), ["10.1.0.5/29"]);
}

#[test]
fn fault_036_many_at_once_get_different_addresses() {
    let bench = Bench::new(r#"{"subnet":"10.1.0.0/22"}"#);
    let given = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|t| {
                let bench = &bench;
                scope.spawn(move || {
                    (0..20)
                        .map(|n| {
                            let name = format!("c{t}-{n}");
                            let ip = bench.add(&name).unwrap().remove(0);
                            if n % 2 == 0 {
                                bench.del(&name);
                                return None;
                            }
                            Some(ip)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).flatten().collect::<Vec<_>>()
    });
    let unique: BTreeSet<_> = given.iter().collect();
    assert_eq!((unique.len(), given.len()), (160, 160));
    assert_eq!(bench.files().len(), 320);
}

#[test]
fn fault_038_a_lock_that_is_not_let_go_is_waited_for_in_vain_but_not_for_ever() {
    let bench = Bench::new(SMALL);
    bench.add("a").unwrap();
    let holder = fs::File::open(bench.path("lock")).unwrap();
    holder.lock().unwrap();
    let store = bench.store("boot-1");
    let error = store.lock(Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("another program has held it"), "{error}");
    holder.unlock().unwrap();
    store.lock(PATIENCE).unwrap();
    // Deleted, it is made again.
    fs::remove_file(bench.path("lock")).unwrap();
    store.lock(PATIENCE).unwrap();
    fs::remove_file(bench.path("lock")).unwrap();
    fs::create_dir(bench.path("lock")).unwrap();
    assert!(matches!(store.lock(PATIENCE).unwrap_err(), Error::Io { .. }));
}

#[test]
fn fault_046_strange_things_at_an_address_cost_only_that_address() {
    let bench = Bench::new(r#"{"subnet":"10.1.0.0/28"}"#);
    drop(bench.store("boot-1").lock(PATIENCE).unwrap());
    fs::write(bench.path("10.1.0.2"), "").unwrap();
    fs::create_dir(bench.path("10.1.0.3")).unwrap();
    symlink("/etc/passwd", bench.path("10.1.0.4")).unwrap();
    symlink("nowhere", bench.path("10.1.0.5")).unwrap();
    fs::write(bench.path("10.1.0.6"), [0xff, 0xfe]).unwrap();
    fs::write(bench.path("10.1.0.7"), "garbage").unwrap();
    nix::unistd::mkfifo(&bench.path("10.1.0.8"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(bench.path("010.1.0.9"), "not an address").unwrap();
    assert_eq!(bench.add("a").unwrap(), ["10.1.0.2/28"], "an empty lease is nobody's");
    assert_eq!(bench.add("b").unwrap(), ["10.1.0.9/28"]);
    assert_eq!(bench.del("a") + bench.del("b"), 2);
    assert!(fs::read_to_string("/etc/passwd").unwrap().contains("root"));
}

#[test]
fn fault_048_a_reboot_frees_our_leases_and_only_ours() {
    let bench = Bench::new(SMALL);
    bench.add("old").unwrap();
    fs::write(bench.path("10.1.0.4"), "theirs\r\neth0").unwrap();
    assert_eq!(fs::metadata(bench.path("10.1.0.2")).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(bench.add_at("boot-2", "new", &[]).unwrap(), ["10.1.0.3/29"]);
    assert!(!bench.path("10.1.0.2").exists(), "what an earlier boot left is free");
    assert!(bench.path("10.1.0.4").exists(), "what another program left is not ours to free");
    assert_eq!(bench.files().len(), 3, "{:?}", bench.files());
}

#[test]
fn fault_049_the_last_address_may_be_missing_or_nonsense() {
    let bench = Bench::new(SMALL);
    for (n, content) in
        ["", "garbage, and a lot of it", "10.9.9.9", "fd00::1", "10.1.0.6"].into_iter().enumerate()
    {
        drop(bench.store("boot-1").lock(PATIENCE).unwrap());
        fs::write(bench.path("last_reserved_ip.0"), content).unwrap();
        assert_eq!(bench.add(&format!("c{n}")).unwrap(), ["10.1.0.2/29"], "{content:?}");
        let noted = fs::read_to_string(bench.path("last_reserved_ip.0")).unwrap();
        assert_eq!(noted, "10.1.0.2", "in place of something longer or shorter");
        bench.del(&format!("c{n}"));
    }
}

#[test]
fn fault_051_leases_of_the_reference_plugin_are_kept_and_freed() {
    let bench = Bench::new(SMALL);
    fs::create_dir(bench.path("")).unwrap();
    fs::write(bench.path("10.1.0.2"), "abc\r\neth0").unwrap();
    fs::write(bench.path("10.1.0.3"), "ancient").unwrap();
    fs::write(bench.path("last_reserved_ip.0"), "10.1.0.2").unwrap();
    assert_eq!(bench.add("new").unwrap(), ["10.1.0.4/29"]);
    assert_eq!(bench.del("abc"), 1);
    assert_eq!(bench.del("ancient"), 1, "before there were interface names in leases");
    assert_eq!(bench.files().len(), 2);
}

#[test]
fn fault_s1_a_network_directory_that_is_a_symlink_is_not_followed() {
    let bench = Bench::new(SMALL);
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), bench.dir.path().join("net")).unwrap();
    let error = Store::open(bench.dir.path(), &Network::new("net").unwrap(), "boot-1", false).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn durable_leases_work_too() {
    let bench = Bench::new(SMALL);
    let store = Store::open(bench.dir.path(), &Network::new("net").unwrap(), "boot-1", true).unwrap();
    let owner = owner("a");
    let request = Request { owner: &owner, sets: &bench.pool.sets, ips: &[], namespace: None };
    let given = store.lease(PATIENCE, &request, &mut World::default(), &mut |_| false).unwrap();
    assert_eq!(given.len(), 1);
}
