//! What the overlay looks like on the wire: RFC 7348 as flannel sends it, so that nodes can be moved over one at
//! a time.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use heddle_e2e::{Lab, Node, Place, eventually};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Sees every frame in the place.
fn capture(place: &Place) -> OwnedFd {
    place
        .enter(|| {
            let all =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .unwrap();
            setsockopt(&all, sockopt::ReceiveTimeout, &TimeVal::seconds(5)).unwrap();
            all
        })
        .unwrap()
}

fn device_mac(node: &Node) -> Vec<u8> {
    let text = node.run("cat /sys/class/net/heddle.1/address").unwrap();
    text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[derive(Debug, PartialEq)]
struct Seen {
    outer: (IpAddr, IpAddr),
    ttl: u8,
    checksum: bool,
    vxlan: [u8; 8],
    /// Inner destination and source MAC.
    macs: (Vec<u8>, Vec<u8>),
    inner: (IpAddr, IpAddr),
}

fn addresses(net: &NetSlice<'_>) -> Option<((IpAddr, IpAddr), u8)> {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some(((header.source_addr().into(), header.destination_addr().into()), header.ttl()))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some(((header.source_addr().into(), header.destination_addr().into()), header.hop_limit()))
        }
        NetSlice::Arp(_) => None,
    }
}

/// The next VXLAN packet from `source`.
fn next(capture: &OwnedFd, source: IpAddr) -> Seen {
    let mut buffer = vec![0; 65536];
    loop {
        let length = recv(capture.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..length]) else { continue };
        let Some((outer, ttl)) = packet.net.as_ref().and_then(addresses) else { continue };
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { continue };
        if udp.destination_port() != 8472 || outer.0 != source {
            continue;
        }
        let (vxlan, frame) = udp.payload().split_first_chunk::<8>().unwrap();
        let inner = SlicedPacket::from_ethernet(frame).unwrap();
        let Some((inner, _)) = inner.net.as_ref().and_then(addresses) else { continue };
        return Seen {
            outer,
            ttl,
            checksum: udp.checksum() != 0,
            vxlan: *vxlan,
            macs: (frame[..6].to_vec(), frame[6..12].to_vec()),
            inner,
        };
    }
}

#[test]
fn packets_are_those_of_flannel() {
    for outer_v4 in [true, false] {
        let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
        for node in lab.nodes() {
            let text = format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{podCIDRs: {:?}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: \"{}\"}}]}}\n",
                node.name(),
                node.pod_ranges(),
                node.ip(outer_v4)
            );
            lab.manifests().put(&format!("node-{}.yaml", node.name()), &text).unwrap();
        }
        let [n1, n2] = [1, 2].map(|n| lab.node(n));
        let _daemons = [n1, n2].map(|node| lab.start_vxland(node, &[]).unwrap());
        let pods = [n1, n2].map(|node| {
            let pod = node.pod("pod").unwrap();
            pod.cni_add().unwrap();
            pod
        });
        let server = pods[1].serve("server", 80).unwrap();
        for v4 in [true, false] {
            let ask = heddle_e2e::Ask::new((pods[1].ip(v4).unwrap(), server.port()));
            let answered = || ask.udp(&pods[0]).map(|_| true);
            eventually("an answer", Duration::from_secs(5), answered).unwrap();
            let capture = capture(lab.switch().place());
            ask.udp(&pods[0]).unwrap();
            assert_eq!(
                next(&capture, n1.ip(outer_v4)),
                Seen {
                    outer: (n1.ip(outer_v4), n2.ip(outer_v4)),
                    ttl: 64,
                    // RFC 7348 section 5 wants none over IPv4; over IPv6 there must be one.
                    checksum: !outer_v4,
                    // The I flag, and VNI 1.
                    vxlan: [0x08, 0, 0, 0, 0, 0, 1, 0],
                    macs: (device_mac(n2), device_mac(n1)),
                    inner: (pods[0].ip(v4).unwrap(), pods[1].ip(v4).unwrap()),
                }
            );
        }
    }
}
