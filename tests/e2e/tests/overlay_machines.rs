//! What machines and networks do to an overlay: another MTU, a taken port, a second way in, a storm of ARP.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::UdpSocket;
use std::time::Duration;

use heddle_e2e::{Ask, Backend, Cluster, Cmd, Lab, Load, Place, Plan, Pod, Result, eventually};

const PORT: u16 = 8080;

fn pair(cluster: &Cluster) -> (Pod, Backend) {
    (cluster.pod(1, "client").unwrap(), cluster.backend(2, "server", PORT).unwrap())
}

fn talk(from: &Place, to: &Backend) -> Result<bool> {
    for v4 in [true, false] {
        let ask = Ask::new((to.pod().ip(v4).unwrap(), PORT)).limit(Duration::from_millis(500));
        for reply in [ask.tcp(from)?, ask.udp(from)?] {
            assert_eq!(reply.server, to.name());
        }
    }
    Ok(true)
}

/// One node's link carries 9,000 bytes, the other's 1,400, and nobody between them says so: what is too large is lost.
/// Streams pass, for each end says what it can take.
#[test]
fn fault_132_links_of_different_mtu_carry_streams() {
    let lab = Lab::builder().nodes(2).clients(0).mtu(9000).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    lab.node(2).run("ip link set eth0 mtu 1400").unwrap();
    lab.switch().place().run("ip link set n2 mtu 1400").unwrap();
    let cluster = Cluster::on(lab, Plan::overlay()).unwrap();
    let ends = [1, 2].map(|n| cluster.backend(n, &format!("pod-{n}"), PORT).unwrap());
    assert!(ends[0].pod().run("ip link show dev eth0").unwrap().contains("mtu 8950"));
    assert!(ends[1].pod().run("ip link show dev eth0").unwrap().contains("mtu 1350"));
    for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        for v4 in [true, false] {
            let to = (to.pod().ip(v4).unwrap(), PORT);
            let load = Load::streams(to, 1).padding(65_536).start(from.pod()).unwrap();
            load.wait_for(5, Duration::from_secs(20)).unwrap();
            load.stop().assert_clean();
        }
    }
}

/// Somebody has the port already: that is said, with what to do, and it is taken as soon as it is free. Then all nodes
/// move to another.
#[test]
fn fault_133_a_port_that_is_taken_is_told_and_another_can_be_had() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let n1 = lab.node(1);
    let holder = n1.enter(|| UdpSocket::bind("0.0.0.0:8472")).unwrap().unwrap();
    let daemon = lab.start_daemon::<&str>(n1, "vxland", &[]).unwrap();
    let said = "UDP port 8472 is taken by another program";
    eventually("the reason", Duration::from_secs(10), || Ok(daemon.log().contains(said))).unwrap();
    assert!(!n1.path("/run/heddle/vxland.ready").exists());
    drop(holder);
    eventually("readiness", Duration::from_secs(30), || Ok(n1.path("/run/heddle/vxland.ready").exists()))
        .unwrap();
    daemon.terminate(Duration::from_secs(10)).unwrap();

    // Another overlay's device.
    n1.run("ip link del heddle.1").unwrap();
    n1.run("ip link add other type vxlan id 1 dstport 8472 dev eth0").unwrap();
    let daemon = lab.start_daemon::<&str>(n1, "vxland", &[]).unwrap();
    let said = "other has VNI 1 on UDP port 8472 already (stop the overlay that it belongs to and delete it, or use \
                another --vni or --port on all nodes)";
    eventually("the reason", Duration::from_secs(10), || Ok(daemon.log().contains(said))).unwrap();
    daemon.terminate(Duration::from_secs(10)).unwrap();

    // The other stays: this one goes elsewhere, and back.
    let elsewhere = Plan::overlay().vxland_arg("--port=4790");
    let cluster = Cluster::on(lab, elsewhere).unwrap();
    let (client, server) = pair(&cluster);
    eventually("an answer", Duration::from_secs(5), || talk(&client, &server)).unwrap();
    let table = cluster.node(1).run("nft list table inet vxland").unwrap();
    assert!(table.contains("udp dport 4790") && !table.contains("8472"), "{table}");
    cluster.node(1).run("ip link del other").unwrap();
    let mut cluster = cluster;
    for node in [1, 2] {
        cluster.stop_daemon(node, "vxland").unwrap();
    }
    let _daemons = [1, 2].map(|n| cluster.lab().start_vxland(cluster.lab().node(n), &[]).unwrap());
    eventually("an answer", Duration::from_secs(5), || talk(&client, &server)).unwrap();
    assert!(!cluster.lab().node(1).run("nft list table inet vxland").unwrap().contains("4790"));
}

