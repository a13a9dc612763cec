//! A cluster that is moved from flannel node by node: both kinds of nodes reach each other's pods all the while. The node
//! of flannel's is made by hand, entry by entry as flannel makes it (pkg/backend/vxlan/vxlan_network.go): a device for
//! each family with an address of its own, and for every other node a neighbour, an FDB entry and a route.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::IpAddr;
use std::time::Duration;

use heddle_e2e::{Ask, Backend, Cluster, Cmd, Lab, Load, Node, Output, Place, Plan, bin, eventually};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(3);

/// The Ethernet addresses of flannel's devices on node `n`: by chance, in truth.
fn flannel_mac(n: usize, v4: bool) -> String {
    format!("0a:58:00:00:0{}:0{n}", if v4 { 4 } else { 6 })
}

fn device(v4: bool) -> &'static str {
    if v4 { "flannel.1" } else { "flannel-v6.1" }
}

fn range(n: usize, v4: bool) -> (String, String) {
    if v4 {
        (format!("10.244.{n}.0"), format!("10.244.{n}.0/24"))
    } else {
        (format!("fd00:10:244:{n}::"), format!("fd00:10:244:{n}::/64"))
    }
}

/// What flannel writes into the node object.
fn declare(lab: &Lab, node: &Node, macs: [&str; 2]) {
    let [v4, v6] = macs;
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n  annotations:\n    \
         flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    \
         flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{v4}\"}}'\n    \
         flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"{v6}\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: {}\n    flannel.alpha.coreos.com/public-ipv6: '{}'\n\
         spec: {{podCIDRs: {:?}}}\nstatus:\n  addresses:\n  - {{type: InternalIP, address: {}}}\n  \
         - {{type: InternalIP, address: '{}'}}\n",
        node.name(),
        node.ip4(),
        node.ip6(),
        node.pod_ranges(),
        node.ip4(),
        node.ip6(),
    );
    lab.manifests().put(&format!("node-{}.yaml", node.name()), &text).unwrap();
}

/// The devices of flannel's.
fn flannel(node: &Node) {
    let n = node.index();
    for v4 in [true, false] {
        let (name, mac, local) = (device(v4), flannel_mac(n, v4), node.ip(v4));
        let (bits, nodad) = if v4 { (32, "") } else { (128, " nodad") };
        for line in [
            format!(
                "ip link add {name} address {mac} mtu 1430 type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning"
            ),
            format!("ip addr add {}/{bits} dev {name}{nodad}", range(n, v4).0),
            format!("ip link set {name} up"),
        ] {
            node.run(line).unwrap();
        }
    }
    node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").unwrap();
}

/// What flannel makes of another node's object.
fn flannel_adds(node: &Node, other: &Node, macs: [&str; 2]) {
    for (v4, mac) in [true, false].into_iter().zip(macs) {
        let (name, (gateway, range)) = (device(v4), range(other.index(), v4));
        for line in [
            format!("ip neigh replace {gateway} lladdr {mac} dev {name} nud permanent"),
            format!("bridge fdb replace {mac} dev {name} dst {} self permanent", other.ip(v4)),
            format!("ip route replace {range} via {gateway} dev {name} onlink"),
        ] {
            node.run(line).unwrap();
        }
    }
}

/// A pod that serves, on a node of flannel's, where nobody writes a configuration for us.
fn pods(cluster: &Lab, node: usize) -> Backend {
    let node = cluster.node(node);
    let ranges: Vec<String> =
        node.pod_ranges().iter().map(|range| format!(r#"[{{"subnet":"{range}"}}]"#)).collect();
    node.write_conflist(&format!(
        r#"{{"cniVersion":"1.0.0","name":"heddle","plugins":[{{"type":"heddle","mode":"ptp","mtu":1430,"ipam":{{"type":"host-local","ranges":[{}],"routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]}}}}]}}"#,
        ranges.join(",")
    ))
    .unwrap();
    let pod = node.pod(&format!("server-{}", node.index())).unwrap();
    pod.cni_add().unwrap();
    Backend::serving(pod, PORT).unwrap()
}

fn vxland(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("vxland")).args(args.split(' '))).unwrap()
}

