//! Translation of a packet from its tuple to another: headers and checksums, with offloads in mind.

use heddle_ebpf_common::{Addr, Tuple};

use crate::icmp;
use crate::maps;
use crate::packet::{Kind, Packet};
use crate::skb::{ETH_LEN, F_MANGLED_0, F_PSEUDO, IP4_LEN, IP6_LEN, SCTP, Skb, TCP, TCP_LEN, UDP_LEN};

/// What a change of some words changes in the ones' complement sum over them (RFC 1624).
#[derive(Clone, Copy)]
pub struct Diff(u64);

impl Diff {
    #[inline(always)]
    pub fn new() -> Self {
        Self(0)
    }

    #[inline(always)]
    pub fn word(self, from: u32, to: u32) -> Self {
        Self(self.0 + u64::from(!from) + u64::from(to))
    }

    #[inline(always)]
    pub fn addr(self, from: &Addr, to: &Addr) -> Self {
        self.word(from.0[0], to.0[0])
            .word(from.0[1], to.0[1])
            .word(from.0[2], to.0[2])
            .word(from.0[3], to.0[3])
    }

    /// A port, wherever it stands: at an even offset.
    #[inline(always)]
    pub fn pair(self, from: u16, to: u16) -> Self {
        self.word(u32::from(from), u32::from(to))
    }

    /// The checksum after the change, of which `sum` was the one before.
    #[inline(always)]
    fn apply(self, sum: u16) -> u16 {
        !fold16(u64::from(!sum) + u64::from(self.fold()))
    }

    /// As 32 bits, which the kernel's helpers take.
    #[inline(always)]
    pub fn fold(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }
}

#[inline(always)]
fn fold16(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// One hop less.
pub const FORWARDED: u8 = 1;
/// As many hops as before.
pub const DELIVERED: u8 = 0;

/// Offset of the transport header where there is nothing between it and the IP header.
const PLAIN4: u32 = ETH_LEN + IP4_LEN;
const PLAIN6: u32 = ETH_LEN + IP6_LEN;

/// Makes `packet` one of `to`. `hops`: [`FORWARDED`] (there must be one left) or [`DELIVERED`]. False: the frame
/// could not be written (it is shorter than it was).
#[inline(always)]
pub fn translate(skb: Skb, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let headers = if packet.is_tcp() { TCP_LEN } else { UDP_LEN };
    if packet.kind != Kind::Whole || packet.tuple.proto == SCTP || !skb.is_near(packet.l4 + headers) {
        any(skb, packet, to, hops)
    } else if packet.v4 && packet.l4 == PLAIN4 {
        plain4(skb, packet, to, hops)
    } else if !packet.v4 && packet.l4 == PLAIN6 {
        plain6(skb, packet, to, hops)
    } else {
        any(skb, packet, to, hops)
    }
}

/// Whatever the packet is, header by header.
#[inline(never)]
fn any(skb: Skb, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let translated = packet.tuple == *to
        || if packet.kind == Kind::Error {
            icmp::translate(skb, packet, to)
        } else {
            (packet.kind == Kind::Later || transport(skb, packet, to)) && addresses(skb, packet, to)
        };
    translated && hop(skb, packet, hops)
}

/// The change of both addresses.
#[inline(always)]
pub fn address_diff(from: &Tuple, to: &Tuple) -> u32 {
    Diff::new().addr(&from.src, &to.src).addr(&from.dst, &to.dst).fold()
}

#[inline(always)]
fn port_diff(from: &Tuple, to: &Tuple) -> Diff {
    Diff::new().pair(from.sport, to.sport).pair(from.dport, to.dport)
}

#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    u32::from(tuple.sport) | u32::from(tuple.dport) << 16
}

/// TCP or UDP over IPv4 without options: all that changes, from the time to live to the checksum of the transport
/// header, is written at once.
#[inline(never)]
fn plain4(skb: Skb, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let from = &packet.tuple;
    let addrs = Diff::new().word(from.src.as_v4(), to.src.as_v4()).word(from.dst.as_v4(), to.dst.as_v4());
    let tcp = from.proto == TCP;
    let sum = if tcp {
        checksum::<{ PLAIN4 + 16 }>(skb, packet, to, addrs.fold(), 0)
    } else {
        checksum::<{ PLAIN4 + 6 }>(skb, packet, to, addrs.fold(), F_MANGLED_0)
    };
    // From the time to live to the checksum of TCP, or to the length in UDP.
    let (Some(sum), Some(old)) = (sum, skb.near::<[u32; 5]>(ETH_LEN + 8)) else {
        return false;
    };
    let Some(block) = maps::block() else { return false };
    let third = old[0] - u32::from(hops);
    let head = addrs.word(old[0] & 0xffff, third & 0xffff).apply((old[0] >> 16) as u16);
    block[0] = third & 0xffff | u32::from(head) << 16;
    block[1] = to.src.as_v4();
    block[2] = to.dst.as_v4();
    block[3] = ports(to);
    if !tcp {
        block[4] = old[4] & 0xffff | u32::from(sum) << 16;
        return skb.store_part(ETH_LEN + 8, block, 20);
    }
    let Some([ack, flags]) = skb.near::<[u32; 2]>(PLAIN4 + 8) else { return false };
    block[4] = old[4];
    block[5] = ack;
    block[6] = flags;
    block[7] = sum.into();
    skb.store_part(ETH_LEN + 8, block, 30)
}

