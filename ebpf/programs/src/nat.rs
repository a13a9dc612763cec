//! Translation of a packet from its tuple to another: headers and checksums, with offloads in mind.

use heddle_ebpf_common::{Addr, Tuple};

use crate::icmp;
use crate::packet::{Kind, Packet};
use crate::skb::{ETH_LEN, F_MANGLED_0, F_PSEUDO, Skb, TCP};

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

    /// As 32 bits, which the kernel's helpers take.
    #[inline(always)]
    pub fn fold(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }
}

/// Makes `packet` one of `to`, in the frame and in its description. False: the frame could not be written (it
/// is shorter than it was).
///
/// Never inlined: LLVM 22 breaks where both sides of a copy are known to be aligned to 16 bytes, as places on the
/// stack can be (`BPFInstrInfo::expandMEMCPY`).
#[inline(never)]
pub fn translate(skb: Skb, packet: &mut Packet, to: &Tuple) -> bool {
    if packet.tuple == *to {
        return true;
    }
    let done = if packet.kind == Kind::Error {
        icmp::translate(skb, packet, to)
    } else {
        (packet.kind == Kind::Later || transport(skb, packet, to)) && addresses(skb, packet, to)
    };
    packet.tuple = *to;
    done
}

/// The change of both addresses.
#[inline(always)]
pub fn address_diff(from: &Tuple, to: &Tuple) -> u32 {
    Diff::new().addr(&from.src, &to.src).addr(&from.dst, &to.dst).fold()
}

/// Ports and checksum.
#[inline(never)]
fn transport(skb: Skb, packet: &Packet, to: &Tuple) -> bool {
    let from = &packet.tuple;
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
    let ports = Diff::new().pair(from.sport, to.sport).pair(from.dport, to.dport).fold();
    skb.fix_l4(sum, ports, mangled) && skb.store(packet.l4, &[to.sport, to.dport])
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

/// One hop less. False: it was the last.
#[inline(always)]
pub fn decrement_ttl(skb: Skb, packet: &Packet) -> bool {
    if packet.ttl <= 1 {
        return false;
    }
    let ttl = packet.ttl - 1;
    if packet.v4 {
        // The byte's place in the sum: the low half of a little-endian 16-bit word.
        let diff = Diff::new().word(packet.ttl.into(), ttl.into()).fold();
        skb.store(ETH_LEN + 8, &ttl) && skb.fix_l3(ETH_LEN + 10, diff)
    } else {
        skb.store_unsummed(ETH_LEN + 7, ttl)
    }
}