/// Every pod and every host reaches every pod, and is seen by its own address.
fn all_talk(lab: &Lab, backends: &[Backend]) {
    for v4 in [true, false] {
        for to in backends {
            let address: IpAddr = to.pod().ip(v4).unwrap();
            let ask = Ask::new((address, PORT)).limit(Duration::from_secs(3));
            for from in backends {
                for reply in [ask.tcp(from.pod()).unwrap(), ask.udp(from.pod()).unwrap()] {
                    assert_eq!(
                        (reply.server.as_str(), Some(reply.client.ip())),
                        (to.name(), from.pod().ip(v4))
                    );
                }
            }
            for node in lab.nodes() {
                let reply =
                    ask.tcp(node).unwrap_or_else(|error| panic!("{} to {address}: {error}", node.name()));
                if node.index() != to.node().index() {
                    assert_eq!(reply.client.ip().to_string(), range(node.index(), v4).0, "{}", node.name());
                }
            }
        }
    }
}

fn our_mac(node: &Node) -> String {
    node.run("cat /sys/class/net/heddle.1/address").unwrap().trim().to_owned()
}

#[test]
fn pods_of_flannels_nodes_and_ours_reach_each_other_while_a_cluster_is_moved() {
    let lab = Lab::builder().clients(0).build().unwrap();
    let [n1, n2, n3] = [1, 2, 3].map(|n| lab.node(n));
    lab.manifests().node(n1).unwrap();
    // Nodes 2 and 3 are flannel's; node 1 has just been moved.
    let macs = [2, 3].map(|n| [flannel_mac(n, true), flannel_mac(n, false)]);
    let both = |index: usize| [macs[index][0].as_str(), macs[index][1].as_str()];
    for (index, node) in [n2, n3].into_iter().enumerate() {
        declare(&lab, node, both(index));
        flannel(node);
    }
    let first = lab.start_vxland(n1, &[]).unwrap();
    let ours = our_mac(n1);
    flannel_adds(n2, n3, both(1));
    flannel_adds(n3, n2, both(0));
    for node in [n2, n3] {
        // As node 1 announces it: one address for both families.
        flannel_adds(node, n1, [&ours, &ours]);
    }
    let pod = n1.pod("server-1").unwrap();
    pod.cni_add().unwrap();
    let backends = vec![Backend::serving(pod, PORT).unwrap(), pods(&lab, 2), pods(&lab, 3)];
    all_talk(&lab, &backends);
    let status = vxland(n1, "status");
    assert!(status.status.success(), "{}", status.stdout);
    assert!(status.stdout.contains(&flannel_mac(2, false)), "{}", status.stdout);
    let link = n1.run("ip -d link show dev heddle-1").unwrap();
    assert!(link.contains("local fd77::1") && link.contains(&ours), "{link}");
    assert_eq!(lab.switch().foreign().unwrap(), 0, "{:?}", lab.switch().foreigners());

    // What a stranger takes from it is put back.
    n1.run("ip link del heddle-1").unwrap();
    eventually("the second device", SOON, || Ok(vxland(n1, "status").status.success())).unwrap();
    all_talk(&lab, &backends);

    // Node 2 is moved: flannel's devices go, vxland comes, the annotation changes. Nodes 1 and 3 notice nothing.
    let to = |v4| (backends[2].pod().ip(v4).unwrap(), PORT);
    let loads = [true, false]
        .map(|v4| Load::streams(to(v4), 2).expect(["server-3"]).start(backends[0].pod()).unwrap());
    for v4 in [true, false] {
        n2.run(format!("ip link del {}", device(v4))).unwrap();
    }
    std::fs::remove_file(n2.path("/etc/cni/net.d/10-heddle.conflist")).unwrap();
    let second = lab.start_vxland(n2, &[]).unwrap();
    let moved = our_mac(n2);
    declare(&lab, n2, [&moved, &moved]);
    flannel_adds(n3, n2, [&moved, &moved]);
    eventually("node 1 to take over what node 2 announces", SOON, || {
        let fdb = n1.run("bridge fdb")?;
        Ok(fdb.contains(&moved)
            && !fdb.contains(&flannel_mac(2, true))
            && !fdb.contains(&flannel_mac(2, false)))
    })
    .unwrap();
    all_talk(&lab, &backends);
    for load in loads {
        load.stop().assert_clean();
    }

    // And node 3: nobody needs a second device any more.
    for v4 in [true, false] {
        n3.run(format!("ip link del {}", device(v4))).unwrap();
    }
    let third = lab.start_vxland(n3, &[]).unwrap();
    let moved = our_mac(n3);
    declare(&lab, n3, [&moved, &moved]);
    for node in [n1, n2] {
        eventually("the end of the second device", SOON, || {
            Ok(node.run("ip link show dev heddle-1").is_err())
        })
        .unwrap();
    }
    all_talk(&lab, &backends);
    for (node, daemon) in [n1, n2, n3].into_iter().zip([&first, &second, &third]) {
        let status = vxland(node, "status");
        assert!(status.status.success(), "{}{}", status.stdout, daemon.log());
    }
    assert_eq!(lab.switch().foreign().unwrap(), 0, "{:?}", lab.switch().foreigners());
}

