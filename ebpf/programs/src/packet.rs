//! What a packet is: its tuple, and where its headers lie. One form for both families.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use heddle_ebpf_common::{Addr, FragKey, FragPorts, Tuple};

use crate::icmp;
use crate::maps::FRAGS;
use crate::skb::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, ICMP, ICMP6, IP4_LEN, IP6_LEN, SCTP, Skb, TCP, UDP};

/// Extension headers looked at; a packet with more is dropped (RFC 8504 section 5.3 allows a limit).
const EXTENSIONS: u32 = 32;

pub const FIN: u8 = 1 << 0;
pub const SYN: u8 = 1 << 1;
pub const RST: u8 = 1 << 2;
pub const ACK: u8 = 1 << 4;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// With its transport header.
    Whole = 0,
    /// The first fragment: with its transport header, but the checksum counts the others too.
    First,
    /// Another fragment: the ports are those that its first one had.
    Later,
    /// An ICMP error. The tuple is that of the flow's packets in the direction in which the error travels, the
    /// reverse of what is quoted.
    Error,
}

#[derive(Clone, Copy)]
pub struct Packet {
    pub tuple: Tuple,
    /// Offset of the transport header from the start of the frame.
    pub l4: u32,
    /// Length of the IP packet by its own header.
    pub len: u32,
    pub frag_id: u32,
    pub kind: Kind,
    /// TCP: the flags and the header's length. SCTP: the flags that the first chunk amounts to.
    pub flags: u8,
    pub header: u8,
    pub ttl: u8,
    pub v4: bool,
    /// IPv4: "don't fragment" is set. IPv6: true.
    pub whole_only: bool,
    /// IPv6: where the number of the transport protocol stands, from the IP header on.
    pub next_at: u16,
    /// Where an answer goes that is made of this packet (`reject`): back by its device (0), to the node whose mesh
    /// request it is, by the tunnel, or to [`THIS_NODE`].
    pub from: u32,
}

