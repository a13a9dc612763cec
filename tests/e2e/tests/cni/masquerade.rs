//! `ipMasq`: who the others see, by real connections, and what is left of it.

use heddle_netlink::link;
use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::sysctl::{self, Key};
use serde_json::{Value, json};

use super::around::{Around, BEYOND, HOST, NEIGHBOUR, SECOND, Server, tcp, udp};
use super::bench::{Host, Pod};

const PORT: u16 = 7000;
/// The host's addresses towards who is beyond it.
const TOWARDS_BEYOND: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];

/// A network with two ranges a family, of which the first is small: the third pod is in the second.
fn conf(host: &Host, mode: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": format!("masq-{mode}"), "type": "heddle", "mode": mode, "bridge": "br0",
        "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [
                [{"subnet": "10.44.1.0/24"}],
                [{"subnet": "fd44:1::/64"}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        }
    })
}

fn checked(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// Whom a server at `to` in `ns` sees when this pod asks, by both protocols.
fn seen(from: &Pod, to: &str) -> String {
    let by_tcp = tcp(&from.ns, (to, PORT)).unwrap_or_else(|error| panic!("tcp {to}: {error}"));
    let by_udp = udp(&from.ns, (to, PORT)).unwrap_or_else(|error| panic!("udp {to}: {error}"));
    assert_eq!(by_tcp, by_udp, "{to}");
    by_tcp.split(' ').next_back().unwrap().to_owned()
}

/// Of two addresses of the device, the kernel prefers the first of IPv4 and the last of IPv6.
fn assert_is_the_hosts(seen: &str, family: usize) {
    assert!(seen == HOST[family] || seen == SECOND[family], "{seen}");
}

#[test]
fn others_see_the_node_and_pods_see_each_other() {
    // Also where bridged packets go through the rules of IP.
    for (mode, filtered) in [("ptp", false), ("bridge", false), ("bridge", true)] {
        let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
        let around = Around::of(&host);
        let call = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
        let call = call.map(|name| (Key::new(["net", "bridge", name]), if filtered { "1" } else { "0" }));
        match sysctl::write_in(&host.ns, &call) {
            Err(_) if filtered => {
                heddle_lab::skip("br_netfilter is not there");
                continue;
            }
            _ => {}
        }
        let conf = conf(&host, mode);
        let own = host.add(&one, &conf).ips();
        let other = host.add(&two, &conf).ips();
        for family in 0..2 {
            let _servers = [
                Server::start(&around.neighbour, "neighbour", (NEIGHBOUR[family], PORT)),
                Server::start(&around.beyond, "beyond", (BEYOND[family], PORT)),
                Server::start(&two.ns, "two", (&other[family], PORT)),
                Server::start(&host.ns, "host", (HOST[family], PORT)),
            ];
            assert_is_the_hosts(&seen(&one, NEIGHBOUR[family]), family);
            assert_eq!(seen(&one, BEYOND[family]), TOWARDS_BEYOND[family], "{mode}");
            assert_eq!(seen(&one, &other[family]), own[family], "{mode}: pods of a network are not hidden");
            assert_eq!(seen(&one, HOST[family]), own[family], "{mode}: the host itself is not outside");
        }
    }
}

#[test]
fn without_it_and_for_other_pods_nothing_is_translated() {
    let (host, hidden, open) = (Host::new(), Pod::new("hidden"), Pod::new("open"));
    let around = Around::of(&host);
    let mut plain = host.conf();
    plain["ipMasq"] = json!(false);
    host.add(&hidden, &conf(&host, "ptp"));
    let own = host.add(&open, &plain).ips();
    for family in 0..2 {
        let _server = Server::start(&around.neighbour, "neighbour", (NEIGHBOUR[family], PORT));
        assert_eq!(seen(&open, NEIGHBOUR[family]), own[family]);
        assert_is_the_hosts(&seen(&hidden, NEIGHBOUR[family]), family);
    }
}

/// The ranges of the whole network are home, not only the subnet of the pod's own address; a range of another network
/// is not.
#[test]
fn every_range_of_the_network_is_home_and_those_of_others_are_not() {
    let (host, one, two, stranger) = (Host::new(), Pod::new("one"), Pod::new("two"), Pod::new("stranger"));
    let _addresses = Around::of(&host);
    let mut conf = conf(&host, "ptp");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.44.1.0/30"}, {"subnet": "10.44.2.0/24"}]]);
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let first = host.add(&one, &conf).ips().remove(0);
    let second = host.add(&two, &conf).ips().remove(0);
    assert_eq!((first.as_str(), second.as_str()), ("10.44.1.2", "10.44.2.2"));
    let elsewhere = host.add(&stranger, &host.conf()).ips().remove(0);
    let _servers = [
        Server::start(&two.ns, "two", (&second, PORT)),
        Server::start(&stranger.ns, "stranger", (&elsewhere, PORT)),
    ];
    assert_eq!(seen(&one, &second), first);
    let gateway = seen(&one, &elsewhere);
    assert_ne!(gateway, first, "to another network it goes in the host's name");
}

#[test]
fn one_rule_for_all_and_nothing_of_a_pod_is_left() {
    for mode in ["ptp", "bridge"] {
        let (host, first) = (Host::new(), Pod::new("first"));
        let conf = conf(&host, mode);
        host.add(&first, &conf);
        host.del(&first, &conf);
        let before = host.state();
        let rules =
            |host: &Host| Nft::open_in(&host.ns).unwrap().rules(Family::Inet, "heddle", None).unwrap().len();
        let (pods, alone) = (["one", "two", "three"].map(Pod::new), rules(&host));
        for pod in &pods {
            host.add(pod, &conf);
        }
        assert_eq!(rules(&host), alone, "{mode}: no rule for a pod");
        // One goes by DEL, one after its device, one by GC.
        host.del(&pods[0], &conf);
        link::delete_by_name(&mut pods[1].socket(), "eth0").unwrap();
        host.del(&pods[1], &conf);
        link::delete_by_name(&mut pods[2].socket(), "eth0").unwrap();
        let mut collect = conf.clone();
        collect["cni.dev/valid-attachments"] = json!([]);
        let answer = host.call(&pods[2], "GC", &collect);
        assert!(answer.success, "{mode}: {answer:?}");
        // GC also takes the chain of ranges that nobody has any more.
        let without_chains = |state: std::collections::BTreeSet<String>| -> Vec<String> {
            state.into_iter().filter(|line| !line.contains(" masq_")).collect()
        };
        assert_eq!(without_chains(host.state()), without_chains(before), "{mode}");
        let chains = Nft::open_in(&host.ns).unwrap().chains().unwrap();
        assert!(!chains.iter().any(|chain| chain.name.starts_with("masq_")), "{mode}: {chains:?}");
    }
}

#[test]
fn fault_062_after_a_flush_check_tells_and_the_next_add_restores_all_pods() {
    for mode in ["ptp", "bridge"] {
        let (host, old, new) = (Host::new(), Pod::new("old"), Pod::new("new"));
        let around = Around::of(&host);
        let conf = conf(&host, mode);
        let result = host.add(&old, &conf).json;
        let whole = host.call(&old, "CHECK", &checked(&conf, &result));
        assert!(whole.success, "{mode}: {whole:?}");
        let with_one = host.state();

        let mut batch = Batch::new();
        batch.delete_table(Family::Inet, "heddle");
        batch.delete_table(Family::Bridge, "heddle");
        Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
        let damaged = host.call(&old, "CHECK", &checked(&conf, &result));
        assert_eq!(damaged.code(), 101, "{mode}: {damaged:?}");

        host.add(&new, &conf);
        let repaired = host.call(&old, "CHECK", &checked(&conf, &result));
        assert!(repaired.success, "{mode}: {repaired:?}");
        for (family, neighbour) in NEIGHBOUR.into_iter().enumerate() {
            let _server = Server::start(&around.neighbour, "neighbour", (neighbour, PORT));
            assert_is_the_hosts(&seen(&old, neighbour), family);
            assert_is_the_hosts(&seen(&new, neighbour), family);
        }
        host.del(&new, &conf);
        let elements = |state: &std::collections::BTreeSet<String>| -> Vec<String> {
            state.iter().filter(|line| line.starts_with("element ")).cloned().collect()
        };
        assert_eq!(elements(&host.state()), elements(&with_one), "{mode}");
        host.del(&old, &conf);
        assert_eq!(elements(&host.state()), [""; 0], "{mode}");
    }
}

#[test]
fn fault_062_many_at_once_after_a_flush() {
    let (host, first) = (Host::new(), Pod::new("first"));
    let conf = conf(&host, "ptp");
    let result = host.add(&first, &conf).json;
    let pods: Vec<Pod> = (0..6).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    for _ in 0..3 {
        let mut batch = Batch::new();
        batch.delete_table(Family::Inet, "heddle");
        Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
        std::thread::scope(|scope| pods.iter().for_each(|pod| drop(scope.spawn(|| host.add(pod, &conf)))));
        let whole = host.call(&first, "CHECK", &checked(&conf, &result));
        assert!(whole.success, "{whole:?}");
        pods.iter().for_each(|pod| host.del(pod, &conf));
    }
    let of_first = host.state().iter().filter(|line| line.starts_with("element ")).count();
    assert_eq!(of_first, 2);
}

/// A pod that went without DEL left its address in the map; the next one with it is masqueraded and stays so.
#[test]
fn an_address_of_a_pod_that_was_never_taken_down_is_the_next_ones() {
    let (host, gone, next) = (Host::new(), Pod::new("gone"), Pod::new("next"));
    let around = Around::of(&host);
    let mut conf = conf(&host, "ptp");
    conf["runtimeConfig"] = json!({"ips": ["10.44.1.9", "fd44:1::9"]});
    host.add(&gone, &conf);
    link::delete_by_name(&mut gone.socket(), "eth0").unwrap();
    for lease in ["10.44.1.9", "fd44:1::9"] {
        std::fs::remove_file(host.data_dir().join("masq-ptp").join(lease)).unwrap();
    }
    host.add(&next, &conf);
    // The DEL that comes late takes nothing of the next one's.
    host.del(&gone, &conf);
    let mut collect = conf.clone();
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "next", "ifname": "eth0"}]);
    let answer = host.call(&next, "GC", &collect);
    assert!(answer.success, "{answer:?}");
    for (family, neighbour) in NEIGHBOUR.into_iter().enumerate() {
        let _server = Server::start(&around.neighbour, "neighbour", (neighbour, PORT));
        assert_is_the_hosts(&seen(&next, neighbour), family);
    }
}

