//! What a machine that loses its power finds when it has it again.

use std::fs;
use std::path::{Path, PathBuf};

use heddle_lab::trace::Fate;
use heddle_netlink::link;
use nix::errno::Errno;
use nix::libc;
use serde_json::{Value, json};

use super::bench::{Host, Pod};
use super::world::World;

fn durable(host: &Host) -> Value {
    let mut conf = host.conf();
    conf["ipam"]["durable"] = json!(true);
    conf
}

/// The leases' files, without what is ours beside them.
fn leases(host: &Host) -> Vec<PathBuf> {
    let paths = host.leases().into_iter().map(|lease| PathBuf::from(lease.split_once(' ').unwrap().1));
    paths.filter(|path| !path.to_string_lossy().contains("/.heddle/")).collect()
}

fn is_whole(lease: &Path) -> bool {
    // Freed between the look into the directory and the look into the file.
    fs::read_to_string(lease).map_or(true, |text| text == "abc\r\neth0" || text == "other\r\neth0")
}

#[test]
fn fault_047_a_lease_is_whole_at_every_moment() {
    for conf in [Host::conf, durable] {
        let world = World::new(conf);
        let (mut moments, mut seen) = (0, 0);
        for command in ["ADD", "DEL"] {
            let outcome = world.traced(command, &world.conf, |call| {
                let leases = leases(&world.host);
                seen = seen.max(leases.len());
                assert!(leases.iter().all(|lease| is_whole(lease)), "{command} at {}", call.index);
                moments += 1;
                Fate::Passes
            });
            assert!(outcome.answer.success, "{outcome:?}");
        }
        assert!(moments > 100 && seen == 4, "{moments} {seen}");
        world.assert_clean("afterwards");
    }
}

/// The disk may have the name of a file and not its content yet: such leases are nobody's after the boot, and all others
/// of ours neither.
#[test]
fn fault_047_what_a_power_cut_leaves_is_free_after_the_boot() {
    let host = Host::new();
    let mut conf = host.conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/28"}]]);
    conf["ipam"]["routes"] = json!([]);
    let pods: Vec<Pod> = (0..13).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    pods.iter().for_each(|pod| _ = host.add(pod, &conf));
    assert_eq!(host.call(&Pod::new("late"), "ADD", &conf).code(), 100);
    // The machine goes down: no pod is left, half of the leases are empty, and the boot is another.
    pods.iter().for_each(|pod| link::delete_by_name(&mut pod.socket(), "eth0").unwrap());
    for lease in leases(&host).iter().step_by(2) {
        fs::File::options().write(true).truncate(true).open(lease).unwrap();
    }
    fs::write(host.data_dir().join("heddle/.heddle/boot"), "5e1f0a52-0000-4000-8000-000000000000").unwrap();
    let mut given: Vec<String> = Vec::new();
    for n in 0..13 {
        given.extend(host.add(&Pod::new(&format!("new-{n}")), &conf).ips());
    }
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 13, "{given:?}");
}

#[test]
fn fault_045_an_address_is_not_given_before_it_is_on_the_disk() {
    let world = World::new(durable);
    let (mut calls, mut synced) = (Vec::new(), Vec::new());
    let fsync = [libc::SYS_fsync, libc::SYS_fdatasync];
    let outcome = world.traced("ADD", &world.conf, |call| {
        calls.push(call.number);
        if fsync.contains(&call.number) {
            synced.push(call.index);
        }
        Fate::Passes
    });
    assert!(outcome.answer.success, "{outcome:?}");
    // The content, and the name, of each of two leases.
    assert!(synced.len() >= 4, "{synced:?}");
    let answer = calls.iter().rposition(|call| *call == libc::SYS_write).unwrap();
    assert!(synced.iter().all(|index| *index < answer));
    world.host.del(&world.pod, &world.conf);
    world.assert_clean("before");
    for n in 0..synced.len() {
        let mut seen = 0;
        let outcome = world.traced("ADD", &world.conf, |call| {
            if !fsync.contains(&call.number) {
                return Fate::Passes;
            }
            seen += 1;
            if seen == n + 1 { Fate::Fails(Errno::EIO) } else { Fate::Passes }
        });
        let answer = &outcome.answer;
        assert!(answer.code() == 5 && answer.msg().contains("/output error"), "{n}: {answer:?}");
        world.assert_clean("after fsync(2) failed");
    }
    // Nobody pays for it who did not ask for it.
    let plain = World::ptp();
    let outcome = plain.traced("ADD", &plain.conf, |call| {
        assert!(!fsync.contains(&call.number), "fsync(2) without durable");
        Fate::Passes
    });
    assert!(outcome.answer.success);
}