/// A node that announces somebody else's address, another VNI, or nonsense: nobody else is cut off by it, and it is told.
#[test]
fn hostile_announcements_are_told_and_harm_nobody() {
    let lab = Lab::builder().clients(0).build().unwrap();
    let [n1, n2, n3] = [1, 2, 3].map(|n| lab.node(n));
    for node in [n1, n2, n3] {
        lab.manifests().node(node).unwrap();
    }
    let _daemons = [n1, n2].map(|node| lab.start_vxland(node, &[]).unwrap());
    let stands = n1.run("bridge fdb show dev heddle.1").unwrap();
    // Node 3 would have what goes to node 2, and what goes to itself by the MAC of node 2.
    for (data, ip, said) in [
        (flannel_mac(3, true), "192.168.77.2", "192.168.77.2, which is none of its addresses"),
        (our_mac(n2), "192.168.77.3", &*format!("its VXLAN device has the MAC {} of node n2", our_mac(n2))),
        ("01:00:5e:00:00:01".to_owned(), "192.168.77.3", "is the address of no device"),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n3\n  annotations:\n    \
             flannel.alpha.coreos.com/kube-subnet-manager: 'true'\n    flannel.alpha.coreos.com/backend-type: vxlan\n    \
             flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{data}\"}}'\n    \
             flannel.alpha.coreos.com/public-ip: {ip}\nspec: {{podCIDRs: [10.244.3.0/24]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.168.77.3}}]}}\n"
        );
        lab.manifests().put("node-n3.yaml", &text).unwrap();
        eventually(said, Duration::from_secs(5), || Ok(vxland(n1, "status").stdout.contains(said))).unwrap();
        let fdb = n1.run("bridge fdb show dev heddle.1").unwrap();
        let of_n2 = stands.lines().find(|line| line.contains("192.168.77.2 ")).unwrap();
        assert!(fdb.contains(of_n2) && fdb.matches("192.168.77.2 ").count() == 1, "{fdb}");
    }
    lab.manifests().node(n3).unwrap();
    eventually("the end of it", Duration::from_secs(5), || Ok(vxland(n1, "status").status.success()))
        .unwrap();
}