/// In [`Packet::from`]: the packet was about to leave; this node has sent it.
pub const THIS_NODE: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// TCP, UDP or SCTP, or an error about them.
    Flow,
    /// Another protocol over IP, or an ICMP question: with addresses, but no service's.
    Protocol,
    /// Something else, none of our business.
    Other,
    Malformed,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ip4 {
    /// Version, header length, type of service; length.
    first: u32,
    /// Identification; fragment.
    second: u32,
    /// Time to live, protocol; checksum.
    third: u32,
    src: u32,
    dst: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ip6 {
    /// Version, traffic class, flow label.
    first: u32,
    /// Payload length, next header, hop limit.
    second: u32,
    src: [u32; 4],
    dst: [u32; 4],
}

impl Packet {
    /// The frame that starts at offset 0.
    #[inline(never)]
    pub fn parse(&mut self, skb: Skb) -> Parsed {
        self.kind = Kind::Whole;
        self.flags = 0;
        self.header = 0;
        self.from = 0;
        self.tuple.sport = 0;
        self.tuple.dport = 0;
        self.tuple.zero = [0; 3];
        let protocol = skb.protocol() as u16;
        let parsed = if protocol == ETH_P_IP {
            self.parse4(skb)
        } else if protocol == ETH_P_IPV6 {
            self.parse6(skb)
        } else {
            Parsed::Other
        };
        if parsed == Parsed::Flow { self.transport(skb) } else { parsed }
    }

    #[inline(always)]
    fn parse4(&mut self, skb: Skb) -> Parsed {
        let Some(ip) = skb.at::<Ip4>(ETH_LEN) else { return Parsed::Malformed };
        let header = (ip.first & 0xf) * 4;
        self.len = length((ip.first >> 16) as u16, 0, skb);
        if ip.first >> 4 & 0xf != 4 || header < IP4_LEN || self.len < header || self.len > skb.len() - ETH_LEN
        {
            return Parsed::Malformed;
        }
        self.v4 = true;
        self.ttl = ip.third as u8;
        self.l4 = ETH_LEN + header;
        self.tuple.src = Addr::v4(ip.src);
        self.tuple.dst = Addr::v4(ip.dst);
        self.tuple.proto = (ip.third >> 8) as u8;
        let fragment = ((ip.second >> 16) as u16).swap_bytes();
        self.whole_only = fragment & 0x4000 != 0;
        self.frag_id = ip.second & 0xffff;
        if fragment & 0x1fff != 0 {
            self.kind = Kind::Later;
        } else if fragment & 0x2000 != 0 {
            self.kind = Kind::First;
        }
        Parsed::Flow
    }

    #[inline(always)]
    fn parse6(&mut self, skb: Skb) -> Parsed {
        let Some(ip) = skb.at::<Ip6>(ETH_LEN) else { return Parsed::Malformed };
        self.len = length(ip.second as u16, IP6_LEN, skb);
        if ip.first >> 4 & 0xf != 6 || self.len > skb.len() - ETH_LEN {
            return Parsed::Malformed;
        }
        self.v4 = false;
        self.whole_only = true;
        self.frag_id = 0;
        self.ttl = (ip.second >> 24) as u8;
        self.tuple.src = Addr(ip.src);
        self.tuple.dst = Addr(ip.dst);
        self.l4 = ETH_LEN + IP6_LEN;
        self.next_at = 6;
        let next = (ip.second >> 16) as u8;
        self.tuple.proto = next;
        if is_extension(next) { extensions(self, skb) } else { Parsed::Flow }
    }

    /// Ports and flags.
    #[inline(always)]
    fn transport(&mut self, skb: Skb) -> Parsed {
        let proto = self.tuple.proto;
        if proto == TCP || proto == UDP || proto == SCTP {
            if self.kind == Kind::Later {
                return if self.ports_of_first() { Parsed::Flow } else { Parsed::Other };
            }
        } else if (proto == ICMP && self.v4 || proto == ICMP6 && !self.v4) && self.kind == Kind::Whole {
            return icmp::parse(self, skb);
        } else {
            return if proto == ICMP || proto == ICMP6 { Parsed::Other } else { Parsed::Protocol };
        }
        // Constant offsets are read straight from the packet.
        let words: Option<[u32; 2]> = match self.l4 {
            34 => skb.at(34),
            54 => skb.at(54),
            other => skb.load(other),
        };
        let Some([ports, second]) = words else { return Parsed::Malformed };
        self.tuple.sport = ports as u16;
        self.tuple.dport = (ports >> 16) as u16;
        let inside = self.len + ETH_LEN - self.l4;
        if proto == UDP {
            self.header = 8;
            let len = u32::from((second as u16).swap_bytes());
            // 0 over IPv6: a jumbogram, or a lie.
            if len < 8 || inside < 8 || (self.kind == Kind::Whole && len > inside) {
                return Parsed::Malformed;
            }
            return Parsed::Flow;
        }
        if proto == SCTP {
            return self.chunk(skb, inside);
        }
        let words: Option<[u8; 8]> = match self.l4 {
            34 => skb.at(34 + 12),
            54 => skb.at(54 + 12),
            other => skb.load(other + 12),
        };
        let Some(bytes) = words else { return Parsed::Malformed };
        self.flags = bytes[1];
        self.header = (bytes[0] >> 4) * 4;
        if self.header < 20 || u32::from(self.header) > inside {
            return Parsed::Malformed;
        }
        Parsed::Flow
    }

    /// SCTP (RFC 9260 section 3): what the first chunk says, in the flags of TCP.
    #[inline(always)]
    fn chunk(&mut self, skb: Skb, inside: u32) -> Parsed {
        self.header = 12;
        if inside < 16 {
            return Parsed::Malformed;
        }
        let Some(kind) = skb.load::<u8>(self.l4 + 12) else { return Parsed::Malformed };
        self.flags = match kind {
            1 => SYN,
            6 => RST,
            // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
            7 | 8 | 14 => FIN,
            _ => ACK,
        };
        Parsed::Flow
    }

    fn frag_key(&self) -> FragKey {
        FragKey {
            src: self.tuple.src,
            dst: self.tuple.dst,
            id: self.frag_id,
            proto: self.tuple.proto,
            zero: [0; 3],
        }
    }

    #[inline(always)]
    fn ports_of_first(&mut self) -> bool {
        // SAFETY: copied at once; a value of another datagram finds another flow or none.
        let Some(ports) = (unsafe { FRAGS.get(self.frag_key()) }).copied() else { return false };
        self.tuple.sport = ports.sport;
        self.tuple.dport = ports.dport;
        true
    }

    /// Keeps the ports for the fragments that follow. Only those of flows that we translate; a fragment that
    /// overtakes its first one is lost with its datagram.
    #[inline(always)]
    pub fn note_fragment(&self) {
        if self.kind == Kind::First {
            let ports = FragPorts { sport: self.tuple.sport, dport: self.tuple.dport };
            let _ = FRAGS.insert(self.frag_key(), ports, 0);
        }
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.tuple.proto == TCP
    }

    /// Of a protocol with connections, which cannot move from one backend to another.
    #[inline(always)]
    pub fn is_connected(&self) -> bool {
        self.tuple.proto == TCP || self.tuple.proto == SCTP
    }

    /// A TCP segment (SCTP chunk) that asks for a new connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST) == SYN
    }

    /// A TCP segment that goes to and fro in a connection that stands, or a fragment of one.
    #[inline(always)]
    pub fn is_segment(&self) -> bool {
        self.is_tcp() && self.flags & (SYN | RST) == 0 && self.kind != Kind::Error
    }

    /// The largest IP packet that this one is or will be cut into (segmentation offload).
    #[inline(always)]
    pub fn largest(&self, skb: Skb) -> u32 {
        let segment = skb.gso_size();
        if segment == 0 { self.len } else { self.l4 - ETH_LEN + u32::from(self.header) + segment }
    }
}

