//! What happens around the plugin while it works: namespaces that go, other calls for the same pod, clocks, limits.

use std::fs::{self, FileTimes};
use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use heddle_lab::trace::Fate;
use heddle_netlink::link::{self, VethEnd};
use serde_json::json;

use super::bench::{Host, Pod};
use super::sweep::{is_full, sweep};
use super::world::World;

/// The last process of the pod ends, and with it the path to its namespace, at the K-th system call of ADD.
#[test]
fn fault_021_the_namespace_goes_during_add() {
    let moments = sweep(5, World::ptp, |world, k| {
        let going = Mutex::new(Some(Pod::new("going")));
        let variables = Host::variables(going.lock().unwrap().as_ref().unwrap(), "ADD");
        let mut reached = false;
        let outcome = world.traced_with(variables, &world.conf, |call| {
            if call.index == k {
                drop(going.lock().unwrap().take());
                reached = true;
            }
            Fate::Passes
        });
        let what = format!("ADD whose namespace goes at {k}: {outcome:?}");
        if !outcome.answer.success {
            assert!(matches!(outcome.answer.code(), 3 | 4 | 5 | 101), "{what}");
            // Whoever failed has cleaned up, DEL or not.
            world.assert_host_clean(&what);
        }
        // A runtime deletes what it has added, and knows a path that leads nowhere.
        let mut variables = Host::variables(&world.pod, "DEL");
        for (name, value) in &mut variables {
            match name.as_str() {
                "CNI_CONTAINERID" => *value = "going".into(),
                "CNI_NETNS" => *value = "/proc/0/ns/net".into(),
                _ => {}
            }
        }
        let deleted = world.host.raw(&variables, world.conf.to_string().as_bytes());
        assert!(deleted.success, "{what}: {deleted:?}");
        world.assert_host_clean(&what);
        reached
    });
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_029_an_environment_of_a_megabyte() {
    let world = World::ptp();
    // One variable has room for 128 KiB less its name (MAX_ARG_STRLEN).
    let large = "x".repeat(120 * 1024);
    for command in ["ADD", "DEL"] {
        let mut variables = Host::variables(&world.pod, command);
        variables.extend((0..8).map(|n| (format!("LARGE_{n}"), large.clone())));
        let answer = world.host.raw(&variables, world.conf.to_string().as_bytes());
        assert!(answer.success, "{answer:?}");
    }
    world.assert_clean("a large environment");
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_COMMAND"] {
        let mut variables = Host::variables(&world.pod, "ADD");
        variables.retain(|(other, _)| other != name);
        variables.push((name.into(), large.clone()));
        let answer = world.host.raw(&variables, world.conf.to_string().as_bytes());
        assert!(matches!(answer.code(), 3..=5), "{name}: {}", answer.code());
        assert!(answer.stdout.len() < 1024, "{name}: the answer is short");
        world.assert_clean(name);
    }
}

#[test]
fn fault_030_too_little_memory() {
    let world = World::ptp();
    let mut failed = 0;
    for pages in (64..2048).step_by(if is_full() { 16 } else { 124 }) {
        for command in ["ADD", "DEL"] {
            let mut program = Command::new("prlimit");
            program.arg(format!("--as={0}:{0}", pages * 4096)).arg(heddle_lab::bin("heddle"));
            let mut variables = Host::variables(&world.pod, command);
            variables.push(("PATH".into(), "/usr/bin:/bin".into()));
            let answer = world.host.run(&mut program, &variables, world.conf.to_string().as_bytes());
            failed += usize::from(!answer.success);
        }
        // Rust aborts without memory: no answer then, but nothing that DEL does not find.
        world.host.del(&world.pod, &world.conf);
        world.assert_clean(&format!("{pages} pages"));
    }
    assert!(failed > 2, "some of the limits are too small");
}

