//! VXLAN packets that somebody makes up: outsiders, other nodes, pods. Without `proxyd` and with it.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use etherparse::PacketBuilder;
use heddle_e2e::traffic::raw_socket;
use heddle_e2e::{Cluster, Cmd, Lab, Node, Place, Plan, Pod, bin};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recv, sendto};
use serde_json::Value;

const VXLAN: u16 = 8472;
const PORT: u16 = 9000;

fn overlay_ip(node: usize, v4: bool) -> IpAddr {
    if v4 { format!("10.244.{node}.0") } else { format!("fd00:10:244:{node}::") }.parse().unwrap()
}

fn device_mac(node: &Node) -> [u8; 6] {
    let text = node.run("cat /sys/class/net/heddle.1/address").unwrap();
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// What is inside: a datagram that says `text`.
fn inner(macs: ([u8; 6], [u8; 6]), from: IpAddr, to: IpAddr, text: &str) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("one family"),
    };
    let mut frame = Vec::new();
    ip.udp(4444, PORT).write(&mut frame, text.as_bytes()).unwrap();
    frame
}

/// VXLAN around it (RFC 7348 section 5).
fn outer(header: [u8; 8], inner: &[u8]) -> Vec<u8> {
    [&header[..], inner].concat()
}

const RIGHT: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];

fn send(from: &Place, to: (IpAddr, u16), packet: &[u8]) {
    let bound: SocketAddr = if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let sent = from.enter(|| UdpSocket::bind(bound)?.send_to(packet, to)).unwrap();
    assert_eq!(sent.unwrap(), packet.len());
}

