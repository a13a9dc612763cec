//! Pods on three nodes talk to each other and to the hosts, over the overlay that vxland makes: same node, other
//! node, from the host, in both families, over ICMP, TCP and UDP. No packet with a pod's address is ever seen in
//! the underlay: the lab's switch counts them.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use heddle_e2e::{
    Ask, Backend, Cluster, Cmd, Error, Families, Firewall, Lab, Load, Node, Output, Place, Plan, Pod, Result,
    Snapshot, bin, eventually,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const PORT: u16 = 8080;

fn overlay_ip(node: &Node, v4: bool) -> IpAddr {
    let index = node.index();
    if v4 { format!("10.244.{index}.0") } else { format!("fd00:10:244:{index}::") }.parse().unwrap()
}

/// Runs vxland on a node, to its end.
fn vxland(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("vxland")).args(args.split(' '))).unwrap()
}

/// One pod on each node that serves, and a client pod beside it.
struct Pods {
    backends: Vec<Backend>,
    clients: Vec<Pod>,
    families: Vec<bool>,
}

impl Pods {
    fn new(cluster: &Cluster, families: &[bool]) -> Self {
        let numbers = 1..=cluster.nodes().len();
        Self {
            backends: numbers
                .clone()
                .map(|n| cluster.backend(n, &format!("server-{n}"), PORT).unwrap())
                .collect(),
            clients: numbers.map(|n| cluster.pod(n, &format!("client-{n}")).unwrap()).collect(),
            families: families.to_vec(),
        }
    }

    /// Every client pod and every host asks every server. The servers see a pod's own address, and a host's
    /// address in the overlay, or whichever it has for a pod of its own.
    fn all_talk(&self, cluster: &Cluster) -> Result<()> {
        for &v4 in &self.families {
            for backend in &self.backends {
                let to = backend.pod().ip(v4).unwrap();
                for client in &self.clients {
                    self.ask(client, to, backend, client.ip(v4))?;
                    ping(client, to)?;
                }
                for node in cluster.nodes() {
                    let remote = node.index() != backend.node().index();
                    self.ask(node, to, backend, remote.then(|| overlay_ip(node, v4)))?;
                    ping(node, to)?;
                }
            }
        }
        Ok(())
    }

    fn ask(&self, from: &Place, to: IpAddr, backend: &Backend, seen: Option<IpAddr>) -> Result<()> {
        let ask = Ask::new((to, PORT)).limit(Duration::from_secs(2));
        for reply in [ask.tcp(from)?, ask.udp(from)?] {
            assert_eq!(reply.server, backend.name(), "from {} to {to}", from.name());
            if let Some(seen) = seen {
                assert_eq!(reply.client.ip(), seen, "from {} to {to}", from.name());
            }
        }
        Ok(())
    }
}

/// An echo over ICMP: 56 bytes there and back.
fn ping(from: &Place, to: IpAddr) -> Result<()> {
    echo(from, to, 56)
}

/// An echo of `size` bytes over ICMP (RFC 792, RFC 4443 section 4).
fn echo(from: &Place, to: IpAddr, size: usize) -> Result<()> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let echo = || -> nix::Result<()> {
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
        let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut message = vec![request, 0, 0, 0, 0x48, 0x64, 0, 1];
        message.resize(8 + size, 0x5a);
        if to.is_ipv4() {
            // For IPv6 the kernel does this.
            let words =
                message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
            let sum: u32 = words.sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let address = SockaddrStorage::from(SocketAddr::from((to, 0)));
        sendto(raw.as_raw_fd(), &message, &address, MsgFlags::empty())?;
        let mut buffer = vec![0; 65536];
        loop {
            let length = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            // IPv4 comes with its header.
            let answer = &buffer[if to.is_ipv4() { 20 } else { 0 }..length];
            if answer[0] == reply && answer[4..] == message[4..] {
                return Ok(());
            }
        }
    };
    let (place, source) = (from.name().to_owned(), from.enter(echo)?);
    source.map_err(|error| Error::NoAnswer { to: (to, 0).into(), proto: "icmp", place, source: error.into() })
}

#[track_caller]
fn assert_nothing_foreign(lab: &Lab) {
    assert_eq!(lab.switch().foreign().unwrap(), 0, "{:?}", lab.switch().foreigners());
}

fn everything_works(builder: heddle_e2e::Builder, families: &[bool]) {
    let cluster = Cluster::start_with(builder, Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, families);
    pods.all_talk(&cluster).unwrap();
    assert_nothing_foreign(&cluster);
    for node in cluster.nodes() {
        let status = vxland(node, "status");
        assert!(status.status.success(), "{status:?}");
    }
}

