//! Nodes die, come back as somebody else, change their addresses, lie about themselves, are far too many or all gone at
//! once: what the overlay makes of it, fault by fault.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use heddle_e2e::{
    Ask, Backend, Cluster, Cmd, Families, Lab, Node, Output, Plan, Result, Snapshot, bin, eventually,
};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(3);

fn vxland(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("vxland")).args(args.split(' '))).unwrap()
}

fn cluster(nodes: usize) -> Cluster {
    Cluster::start_with(Lab::builder().nodes(nodes).clients(0), Plan::overlay()).unwrap()
}

/// A node object, with annotations of flannel's if there is a MAC.
fn object(name: &str, addresses: &[&str], ranges: &[&str], mac: Option<&str>, more: &str) -> String {
    let mut text = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n");
    if let Some(mac) = mac {
        text += &format!(
            "  annotations:\n    flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    \
             flannel.alpha.coreos.com/backend-type: vxlan\n    \
             flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}'\n"
        );
    }
    text += &format!("spec: {{podCIDRs: {ranges:?}}}\nstatus:\n");
    if !addresses.is_empty() {
        text += "  addresses:\n";
    }
    for address in addresses {
        text += &format!("  - {{type: InternalIP, address: '{address}'}}\n");
    }
    text + more
}

/// What the kernel has of routes, neighbours and the FDB of the overlay.
fn entries(node: &Node) -> Result<String> {
    Ok([
        node.run("ip route")?,
        node.run("ip -6 route")?,
        node.run("ip neigh show dev heddle.1")?,
        node.run("ip -6 neigh show dev heddle.1")?,
        node.run("bridge fdb show dev heddle.1")?,
    ]
    .concat())
}

fn kernel(lab: &Lab) -> Snapshot {
    Snapshot::of(lab).unwrap().without(&["tasks", "files"])
}

fn mac(node: &Node) -> String {
    node.run("cat /sys/class/net/heddle.1/address").unwrap().trim().to_owned()
}

fn talk(from: &Backend, to: &Backend, v4: bool) -> Result<()> {
    let ask = Ask::new((to.pod().ip(v4).unwrap(), PORT)).limit(Duration::from_millis(500));
    assert_eq!(ask.tcp(from.pod())?.server, to.name());
    Ok(())
}

/// A node that does not answer any more is not gone: its entries go with its object, and not before.
#[test]
fn fault_126_a_node_that_is_not_ready_keeps_its_entries_until_its_object_is_deleted() {
    let cluster = cluster(3);
    let [n1, n3] = [1, 3].map(|n| cluster.node(n));
    let before = kernel(&cluster);
    let ready = |status: &str| {
        let conditions = format!("  conditions: [{{type: Ready, status: '{status}'}}]\n");
        let ranges = n3.pod_ranges();
        let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
        object("n3", &["192.168.77.3", "fd77::3"], &ranges, None, &conditions)
    };
    for status in ["False", "Unknown"] {
        cluster.manifests().put("node-n3.yaml", &ready(status)).unwrap();
        // Whatever came before this one has been seen with it.
        cluster
            .manifests()
            .put("node-x.yaml", &object("x", &["192.168.77.9"], &["10.244.9.0/24"], None, ""))
            .unwrap();
        eventually("another node", SOON, || Ok(entries(n1)?.contains("10.244.9.0/24"))).unwrap();
        cluster.manifests().remove("node-x.yaml").unwrap();
        eventually("its end", SOON, || Ok(!entries(n1)?.contains("10.244.9.0"))).unwrap();
        assert_eq!(before.changes(&kernel(&cluster)), [""; 0], "{status}");
    }
    let gone = mac(n3);
    cluster.manifests().remove("node-n3.yaml").unwrap();
    eventually("the end of node 3", SOON, || {
        let left = entries(n1)?;
        Ok(!["10.244.3.", "fd00:10:244:3:", "192.168.77.3 ", &gone].iter().any(|what| left.contains(*what)))
    })
    .unwrap();
}

