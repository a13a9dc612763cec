//! Either program goes on where the other stopped, on a living host.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use heddle_lab::{eventually, patient};
use heddle_netlink::{NetNs, Socket, addr, link};
use serde_json::json;

use super::bench::{Host, Program, finish, reference};

#[test]
fn fault_051_either_program_knows_and_frees_what_the_other_gave() {
    for giver in Program::BOTH {
        let host = Host::new();
        let conf = host.dual();
        let ips = host.add(giver, "abc", &conf);
        assert_eq!(ips, ["10.1.0.2", "fd00:1::2"], "{giver:?}");
        for checker in Program::BOTH {
            let answer = host.call(checker, "CHECK", "abc", &conf);
            assert!(answer.success, "{giver:?} gave, {checker:?}: {answer:?}");
            let answer = host.call(checker, "CHECK", "other", &conf);
            assert!(!answer.success && answer.code() >= 100, "{checker:?}: {answer:?}");
        }
        host.del(giver.other(), "abc", &conf);
        assert!(host.leases().is_empty(), "{giver:?}: {:?}", host.leases());
        // And a second DEL, of both.
        host.del(giver, "abc", &conf);
        host.del(giver.other(), "abc", &conf);
    }
}

#[test]
fn fault_051_in_turn_each_goes_on_where_the_other_stopped() {
    let host = Host::new();
    let conf = host.small();
    let mut given = Vec::new();
    for n in 0..7 {
        let program = Program::BOTH[n % 2];
        let container = format!("c{n}");
        given.extend(host.add(program, &container, &conf));
        let last = fs::read_to_string(host.lease("last_reserved_ip.0")).unwrap();
        assert_eq!(Some(&last), given.last());
        host.del(program.other(), &container, &conf);
    }
    assert_eq!(given, [2, 3, 4, 5, 6, 2, 3].map(|n| format!("10.1.0.{n}")));
}

#[test]
fn fault_051_what_one_filled_is_full_for_the_other() {
    for filler in Program::BOTH {
        let host = Host::new();
        let conf = host.small();
        for n in 0..5 {
            host.add(filler, &format!("c{n}"), &conf);
        }
        let answer = host.call(filler.other(), "ADD", "late", &conf);
        assert!(!answer.success && answer.code() >= 100, "{filler:?}: {answer:?}");
        host.del(filler.other(), "c2", &conf);
        assert_eq!(host.add(filler.other(), "late", &conf), ["10.1.0.4"], "{filler:?}");
    }
}

/// The lock is one for both: who waits for it goes on when it is free, whoever it is.
#[test]
fn fault_051_the_lock_of_one_stops_the_other() {
    let host = Host::new();
    let conf = host.small();
    host.add(Program::Ours, "first", &conf);
    let held = File::open(host.lease("lock")).unwrap();
    held.lock().unwrap();
    let inode = format!(":{} ", held.metadata().unwrap().ino());
    let waiting = || {
        // proc_locks(5): who waits stands behind an arrow.
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|line| line.contains("-> FLOCK") && line.contains(&inode)).count()
    };
    let started =
        Program::BOTH.map(|program| host.start(&program.path(), "ADD", &format!("{program:?}"), &conf, &[]));
    eventually("both wait", Duration::from_secs(5), || Ok(waiting() == 2)).unwrap();
    assert_eq!(host.leases().len(), 1);
    held.unlock().unwrap();
    let mut given: Vec<String> = started.into_iter().flat_map(|child| finish(child).ips()).collect();
    given.sort();
    assert_eq!(given, ["10.1.0.3", "10.1.0.4"]);
}

/// The reference plugins that wire interfaces call `heddle-ipam` by its name in CNI_PATH, and the pod can be reached.
#[test]
fn the_reference_plugins_bridge_and_ptp_have_their_addresses_from_us() {
    for plugin in ["bridge", "ptp"] {
        let host = Host::new();
        let mut conf = host.conf(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]));
        conf["type"] = json!(plugin);
        conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        if plugin == "bridge" {
            conf["isGateway"] = json!(true);
        }
        let resolv = host.path("resolv.conf");
        fs::write(&resolv, "nameserver 10.96.0.10\n").unwrap();
        conf["ipam"]["resolvConf"] = json!(resolv);
        let pod = NetNs::create().unwrap();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
        let path = format!("{}:/usr/lib/cni", heddle_lab::bin_dir().display());
        let variables = [("CNI_NETNS", netns.as_str()), ("CNI_PATH", &path)];
        let call = |command: &str| finish(host.start(&reference(plugin), command, "abc", &conf, &variables));
        let added = call("ADD");
        assert!(added.success, "{plugin}: {added:?}");
        assert_eq!(added.ips(), ["10.1.0.2", "fd00:1::2"], "{plugin}");
        // Debian's `bridge` says nothing of names but what stands in its own configuration.
        let names = if plugin == "ptp" { json!(["10.96.0.10"]) } else { json!(null) };
        assert_eq!(added.json["dns"]["nameservers"], names, "{plugin}");
        assert_eq!(host.leases().len(), 2);
        let mut inside = Socket::open_in(&pod).unwrap();
        assert!(link::by_name(&mut inside, "eth0").unwrap().unwrap().up);
        let present = addr::list(&mut inside, None).unwrap();
        assert!(present.iter().any(|addr| addr.ip.ip().to_string() == "10.1.0.2"), "{plugin}: {present:?}");
        let server = pod.run(|| TcpListener::bind("10.1.0.2:80")).unwrap().unwrap();
        let limit = patient(Duration::from_secs(5));
        let mut client = host
            .ns
            .run(|| TcpStream::connect_timeout(&"10.1.0.2:80".parse().unwrap(), limit))
            .unwrap()
            .unwrap();
        let (mut served, _) = server.accept().unwrap();
        served.write_all(b"here").unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"here", "{plugin}");
        let mut checked = conf.clone();
        checked["prevResult"] = added.json.clone();
        let check = finish(host.start(&reference(plugin), "CHECK", "abc", &checked, &variables));
        assert!(check.success, "{plugin}: {check:?}");
        let deleted = call("DEL");
        assert!(deleted.success, "{plugin}: {deleted:?}");
        assert!(host.leases().is_empty() && host.notes() == 0, "{plugin}: {:?}", host.leases());
    }
}
