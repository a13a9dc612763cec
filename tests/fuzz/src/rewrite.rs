//! What a translated packet looks like. Nothing is computed as the programs do it: the addresses and ports are
//! written, and then each checksum is carried over from the sum of all that it covers before to the sum after. So a
//! right one stays right, and a wrong one as wrong as it was.

use heddle_ebpf_common::{Addr, Tuple};

use crate::place::bytes16;
use crate::wire::{ETH, ICMP6, Kind, Packet, SCTP, SYN, UDP, addr4, addr6};

/// TCP options that are looked at for the MSS.
const OPTIONS: usize = 8;

/// A frame, and where in it stand checksums in which 0 and 0xffff mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub loose: Vec<usize>,
}

impl Frame {
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, loose: Vec::new() }
    }

    /// Is this what came out?
    pub fn is(&self, seen: &[u8]) -> bool {
        if self.bytes == seen {
            return true;
        }
        let mut bytes = self.bytes.clone();
        for at in &self.loose {
            if let Some(sum) = bytes.get_mut(*at..at + 2)
                && (sum == [0, 0] || sum == [0xff, 0xff])
                && seen.get(*at..at + 2).is_some_and(|seen| seen == [0, 0] || seen == [0xff, 0xff])
            {
                sum.copy_from_slice(&seen[*at..at + 2]);
            }
        }
        bytes == seen
    }
}

/// The ones' complement sum (RFC 1071).
pub fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(2);
    let mut sum: u64 = chunks.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    if let [last] = chunks.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header, without the length, which never changes.
pub fn pseudo(src: Addr, dst: Addr, proto: u8) -> u64 {
    // The words of a mapped address that an IPv4 header has not are the same before and after.
    sum(&bytes16(src)) + sum(&bytes16(dst)) + u64::from(proto)
}

/// The checksum at `at`, whose cover summed up to `before` (itself counted as 0) and now to `after`.
fn carry(frame: &mut [u8], at: usize, before: u64, after: u64) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    // ~new = ~old - before + after.
    let new = !fold(u64::from(!old) + u64::from(!fold(before)) + u64::from(fold(after)));
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

/// `sum` without the two bytes at `at`.
fn sum_without(bytes: &[u8], at: usize) -> u64 {
    sum(&bytes[..at]) + sum(&bytes[at + 2..])
}

fn put_addr(frame: &mut [u8], at: usize, addr: Addr, v4: bool) {
    if v4 {
        frame[at..at + 4].copy_from_slice(&addr.as_v4().to_ne_bytes());
    } else {
        frame[at..at + 16].copy_from_slice(&bytes16(addr));
    }
}

fn put_ports(frame: &mut [u8], at: usize, first: u16, second: u16) {
    frame[at..at + 2].copy_from_slice(&first.to_ne_bytes());
    frame[at + 2..at + 4].copy_from_slice(&second.to_ne_bytes());
}

/// Source and destination of the IP header at `at`.
fn ends(frame: &[u8], at: usize, v4: bool) -> [Addr; 2] {
    if v4 {
        [addr4(frame, at + 12), addr4(frame, at + 16)]
    } else {
        [addr6(frame, at + 8), addr6(frame, at + 24)]
    }
}

fn put_ends(frame: &mut [u8], at: usize, [src, dst]: [Addr; 2], v4: bool) {
    let (first, second) = if v4 { (12, 16) } else { (8, 24) };
    put_addr(frame, at + first, src, v4);
    put_addr(frame, at + second, dst, v4);
}

/// Where the transport checksum is, from the transport header's start.
fn sum_at(packet: &Packet) -> usize {
    match packet.kind {
        Kind::Error { .. } => 2,
        _ if packet.tuple.proto == UDP => 6,
        _ => 16,
    }
}