/// Node 2 sends by another device than the one that it is sent to: nothing but the kernel's strict filter asks for that.
#[test]
fn fault_135_packets_may_come_in_another_way() {
    let lab = Lab::builder().nodes(2).clients(0).rp_filter(2).build().unwrap();
    let [n1, n2] = [1, 2].map(|n| lab.node(n));
    for node in [n1, n2] {
        lab.manifests().node(node).unwrap();
    }
    n1.run(format!("ip link add eth1 type veth peer name eth1 netns {}", n2.net().path())).unwrap();
    for (node, own) in [(n1, "172.16.0.1"), (n2, "172.16.0.2")] {
        node.run(format!("ip addr add {own}/24 dev eth1")).unwrap();
        node.run("ip link set eth1 up").unwrap();
    }
    n2.run("ip route add 192.168.77.1/32 via 172.16.0.1 dev eth1 src 192.168.77.2").unwrap();
    let _daemons =
        [lab.start_vxland(n1, &[]).unwrap(), lab.start_vxland(n2, &["--underlay", "eth1"]).unwrap()];
    let pods = [n1, n2].map(|node| {
        let pod = node.pod(node.name()).unwrap();
        pod.cni_add().unwrap();
        pod
    });
    let _servers = [pods[0].serve("n1", PORT).unwrap(), pods[1].serve("n2", PORT).unwrap()];
    let packets = |device: &str, way: &str| -> u64 {
        let file = format!("cat /sys/class/net/{device}/statistics/{way}_packets");
        n1.run(file).unwrap().trim().parse().unwrap()
    };
    for (from, to) in [(0, 1), (1, 0)] {
        for v4 in [true, false] {
            let ask = Ask::new((pods[to].ip(v4).unwrap(), PORT));
            eventually("an answer", Duration::from_secs(5), || ask.tcp(&pods[from]).map(|_| true)).unwrap();
            let before = (packets("eth1", "rx"), packets("eth0", "tx"));
            for reply in [ask.tcp(&pods[from]).unwrap(), ask.udp(&pods[from]).unwrap()] {
                assert_eq!(Some(reply.client.ip()), pods[from].ip(v4));
            }
            assert!(packets("eth1", "rx") > before.0, "in by one device");
            assert!(packets("eth0", "tx") > before.1, "out by the other");
        }
    }
}

/// Neighbours that come and go by the hundred: those of the overlay are permanent, and nobody collects or counts them.
#[test]
fn fault_143_a_storm_of_arp_takes_no_neighbour_of_the_overlay() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2), Plan::overlay()).unwrap();
    let (client, server) = pair(&cluster);
    let (n1, stranger) = (cluster.node(1), cluster.client());
    let addresses: String = (100..200).map(|n| format!("ip addr add 192.168.77.{n}/32 dev eth0; ")).collect();
    stranger.run(Cmd::new("sh").args(["-c", &addresses])).unwrap();
    // Each asks for the node, and so is learned there.
    stranger
        .enter(|| {
            for n in 100..200 {
                if let Ok(socket) = UdpSocket::bind(format!("192.168.77.{n}:0")) {
                    let _ = socket.send_to(b"storm", "192.168.77.1:9");
                }
            }
        })
        .unwrap();
    n1.run("ip neigh flush all").unwrap();
    n1.run("ip neigh flush dev heddle.1").unwrap();
    let neighbours = n1.run("ip neigh show dev heddle.1").unwrap();
    assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");
    talk(&client, &server).unwrap();
}