/// A socket in the pod or on the node that hears what arrives.
fn listen(at: &Place) -> UdpSocket {
    let socket = at.enter(|| UdpSocket::bind(("::", PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// What the daemons say that they dropped on a node.
fn dropped(node: &Node, proxyd: bool) -> u64 {
    let text = node.output(Cmd::new(bin("vxland")).args(["status", "-o", "json"])).unwrap().stdout;
    let status: Value = serde_json::from_str(&text).unwrap();
    let of_vxland: u64 =
        status["edge"]["dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    if !proxyd {
        return of_vxland;
    }
    let text = node.output(Cmd::new(bin("proxyd")).args(["status", "-o", "json"])).unwrap().stdout;
    let status: Value = serde_json::from_str(&text).unwrap();
    let counters = status["counters"].as_object().unwrap_or_else(|| panic!("{status}"));
    let of_proxyd: u64 = counters
        .iter()
        .filter(|(name, _)| name.starts_with("drop_") || name.starts_with("drop"))
        .filter_map(|(_, count)| count.as_u64())
        .sum();
    of_vxland + of_proxyd
}

fn plans() -> [(Plan, bool); 2] {
    [(Plan::overlay(), false), (Plan::default(), true)]
}

/// Node 1 is attacked. What it has a right to take arrives after all that it has not, and is the first thing that does.
#[test]
fn fault_142_forged_vxlan_packets_reach_nobody() {
    for (plan, proxyd) in plans() {
        let cluster = Cluster::start_with(Lab::builder().rp_filter(0), plan).unwrap();
        let [n1, n2] = [1, 2].map(|n| cluster.node(n));
        let pod = cluster.pod(1, "victim").unwrap();
        let other = cluster.pod(1, "other").unwrap();
        let heard = [listen(&pod), listen(n1)];
        let macs = (device_mac(n2), device_mac(n1));
        for v4 in [true, false] {
            let (ours, at) = (pod.ip(v4).unwrap(), (n1.ip4(), VXLAN));
            let own = |n: usize| if v4 { format!("10.244.{n}.9") } else { format!("fd00:10:244:{n}::9") };
            let of = |n: usize| -> IpAddr { own(n).parse().unwrap() };
            let service: IpAddr = if v4 { "10.96.0.1" } else { "fd00:10:96::1" }.parse().unwrap();
            let bend = |at: usize, byte: u8| {
                let mut header = RIGHT;
                header[at] = byte;
                header
            };
            let good = |text: &str| outer(RIGHT, &inner(macs, of(2), ours, text));
            let before = dropped(n1, proxyd);
            let mut counted = 0;

            // An outsider, whatever is inside.
            for from in [of(2), overlay_ip(2, v4), n2.ip(v4), service, cluster.client().ip(v4)] {
                send(cluster.client(), at, &outer(RIGHT, &inner(macs, from, ours, "from outside")));
                counted += 1;
            }
            send(cluster.client(), (n1.ip6(), VXLAN), &good("over the other family"));
            counted += 1;
            // A node, with what it has no right to.
            for from in [service, cluster.client().ip(v4), other.ip(v4).unwrap(), overlay_ip(1, v4)] {
                send(n2, at, &outer(RIGHT, &inner(macs, from, ours, "from somebody else")));
                counted += 1;
            }
            if proxyd {
                // Which of the nodes has which pods the first wall does not ask.
                for from in [of(3), n1.ip(v4), cluster.node(3).ip(v4)] {
                    send(n2, at, &outer(RIGHT, &inner(macs, from, ours, "from another node's")));
                    counted += 1;
                }
            }
            for to in [of(3), cluster.client().ip(v4), service] {
                send(n2, at, &outer(RIGHT, &inner(macs, of(2), to, "to somebody else")));
                counted += 1;
            }
            // A node, with a header that no node sends: the kernel or `proxyd` drops them.
            for header in
                [bend(0, 0), bend(0, 0x88), bend(1, 1), bend(3, 1), bend(7, 1), bend(6, 2), bend(4, 1)]
            {
                send(n2, at, &outer(header, &inner(macs, of(2), ours, "bent")));
            }
            // In fragments.
            send(n2, at, &outer(RIGHT, &inner(macs, of(2), ours, &"x".repeat(3000))));
            counted += 1;
            // To another address of this node.
            n1.run("ip addr replace 192.168.77.99/32 dev lo").unwrap();
            n2.run("ip route replace 192.168.77.99 via 192.168.77.1").unwrap();
            cluster.switch().admit("192.168.77.99".parse().unwrap()).unwrap();
            send(n2, ("192.168.77.99".parse().unwrap(), VXLAN), &good("to another address"));
            counted += 1;
            n2.run("ip route del 192.168.77.99").unwrap();
            n1.run("ip addr del 192.168.77.99/32 dev lo").unwrap();

            send(n2, at, &good("right"));
            let mut buffer = [0; 4000];
            let length = heard[0].recv(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), "right");
            let more = dropped(n1, proxyd) - before;
            assert!(more >= counted, "of {counted} packets {more} are counted");
            // To the node itself.
            send(n2, at, &outer(RIGHT, &inner(macs, of(2), overlay_ip(1, v4), "to the node")));
            let length = heard[1].recv(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), "to the node");
        }
    }
}

/// A pod's own packets in packets: to a node they are dropped, to others they are the pod's business.
#[test]
fn fault_142_pods_send_nodes_no_packets_in_packets() {
    for (plan, proxyd) in plans() {
        let cluster = Cluster::start_with(Lab::builder().nodes(2), plan).unwrap();
        let [n1, n2] = [1, 2].map(|n| cluster.node(n));
        let attacker = cluster.pod(1, "attacker").unwrap();
        let victims = [cluster.pod(1, "near").unwrap(), cluster.pod(2, "far").unwrap()];
        let heard: Vec<UdpSocket> = victims.iter().map(|pod| listen(pod)).collect();
        for v4 in [true, false] {
            for (node, peer, victim) in [(n1, n2, &victims[0]), (n2, n1, &victims[1])] {
                let macs = (device_mac(peer), device_mac(node));
                let from = overlay_ip(peer.index(), v4);
                let packet = outer(RIGHT, &inner(macs, from, victim.ip(v4).unwrap(), "from a pod"));
                let before = dropped(n1, proxyd);
                for to in [node.ip4(), node.ip6(), overlay_ip(node.index(), true)] {
                    send(&attacker, (to, VXLAN), &packet);
                }
                assert!(dropped(n1, proxyd) >= before + 2, "they are counted");
            }
            tunnels(&cluster, &attacker, v4);
        }
        // Nothing of it has arrived: what a neighbour sends is the first that does.
        for (pod, heard) in victims.iter().zip(&heard) {
            send(&attacker, (pod.ip4(), PORT), b"plain");
            let mut buffer = [0; 100];
            let length = heard.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"plain", "to {}", pod.name());
        }
    }
}

/// IPIP, GRE and IPv6 in IP.
fn tunnels(cluster: &Cluster, attacker: &Pod, v4: bool) {
    const PROTOCOLS: [u8; 3] = [4, 41, 47];
    let (node, client) = (cluster.node(2), cluster.client());
    let open = |protocol| raw_socket((node.ip(v4), 0).into(), protocol, Duration::from_millis(150)).unwrap();
    for protocol in PROTOCOLS {
        let [at_node, at_client] =
            [node.place(), client.place()].map(|at| at.enter(|| open(protocol)).unwrap());
        let sender = attacker.enter(|| open(protocol)).unwrap();
        let mut buffer = [0; 200];
        for (to, fd, arrives) in [(node.ip(v4), &at_node, false), (client.ip(v4), &at_client, true)] {
            let address = SockaddrStorage::from(SocketAddr::from((to, 0)));
            // GRE with an empty header, which conntrack can read.
            sendto(sender.as_raw_fd(), &[0; 40], &address, MsgFlags::empty()).unwrap();
            let got = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty());
            assert_eq!(got.is_ok(), arrives, "protocol {protocol} to {to}: {got:?}");
        }
    }
}
