//! Frames as no network stack would send them, and ears that hear what arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use etherparse::PacketBuilder;
use heddle_netlink::packet::Frames;
use heddle_netlink::{MacAddr, NetNs, Socket, link};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub const BROADCAST: MacAddr = [0xff; 6];
pub const ALL_NODES: MacAddr = [0x33, 0x33, 0, 0, 0, 1];

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// A device from which frames are sent.
pub struct Mouth {
    frames: Frames,
    index: u32,
    pub mac: MacAddr,
}

impl Mouth {
    pub fn of(ns: &NetNs, device: &str) -> Self {
        let own = link::by_name(&mut Socket::open_in(ns).unwrap(), device).unwrap().unwrap();
        Self { frames: Frames::open_in(ns).unwrap(), index: own.index, mac: own.mac.unwrap() }
    }

    pub fn say(&self, frame: &[u8]) {
        self.frames.send(self.index, frame).unwrap();
    }
}

/// A device at which frames arrive.
pub struct Ear {
    socket: OwnedFd,
    index: usize,
}

impl Ear {
    pub fn at(ns: &NetNs, device: &str) -> Self {
        let own = link::by_name(&mut Socket::open_in(ns).unwrap(), device).unwrap().unwrap();
        let open =
            || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let socket = ns.run(open).unwrap().unwrap();
        let patience = heddle_lab::patient(Duration::from_secs(10));
        let patience = TimeVal::seconds(i64::try_from(patience.as_secs()).unwrap());
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
        Self { socket, index: own.index as usize }
    }

    /// All that arrives up to the frame that holds `last`, without it.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        const PACKET_OUTGOING: u8 = 4;
        let (mut buffer, mut heard) = ([0; 4096], Vec::new());
        loop {
            let (length, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer)
                .unwrap_or_else(|error| panic!("the last frame did not arrive: {error}"));
            let from = from.unwrap();
            if from.ifindex() != self.index || from.pkttype() == PACKET_OUTGOING {
                continue;
            }
            let frame = buffer[..length].to_vec();
            if frame.windows(last.len()).any(|part| part == last) {
                return heard;
            }
            heard.push(frame);
        }
    }
}

fn frame(to: MacAddr, from: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The same frame with an 802.1Q tag.
pub fn tagged(frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    with_tag(frame, 0x8100, vlan)
}

/// The same frame with a tag of this kind.
pub fn with_tag(mut frame: Vec<u8>, kind: u16, vlan: u16) -> Vec<u8> {
    let tag = [kind.to_be_bytes(), vlan.to_be_bytes()].concat();
    frame.splice(12..12, tag);
    frame
}

pub fn arp(
    to: MacAddr,
    from: MacAddr,
    operation: u16,
    sender: (MacAddr, Ipv4Addr),
    target: (MacAddr, Ipv4Addr),
) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(sender.0.iter().chain(&sender.1.octets()).chain(&target.0).chain(&target.1.octets()));
    frame(to, from, ARP, &body)
}

pub fn udp(to: MacAddr, from: MacAddr, ips: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let kind = match ips {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let builder = PacketBuilder::ipv4(source.octets(), target.octets(), 64);
            builder.udp(ports.0, ports.1).write(&mut packet, payload).unwrap();
            IPV4
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let builder = PacketBuilder::ipv6(source.octets(), target.octets(), 64);
            builder.udp(ports.0, ports.1).write(&mut packet, payload).unwrap();
            IPV6
        }
        _ => panic!("two families"),
    };
    frame(to, from, kind, &packet)
}

/// ICMPv6 with hop limit 255, as neighbour discovery wants it: type, the four bytes after the checksum, the rest.
pub fn icmp6(
    to: MacAddr,
    from: MacAddr,
    ips: (Ipv6Addr, Ipv6Addr),
    kind: u8,
    (head, body): ([u8; 4], &[u8]),
) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(ips.0.octets(), ips.1.octets(), 255);
    builder.icmpv6_raw(kind, 0, head).write(&mut packet, body).unwrap();
    frame(to, from, IPV6, &packet)
}

/// The same IPv6 packet with an empty hop-by-hop header before its payload.
pub fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut longer = frame.to_vec();
    let next = std::mem::replace(&mut longer[20], 0);
    let length = u16::from_be_bytes([longer[18], longer[19]]) + 8;
    longer[18..20].copy_from_slice(&length.to_be_bytes());
    // Six bytes of padding (PadN).
    longer.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
    longer
}

/// A neighbour advertisement: `target` is at `mac`.
pub fn advertisement(from: MacAddr, source: Ipv6Addr, (target, mac): (Ipv6Addr, MacAddr)) -> Vec<u8> {
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    // Override; option 2: the target's link-layer address.
    let body = [&target.octets()[..], &[2, 1], &mac].concat();
    icmp6(ALL_NODES, from, (source, all), 136, ([0x20, 0, 0, 0], &body))
}

/// A router advertisement: the sender is a router for half an hour, with a prefix to make addresses of.
pub fn router(from: MacAddr, source: Ipv6Addr) -> Vec<u8> {
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let prefix: Ipv6Addr = "2001:db8:bad::".parse().unwrap();
    let mut body = vec![0; 8];
    body.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    body.extend(prefix.octets());
    body.extend([1, 1]);
    body.extend(from);
    icmp6(ALL_NODES, from, (source, all), 134, ([64, 0, 0x07, 0x08], &body))
}

/// A redirect (RFC 4861, section 4.5): `destination` is better reached by `better`.
pub fn redirect(
    (to, from): (MacAddr, MacAddr),
    ips: (Ipv6Addr, Ipv6Addr),
    (better, destination): (Ipv6Addr, Ipv6Addr),
) -> Vec<u8> {
    let body = [better.octets(), destination.octets()].concat();
    icmp6(to, from, ips, 137, ([0; 4], &body))
}

/// "Has somebody this address?" (RFC 4862), from nobody.
pub fn probe(from: MacAddr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let to = [0x33, 0x33, 0xff, a, b, c];
    icmp6(to, from, (Ipv6Addr::UNSPECIFIED, group), 135, ([0; 4], &target.octets()))
}

/// The link-local address that the kernel makes of an Ethernet address.
pub fn link_local([a, b, c, d, e, f]: MacAddr) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
