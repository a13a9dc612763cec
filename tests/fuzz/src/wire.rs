//! What a frame is, by the RFCs: the model's own reading of it.

use heddle_ebpf_common::{Addr, FragKey, Tuple};

pub const ETH: usize = 14;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Extension headers that are walked through; a packet with more is malformed to us (RFC 8504 section 5.3).
const EXTENSIONS: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not a flow's: none of our business.
    Foreign,
    Malformed,
    Flow(Packet),
    /// Something else over IP than what services speak, to an address that may be a service's.
    Protocol(Packet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Whole,
    First,
    Later,
    /// An ICMP error. The quoted IP header starts at `quoted`, the ports that are quoted at `ports`.
    Error {
        quoted: usize,
        ports: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub v4: bool,
    /// Of an error: that of the flow's packets in the direction in which the error travels.
    pub tuple: Tuple,
    pub kind: Kind,
    /// Where the transport header starts, and where the IP packet ends, in the frame.
    pub l4: usize,
    pub end: usize,
    pub ttl: u8,
    /// Routers may not cut it.
    pub whole_only: bool,
    pub frag_id: u32,
    /// IPv6: where the number of the transport protocol stands, from the IP header on.
    pub next_at: usize,
    /// TCP; of SCTP, what the first chunk comes to.
    pub flags: u8,
    /// Bytes of the transport header.
    pub header: usize,
}

/// The bytes at `at`, if they lie before `end`.
fn bytes<const N: usize>(frame: &[u8], at: usize, end: usize) -> Option<[u8; N]> {
    frame.get(..end)?.get(at..at + N)?.try_into().ok()
}

pub fn be16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

pub fn addr4(frame: &[u8], at: usize) -> Addr {
    Addr::v4(u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]))
}

pub fn addr6(frame: &[u8], at: usize) -> Addr {
    Addr([0, 4, 8, 12].map(|i| u32::from_ne_bytes(frame[at + i..at + i + 4].try_into().expect("four"))))
}

impl Packet {
    pub fn is_tcp(&self) -> bool {
        self.tuple.proto == TCP
    }

    pub fn is_udp(&self) -> bool {
        self.tuple.proto == UDP
    }

    pub fn is_error(&self) -> bool {
        matches!(self.kind, Kind::Error { .. })
    }

    /// Of a protocol with connections, which cannot move.
    pub fn is_connected(&self) -> bool {
        self.is_tcp() || self.tuple.proto == SCTP
    }

    /// Of a TCP connection that stands: it neither begins nor answers nor breaks off one.
    pub fn is_segment(&self) -> bool {
        self.is_tcp() && self.flags & (SYN | RST) == 0 && !self.is_error()
    }

    /// Asks for a connection.
    pub fn is_syn(&self) -> bool {
        self.is_connected() && self.flags & (SYN | ACK | RST) == SYN
    }

    /// Bytes of the IP packet.
    pub fn size(&self) -> usize {
        self.end - ETH
    }

    pub fn frag_key(&self) -> FragKey {
        FragKey {
            src: self.tuple.src,
            dst: self.tuple.dst,
            id: self.frag_id,
            proto: self.tuple.proto,
            zero: [0; 3],
        }
    }
}

/// Reads a frame. `big`: it is still to be cut into segments, and may be longer than its header can say (BIG TCP: it
/// says 0 then). `ports`: those of the first fragment of a datagram, if they are known.
pub fn read(frame: &[u8], big: bool, ports: impl FnOnce(&FragKey) -> Option<[u16; 2]>) -> Seen {
    match be16(frame, 12) {
        0x0800 => read4(frame, big),
        0x86dd => read6(frame, big),
        _ => Ok(None),
    }
    .map_or(Seen::Malformed, |packet| packet.map_or(Seen::Foreign, |packet| transport(frame, packet, ports)))
}

/// What is wrong with the packet is nobody's interest.
struct Malformed;

type Read = Result<Option<Packet>, Malformed>;

fn read4(frame: &[u8], big: bool) -> Read {
    let ip: [u8; 20] = bytes(frame, ETH, frame.len()).ok_or(Malformed)?;
    let header = usize::from(ip[0] & 0xf) * 4;
    let total = match usize::from(be16(&ip, 2)) {
        0 if big => frame.len() - ETH,
        total => total,
    };
    if ip[0] >> 4 != 4 || header < 20 || total < header || ETH + total > frame.len() {
        return Err(Malformed);
    }
    let fragment = be16(&ip, 6);
    let kind = match fragment {
        _ if fragment & 0x1fff != 0 => Kind::Later,
        _ if fragment & 0x2000 != 0 => Kind::First,
        _ => Kind::Whole,
    };
    Ok(Some(Packet {
        v4: true,
        tuple: Tuple { src: addr4(&ip, 12), dst: addr4(&ip, 16), proto: ip[9], ..Tuple::default() },
        kind,
        l4: ETH + header,
        end: ETH + total,
        ttl: ip[8],
        whole_only: fragment & 0x4000 != 0,
        frag_id: u16::from_ne_bytes([ip[4], ip[5]]).into(),
        next_at: 0,
        flags: 0,
        header: 0,
    }))
}