#[test]
fn without_a_reverse_path_filter() {
    everything_works(Lab::builder().rp_filter(0), &[true, false]);
}

#[test]
fn with_the_strict_reverse_path_filter_and_no_default_route() {
    everything_works(Lab::builder().rp_filter(1).default_route(false), &[true, false]);
}

#[test]
fn with_the_loose_reverse_path_filter() {
    everything_works(Lab::builder().rp_filter(2), &[true, false]);
}

#[test]
fn with_a_filter_that_drops_what_is_invalid_and_forwards_pods_alone() {
    everything_works(Lab::builder().firewall(Firewall::Strict), &[true, false]);
}

#[test]
fn with_ipv4_alone() {
    everything_works(Lab::builder().families(Families::V4), &[true]);
}

#[test]
fn with_ipv6_alone() {
    everything_works(Lab::builder().families(Families::V6), &[false]);
}

#[test]
fn a_small_underlay_makes_small_pods_and_large_packets_pass() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).mtu(1400), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    pods.all_talk(&cluster).unwrap();
    for (client, backend) in [(&pods.clients[0], &pods.backends[1]), (&pods.clients[1], &pods.backends[0])] {
        assert!(client.run("ip link show dev eth0").unwrap().contains("mtu 1350"));
        for v4 in [true, false] {
            // As large as fits; and larger, in fragments of that size.
            let head = if v4 { 28 } else { 48 };
            let to = backend.pod().ip(v4).unwrap();
            echo(client, to, 1350 - head).unwrap();
            echo(client, to, 5000).unwrap();
            let load = Load::streams((to, PORT), 2).padding(4000).start(client).unwrap();
            load.wait_for(50, Duration::from_secs(10)).unwrap();
            load.stop().assert_clean();
        }
    }
    assert_nothing_foreign(&cluster);
}

/// FORWARD drops, and nobody lets pods through: vxland says which rules are missing, in words that work.
#[test]
fn fault_144_the_rules_that_are_missing_in_forward_are_told_and_they_are_enough() {
    let builder = Lab::builder().nodes(2).clients(0).firewall(Firewall::Closed);
    let cluster = Cluster::start_with(builder, Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    let (client, server) = (&pods.clients[0], &pods.backends[1]);
    for v4 in [true, false] {
        let ask = Ask::new((server.pod().ip(v4).unwrap(), PORT)).limit(Duration::from_millis(300));
        assert!(ask.tcp(client).is_err(), "the filter drops it");
    }
    for node in cluster.nodes() {
        let status = vxland(node, "status");
        assert_eq!(status.status.code(), Some(1));
        let missing: Vec<&str> = status
            .stdout
            .lines()
            .filter_map(|line| {
                line.split_once("missing rule: `").and_then(|(_, rest)| rest.split('`').next())
            })
            .collect();
        assert_eq!(missing.len(), 4, "{}", status.stdout);
        assert!(
            cluster.daemon(node.index(), "vxland").unwrap().log().contains(missing[0]),
            "it is in the log too"
        );
        for rule in missing {
            node.run(rule).unwrap();
        }
        let status = vxland(node, "status");
        assert!(status.status.success(), "{status:?}");
    }
    pods.all_talk(&cluster).unwrap();
    assert_nothing_foreign(&cluster);
}

/// The same for a chain of iptables, as Docker leaves it.
#[test]
fn fault_144_the_missing_rules_of_iptables_are_told_as_iptables_takes_them() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    pods.all_talk(&cluster).unwrap();
    let n1 = cluster.node(1);
    for program in ["iptables-nft", "ip6tables-nft"] {
        n1.run(format!("{program} -P FORWARD DROP")).unwrap();
        n1.run(format!("{program} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")).unwrap();
        n1.run(format!("{program} -A FORWARD -i docker0 -j ACCEPT -m comment --comment none-of-ours"))
            .unwrap();
    }
    assert!(pods.all_talk(&cluster).is_err());
    let status = vxland(n1, "status").stdout;
    let missing: Vec<&str> = status
        .lines()
        .filter_map(|line| line.split_once("missing rule: `").and_then(|(_, rest)| rest.split('`').next()))
        .collect();
    assert_eq!(
        missing,
        [
            "iptables -A FORWARD -s 10.244.1.0/24 -j ACCEPT",
            "iptables -A FORWARD -d 10.244.1.0/24 -j ACCEPT",
            "ip6tables -A FORWARD -s fd00:10:244:1::/64 -j ACCEPT",
            "ip6tables -A FORWARD -d fd00:10:244:1::/64 -j ACCEPT",
        ],
        "{status}"
    );
    for rule in missing {
        n1.run(rule.replacen("tables", "tables-nft", 1)).unwrap();
    }
    assert!(vxland(n1, "status").status.success());
    pods.all_talk(&cluster).unwrap();
}

