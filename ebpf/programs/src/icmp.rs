//! ICMP errors about flows: they quote the packet that they complain of, and reach whoever sent it with the
//! addresses that he knows.

use heddle_ebpf_common::{Addr, Tuple};

use crate::nat::{Diff, address_diff};
use crate::packet::{Kind, Packet, Parsed};
use crate::skb::{ETH_LEN, F_PSEUDO, ICMP, ICMP6, SCTP, Skb, TCP, UDP};

/// ICMP header, in front of the quoted packet.
const HEADER: u32 = 8;

/// Makes the tuple of `packet` that of the flow which an error is about. Other ICMP: [`Parsed::Other`].
#[inline(never)]
pub fn parse(packet: &mut Packet, skb: Skb) -> Parsed {
    let Some(kind) = skb.load::<u8>(packet.l4) else { return Parsed::Malformed };
    if packet.l4 >= packet.len + ETH_LEN {
        return Parsed::Malformed;
    }
    let quoted = packet.l4 + HEADER;
    let ports = if packet.v4 {
        // Unreachable, time exceeded, parameter problem (RFC 792).
        if !matches!(kind, 3 | 11 | 12) {
            return if kind == 8 { Parsed::Protocol } else { Parsed::Other };
        }
        let Some(ip) = skb.load::<[u32; 5]>(quoted) else { return Parsed::Other };
        let first = ip[0].to_ne_bytes()[0];
        let fragment = (ip[1] >> 16) as u16;
        if first >> 4 != 4 || first & 0xf < 5 || fragment.swap_bytes() & 0x1fff != 0 {
            return Parsed::Other;
        }
        packet.tuple.proto = ip[2].to_ne_bytes()[1];
        packet.tuple.src = Addr::v4(ip[4]);
        packet.tuple.dst = Addr::v4(ip[3]);
        quoted + u32::from(first & 0xf) * 4
    } else {
        // Unreachable, too big, time exceeded, parameter problem (RFC 4443).
        if !matches!(kind, 1..=4) {
            return if kind == 128 { Parsed::Protocol } else { Parsed::Other };
        }
        let Some(ip) = skb.load::<[u32; 10]>(quoted) else { return Parsed::Other };
        packet.tuple.proto = ip[1].to_ne_bytes()[2];
        packet.tuple.src = Addr([ip[6], ip[7], ip[8], ip[9]]);
        packet.tuple.dst = Addr([ip[2], ip[3], ip[4], ip[5]]);
        quoted + 40
    };
    if !matches!(packet.tuple.proto, TCP | UDP | SCTP) {
        return Parsed::Other;
    }
    if ports + 4 > packet.len + ETH_LEN {
        return Parsed::Other;
    }
    let Some([sport, dport]) = skb.load::<[u16; 2]>(ports) else { return Parsed::Other };
    packet.tuple.sport = dport;
    packet.tuple.dport = sport;
    packet.kind = Kind::Error;
    // At most 60 + 8: where the quoted ports are, from our own header on.
    packet.header = (ports - packet.l4) as u8;
    Parsed::Flow
}

/// Translates an error about a flow whose packets in this direction become `to`: the quoted packet is one of
/// the other direction. Who sent the error is translated only if it is the flow's own end.
#[inline(never)]
pub fn translate(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    if packet.v4 { translate4(skb, packet, to) } else { translate6(skb, packet, to) }
}

#[inline(always)]
fn quoted_ports(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    skb.store(packet.l4 + u32::from(packet.header), &[to.dport, to.sport])
}

#[inline(always)]
fn port_diff(from: &Tuple, to: &Tuple) -> Diff {
    Diff::new().pair(from.sport, to.sport).pair(from.dport, to.dport)
}

#[inline(never)]
fn translate4(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    let from = &packet.tuple;
    let Some([src, dst]) = skb.load::<[u32; 2]>(ETH_LEN + 12) else { return false };
    if dst != from.dst.as_v4() || !quoted_ports(skb, packet, to) {
        return false;
    }
    let new = if src == from.src.as_v4() { to.src.as_v4() } else { src };
    let outer = Diff::new().word(src, new).word(dst, to.dst.as_v4()).fold();
    let quoted = packet.l4 + HEADER;
    skb.fix_l3(ETH_LEN + 10, outer)
        && skb.store(ETH_LEN + 12, &[new, to.dst.as_v4()])
        // The quoted header's own checksum makes up for its addresses: the ICMP sum does not see them.
        && skb.fix_l3(quoted + 10, address_diff(from, to))
        && skb.store(quoted + 12, &[to.dst.as_v4(), to.src.as_v4()])
        && skb.fix_l4(packet.l4 + 2, port_diff(from, to).fold(), 0)
}

#[inline(never)]
fn translate6(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    let from = &packet.tuple;
    let sum = packet.l4 + 2;
    let inner = port_diff(from, to).addr(&from.src, &to.src).addr(&from.dst, &to.dst).fold();
    skb.fix_l4(sum, inner, 0)
        && quoted_ports(skb, packet, to)
        && skb.store(packet.l4 + HEADER + 8, &to.dst)
        && skb.store(packet.l4 + HEADER + 24, &to.src)
        && end6(skb, packet, to, false).is_some()
        && end6(skb, packet, to, true) == Some(true)
}

/// Translates the source or the destination, if it is the flow's. `Some`: was it?
#[inline(never)]
fn end6(skb: Skb, packet: &Packet, to: &Tuple, destination: bool) -> Option<bool> {
    let (at, from, to) = if destination {
        (ETH_LEN + 24, &packet.tuple.dst, &to.dst)
    } else {
        (ETH_LEN + 8, &packet.tuple.src, &to.src)
    };
    if skb.load::<[u32; 4]>(at)? != from.0 {
        return Some(false);
    }
    let diff = Diff::new().addr(from, to).fold();
    (skb.store(at, to) && skb.fix_l4_v6(packet.l4 + 2, diff, F_PSEUDO)).then_some(true)
}

/// The protocol number of the family.
#[inline(always)]
pub fn proto(v4: bool) -> u8 {
    if v4 { ICMP } else { ICMP6 }
}