/// The length of an IP packet by its own header (`header`: what the field leaves out). Of one that is longer than the
/// field can say (BIG TCP; the kernel's own, still to be cut into segments) the field says 0.
#[inline(always)]
fn length(field: u16, header: u32, skb: Skb) -> u32 {
    if field == 0 && skb.gso_size() != 0 {
        return skb.len() - ETH_LEN;
    }
    u32::from(field.swap_bytes()) + header
}

/// Hop-by-hop, routing, fragment, destination options. (What is behind an authentication header, RFC 4302, cannot be
/// translated.)
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 60)
}

/// Walks the extension headers. Apart from the rest, for it is rare; `bpf_loop`, for it is long.
#[inline(never)]
fn extensions(packet: &mut Packet, skb: Skb) -> Parsed {
    let mut walk = Walk { skb, at: packet.l4, next: packet.tuple.proto, end: WALKING, packet };
    // SAFETY: `extension` is called with this very pointer, while `walk` lives.
    unsafe { bpf_loop(EXTENSIONS, extension as *mut c_void, (&raw mut walk).cast(), 0) };
    match walk.end {
        FLOW => Parsed::Flow,
        OTHER => Parsed::Other,
        _ => Parsed::Malformed,
    }
}

struct Walk<'a> {
    packet: &'a mut Packet,
    skb: Skb,
    at: u32,
    next: u8,
    /// What the walk has come to.
    end: u8,
}

const WALKING: u8 = 0;
const FLOW: u8 = 1;
const OTHER: u8 = 2;
const MALFORMED: u8 = 3;

extern "C" fn extension(_: u32, walk: *mut Walk<'_>) -> i64 {
    // SAFETY: `extensions` passes its own, exclusively.
    let walk = unsafe { &mut *walk };
    walk.end = step(walk);
    i64::from(walk.end != WALKING)
}

#[inline(always)]
fn step(walk: &mut Walk<'_>) -> u8 {
    let Some([after, len, _, segments]) = walk.skb.load::<[u8; 4]>(walk.at) else { return MALFORMED };
    let packet = &mut *walk.packet;
    packet.next_at = (walk.at - ETH_LEN) as u16;
    if walk.next == 44 {
        let Some([offset, id]) = walk.skb.load::<[u32; 2]>(walk.at) else { return MALFORMED };
        let offset = ((offset >> 16) as u16).swap_bytes();
        packet.frag_id = id;
        walk.at += 8;
        if offset & 0xfff8 != 0 {
            packet.kind = Kind::Later;
            packet.tuple.proto = after;
            packet.l4 = walk.at;
            return if walk.at > packet.len + ETH_LEN { MALFORMED } else { FLOW };
        }
        if offset & 1 != 0 {
            packet.kind = Kind::First;
        }
    } else if walk.next == 43 && segments != 0 {
        // The address is that of a stop on the way (RFC 8200 section 4.4).
        return OTHER;
    } else {
        walk.at += (u32::from(len) + 1) * 8;
    }
    if walk.at > packet.len + ETH_LEN {
        return MALFORMED;
    }
    walk.next = after;
    if is_extension(after) {
        return WALKING;
    }
    packet.tuple.proto = after;
    packet.l4 = walk.at;
    FLOW
}