fn read6(frame: &[u8], big: bool) -> Read {
    let ip: [u8; 40] = bytes(frame, ETH, frame.len()).ok_or(Malformed)?;
    let end = match usize::from(be16(&ip, 4)) {
        0 if big => frame.len(),
        len => ETH + 40 + len,
    };
    if ip[0] >> 4 != 6 || end > frame.len() {
        return Err(Malformed);
    }
    let mut packet = Packet {
        v4: false,
        tuple: Tuple { src: addr6(&ip, 8), dst: addr6(&ip, 24), proto: ip[6], ..Tuple::default() },
        kind: Kind::Whole,
        l4: ETH + 40,
        end,
        ttl: ip[7],
        whole_only: true,
        frag_id: 0,
        next_at: 6,
        flags: 0,
        header: 0,
    };
    let mut walked = 0;
    // Hop-by-hop, routing, fragment, destination options. What is behind an authentication header must not be changed.
    while matches!(packet.tuple.proto, 0 | 43 | 44 | 60) {
        if walked == EXTENSIONS {
            return Err(Malformed);
        }
        walked += 1;
        let at = packet.l4;
        let [next, len, _, segments] = bytes(frame, at, frame.len()).ok_or(Malformed)?;
        packet.next_at = at - ETH;
        packet.l4 += match packet.tuple.proto {
            44 => {
                let field: [u8; 8] = bytes(frame, at, end).ok_or(Malformed)?;
                packet.frag_id = u32::from_ne_bytes([field[4], field[5], field[6], field[7]]);
                let offset = be16(&field, 2);
                if offset & 0xfff8 != 0 {
                    packet.kind = Kind::Later;
                } else if offset & 1 != 0 {
                    packet.kind = Kind::First;
                }
                8
            }
            // To a stop on its way (RFC 8200 section 4.4), whole or not: nobody's interest here.
            43 if segments != 0 => return Ok(None),
            _ => (usize::from(len) + 1) * 8,
        };
        if packet.l4 > end {
            return Err(Malformed);
        }
        packet.tuple.proto = next;
        if packet.kind == Kind::Later {
            break;
        }
    }
    if packet.l4 > end { Err(Malformed) } else { Ok(Some(packet)) }
}

fn transport(frame: &[u8], mut packet: Packet, ports: impl FnOnce(&FragKey) -> Option<[u16; 2]>) -> Seen {
    let icmp = if packet.v4 { ICMP } else { ICMP6 };
    let proto = packet.tuple.proto;
    if packet.kind == Kind::Whole && proto == icmp {
        return error(frame, packet);
    }
    if !matches!(proto, TCP | UDP | SCTP) {
        let icmp = matches!(proto, ICMP | ICMP6);
        return if icmp { Seen::Foreign } else { Seen::Protocol(packet) };
    }
    if packet.kind == Kind::Later {
        // Of a datagram that we have translated, or none of our business.
        let Some([sport, dport]) = ports(&packet.frag_key()) else { return Seen::Foreign };
        (packet.tuple.sport, packet.tuple.dport) = (sport, dport);
        return Seen::Flow(packet);
    }
    let inside = packet.end - packet.l4;
    let l4 = &frame[packet.l4..packet.end];
    let least = match proto {
        TCP => 20,
        // With the first chunk.
        SCTP => 16,
        _ => 8,
    };
    if l4.len() < least {
        return Seen::Malformed;
    }
    packet.tuple.sport = u16::from_ne_bytes([l4[0], l4[1]]);
    packet.tuple.dport = u16::from_ne_bytes([l4[2], l4[3]]);
    let sound = if proto == TCP {
        packet.flags = l4[13];
        packet.header = usize::from(l4[12] >> 4) * 4;
        (20..=inside).contains(&packet.header)
    } else if proto == SCTP {
        packet.header = 12;
        // RFC 9260 section 3.2: INIT; ABORT; SHUTDOWN, its acknowledgement, its end; the rest is a connection's.
        packet.flags = match l4[12] {
            1 => SYN,
            6 => RST,
            7 | 8 | 14 => FIN,
            _ => ACK,
        };
        true
    } else {
        packet.header = 8;
        let len = usize::from(be16(l4, 4));
        len >= 8 && (packet.kind == Kind::First || len <= inside)
    };
    if sound { Seen::Flow(packet) } else { Seen::Malformed }
}

/// ICMP: an error about a flow, or none of our business.
fn error(frame: &[u8], packet: Packet) -> Seen {
    let Some([kind]) = bytes(frame, packet.l4, packet.end) else { return Seen::Malformed };
    let wanted = if packet.v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) };
    if !wanted {
        // A question: nobody is there to answer it.
        let echo = kind == if packet.v4 { 8 } else { 128 };
        return if echo { Seen::Protocol(packet) } else { Seen::Foreign };
    }
    quote(frame, packet).map_or(Seen::Foreign, Seen::Flow)
}

/// The packet that an ICMP error quotes was sent in the other direction.
fn quote(frame: &[u8], mut packet: Packet) -> Option<Packet> {
    let quoted = packet.l4 + 8;
    let ports = if packet.v4 {
        let ip: [u8; 20] = bytes(frame, quoted, packet.end)?;
        let header = usize::from(ip[0] & 0xf) * 4;
        if ip[0] >> 4 != 4 || header < 20 || be16(&ip, 6) & 0x1fff != 0 {
            return None;
        }
        packet.tuple = Tuple { src: addr4(&ip, 16), dst: addr4(&ip, 12), proto: ip[9], ..Tuple::default() };
        quoted + header
    } else {
        let ip: [u8; 40] = bytes(frame, quoted, packet.end)?;
        packet.tuple = Tuple { src: addr6(&ip, 24), dst: addr6(&ip, 8), proto: ip[6], ..Tuple::default() };
        quoted + 40
    };
    let [a, b, c, d] = bytes(frame, ports, packet.end)?;
    packet.tuple.dport = u16::from_ne_bytes([a, b]);
    packet.tuple.sport = u16::from_ne_bytes([c, d]);
    packet.kind = Kind::Error { quoted, ports };
    matches!(packet.tuple.proto, TCP | UDP | SCTP).then_some(packet)
}
