//! Rules that find a connection's new destination in a map, by the port that it was opened to.
//!
//! Keys are concatenations, each part in registers of 4 bytes of its own: [`SetKey::Port`],
//! [`SetKey::Ipv4Port`], [`SetKey::Ipv6Port`]. Data is [`MapData`].
//!
//! [`SetKey::Port`]: super::SetKey::Port
//! [`SetKey::Ipv4Port`]: super::SetKey::Ipv4Port
//! [`SetKey::Ipv6Port`]: super::SetKey::Ipv6Port
//! [`MapData`]: super::MapData

use std::net::IpAddr;

use super::expr::{self, Expr, Op, Side};
use super::write::Attributes;

/// `NFT_REG32_00`: the first of sixteen registers of 4 bytes; `NFT_REG_1` is the first four of them.
const REG: u32 = 8;
const REG_1: u32 = 1;

const META_L4PROTO: u32 = 16;
const META_IIFNAME: u32 = 6;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const FIB_DADDR: u32 = 2;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const RTN_LOCAL: u32 = 2;
const CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;

/// A protocol and a port as a map's key.
pub fn key(address: Option<IpAddr>, protocol: u8, port: u16) -> Vec<u8> {
    let mut key = address.map(octets).unwrap_or_default();
    key.extend([protocol, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// What a key says: the address if it begins with one, protocol and port.
pub fn parse_key(key: &[u8]) -> Option<(Option<IpAddr>, u8, u16)> {
    let (address, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let address = match address.len() {
        0 => None,
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(address).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(address).ok()?)),
    };
    let [protocol, _, _, _, high, low, _, _] = *rest else { return None };
    Some((address, protocol, u16::from_be_bytes([high, low])))
}

/// An address and a port as a map's data.
pub fn data(address: IpAddr, port: u16) -> Vec<u8> {
    let mut data = octets(address);
    data.extend(port.to_be_bytes());
    data.extend([0, 0]);
    data
}

/// A device's name and an address as a set's key ([`super::SetKey::IfnameIpv4`], `IfnameIpv6`).
pub fn device_and_address(device: &str, address: IpAddr) -> Vec<u8> {
    let mut key = device.as_bytes().to_vec();
    key.resize(16, 0);
    key.extend(octets(address));
    key
}

/// Two addresses of a family as a set's key ([`super::SetKey::Ipv4Pair`], `Ipv6Pair`).
pub fn pair(one: IpAddr, other: IpAddr) -> Vec<u8> {
    [octets(one), octets(other)].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn build(name: &'static str, fill: impl FnOnce(&mut Attributes)) -> Expr {
    let mut data = Attributes::default();
    fill(&mut data);
    Expr::Built { name, data: data.into_bytes() }
}

fn meta(key: u32, register: u32) -> Expr {
    build("meta", |a| {
        a.number(1, register);
        a.number(2, key);
    })
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expr {
    build("payload", |a| {
        a.number(1, register);
        a.number(2, base);
        a.number(3, offset);
        a.number(4, length);
    })
}

fn source(v4: bool, register: u32) -> Expr {
    let (offset, length) = if v4 { (12, 4) } else { (8, 16) };
    payload(PAYLOAD_NETWORK, offset, length, register)
}

fn destination(v4: bool, register: u32) -> Expr {
    let (offset, length) = if v4 { (16, 4) } else { (24, 16) };
    payload(PAYLOAD_NETWORK, offset, length, register)
}

/// Registers of 4 bytes that an address takes.
const fn width(v4: bool) -> u32 {
    if v4 { 1 } else { 4 }
}

/// `fib daddr type local`: the packet is addressed to this host itself.
pub fn to_this_host() -> Vec<Expr> {
    vec![
        Expr::Fib { flags: FIB_DADDR, result: FIB_RESULT_ADDRTYPE },
        Expr::Cmp { op: Op::Eq, data: RTN_LOCAL.to_ne_bytes().to_vec() },
    ]
}

/// `ip|ip6 daddr != PREFIX`.
pub fn not_to(prefix: ipnetwork::IpNetwork) -> Vec<Expr> {
    let mut exprs = expr::address(Side::Destination, prefix);
    if let Some(Expr::Cmp { op, .. }) = exprs.last_mut() {
        *op = Op::Neq;
    }
    exprs
}

/// `dnat ip|ip6 to [ip|ip6 daddr .] meta l4proto . th dport map @MAP`; `address`: the key begins with one.
pub fn dnat_by_port(v4: bool, address: bool, map: &str) -> Vec<Expr> {
    let mut exprs = expr::nfproto(v4);
    let mut register = REG;
    if address {
        exprs.push(destination(v4, register));
        register += width(v4);
    }
    exprs.push(meta(META_L4PROTO, register));
    exprs.push(payload(PAYLOAD_TRANSPORT, 2, 2, register + 1));
    exprs.push(build("lookup", |a| {
        a.text(1, map);
        a.number(2, REG_1);
        a.number(3, REG_1);
    }));
    exprs.push(build("nat", |a| {
        const DNAT: u32 = 1;
        a.number(1, DNAT);
        a.number(2, if v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 } as u32);
        a.number(3, REG_1);
        a.number(5, REG + width(v4));
    }));
    exprs
}

/// `ct status dnat`: the connection's destination was translated.
pub fn is_translated() -> Vec<Expr> {
    vec![
        Expr::Ct { key: CT_STATUS },
        Expr::Bitwise { mask: IPS_DST_NAT.to_ne_bytes().to_vec() },
        Expr::Cmp { op: Op::Neq, data: vec![0; 4] },
    ]
}

/// `iifname . ip|ip6 daddr @SET`: what came in by this device goes to this address.
pub fn from_device_to(v4: bool, set: &str) -> Vec<Expr> {
    let mut exprs = expr::nfproto(v4);
    exprs.extend([meta(META_IIFNAME, REG), destination(v4, REG + 4)]);
    exprs.push(Expr::Lookup { set: set.into(), invert: false });
    exprs
}

/// `ip|ip6 saddr . ip|ip6 daddr @SET`.
pub fn from_address_to(v4: bool, set: &str) -> Vec<Expr> {
    let mut exprs = expr::nfproto(v4);
    exprs.extend([source(v4, REG), destination(v4, REG + width(v4))]);
    exprs.push(Expr::Lookup { set: set.into(), invert: false });
    exprs
}

/// `ip|ip6 daddr . meta l4proto . th dport @SET`: where it goes, after any translation. (By `ct original proto-dst`, the
/// port that it was opened to, `nft` 1.0 cannot read back what it lists: that has no type.)
pub fn to_address_by_port(v4: bool, set: &str) -> Vec<Expr> {
    let mut exprs = expr::nfproto(v4);
    let register = REG + width(v4);
    exprs.extend([destination(v4, REG), meta(META_L4PROTO, register)]);
    exprs.push(payload(PAYLOAD_TRANSPORT, 2, 2, register + 1));
    exprs.push(Expr::Lookup { set: set.into(), invert: false });
    exprs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back() {
        for ip in [None, Some("192.0.2.7"), Some("2001:db8::7")] {
            let ip: Option<IpAddr> = ip.map(|ip| ip.parse().expect("an address"));
            assert_eq!(parse_key(&key(ip, 132, 65_534)), Some((ip, 132, 65_534)));
        }
        for short in [0, 3, 7, 9, 30] {
            assert_eq!(parse_key(&vec![0; short]), None);
        }
    }
}