/// Another Ethernet address, another address, another pod range, all at once: nothing of the old stands beside the new.
#[test]
fn fault_127_a_node_that_rejoins_as_another_leaves_nothing_behind() {
    let cluster = cluster(2);
    let n1 = cluster.node(1);
    let triple = |last: u8| {
        let (at, range) = (format!("192.168.77.{last}"), format!("10.244.{last}.0/24"));
        object("n9", &[&at], &[&range], Some(&format!("0a:00:00:00:00:{last:02x}")), "")
    };
    let parts = |last: u8| {
        [format!("10.244.{last}.0/24"), format!("0a:00:00:00:00:{last:02x}"), format!("192.168.77.{last} ")]
    };
    cluster.manifests().put("node-n9.yaml", &triple(31)).unwrap();
    eventually("the node", SOON, || {
        Ok(parts(31).iter().all(|part| entries(n1).is_ok_and(|all| all.contains(part))))
    })
    .unwrap();
    for (old, new) in [(31, 32), (32, 33), (33, 31)] {
        cluster.manifests().put("node-n9.yaml", &triple(new)).unwrap();
        eventually("the node anew", SOON, || {
            let all = entries(n1)?;
            Ok(parts(new).iter().all(|part| all.contains(part)))
        })
        .unwrap();
        // In the same round: the new route is made before the old entries go, and at once.
        eventually("nothing of the old", Duration::from_secs(1), || {
            let all = entries(n1)?;
            Ok(!parts(old).iter().any(|part| all.contains(part)))
        })
        .unwrap();
    }
    eventually("health", SOON, || Ok(vxland(n1, "status").status.success())).unwrap();
}

#[test]
fn fault_128_what_was_removed_while_nobody_looked_goes_at_the_start() {
    let mut cluster = cluster(3);
    let gone = mac(cluster.node(3));
    cluster.kill_daemon(1, "vxland");
    cluster.manifests().remove("node-n3.yaml").unwrap();
    assert!(entries(cluster.node(1)).unwrap().contains(&gone));
    cluster.start_daemon_on(1, "vxland").unwrap();
    let left = entries(cluster.node(1)).unwrap();
    for what in ["10.244.3.", "fd00:10:244:3:", "192.168.77.3 ", &gone] {
        assert!(!left.contains(what), "{what} in {left}");
    }
    assert!(left.contains("10.244.2.0/24"));
}

