//! What rules say of the packets of tunnels, and of those that go into them.

use std::net::IpAddr;

use super::expr::{Expr, Op};

const META_MARK: u32 = 3;
const META_L4PROTO: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;

fn loaded(base: u32, offset: u32, data: &[u8]) -> [Expr; 2] {
    [Expr::Payload { base, offset, length: data.len() as u32 }, Expr::Cmp { op: Op::Eq, data: data.to_vec() }]
}

/// `meta l4proto NUMBER`.
pub fn protocol(number: u8) -> Vec<Expr> {
    vec![Expr::Meta { key: META_L4PROTO }, Expr::Cmp { op: Op::Eq, data: vec![number] }]
}

/// `udp dport PORT`. Of a datagram in fragments the first alone has one.
pub fn udp_to(port: u16) -> Vec<Expr> {
    let mut exprs = protocol(libc::IPPROTO_UDP as u8);
    exprs.extend(loaded(PAYLOAD_TRANSPORT, 2, &port.to_be_bytes()));
    exprs
}

/// `@th,96,24 VNI`: the network that a VXLAN packet is of (RFC 7348 section 5), where UDP is known already.
pub fn vni(vni: u32) -> Vec<Expr> {
    let [_, bytes @ ..] = vni.to_be_bytes();
    loaded(PAYLOAD_TRANSPORT, 8 + 4, &bytes).to_vec()
}

/// `ip frag-off & 0x3fff != 0`: an IPv4 packet in fragments; where IPv4 is known already.
pub fn is_fragment4() -> Vec<Expr> {
    vec![
        Expr::Payload { base: PAYLOAD_NETWORK, offset: 6, length: 2 },
        Expr::Bitwise { mask: vec![0x3f, 0xff] },
        Expr::Cmp { op: Op::Neq, data: vec![0; 2] },
    ]
}

/// `exthdr frag exists`: an IPv6 packet in fragments, or in one.
pub fn is_fragment6() -> Vec<Expr> {
    const REG_1: u32 = 1;
    const FLAG_PRESENT: u32 = 1;
    let exists = Expr::built("exthdr", |a| {
        a.number(1, REG_1);
        a.bytes(2, &[libc::IPPROTO_FRAGMENT as u8]);
        a.number(3, 0);
        a.number(4, 1);
        a.number(5, FLAG_PRESENT);
    });
    vec![exists, Expr::Cmp { op: Op::Eq, data: vec![1] }]
}

/// `meta mark & BITS != 0`.
pub fn marked(bits: u32) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_MARK },
        Expr::Bitwise { mask: bits.to_ne_bytes().to_vec() },
        Expr::Cmp { op: Op::Neq, data: vec![0; 4] },
    ]
}

/// `snat ip|ip6 to ADDRESS fully-random`: a new source, with a port that two connections hardly ever race for
/// (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
pub fn source_becomes(address: IpAddr) -> Vec<Expr> {
    const SNAT: u32 = 0;
    const REG_1: u32 = 1;
    const RANDOM_FULLY: u32 = 1 << 4;
    let (family, data) = match address {
        IpAddr::V4(ip) => (libc::NFPROTO_IPV4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::NFPROTO_IPV6, ip.octets().to_vec()),
    };
    let nat = Expr::built("nat", |a| {
        a.number(1, SNAT);
        a.number(2, family as u32);
        a.number(3, REG_1);
        a.number(7, RANDOM_FULLY);
    });
    vec![Expr::Immediate { data }, nat]
}
