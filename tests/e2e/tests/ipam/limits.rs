//! Full ranges, addresses that cannot be given, disks that do not obey; and what all this costs.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use heddle_lab::patient;
use heddle_lab::trace::{Call, Fate, trace};
use heddle_netlink::addr::{self, Addr};
use heddle_netlink::route::{self, Route};
use heddle_netlink::{Socket, link};
use nix::errno::Errno;
use nix::libc;
use serde_json::{Value, json};

use super::bench::{Host, Program};

/// Follows one call of ours; what it answered, and its system calls.
fn traced(
    host: &Host,
    command: &str,
    container: &str,
    conf: &Value,
    mut fate: impl FnMut(&Call) -> Fate + Send,
) -> (Value, Vec<i64>) {
    let mut process = Command::new(Program::Ours.path());
    process.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    process.envs([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", container),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/"),
    ]);
    let mut calls = Vec::new();
    let follow = || {
        trace(&mut process, conf.to_string().as_bytes(), |call| {
            calls.push(call.number);
            fate(call)
        })
    };
    let traced = host.ns.run(follow).unwrap().unwrap();
    (serde_json::from_slice(&traced.stdout).unwrap_or(Value::Null), calls)
}

/// Leases of nobody in particular on the first `count` addresses of 10.0.0.0/16 that are free.
fn fill(host: &Host, count: u32) {
    let mut left = count;
    for n in 0x0a00_0002..0x0a00_ffffu32 {
        if left == 0 {
            return;
        }
        let path = host.lease(&Ipv4Addr::from(n).to_string());
        if !path.exists() {
            fs::write(&path, format!("c{n}\r\neth0")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
            left -= 1;
        }
    }
}

#[test]
fn an_address_costs_the_same_calls_whether_ten_or_ten_thousand_are_leased() {
    let cost = |leases: u32| {
        let host = Host::new();
        let conf = host.conf(json!([[{"subnet": "10.0.0.0/16"}]]));
        host.add(Program::Ours, "first", &conf);
        fill(&host, leases);
        host.add(Program::Ours, "warm", &conf);
        host.del(Program::Ours, "warm", &conf);
        let (added, add) = traced(&host, "ADD", "abc", &conf, |_| Fate::Passes);
        assert!(added["ips"].is_array(), "{added}");
        let (_, del) = traced(&host, "DEL", "abc", &conf, |_| Fate::Passes);
        (add.len(), del.len())
    };
    let (few, many) = (cost(10), cost(10_000));
    // Waiting for another thread takes a call more or less.
    assert!(few.0.abs_diff(many.0) <= 6 && few.1.abs_diff(many.1) <= 6, "{few:?} and {many:?}");
    assert!(few.0 < 250 && few.1 < 200, "{few:?}");
}

/// While every lease is one of ours, to know that an interface has none reads none.
#[test]
fn a_second_delete_costs_the_same_whatever_is_leased() {
    let cost = |leases: u32| {
        let host = Host::new();
        let conf = host.conf(json!([[{"subnet": "10.0.0.0/16"}]]));
        for n in 0..leases {
            host.add(Program::Ours, &format!("c{n}"), &conf);
        }
        let (_, del) = traced(&host, "DEL", "nobody", &conf, |_| Fate::Passes);
        del.len()
    };
    let (few, many) = (cost(1), cost(60));
    assert!(few.abs_diff(many) <= 6, "{few} and {many}");
}

#[test]
fn fault_039_exhaustion_is_told_by_the_error_and_by_status_and_ends_with_a_delete() {
    let host = Host::new();
    let mut conf = host.small();
    for n in 0..4 {
        host.add(Program::Ours, &format!("c{n}"), &conf);
    }
    host.call_with(Program::Ours, "ADD", "c3", &conf, &[("CNI_IFNAME", "eth1")]);
    let late = host.call(Program::Ours, "ADD", "late", &conf);
    assert_eq!(late.code(), 100, "{late:?}");
    for word in [
        "no free address in 10.1.0.0/29 (10.1.0.1 to 10.1.0.6)",
        "5 leases of 4 containers (c3: 2, c0: 1, c1: 1, ...)",
        host.lease("").to_str().unwrap().trim_end_matches('/'),
        "DEL or GC frees",
    ] {
        assert!(late.msg().contains(word), "{word}: {late:?}");
    }
    assert_eq!(host.notes(), 5, "nothing is left of the failed one");
    conf["cniVersion"] = json!("1.1.0");
    let status = host.call(Program::Ours, "STATUS", "", &conf);
    assert!(status.code() == 50 && status.msg().contains("5 leases of 4 containers"), "{status:?}");
    host.del(Program::Ours, "c1", &conf);
    assert!(host.call(Program::Ours, "STATUS", "", &conf).success);
    assert_eq!(host.add(Program::Ours, "late", &conf), ["10.1.0.3"]);
}

/// HEDDLE_LEASES=65533 fills it to the last.
#[test]
fn fault_039_a_range_with_thousands_of_leases_says_at_once_that_it_is_full() {
    let leases: u32 = std::env::var("HEDDLE_LEASES").ok().and_then(|n| n.parse().ok()).unwrap_or(8189);
    let host = Host::new();
    let prefix = (leases + 3).leading_zeros() + 1;
    let conf = host.conf(json!([[{"subnet": format!("10.0.0.0/{prefix}")}]]));
    host.add(Program::Ours, "first", &conf);
    fill(&host, leases - 1);
    let begin = Instant::now();
    let answer = host.call(Program::Ours, "ADD", "late", &conf);
    let took = begin.elapsed();
    assert_eq!(answer.code(), 100, "{answer:?}");
    assert!(answer.msg().contains(&format!("{leases} leases, of which 1024 were read")), "{answer:?}");
    // 50 ms for a /16 where nothing else runs; tests run beside others, without optimisation.
    assert!(took < patient(Duration::from_millis(1500)), "{took:?}");
    // One is freed, far from where the search begins.
    fs::remove_file(host.lease("10.0.7.77")).unwrap();
    let (found, calls) = traced(&host, "ADD", "late", &conf, |_| Fate::Passes);
    assert_eq!(found["ips"][0]["address"], json!(format!("10.0.7.77/{prefix}")));
    // Listing a directory takes a call for every few hundred names.
    let most = 500 + leases as usize / 200;
    assert!(calls.len() < most, "no lease was looked at to find the free one: {} calls", calls.len());
}

#[test]
fn fault_s23_and_022_an_address_that_is_asked_for_must_be_a_pods_to_have() {
    let host = Host::new();
    let mut socket = Socket::open_in(&host.ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    addr::add(&mut socket, &Addr::new(lo, "10.1.0.5/32".parse().unwrap())).unwrap();
    route::add(&mut socket, &Route::on_link("10.1.0.6/32".parse().unwrap(), lo)).unwrap();
    let mut conf = host.small();
    host.add(Program::Ours, "other", &conf);
    let ask = |conf: &Value, ip: &str| {
        let answer = host.call_with(Program::Ours, "ADD", "abc", conf, &[("CNI_ARGS", &format!("IP={ip}"))]);
        assert_eq!((answer.code(), host.leases().len()), (7, 1), "{ip}: {answer:?}");
        answer.msg().to_owned()
    };
    for (ip, wanted) in [
        ("10.1.0.0", "it is the address of the network itself"),
        ("10.1.0.1", "it is the gateway"),
        ("10.1.0.2", "is leased to other eth0"),
        ("10.1.0.5", "it is this node's own"),
        ("10.1.0.6", "this node has a route to it alone"),
        ("10.1.0.7", "it is the broadcast address"),
        ("10.1.0.8", "it is in none of the ranges"),
        ("fd00::5", "it is in none of the ranges"),
        ("127.0.0.1", "it is in none of the ranges"),
    ] {
        let msg = ask(&conf, ip);
        assert!(msg.contains(ip) && msg.contains(wanted), "{ip}: {msg}");
    }
    // In turn, they are stepped over.
    let given: Vec<String> = (0..2).flat_map(|n| host.add(Program::Ours, &format!("c{n}"), &conf)).collect();
    assert_eq!(given, ["10.1.0.3", "10.1.0.4"]);
    let full = host.call(Program::Ours, "ADD", "late", &conf);
    assert!(
        full.code() == 100 && full.msg().contains("10.1.0.5 (and others?) not leased, but in use"),
        "{full:?}"
    );
    host.del(Program::Ours, "c0", &conf);
    host.del(Program::Ours, "c1", &conf);
    conf["ipam"]["allowRequests"] = json!(false);
    assert!(ask(&conf, "10.1.0.3").starts_with("ipam.allowRequests: "));
    conf["runtimeConfig"] = json!({"ips": ["10.1.0.3"]});
    assert_eq!(host.call(Program::Ours, "ADD", "abc", &conf).code(), 7);
}

#[test]
fn fault_031_ranges_that_no_pod_can_use_are_refused_before_anything_is_done() {
    let host = Host::new();
    for (subnet, wanted) in [
        ("127.0.0.0/8", "loopback"),
        ("224.0.0.0/8", "multicast"),
        ("0.0.0.0/8", "this network"),
        ("ff00::/64", "multicast"),
        ("fe80::/64", "single link"),
        ("10.1.0.0/31", "too small"),
        ("0.0.0.0/0", "everything"),
    ] {
        let answer = host.call(Program::Ours, "ADD", "abc", &host.conf(json!([[{"subnet": subnet}]])));
        assert_eq!(answer.code(), 7, "{subnet}: {answer:?}");
        assert!(answer.msg().starts_with("ipam.ranges[0][0].subnet: "), "{subnet}: {answer:?}");
        assert!(answer.msg().contains(wanted), "{subnet}: {answer:?}");
    }
    assert!(!host.path("networks").exists());
}

#[test]
fn fault_045_an_address_whose_lease_is_not_on_disk_is_not_given() {
    if !heddle_lab::trace::is_possible() {
        heddle_lab::skip("system calls can be made to fail on x86-64 only");
        return;
    }
    let host = Host::new();
    let mut conf = host.small();
    conf["ipam"]["durable"] = json!(true);
    host.add(Program::Ours, "first", &conf);
    let synced = |call: &Call| call.number == libc::SYS_fsync || call.number == libc::SYS_fdatasync;
    let (_, calls) = traced(&host, "ADD", "abc", &conf, |_| Fate::Passes);
    let syncs = calls.iter().filter(|call| **call == libc::SYS_fsync).count();
    assert_eq!(syncs, 2, "the lease, and the directory that names it");
    host.del(Program::Ours, "abc", &conf);
    for n in 0..syncs {
        let mut seen = 0;
        let (answer, _) = traced(&host, "ADD", "abc", &conf, |call| {
            seen += usize::from(synced(call));
            if synced(call) && seen == n + 1 { Fate::Fails(Errno::EIO) } else { Fate::Passes }
        });
        assert_eq!(answer["code"], json!(5), "{n}: {answer}");
        assert_eq!((host.leases().len(), host.notes()), (1, 1), "{n}: it was taken back");
    }
    conf["ipam"]["durable"] = json!(false);
    let (_, calls) = traced(&host, "ADD", "abc", &conf, |_| Fate::Passes);
    assert!(!calls.contains(&libc::SYS_fsync), "off, it costs nothing");
}

#[test]
fn fault_049_what_was_given_last_may_be_nonsense() {
    for content in ["", "garbage", "10.9.9.9", "fd00::1", "10.1.0.6\n\n"] {
        let host = Host::new();
        let conf = host.small();
        host.add(Program::Ours, "first", &conf);
        fs::write(host.lease("last_reserved_ip.0"), content).unwrap();
        assert_eq!(host.add(Program::Ours, "abc", &conf), ["10.1.0.3"], "{content:?}");
    }
}

#[test]
fn fault_040_an_address_comes_back_last() {
    let host = Host::new();
    let conf = host.small();
    let mut given = Vec::new();
    for n in 0..15 {
        let container = format!("c{n}");
        // One that is asked for by name does not make the others wait longer or shorter.
        if n % 5 == 2 {
            let asked = [("CNI_ARGS", "IP=10.1.0.6")];
            assert!(host.call_with(Program::Ours, "ADD", "asked", &conf, &asked).success);
            host.del(Program::Ours, "asked", &conf);
        }
        given.extend(host.add(Program::Ours, &container, &conf));
        host.del(Program::Ours, &container, &conf);
    }
    let round: Vec<String> = (2..7).map(|n| format!("10.1.0.{n}")).collect();
    assert_eq!(given, [round.clone(), round.clone(), round].concat());
}
