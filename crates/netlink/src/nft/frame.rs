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

/// Where the address is that a neighbour solicitation or advertisement is about (RFC 4861, sections 4.3 and 4.4), in a
/// packet without extension headers. Of the network header, because `nft` has no name for it there in any version, and
/// reads again what it wrote.
const TARGET: u32 = 40 + 8;

/// `iifname . @nh,384,128 [!=] @SET`, for sets of [`super::SetKey::IfnameTarget`].
pub fn neighbour_target_in(set: &str, invert: bool) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_IIFNAME },
        Expr::PayloadBehind { base: PAYLOAD_NETWORK, offset: TARGET, length: 16 },
        Expr::Lookup { set: set.into(), invert },
    ]
}

/// `ip6 nexthdr != NUMBER`: there are extension headers before it.
pub fn not_next_header(number: u8) -> Vec<Expr> {
    vec![
        Expr::Payload { base: PAYLOAD_NETWORK, offset: 6, length: 1 },
        Expr::Cmp { op: Op::Neq, data: vec![number] },
    ]
}

/// `typeof iifname . @nh,384,128` as `nft` (src/expression.c, src/meta.c, src/payload.c) writes it into the user data of a
/// set. Without it `nft` would take the set for one of IPv6 addresses, and refuse its own listing of the rules.
pub(super) fn typeof_target() -> Vec<u8> {
    const CONCATENATION: u32 = 13;
    const META: u32 = 9;
    const PAYLOAD: u32 = 7;
    let entry = |kind: u8, value: &[u8]| [&[kind, value.len() as u8], value].concat();
    let number = |kind: u8, value: u32| entry(kind, &value.to_ne_bytes());
    let typed = |kind: u32, data: &[u8]| [number(0, kind), entry(1, data)].concat();
    let meta = typed(META, &number(0, META_IIFNAME));
    // Of no protocol that it knows; base, offset and length in bits.
    let place =
        [(0, 0), (1, 0), (2, 2), (3, TARGET * 8), (4, 128)].map(|(kind, value)| number(kind, value)).concat();
    let payload = typed(PAYLOAD, &place);
    let parts = [entry(0, &meta), entry(1, &payload)].concat();
    // NFTNL_UDATA_SET_KEYBYTEORDER, NFTNL_UDATA_SET_KEY_TYPEOF
    [number(0, 0), entry(3, &typed(CONCATENATION, &parts))].concat()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_type_of_a_set_is_written_as_nft_writes_it() {
        // `nft --debug=mnl add set bridge t s '{ typeof iifname . @nh,384,128; }'`, nft 1.0.6.
        let theirs = "0004000000000340\
            00040d000000\
            0138\
            000e00040900000001060004060000000126\
            000407000000\
            011e000400000000010400000000020402000000\
            030480010000040480000000";
        let ours: String = typeof_target().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, theirs);
    }
}
