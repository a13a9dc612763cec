//! Answers made out of the packet itself, sent back the way it came: TCP RST, ICMP unreachable, ICMP too big.

use heddle_ebpf_common::{Addr, Config, Counter, MESH_REPLY};

use crate::events;
use crate::icmp;
use crate::maps::{self, config, count};
use crate::out::{REPLY, as_if_from, into_tunnel, mac_of, send_back};
use crate::packet::{ACK, FIN, Kind, Packet, RST, SYN, THIS_NODE};
use crate::skb::{ETH_LEN, IP4_LEN, IP6_LEN, Skb, TCP};

const TTL: u8 = 64;
/// How much of an IPv4 packet an error quotes: a header without options and 8 bytes (RFC 792). Where there is more, as
/// much as of an IPv6 packet: SCTP wants to see the tag of its INIT.
const QUOTE4: u32 = 28;
const QUOTE6: u32 = 48;

/// Nobody serves this: the client learns it at once.
#[inline(never)]
pub fn unreachable(skb: Skb, packet: &Packet, reason: Counter) -> i32 {
    // A RST is never answered (RFC 9293 section 3.5.2).
    if (packet.kind != Kind::Whole && packet.kind != Kind::First) || packet.flags & RST != 0 {
        return skb.drop(Counter::DropNoFlow);
    }
    count(reason);
    events::rejected(skb, reason);
    if packet.is_tcp() {
        return reset(skb, packet);
    }
    if packet.is_connected() {
        return protocol_error(skb, packet);
    }
    // Destination unreachable, port unreachable.
    let head = if packet.v4 { [3, 3, 0, 0] } else { [1, 4, 0, 0] };
    error(skb, packet, u32::from_ne_bytes(head), 0)
}

/// The address is a service's, and no service speaks this protocol.
#[inline(never)]
pub fn protocol(skb: Skb, packet: &Packet) -> i32 {
    if packet.kind != Kind::Whole {
        return skb.drop(Counter::DropNoFlow);
    }
    count(Counter::RejectUndefined);
    events::rejected(skb, Counter::RejectUndefined);
    protocol_error(skb, packet)
}

/// Protocol unreachable (RFC 792); unrecognized next header, and where that stands (RFC 4443 section 3.4). An SCTP
/// association ends by it (RFC 9260 section 10); nobody here computes the CRC32c of an ABORT.
#[inline(always)]
fn protocol_error(skb: Skb, packet: &Packet) -> i32 {
    let (head, rest) =
        if packet.v4 { ([3, 2, 0, 0], 0) } else { ([4, 1, 0, 0], u32::from(packet.next_at).to_be()) };
    error(skb, packet, u32::from_ne_bytes(head), rest)
}

/// The packet does not fit the way it would have to go.
#[inline(never)]
pub fn too_big(skb: Skb, packet: &Packet, mtu: u32) -> i32 {
    if packet.kind == Kind::Error || packet.kind == Kind::Later {
        return skb.drop(Counter::DropNoRoute);
    }
    count(Counter::TooBig);
    // Fragmentation needed (RFC 1191 section 4); packet too big (RFC 4443 section 3.2).
    let head = if packet.v4 { [3, 4, 0, 0] } else { [2, 0, 0, 0] };
    error(skb, packet, u32::from_ne_bytes(head), mtu.to_be())
}

/// Ones' complement sums, as the headers hold them.
struct Sum(u64);

impl Sum {
    #[inline(always)]
    fn words<const N: usize>(self, words: &[u32; N]) -> Self {
        let mut sum = self.0;
        for word in words {
            sum += u64::from(*word);
        }
        Self(sum)
    }

    /// The pseudo header of `src` to `dst`.
    #[inline(always)]
    fn pseudo(src: &Addr, dst: &Addr, v4: bool, proto: u8, len: u32) -> Self {
        let sum = Self(u64::from(len.to_be()) + u64::from(u32::from(proto).to_be()));
        if v4 { sum.words(&[src.as_v4(), dst.as_v4()]) } else { sum.words(&src.0).words(&dst.0) }
    }

    #[inline(always)]
    fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }
}

/// Writes the IP header of an answer with `len` bytes after it.
#[inline(never)]
fn ip_header(skb: Skb, packet: &Packet, proto: u8, len: u32) -> bool {
    let (src, dst) = (&packet.tuple.dst, &packet.tuple.src);
    if packet.v4 {
        let total = (IP4_LEN + len) as u16;
        let mut header = [
            u32::from_ne_bytes([0x45, 0, (total >> 8) as u8, total as u8]),
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([TTL, proto, 0, 0]),
            src.as_v4(),
            dst.as_v4(),
        ];
        let sum = !Sum(0).words(&header).fold();
        header[2] |= u32::from(sum) << 16;
        skb.store(ETH_LEN, &header)
    } else {
        let header = [
            u32::from_ne_bytes([0x60, 0, 0, 0]),
            u32::from_ne_bytes([(len >> 8) as u8, len as u8, proto, TTL]),
            src.0[0],
            src.0[1],
            src.0[2],
            src.0[3],
            dst.0[0],
            dst.0[1],
            dst.0[2],
            dst.0[3],
        ];
        skb.store(ETH_LEN, &header)
    }
}