/// An address, and a pod range, that another node had a moment ago.
#[test]
fn fault_129_an_address_that_changes_hands_leads_to_its_new_owner_within_a_second() {
    let cluster = cluster(2);
    let n1 = cluster.node(1);
    let two = |a: u8, b: u8| {
        let node = |name: &str, host: u8, range: u8, mac: &str| {
            object(name, &[&format!("192.168.77.{host}")], &[&format!("10.244.{range}.0/24")], Some(mac), "")
        };
        format!("{}---\n{}", node("a", a, a, "0a:00:00:00:00:aa"), node("b", b, b, "0a:00:00:00:00:bb"))
    };
    for (a, b) in [(41, 42), (42, 41), (42, 43), (41, 42)] {
        cluster.manifests().put("node-ab.yaml", &two(a, b)).unwrap();
        let begin = Instant::now();
        eventually("the new owners", Duration::from_secs(1), || {
            let all = entries(n1)?;
            Ok([("aa", a), ("bb", b)].iter().all(|(mac, last)| {
                all.contains(&format!("0a:00:00:00:00:{mac} dst 192.168.77.{last} "))
                    && all.contains(&format!("10.244.{last}.0 lladdr 0a:00:00:00:00:{mac}"))
                    && all.contains(&format!("10.244.{last}.0/24 via 10.244.{last}.0"))
            }))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", entries(n1).unwrap()));
        println!("{} ms", begin.elapsed().as_millis());
        eventually("health", SOON, || Ok(vxland(n1, "status").status.success())).unwrap();
    }
}

/// Everything that a reboot takes is taken: the device is the same again, and no other node need be told.
#[test]
fn fault_130_the_ethernet_address_of_the_tunnels_end_survives_a_reboot() {
    let mut cluster = cluster(2);
    let others = entries(cluster.node(2)).unwrap();
    let before = mac(cluster.node(1));
    cluster.kill_daemon(1, "vxland");
    cluster.node(1).run("ip link del heddle.1").unwrap();
    for file in ["vxland.json", "vxland.ready"] {
        let _ = std::fs::remove_file(cluster.node(1).path(&format!("/run/heddle/{file}")));
    }
    cluster.start_daemon_on(1, "vxland").unwrap();
    assert_eq!(mac(cluster.node(1)), before);
    assert_eq!(entries(cluster.node(2)).unwrap(), others);
}

/// The cable is pulled again and again (`HEDDLE_FLAPS` times, 10), the address changes, the default route changes.
#[test]
fn fault_136_the_underlay_flaps_and_the_nodes_address_changes() {
    let cluster = cluster(2);
    let [n1, n2] = [1, 2].map(|n| cluster.node(n));
    let backends = [1, 2].map(|n| cluster.backend(n, &format!("server-{n}"), PORT).unwrap());
    let before = kernel(&cluster);
    let flaps = std::env::var("HEDDLE_FLAPS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    for _ in 0..flaps {
        cluster.switch().cut("n1").unwrap();
        cluster.switch().restore("n1").unwrap();
    }
    for v4 in [true, false] {
        eventually("packets again", Duration::from_secs(10), || {
            talk(&backends[0], &backends[1], v4).map(|()| true)
        })
        .unwrap();
    }
    assert_eq!(before.changes(&kernel(&cluster)), [""; 0]);

    n1.run("ip route replace default via 192.168.77.253").unwrap();
    talk(&backends[0], &backends[1], true).unwrap();
    n1.run("ip route replace default via 192.168.77.254").unwrap();

    // As after another lease: the old address is gone before anybody tells of the new one.
    let new: IpAddr = "192.168.77.51".parse().unwrap();
    cluster.switch().admit(new).unwrap();
    let index = n1.run("cat /sys/class/net/heddle.1/ifindex").unwrap();
    n1.run("ip addr add 192.168.77.51/24 dev eth0").unwrap();
    n1.run("ip addr del 192.168.77.1/24 dev eth0").unwrap();
    n1.run("ip addr replace 192.168.77.51/24 dev eth0").unwrap();
    eventually("the reason", SOON, || {
        Ok(vxland(n1, "status").stdout.contains("no device has this node's address 192.168.77.1 "))
    })
    .unwrap();
    let ranges = n1.pod_ranges();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    cluster
        .manifests()
        .put("node-n1.yaml", &object("n1", &["192.168.77.51", "fd77::1"], &ranges, None, ""))
        .unwrap();
    eventually("the new address", SOON, || {
        let there = n2.run("bridge fdb show dev heddle.1")?;
        Ok(n1.run("ip -d link show dev heddle.1")?.contains("local 192.168.77.51 ")
            && there.contains("dst 192.168.77.51 ")
            && !there.contains("dst 192.168.77.1 "))
    })
    .unwrap();
    assert_ne!(n1.run("cat /sys/class/net/heddle.1/ifindex").unwrap(), index, "the device cannot change it");
    for v4 in [true, false] {
        for (from, to) in [(0, 1), (1, 0)] {
            eventually("packets again", Duration::from_secs(5), || {
                talk(&backends[from], &backends[to], v4).map(|()| true)
            })
            .unwrap();
        }
    }
}

/// Nodes with IPv6 alone; a family that comes later; one that is taken from a node.
#[test]
fn fault_137_families_alone_later_and_broken() {
    let lab = Lab::builder().nodes(2).clients(0).families(Families::Dual).build().unwrap();
    let [n1, n2] = [1, 2].map(|n| lab.node(n));
    let declare = |node: &Node, ranges: &[String]| {
        let (v4, v6) = (node.ip4().to_string(), node.ip6().to_string());
        let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
        let text = object(node.name(), &[&v4, &v6], &ranges, None, "");
        lab.manifests().put(&format!("node-{}.yaml", node.name()), &text).unwrap();
    };
    let conflist = |node: &Node| {
        std::fs::read_to_string(node.path("/etc/cni/net.d/10-heddle.conflist")).unwrap_or_default()
    };
    // IPv6 alone.
    for node in [n1, n2] {
        declare(node, &node.pod_ranges()[1..]);
    }
    let _daemons = [n1, n2].map(|node| lab.start_vxland(node, &[]).unwrap());
    assert!(
        !conflist(n1).contains("10.244.")
            && n1.run("cat /proc/sys/net/ipv4/ip_forward").unwrap().trim() == "0"
    );
    let start = |node: &Node, name: &str| {
        let pod = node.pod(name).unwrap();
        pod.cni_add().unwrap();
        Backend::serving(pod, PORT).unwrap()
    };
    let old = [start(n1, "old-1"), start(n2, "old-2")];
    eventually("IPv6", Duration::from_secs(5), || talk(&old[0], &old[1], false).map(|()| true)).unwrap();
    assert_eq!(old[0].pod().ip(true), None);

    // IPv4 comes: for new pods, and the old ones go on.
    for node in [n1, n2] {
        declare(node, &node.pod_ranges());
    }
    for node in [n1, n2] {
        eventually("IPv4", SOON, || {
            Ok(conflist(node).contains("10.244.") && vxland(node, "status").status.success())
        })
        .unwrap();
    }
    let new = [start(n1, "new-1"), start(n2, "new-2")];
    for v4 in [true, false] {
        eventually("both", Duration::from_secs(5), || talk(&new[0], &new[1], v4).map(|()| true)).unwrap();
    }
    talk(&old[0], &old[1], false).unwrap();

    // Of node 2 IPv4 is refused: node 1 says so, and IPv6 goes on.
    declare(n2, &["0.0.0.0/0".into(), n2.pod_ranges()[1].clone()]);
    eventually("the refusal", SOON, || {
        Ok(vxland(n1, "status").stdout.contains("node n2: pod range 0.0.0.0/0 refused")
            && !n1.run("ip route")?.contains("10.244.2.0/24"))
    })
    .unwrap();
    talk(&new[0], &new[1], false).unwrap();
}

/// Pod ranges where nobody may have pods: each is told, none is routed (S15).
#[test]
fn fault_138_hostile_node_objects_are_told_and_route_nothing() {
    let plan = Plan::overlay().vxland_arg("--service-range").vxland_arg("10.96.0.0/12");
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), plan).unwrap();
    let n1 = cluster.node(1);
    n1.run("ip link add storage type bridge").unwrap();
    n1.run("ip addr add 10.77.0.1/16 dev storage").unwrap();
    n1.run("ip link set storage up").unwrap();
    let routes = || [n1.run("ip route").unwrap(), n1.run("ip -6 route").unwrap()].concat();
    let before = routes();
    let hostile = [
        ("0.0.0.0/0", "wider than /8"),
        ("::/0", "wider than /8"),
        ("10.0.0.0/7", "wider than /8"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("10.96.7.0/24", "it overlaps 10.96.0.0/12 of the service ranges"),
        ("10.244.1.0/24", "it overlaps 10.244.1.0/24 of node n1"),
        ("10.244.2.128/25", "it overlaps 10.244.2.0/24 of node n2"),
        ("192.168.77.0/24", "it overlaps"),
        ("192.168.77.128/26", "it overlaps 192.168.77.0/24 on eth0 of this node"),
        ("fd77::/80", "it overlaps"),
        ("10.77.3.0/24", "it overlaps 10.77.0.0/16 on storage of this node"),
    ];
    let objects: Vec<String> = hostile
        .iter()
        .enumerate()
        .map(|(n, (range, _))| {
            object(&format!("x-evil{n}"), &[&format!("192.168.77.{}", 200 + n)], &[range], None, "")
        })
        .collect();
    cluster.manifests().put("node-z.yaml", &objects.join("---\n")).unwrap();
    let said = |n: usize, (range, why): &(&str, &str)| {
        let status = vxland(n1, "status").stdout;
        let of = |line: &&str| line.contains(&format!("node x-evil{n}: pod range {range} refused: "));
        status.lines().find(of).is_some_and(|line| line.contains(why))
    };
    eventually("every refusal", Duration::from_secs(5), || {
        Ok(hostile.iter().enumerate().all(|(n, one)| said(n, one)))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", vxland(n1, "status").stdout));
    assert_eq!(routes(), before);

    // This node's own range in the underlay's network: no pod is made there, and the reason is told.
    cluster.manifests().remove("node-z.yaml").unwrap();
    let own = object("n1", &["192.168.77.1", "fd77::1"], &["192.168.77.128/26"], None, "");
    cluster.manifests().put("node-n1.yaml", &own).unwrap();
    let why = "this node's pod range 192.168.77.128/26 overlaps 192.168.77.0/24, the network of eth0 itself";
    eventually("the reason", Duration::from_secs(5), || Ok(vxland(n1, "status").stdout.contains(why)))
        .unwrap();
    assert_eq!(routes(), before, "what stands, stands");
}

/// 5,000 nodes in one file (`HEDDLE_NODES`): the daemon has them all in the kernel, and sees them again without a write.
#[test]
fn fault_139_thousands_of_nodes() {
    let count: u32 = std::env::var("HEDDLE_NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let lab = Lab::builder().nodes(1).clients(0).build().unwrap();
    let n1 = lab.node(1);
    lab.manifests().node(n1).unwrap();
    let mut daemon = lab.start_vxland(n1, &[]).unwrap();
    let objects: Vec<String> = (0..count)
        .map(|n| {
            let (high, low) = (n / 250, n % 250 + 1);
            let (v4, v6) = (format!("172.16.{high}.{low}"), format!("fd16::{n:x}"));
            let ranges = [format!("10.{}.{low}.0/24", 100 + high), format!("fd00:10:{n:x}::/64")];
            object(&format!("node-{n}"), &[&v4, &v6], &[&ranges[0], &ranges[1]], None, "")
        })
        .collect();
    lab.manifests().put("node-many.yaml", &objects.join("---\n")).unwrap();
    let begin = Instant::now();
    let installed = || {
        let routes = n1.run("ip route show dev heddle.1")?.lines().count();
        let fdb = n1.run("bridge fdb show dev heddle.1")?.lines().count();
        Ok(routes >= count as usize && fdb >= count as usize)
    };
    eventually("all nodes", Duration::from_secs(60), installed).unwrap();
    println!("{count} nodes from their file to the kernel: {:?}", begin.elapsed());
    eventually("health", Duration::from_secs(20), || Ok(vxland(n1, "status").status.success())).unwrap();
    let before = kernel(&lab);
    daemon.terminate(Duration::from_secs(10)).unwrap();
    daemon = lab.start_vxland(n1, &[]).unwrap();
    assert_eq!(before.changes(&kernel(&lab)), [""; 0]);
    assert!(daemon.is_running());
}

/// A list that has lost most nodes is not believed at once; one that has lost them for a while is.
#[test]
fn fault_112_most_nodes_gone_at_once_are_kept_for_a_while() {
    let plan = Plan::overlay().vxland_arg("--removal-delay").vxland_arg("3");
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), plan).unwrap();
    let n1 = cluster.node(1);
    let many: Vec<String> = (0..20)
        .map(|n| {
            object(
                &format!("x{n}"),
                &[&format!("192.168.77.{}", 100 + n)],
                &[&format!("10.244.{}.0/24", 100 + n)],
                None,
                "",
            )
        })
        .collect();
    cluster.manifests().put("node-x.yaml", &many.join("---\n")).unwrap();
    let has = |node: &str| entries(n1).map(|all| all.contains(node));
    eventually("all nodes", SOON, || Ok(has("10.244.119.0/24")? && vxland(n1, "status").status.success()))
        .unwrap();
    let full = kernel(&cluster);
    let begin = Instant::now();
    // One that is new counts at once.
    let new = object("y", &["192.168.77.99"], &["10.244.99.0/24"], None, "");
    cluster.manifests().put("node-x.yaml", &new).unwrap();
    let said = "would go at once: kept until they have been gone for 3 s";
    eventually("the doubt", SOON, || {
        Ok(has("10.244.99.0/24")? && cluster.daemon(1, "vxland").unwrap().log().contains(said))
    })
    .unwrap();
    assert!(has("10.244.100.0/24").unwrap() && has("10.244.119.0/24").unwrap());
    // It was a mistake.
    cluster.manifests().put("node-x.yaml", &many.join("---\n")).unwrap();
    eventually("the node that was new", SOON, || has("10.244.99.0/24").map(|there| !there)).unwrap();
    assert_eq!(full.changes(&kernel(&cluster)), [""; 0]);
    // This time it lasts.
    cluster.manifests().remove("node-x.yaml").unwrap();
    eventually("the end of them", Duration::from_secs(10), || has("10.244.100.0/24").map(|there| !there))
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3) && has("10.244.2.0/24").unwrap());
}