/// `--direct-routing`: what is on the link goes there without a tunnel, in both families.
#[test]
fn nodes_on_one_link_route_directly_if_they_are_told_to() {
    let plan = Plan::overlay().vxland_arg("--direct-routing");
    let lab = Lab::builder().rp_filter(1).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let mut cluster = Cluster::on(lab, plan).unwrap();
    // Straight packets are no fault here: the switch lets them through and counts them.
    for rule in [
        "ip saddr 10.244.0.0/16",
        "ip daddr 10.244.0.0/16",
        "ip6 saddr fd00:10:244::/48",
        "ip6 daddr fd00:10:244::/48",
    ] {
        cluster
            .switch()
            .place()
            .run(format!("nft insert rule bridge lab judge {rule} counter accept"))
            .unwrap();
    }
    let backends: Vec<Backend> =
        (1..=3).map(|n| cluster.backend(n, &format!("server-{n}"), PORT).unwrap()).collect();
    let talk = |from: &Place, to: &Backend, v4: bool| {
        let ask = Ask::new((to.pod().ip(v4).unwrap(), PORT)).limit(Duration::from_secs(3));
        let reply = ask.tcp(from).unwrap();
        assert_eq!(reply.server, to.name());
        reply.client.ip()
    };
    let tunnelled = |node: &Node| {
        let text = node.run("cat /sys/class/net/heddle.1/statistics/tx_packets").unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    let [n1, n2] = [1, 2].map(|n| cluster.node(n).clone());
    let before = tunnelled(&n1);
    for v4 in [true, false] {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            assert_eq!(Some(talk(backends[from].pod(), &backends[to], v4)), backends[from].pod().ip(v4));
        }
        assert_eq!(talk(&n1, &backends[1], v4).to_string(), range(1, v4).0, "the host as through the tunnel");
    }
    assert_eq!(tunnelled(&n1), before, "nothing went through the tunnel");
    assert!(n1.run("ip route").unwrap().contains("10.244.2.0/24 via 192.168.77.2 dev eth0 proto 72"));
    assert!(n1.run("ip -6 route").unwrap().contains("fd00:10:244:2::/64 via fd77::2 dev eth0 proto 72"));
    // The tunnel stands by: services use it.
    assert!(n1.run("bridge fdb show dev heddle.1").unwrap().contains("dst 192.168.77.2 "));
    assert!(vxland(&n1, "status").stdout.contains("(direct)"));

    // Back to tunnels and forth again under load: every packet has one way or the other.
    for node in cluster.nodes() {
        node.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.heddle/1.rp_filter=0")
            .unwrap();
    }
    let loads = [true, false].map(|v4| {
        let to = (backends[1].pod().ip(v4).unwrap(), PORT);
        Load::streams(to, 2).expect(["server-2"]).start(backends[0].pod()).unwrap()
    });
    for (option, way) in [("--direct-routing=false", "dev heddle.1"), ("--direct-routing=true", "dev eth0")] {
        for node in 1..=3 {
            cluster.plan_vxland(&[option]);
            cluster.start_daemon_on(node, "vxland").unwrap();
        }
        for node in [&n1, &n2] {
            let other = 3 - node.index();
            assert!(node.run(format!("ip route show 10.244.{other}.0/24")).unwrap().contains(way));
            assert!(node.run(format!("ip -6 route show fd00:10:244:{other}::/64")).unwrap().contains(way));
        }
        for load in &loads {
            load.wait_for(20, Duration::from_secs(10)).unwrap();
        }
    }
    for load in loads {
        load.stop().assert_clean();
    }
    // Node 2 moves to another network: the tunnel; and back.
    let far = "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\nspec: {podCIDRs: [10.244.2.0/24]}\n\
               status: {addresses: [{type: InternalIP, address: 10.55.0.2}]}\n";
    cluster.manifests().put("node-n2.yaml", far).unwrap();
    eventually("the tunnel", SOON, || Ok(n1.run("ip route show 10.244.2.0/24")?.contains("dev heddle.1")))
        .unwrap();
    cluster.manifests().node(&n2).unwrap();
    eventually("the straight way", SOON, || Ok(n1.run("ip route show 10.244.2.0/24")?.contains("dev eth0")))
        .unwrap();
    // What is torn down comes back when the link does.
    n1.run("ip route del 10.244.2.0/24").unwrap();
    eventually("the route", SOON, || Ok(n1.run("ip route show 10.244.2.0/24")?.contains("dev eth0")))
        .unwrap();
    cluster.stop_daemon(1, "vxland").unwrap();
    assert!(vxland(&n1, "cleanup").status.success());
    assert!(!n1.run("ip route").unwrap().contains("proto 72"));
}