/// The same over IPv6 without extension headers, but for the hop limit.
#[inline(never)]
fn plain6(skb: Skb, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let from = &packet.tuple;
    let addrs = address_diff(from, to);
    let tcp = from.proto == TCP;
    let sum = if tcp {
        checksum::<{ PLAIN6 + 16 }>(skb, packet, to, addrs, 0)
    } else {
        checksum::<{ PLAIN6 + 6 }>(skb, packet, to, addrs, F_MANGLED_0)
    };
    let (Some(sum), Some([fourth])) = (sum, skb.near::<[u32; 1]>(PLAIN6 + 4)) else {
        return false;
    };
    let Some(block) = maps::block() else { return false };
    [block[0], block[1], block[2], block[3]] = to.src.0;
    [block[4], block[5], block[6], block[7]] = to.dst.0;
    block[8] = ports(to);
    let written = if tcp {
        let Some([ack, flags]) = skb.near::<[u32; 2]>(PLAIN6 + 8) else { return false };
        block[9] = fourth;
        block[10] = ack;
        block[11] = flags;
        block[12] = sum.into();
        skb.store_part(ETH_LEN + 8, block, 50)
    } else {
        block[9] = fourth & 0xffff | u32::from(sum) << 16;
        skb.store_part(ETH_LEN + 8, block, 40)
    };
    written && hop(skb, packet, hops)
}

/// The checksum of the translated packet, for the place `AT` in the frame; `addrs`: the change of the addresses.
/// `None`: it could not be corrected.
///
/// Whether a sum is finished or holds that of the pseudo header only (the card, or nobody, finishes it) is known to
/// the kernel alone, so it corrects the sum for the addresses. What it made of it tells which kind it is: ports
/// count in a finished one only.
#[inline(always)]
fn checksum<const AT: u32>(skb: Skb, packet: &Packet, to: &Tuple, addrs: u32, mangled: u64) -> Option<u16> {
    let before = skb.near::<u16>(AT)?;
    if mangled != 0 && before == 0 {
        // UDP over IPv4 without a checksum stays so.
        return Some(0);
    }
    let fixed = if packet.v4 {
        skb.fix_l4(AT, addrs, F_PSEUDO | mangled)
    } else {
        skb.fix_l4_v6(AT, addrs, F_PSEUDO | mangled)
    };
    let after = skb.near::<u16>(AT)?;
    let ports = port_diff(&packet.tuple, to);
    let change = fold16(addrs.into());
    if !fixed || change % 0xffff == 0 {
        // It tells nothing.
        skb.fix_l4(AT, ports.fold(), mangled);
        return skb.near::<u16>(AT);
    }
    let partial = fold16(u64::from(before) + u64::from(change));
    // Zero has two forms.
    if after % 0xffff == partial % 0xffff {
        return Some(after);
    }
    let sum = ports.apply(after);
    Some(if mangled != 0 && sum == 0 { 0xffff } else { sum })
}

/// Ports and checksum, wherever they are.
#[inline(never)]
fn transport(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    let from = &packet.tuple;
    if from.proto == SCTP {
        // The sum (CRC32c, RFC 9260 section 6.8) covers the ports, but no address.
        return to.sport == from.sport && to.dport == from.dport;
    }
    let addrs = address_diff(from, to);
    // UDP over IPv4 without a checksum stays so.
    let (sum, mangled) =
        if packet.tuple.proto == TCP { (packet.l4 + 16, 0) } else { (packet.l4 + 6, F_MANGLED_0) };
    let fixed = if packet.v4 {
        skb.fix_l4(sum, addrs, F_PSEUDO | mangled)
    } else {
        skb.fix_l4_v6(sum, addrs, F_PSEUDO | mangled)
    };
    if !fixed || (to.sport == from.sport && to.dport == from.dport) {
        return fixed;
    }
    skb.fix_l4(sum, port_diff(from, to).fold(), mangled) && skb.store(packet.l4, &[to.sport, to.dport])
}

/// The IP header.
#[inline(always)]
fn addresses(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    if packet.v4 {
        skb.fix_l3(ETH_LEN + 10, address_diff(&packet.tuple, to))
            && skb.store(ETH_LEN + 12, &[to.src.as_v4(), to.dst.as_v4()])
    } else {
        skb.store(ETH_LEN + 8, &[to.src, to.dst])
    }
}

/// The time to live or the hop limit.
#[inline(always)]
fn hop(skb: Skb, packet: &Packet, hops: u8) -> bool {
    if hops == 0 {
        return true;
    }
    let ttl = packet.ttl.wrapping_sub(hops);
    if packet.v4 {
        // The byte's place in the sum: the low half of a little-endian 16-bit word.
        let diff = Diff::new().word(packet.ttl.into(), ttl.into()).fold();
        skb.store(ETH_LEN + 8, &ttl) && skb.fix_l3(ETH_LEN + 10, diff)
    } else {
        skb.store_unsummed(ETH_LEN + 7, ttl)
    }
}