/// The pod range comes after the node, and becomes another one: the configuration of the plugin follows.
#[test]
fn a_pod_range_that_comes_later_or_changes_reaches_the_plugin() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    let [n1, n2] = [1, 2].map(|n| lab.node(n));
    lab.manifests().node(n2).unwrap();
    let declare = |ranges: &[&str]| {
        let text = object("n1", &["192.168.77.1", "fd77::1"], ranges, None, "");
        lab.manifests().put("node-n1.yaml", &text).unwrap();
    };
    declare(&[]);
    let other = lab.start_vxland(n2, &[]).unwrap();
    let daemon = lab.start_daemon::<&str>(n1, "vxland", &[]).unwrap();
    let why = "node n1 has no pod range (spec.podCIDRs is empty";
    eventually("the reason", Duration::from_secs(10), || {
        Ok(daemon.log().contains(why) && vxland(n1, "status").stdout.contains(why))
    })
    .unwrap();
    let at = n1.path("/etc/cni/net.d/10-heddle.conflist");
    assert!(!at.exists() && !n1.path("/run/heddle/vxland.ready").exists());

    declare(&["10.244.1.0/24"]);
    eventually("readiness", SOON, || Ok(n1.path("/run/heddle/vxland.ready").exists())).unwrap();
    let start = |node: &Node, name: &str| {
        let pod = node.pod(name).unwrap();
        pod.cni_add().unwrap();
        Backend::serving(pod, PORT).unwrap()
    };
    let (first, server) = (start(n1, "first"), start(n2, "server"));
    eventually("packets", Duration::from_secs(5), || talk(&first, &server, true).map(|()| true)).unwrap();

    declare(&["10.244.7.0/24", "fd00:10:244:7::/64"]);
    eventually("the new range", SOON, || {
        let text = std::fs::read_to_string(&at).unwrap_or_default();
        Ok(text.contains("10.244.7.0/24")
            && text.contains("fd00:10:244:7::/64")
            && !text.contains("10.244.1."))
    })
    .unwrap();
    let second = start(n1, "second");
    assert_eq!(second.pod().ip4().to_string().rsplit_once('.').unwrap().0, "10.244.7");
    for v4 in [true, false] {
        eventually("packets", Duration::from_secs(5), || talk(&second, &server, v4).map(|()| true)).unwrap();
        eventually("packets back", Duration::from_secs(5), || talk(&server, &second, v4).map(|()| true))
            .unwrap();
    }
    let entries = entries(n2).unwrap();
    assert!(entries.contains("10.244.7.0/24") && !entries.contains("10.244.1.0/24"));
    assert!(other.is_running());
}