#[test]
fn restarts_under_traffic_lose_nothing() {
    let mut cluster = Cluster::start_with(Lab::builder().clients(0), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    let mut loads = Vec::new();
    for v4 in [true, false] {
        let (to, name) = (pods.backends[1].pod().ip(v4).unwrap(), pods.backends[1].name());
        loads.push(Load::streams((to, PORT), 2).expect([name]).start(&pods.clients[0]).unwrap());
        loads.push(Load::connects((to, PORT)).expect([name]).start(&pods.clients[2]).unwrap());
        loads.push(Load::datagrams((to, PORT)).expect([name]).start(cluster.node(1)).unwrap());
    }
    for load in &loads {
        load.wait_for(20, Duration::from_secs(10)).unwrap();
    }
    for round in 0..6 {
        for node in 1..=3 {
            if round % 2 == 0 {
                cluster.stop_daemon(node, "vxland").unwrap();
            } else {
                cluster.kill_daemon(node, "vxland");
            }
        }
        for load in &loads {
            load.wait_for(10, Duration::from_secs(10)).unwrap();
        }
        for node in 1..=3 {
            cluster.start_daemon_on(node, "vxland").unwrap();
        }
    }
    for load in loads {
        load.stop().assert_clean();
    }
    assert_nothing_foreign(&cluster);
}

#[test]
fn a_node_that_is_removed_is_forgotten_and_one_that_rejoins_otherwise_is_reached_otherwise() {
    let cluster = Cluster::start_with(Lab::builder().clients(0), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    pods.all_talk(&cluster).unwrap();
    let [n1, n3] = [1, 3].map(|n| cluster.node(n));
    let everything = Snapshot::of(&cluster).unwrap().without(&["tasks", "files"]);

    cluster.manifests().remove("node-n3.yaml").unwrap();
    let forgotten = || -> Result<bool> {
        let now = [
            n1.run("ip route")?,
            n1.run("ip -6 route")?,
            n1.run("ip neigh show dev heddle.1")?,
            n1.run("bridge fdb")?,
        ]
        .concat();
        Ok(!now.contains("10.244.3.") && !now.contains("fd00:10:244:3:") && !now.contains("192.168.77.3 "))
    };
    eventually("node 3 is forgotten", Duration::from_secs(5), forgotten).unwrap();
    // Node 3 itself keeps what it has, and packets to it are refused by node 1, not sent into the underlay.
    let ask = Ask::new((pods.backends[2].pod().ip(true).unwrap(), PORT)).limit(Duration::from_millis(300));
    assert!(ask.tcp(&pods.clients[0]).is_err());

    cluster.manifests().node(n3).unwrap();
    eventually("node 3 is back", Duration::from_secs(5), || {
        Ok(everything.changes(&Snapshot::of(&cluster)?.without(&["tasks", "files"])).is_empty())
    })
    .unwrap();
    pods.all_talk(&cluster).unwrap();

    // The same name with another range, and its old range at a new name with node 3's address.
    let yaml = |name: &str, range: u8, address: u8| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
             spec: {{podCIDRs: [10.244.{range}.0/24, \"fd00:10:244:{range}::/64\"]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.168.77.{address}}}]}}\n"
        )
    };
    cluster
        .manifests()
        .put("node-n3.yaml", &format!("{}---\n{}", yaml("n3", 9, 99), yaml("heir", 3, 3)))
        .unwrap();
    let mac = |node: &str| heddle_mac(node);
    let expected = [
        format!("{} dev heddle.1 dst 192.168.77.99 self permanent", mac("n3")),
        format!("{} dev heddle.1 dst 192.168.77.3 self permanent", mac("heir")),
        format!("10.244.9.0 lladdr {} PERMANENT", mac("n3")),
        format!("10.244.3.0 lladdr {} PERMANENT", mac("heir")),
        "10.244.9.0/24 via 10.244.9.0 dev heddle.1".to_owned(),
        "10.244.3.0/24 via 10.244.3.0 dev heddle.1".to_owned(),
    ];
    eventually("node 3 and its heir", Duration::from_secs(5), || {
        let now =
            [n1.run("ip route")?, n1.run("ip neigh show dev heddle.1")?, n1.run("bridge fdb")?].concat();
        Ok(expected.iter().all(|line| now.contains(line.as_str())))
    })
    .unwrap();
    assert!(vxland(n1, "status").status.success());
    cluster.manifests().node(n3).unwrap();
    eventually("all as it was", Duration::from_secs(5), || {
        Ok(everything.changes(&Snapshot::of(&cluster)?.without(&["tasks", "files"])).is_empty())
    })
    .unwrap();
    pods.all_talk(&cluster).unwrap();
}

/// The MAC that every node computes for a node's VXLAN device: written out here so that a change of the
/// formula, which would part old nodes from new ones, is noticed.
fn heddle_mac(node: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node.bytes().chain([0, 0, 0, 1]) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    format!("02:{:02x}:{:02x}:{:02x}:{d:02x}:{e:02x}", a ^ f, b ^ g, c ^ h)
}

#[test]
fn a_cut_link_comes_back_and_so_do_the_pods_behind_it() {
    let cluster = Cluster::start_with(Lab::builder().clients(0), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    let before = Snapshot::of(&cluster).unwrap().without(&["tasks", "files"]);
    let to = |v4| (pods.backends[1].pod().ip(v4).unwrap(), PORT);
    let streams = Load::streams(to(true), 1).limit(Duration::from_secs(20)).start(&pods.clients[0]).unwrap();
    streams.wait_for(5, Duration::from_secs(5)).unwrap();
    cluster.switch().cut("n2").unwrap();
    for v4 in [true, false] {
        assert!(Ask::new(to(v4)).limit(Duration::from_millis(300)).tcp(&pods.clients[0]).is_err());
    }
    // Nodes 1 and 3 are not disturbed.
    let third = (pods.backends[2].pod().ip(true).unwrap(), PORT);
    Ask::new(third).tcp(&pods.clients[0]).unwrap();
    cluster.switch().restore("n2").unwrap();
    eventually("all pods talk", Duration::from_secs(20), || pods.all_talk(&cluster).map(|()| true)).unwrap();
    streams.wait_for(5, Duration::from_secs(20)).unwrap();
    streams.stop().assert_clean();
    before.same_as(&Snapshot::of(&cluster).unwrap().without(&["tasks", "files"])).unwrap();
    assert_nothing_foreign(&cluster);
}

/// An address of a node's own range that no pod has is refused at once, not sent to the default router.
#[test]
fn what_no_pod_has_is_refused_and_never_leaves_the_node() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::overlay()).unwrap();
    let pods = Pods::new(&cluster, &[true, false]);
    for nobody in ["10.244.2.250", "fd00:10:244:2::fa", "10.244.1.250", "fd00:10:244:1::fa"] {
        let to: IpAddr = nobody.parse().unwrap();
        let error = Ask::new((to, PORT)).limit(Duration::from_secs(5)).tcp(&pods.clients[0]).unwrap_err();
        assert!(
            error.to_string().contains("unreachable") || error.to_string().contains("No route"),
            "{error}"
        );
    }
    assert_nothing_foreign(&cluster);
}

/// Pods made and deleted, the daemons ended and cleaned up after: the nodes are as they were.
#[test]
fn nothing_is_left_of_it_all() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let pristine = Snapshot::of(&lab).unwrap();
    {
        let daemons = [1, 2].map(|n| lab.start_vxland(lab.node(n), &[]).unwrap());
        let pods = [1, 2].map(|n| {
            let pod = lab.node(n).pod("pod").unwrap();
            pod.cni_add().unwrap();
            pod
        });
        for to in [pods[1].ip4(), pods[1].ip6()] {
            eventually("an echo", Duration::from_secs(5), || ping(&pods[0], to).map(|()| true)).unwrap();
        }
        for pod in pods {
            pod.cni_del().unwrap();
        }
        for daemon in daemons {
            daemon.terminate(Duration::from_secs(10)).unwrap();
        }
        for node in lab.nodes() {
            assert!(vxland(node, "cleanup").status.success());
        }
    }
    let after = Snapshot::of(&lab).unwrap();
    let left = pristine.changes(&after);
    // Directories for locks and leases stay.
    let left: Vec<&String> =
        left.iter().filter(|line| !line.contains("/run/heddle") && !line.contains("/var/lib/cni")).collect();
    assert_eq!(left, [""; 0]);
}