/// `packet` of `frame` with the tuple `to`, an MSS of at most `mss` and `hops` fewer hops to live. `None`: it cannot be
/// translated (an error that is not for the flow's end).
pub fn translated(frame: &[u8], packet: &Packet, to: &Tuple, mss: u32, hops: u8) -> Option<Frame> {
    let v4 = packet.v4;
    let mut out = Frame::of(frame.to_vec());
    let bytes = &mut out.bytes;
    if mss != 0 && mss < 0xffff && packet.is_tcp() && packet.kind == Kind::Whole && packet.flags & SYN != 0 {
        clamp(bytes, packet, mss as u16);
    }
    let old = ends(frame, ETH, v4);
    match packet.kind {
        Kind::Error { quoted, ports } => {
            // A packet that stays as it is need not be for the flow's end.
            if packet.tuple != *to {
                if old[1] != packet.tuple.dst {
                    return None;
                }
                let src = if old[0] == packet.tuple.src { to.src } else { old[0] };
                put_ends(bytes, ETH, [src, to.dst], v4);
                put_ends(bytes, quoted, [to.dst, to.src], v4);
                put_ports(bytes, ports, to.dport, to.sport);
                if v4 {
                    carry_header(bytes, frame, quoted);
                    out.loose.push(quoted + 10);
                }
            }
        }
        _ => {
            put_ends(bytes, ETH, [to.src, to.dst], v4);
            if packet.kind != Kind::Later {
                put_ports(bytes, packet.l4, to.sport, to.dport);
            }
        }
    }
    bytes[if v4 { ETH + 8 } else { ETH + 7 }] -= hops;
    if v4 {
        carry_header(bytes, frame, ETH);
        out.loose.push(ETH + 10);
    }
    let new = ends(bytes, ETH, v4);
    // SCTP's covers no address (RFC 9260 section 6.8), and its ports are never changed.
    if packet.kind != Kind::Later && (packet.is_error() || packet.tuple.proto != SCTP) {
        carry_transport(&mut out, frame, packet, old, new);
    }
    Some(out)
}

/// The checksum of the IPv4 header at `at`.
fn carry_header(bytes: &mut [u8], before: &[u8], at: usize) {
    let end = at + usize::from(before[at] & 0xf) * 4;
    let end = end.min(before.len());
    let (old, new) = (sum_without(&before[at..end], 10), sum_without(&bytes[at..end], 10));
    carry(bytes, at + 10, old, new);
}

fn carry_transport(out: &mut Frame, before: &[u8], packet: &Packet, old: [Addr; 2], new: [Addr; 2]) {
    let (at, region) = (sum_at(packet), packet.l4..packet.end);
    let error = packet.is_error();
    let udp = !error && packet.is_udp();
    let place = packet.l4 + at;
    if udp && before[place..place + 2] == [0, 0] {
        return;
    }
    let cover = |bytes: &[u8], [src, dst]: [Addr; 2]| {
        // ICMP over IPv4 has no pseudo header.
        let pseudo = if error && packet.v4 { 0 } else { pseudo(src, dst, ICMP6) };
        pseudo + sum_without(&bytes[region.clone()], at)
    };
    let (old, new) = (cover(before, old), cover(&out.bytes, new));
    carry(&mut out.bytes, place, old, new);
    if udp && out.bytes[place..place + 2] == [0, 0] {
        // 0 would mean: none.
        out.bytes[place..place + 2].fill(0xff);
    } else if !udp {
        out.loose.push(place);
    }
}

/// Lowers the MSS that a SYN names.
fn clamp(bytes: &mut [u8], packet: &Packet, most: u16) {
    let end = packet.l4 + packet.header;
    let mut at = packet.l4 + 20;
    for _ in 0..OPTIONS {
        if at >= end || bytes[at] == 0 {
            return;
        }
        if bytes[at] == 1 {
            at += 1;
            continue;
        }
        let Some(&len) = bytes.get(at + 1) else { return };
        if bytes[at] == 2 {
            if len == 4 && at + 4 <= end {
                let mss = u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]).min(most);
                bytes[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
            }
            return;
        }
        if len < 2 {
            return;
        }
        at += usize::from(len);
    }
}