/// Sends what the frame is now.
#[inline(never)]
fn answer(skb: Skb, packet: &Packet) -> i32 {
    let from = packet.from;
    if from == THIS_NODE {
        return as_if_from(skb, skb.ifindex());
    }
    if from != 0 {
        let Some(config) = config() else { return skb.drop(Counter::DropNoOverlay) };
        return answer_by_tunnel(skb, from, config);
    }
    let Some([a, b, c, d, e, f]) = skb.load::<[u16; 6]>(0) else { return skb.drop(Counter::DropMalformed) };
    if !skb.store(0, &[d, e, f, a, b, c]) {
        return skb.drop(Counter::DropMalformed);
    }
    send_back(skb)
}

#[inline(always)]
fn answer_by_tunnel(skb: Skb, from: u32, config: &Config) -> i32 {
    let Some(mac) = mac_of(from, config) else { return skb.drop(Counter::DropNoOverlay) };
    into_tunnel(skb, mac, MESH_REPLY, REPLY, config)
}

/// RFC 9293 section 3.5.2: what would be accepted at the other end.
#[inline(never)]
fn reset(skb: Skb, packet: &Packet) -> i32 {
    let Some([seq, ack]) = skb.load::<[u32; 2]>(packet.l4 + 4) else {
        return skb.drop(Counter::DropMalformed);
    };
    let (seq, ack, flags) = if packet.flags & ACK != 0 {
        (ack, 0, RST)
    } else {
        let data = packet.len + ETH_LEN - packet.l4 - u32::from(packet.header);
        let control = u32::from(packet.flags & SYN != 0) + u32::from(packet.flags & FIN != 0);
        (0, u32::from_be(seq).wrapping_add(data + control).to_be(), RST | ACK)
    };
    let ip = if packet.v4 { IP4_LEN } else { IP6_LEN };
    let l4 = ETH_LEN + ip;
    if !skb.resize(l4 + 20) || !ip_header(skb, packet, TCP, 20) {
        return skb.drop(Counter::DropMalformed);
    }
    let ports = u32::from(packet.tuple.dport) | u32::from(packet.tuple.sport) << 16;
    let mut segment = [ports, seq, ack, u32::from_ne_bytes([0x50, flags, 0, 0]), 0];
    let (src, dst) = (&packet.tuple.dst, &packet.tuple.src);
    let pseudo = Sum::pseudo(src, dst, packet.v4, TCP, 20);
    // Whoever finishes the checksum (a card, or nobody: the peer is a pod) wants the sum of the pseudo header
    // there. Whether it is to be finished shows only in what the kernel does to a sum.
    segment[4] = 0;
    if !skb.store(l4, &segment) {
        return skb.drop(Counter::DropMalformed);
    }
    let partial =
        skb.fix_l4(l4 + 16, 1, 0) && skb.load::<u16>(l4 + 16).is_some_and(|sum| sum == 0) && packet.l4 == l4;
    let sum = if partial { pseudo.fold() } else { !pseudo.words(&segment).fold() };
    if !skb.store(l4 + 16, &sum) {
        return skb.drop(Counter::DropMalformed);
    }
    answer(skb, packet)
}

/// An ICMP error with the first words `head` and `rest`, which quotes the packet.
#[inline(always)]
fn error(skb: Skb, packet: &Packet, head: u32, rest: u32) -> i32 {
    if packet.v4 && packet.len < QUOTE6 {
        quote::<{ QUOTE4 as usize / 4 }>(skb, packet, head, rest)
    } else {
        quote::<{ QUOTE6 as usize / 4 }>(skb, packet, head, rest)
    }
}

/// `N`: how many words are quoted.
#[inline(never)]
fn quote<const N: usize>(skb: Skb, packet: &Packet, head: u32, rest: u32) -> i32 {
    let proto = icmp::proto(packet.v4);
    let (ip, quoted) = (if packet.v4 { IP4_LEN } else { IP6_LEN }, 4 * N as u32);
    let l4 = ETH_LEN + ip;
    let Some(quote) = maps::quote().and_then(|buffer| buffer.first_chunk_mut::<N>()) else {
        return skb.drop(Counter::DropMalformed);
    };
    if !skb.load_words(ETH_LEN, quote) {
        return skb.drop(Counter::DropMalformed);
    }
    let len = 8 + quoted;
    if !skb.resize(l4 + len) || !ip_header(skb, packet, proto, len) {
        return skb.drop(Counter::DropMalformed);
    }
    let sum =
        if packet.v4 { Sum(0) } else { Sum::pseudo(&packet.tuple.dst, &packet.tuple.src, false, proto, len) };
    let sum = !sum.words(&[head, rest]).words(quote).fold();
    if !skb.store(l4, &[head | u32::from(sum) << 16, rest]) || !skb.store(l4 + 8, quote) {
        return skb.drop(Counter::DropMalformed);
    }
    answer(skb, packet)
}
