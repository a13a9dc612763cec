//! The node on which everything happens, as addresses: node 1 is this one, its pods 10 and 11 are here. Nodes 2 and 3
//! are others with the overlay, node 4 has none. Clients are outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_ebpf_common::Addr;

/// A device of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dev {
    Underlay,
    Overlay,
    /// The host side of the veth of pod 10.
    Pod10,
    Pod11,
}

impl Dev {
    pub const ALL: [Self; 4] = [Self::Underlay, Self::Overlay, Self::Pod10, Self::Pod11];

    pub fn name(self) -> &'static str {
        match self {
            Self::Underlay => "eth0",
            Self::Overlay => "heddle.1",
            Self::Pod10 => "hdl10",
            Self::Pod11 => "hdl11",
        }
    }

    /// The kernel numbers devices as they are made, the far end of each pair first; `world` makes sure of it.
    pub fn ifindex(self) -> u32 {
        match self {
            Self::Underlay => 3,
            Self::Overlay => 5,
            Self::Pod10 => 7,
            Self::Pod11 => 9,
        }
    }

    /// In bytes. Pod 11 takes less than the tunnel brings.
    pub fn mtu(self) -> u32 {
        match self {
            Self::Underlay => 1500,
            Self::Overlay | Self::Pod10 => 1450,
            Self::Pod11 => 1300,
        }
    }

    /// The device of a pod of this node.
    pub fn of_pod(pod: u8) -> Option<Self> {
        match pod {
            10 => Some(Self::Pod10),
            11 => Some(Self::Pod11),
            _ => None,
        }
    }
}

pub const TUNNEL_MTU: u32 = 1450;
pub const VXLAN_PORT: u16 = 8472;
pub const VNI: u32 = 1;
/// Nodes of ours, 1 to this one.
pub const NODES: u8 = 4;
/// This node's pods; the last has no device any more.
pub const PODS: [u8; 3] = [10, 11, 12];

pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            Addr([0, 4, 8, 12].map(|at| word(&bytes, at)))
        }
    }
}

fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn ip(addr: Addr) -> IpAddr {
    if addr.is_v4() {
        Ipv4Addr::from(addr.as_v4().to_ne_bytes()).into()
    } else {
        Ipv6Addr::from(bytes16(addr)).into()
    }
}

/// As it stands in an IPv6 header.
pub fn bytes16(addr: Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(addr.0) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn of(v4: bool, four: [u8; 4], six: [u16; 8]) -> Addr {
    addr(if v4 { Ipv4Addr::from(four).into() } else { Ipv6Addr::from(six).into() })
}

/// Client `i` (1 and 2) on the underlay; 3 is where no route goes.
pub fn client(v4: bool, i: u8) -> Addr {
    if i == 3 {
        return of(v4, [198, 51, 100, 3], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 3]);
    }
    of(v4, [192, 168, 77, 200 + i], [0xfd77, 0, 0, 0, 0, 0, 0, 0x200 + u16::from(i)])
}

/// Node `n` in the underlay.
pub fn node(v4: bool, n: u8) -> Addr {
    of(v4, [192, 168, 77, n], [0xfd77, 0, 0, 0, 0, 0, 0, n.into()])
}

/// Pod `i` of node `n`.
pub fn pod(v4: bool, n: u8, i: u8) -> Addr {
    of(v4, [10, 244, n, i], [0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, i.into()])
}

/// The VXLAN device of node `n`.
pub fn vtep(v4: bool, n: u8) -> Addr {
    pod(v4, n, 0)
}

pub fn cluster_ip(v4: bool, i: u8) -> Addr {
    of(v4, [10, 96, 0, i], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, i.into()])
}

pub fn external_ip(v4: bool, i: u8) -> Addr {
    of(v4, [203, 0, 113, i], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, i.into()])
}

/// A backend that belongs to no node.
pub fn stranger(v4: bool) -> Addr {
    of(v4, [192, 168, 77, 150], [0xfd77, 0, 0, 0, 0, 0, 0, 0x150])
}

/// Where a packet to this address leaves the node; `None`: it has no route, or is for the node itself. IPv6 has none from
/// a group, either.
pub fn route(from: Addr, to: Addr) -> Option<Dev> {
    let v4 = to.is_v4();
    if !v4 && bytes16(from)[0] == 0xff {
        return None;
    }
    if v4 {
        let [a, b, c, d] = to.as_v4().to_ne_bytes();
        return match [a, b, c] {
            [192, 168, 77] if !matches!(d, 1 | 255) => Some(Dev::Underlay),
            [10, 244, 1] => Dev::of_pod(d),
            [10, 244, 2 | 3] => Some(Dev::Overlay),
            _ => None,
        };
    }
    let bytes = bytes16(to);
    let groups: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    match groups[..] {
        // The first of a network is the router's anycast address: the node's own.
        [0xfd77, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0xfd77, 0, 0, 0, ..] => Some(Dev::Underlay),
        [0xfd00, 0x10, 0x244, 1, 0, 0, 0, pod @ (10 | 11)] => Dev::of_pod(pod as u8),
        [0xfd00, 0x10, 0x244, 2 | 3, ..] => Some(Dev::Overlay),
        _ => None,
    }
}

/// The Ethernet address of node `n`'s VXLAN device.
pub fn vtep_mac(n: u8) -> [u8; 6] {
    [0x02, 0x76, 0, 0, 0, n]
}

/// What all addresses of the underlay have for an Ethernet address.
pub const PEER_MAC: [u8; 6] = [0x02, 0xfe, 0, 0, 0, 1];

/// Those of the underlay: clients, nodes, the backend that belongs to none.
pub fn neighbours(v4: bool) -> impl Iterator<Item = Addr> {
    let clients = [1, 2].map(|i| client(v4, i));
    clients.into_iter().chain((2..=NODES).map(move |n| node(v4, n))).chain([stranger(v4)])
}

/// The node to whose pods a frame goes.
pub fn node_of(frame: &[u8]) -> u8 {
    // 10.244.n.0/24, fd00:10:244:n::/64.
    if frame[12] == 8 { frame[32] } else { frame[45] }
}

/// `1.2.3.4:5`, `[::1]:5`; the port as it stands in a packet.
pub fn end(addr: Addr, port: u16) -> String {
    std::net::SocketAddr::new(ip(addr), u16::from_be(port)).to_string()
}
