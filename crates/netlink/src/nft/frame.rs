//! What rules look at in an Ethernet frame and in what it carries (tables of the bridge family).

use super::expr::{Expr, Op};

const META_L4PROTO: u32 = 16;
const META_IIFNAME: u32 = 6;
const PAYLOAD_LINK: u32 = 0;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;

/// `iifname [!=] @SET`.
pub fn iifname_in(set: &str, invert: bool) -> Vec<Expr> {
    vec![Expr::Meta { key: META_IIFNAME }, Expr::Lookup { set: set.into(), invert }]
}

/// `iifname != "NAME"`; a final `*` stands for every name that begins so.
pub fn not_iifname(name: &str) -> Vec<Expr> {
    let mut exprs = super::expr::iifname(name);
    if let Some(Expr::Cmp { op, .. }) = exprs.last_mut() {
        *op = Op::Neq;
    }
    exprs
}

/// `ether type KIND`: the frame has a tag of this kind (802.1Q: 0x8100, 802.1ad: 0x88a8), wherever the kernel keeps it
/// at the moment.
pub fn tagged(kind: u16) -> Vec<Expr> {
    vec![
        Expr::Payload { base: PAYLOAD_LINK, offset: 12, length: 2 },
        Expr::Cmp { op: Op::Eq, data: kind.to_be_bytes().to_vec() },
    ]
}

/// `iifname . ND_TARGET [!=] @SET`, for sets of [`super::SetKey::IfnameIpv6`]: the address that a neighbour
/// solicitation or advertisement is about (RFC 4861, sections 4.3 and 4.4).
pub fn neighbour_target_in(set: &str, invert: bool) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_IIFNAME },
        Expr::PayloadBehind { base: PAYLOAD_TRANSPORT, offset: 8, length: 16 },
        Expr::Lookup { set: set.into(), invert },
    ]
}

/// `iifname . arp saddr ether [!=] @SET`, for sets of [`super::SetKey::IfnameMac`].
pub fn arp_sender_mac_in(set: &str, invert: bool) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_IIFNAME },
        Expr::PayloadBehind { base: PAYLOAD_NETWORK, offset: 8, length: 6 },
        Expr::Lookup { set: set.into(), invert },
    ]
}

/// `arp saddr ip ADDRESS`.
pub fn arp_sender(address: std::net::Ipv4Addr) -> Vec<Expr> {
    vec![
        Expr::Payload { base: PAYLOAD_NETWORK, offset: 14, length: 4 },
        Expr::Cmp { op: Op::Eq, data: address.octets().to_vec() },
    ]
}

/// `ip daddr FIRST.0.0.0/8` where IPv4 is known already.
pub fn destination4_begins(first: u8) -> Vec<Expr> {
    vec![
        Expr::Payload { base: PAYLOAD_NETWORK, offset: 16, length: 1 },
        Expr::Cmp { op: Op::Eq, data: vec![first] },
    ]
}

/// `meta l4proto PROTOCOL`.
pub fn protocol(number: u8) -> Vec<Expr> {
    vec![Expr::Meta { key: META_L4PROTO }, Expr::Cmp { op: Op::Eq, data: vec![number] }]
}

/// `udp sport FROM udp dport TO`.
pub fn udp(from: u16, to: u16) -> Vec<Expr> {
    let mut exprs = protocol(libc::IPPROTO_UDP as u8);
    exprs.push(Expr::Payload { base: PAYLOAD_TRANSPORT, offset: 0, length: 4 });
    exprs.push(Expr::Cmp { op: Op::Eq, data: [from.to_be_bytes(), to.to_be_bytes()].concat() });
    exprs
}