/// A runtime that lost patience deletes while it still adds. ADD stands still at its K-th call until the DEL has come to
/// its end, or waits for its turn: whoever has an address has its lease.
#[test]
fn fault_037_add_and_del_at_once() {
    let moments = sweep(11, World::ptp, |world, k| {
        let (host, conf, pod) = (&world.host, &world.conf, &world.pod);
        let mut reached = false;
        let added = thread::scope(|scope| {
            let outcome = world.traced("ADD", conf, |call| {
                if call.index < k {
                    return Fate::Passes;
                }
                reached = true;
                let (answer, deleted) = mpsc::channel();
                scope.spawn(move || drop(answer.send(host.call(pod, "DEL", conf))));
                if let Ok(deleted) = deleted.recv_timeout(Duration::from_millis(60)) {
                    assert!(deleted.success, "{k}: {deleted:?}");
                }
                Fate::PassesAsTheRest
            });
            outcome.answer
        });
        let what = format!("DEL at call {k} of ADD: {added:?}");
        let leased = host.leases().iter().filter(|lease| !lease.contains(".heddle")).count();
        let has = world.ips_of(pod).len();
        // The other pod has two.
        assert_eq!(leased, has + 2, "{what}: addresses and leases differ");
        host.del(pod, conf);
        world.assert_clean(&what);
        reached
    });
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_038_a_lock_that_is_strange() {
    let world = World::ptp();
    let lock = world.host.data_dir().join("heddle/lock");
    fs::remove_file(&lock).unwrap();
    world.host.add(&world.pod, &world.conf);
    world.host.del(&world.pod, &world.conf);
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let answer = world.host.call(&world.pod, "ADD", &world.conf);
    assert!(answer.code() == 5 && answer.msg().contains("lock"), "{answer:?}");
    fs::remove_dir(&lock).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &lock).unwrap();
    let answer = world.host.call(&world.pod, "ADD", &world.conf);
    assert!(answer.code() == 5 && answer.msg().contains("lock"), "{answer:?}");
    fs::remove_file(&lock).unwrap();
    world.assert_clean("strange locks");
    if is_full() {
        // Somebody stopped keeps it: that is waited for, and not for ever.
        let holder = fs::File::create(&lock).unwrap();
        holder.lock().unwrap();
        let began = std::time::Instant::now();
        let answer = world.host.call(&world.pod, "ADD", &world.conf);
        assert!(answer.code() == 11 && began.elapsed() < Duration::from_secs(12), "{answer:?}");
        drop(holder);
        world.assert_clean("a lock that is held");
    }
}

#[test]
fn fault_053_the_clock_jumps() {
    let host = Host::new();
    let mut conf = host.conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}]]);
    conf["ipam"]["routes"] = json!([]);
    let year = Duration::from_secs(365 * 24 * 3600);
    let mut given = Vec::new();
    for (n, then) in
        [SystemTime::now() + year * 10, SystemTime::UNIX_EPOCH, SystemTime::now() - year].iter().enumerate()
    {
        let pod = Pod::new(&format!("pod-{n}"));
        given.extend(host.add(&pod, &conf).ips());
        let mut dirs = vec![host.data_dir().join("heddle")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let file = fs::File::open(&path).unwrap();
                file.set_times(FileTimes::new().set_modified(*then).set_accessed(*then)).unwrap();
                dirs.extend(path.is_dir().then_some(path));
            }
        }
        host.del(&pod, &conf);
    }
    assert_eq!(given, ["10.244.1.2", "10.244.1.3", "10.244.1.4"]);
}

/// A namespace ends with its last process, whatever we did in it: nothing of ours keeps it.
#[test]
fn fault_057_no_namespace_is_held() {
    let world = World::ptp();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let pod = Pod::new("short");
    // It goes with the namespace.
    let canary = VethEnd { name: "canary", ..VethEnd::default() };
    let inside = VethEnd { name: "inside", ns: Some(&pod.ns), ..VethEnd::default() };
    link::create_veth(&mut world.host.socket(), &canary, &inside).unwrap();
    world.host.add(&pod, &world.conf);
    drop(pod);
    let gone = || Ok(link::by_name(&mut world.host.socket(), "canary").unwrap().is_none());
    heddle_lab::eventually("the namespace is gone", Duration::from_secs(5), gone).unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
    assert!(world.gc().success);
    world.assert_host_clean("after the namespace went");
}