#[test]
fn fault_024_a_pod_that_somebody_took_out_of_the_map_is_found() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = conf(&host, "ptp");
    let result = host.add(&pod, &conf).json;
    let mut batch = Batch::new();
    batch.flush_set(Family::Inet, "heddle", "masquerade6");
    Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
    let damaged = host.call(&pod, "CHECK", &checked(&conf, &result));
    assert_eq!(damaged.code(), 101, "{damaged:?}");
    assert!(damaged.msg().starts_with("ipMasq: fd44:1::2 is not in"), "{damaged:?}");
    host.del(&pod, &conf);
    assert!(!host.state().iter().any(|line| line.starts_with("element ")), "the other family's is gone too");
}

/// Who saves the rules of a machine with `nft list ruleset` and loads them at the next boot must not find that ours cannot
/// be read.
#[test]
fn nft_reads_what_it_lists_of_our_rules() {
    use std::process::{Command, Stdio};
    let Ok(output) = Command::new("nft").arg("--version").output() else {
        return heddle_lab::skip("nft is not installed");
    };
    assert!(output.status.success());
    let (host, routed, bridged) = (Host::new(), Pod::new("routed"), Pod::new("bridged"));
    host.add(&routed, &conf(&host, "ptp"));
    host.add(&bridged, &conf(&host, "bridge"));
    let listed = host.ns.run(|| Command::new("nft").args(["list", "ruleset"]).output()).unwrap().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for word in ["pod_targets", "masquerade4", "vmap @masquerade6", "fully-random"] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let other = Host::new();
    let mut child = other
        .ns
        .run(|| Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn())
        .unwrap()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), listed.as_bytes()).unwrap();
    let read = child.wait_with_output().unwrap();
    assert!(read.status.success(), "{}\n{listed}", String::from_utf8_lossy(&read.stderr));
    let again = other.ns.run(|| Command::new("nft").args(["list", "ruleset"]).output()).unwrap().unwrap();
    assert_eq!(String::from_utf8(again.stdout).unwrap(), listed);
}
