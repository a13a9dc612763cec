//! Packets as data: built from a description, and described from bytes. Every checksum is verified, by sums of
//! our own.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice,
    PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice,
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

pub const CLIENT_MAC: [u8; 6] = [0x02, 0xc1, 0, 0, 0, 1];
pub const HERE_MAC: [u8; 6] = [0x02, 0x11, 0, 0, 0, 1];

/// A TCP segment or UDP datagram to be built.
#[derive(Clone, Debug)]
pub struct Packet {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub proto: u8,
    /// Of `SAFRP`.
    pub flags: &'static str,
    pub seq: u32,
    pub ack: u32,
    pub ttl: u8,
    pub mss: Option<u16>,
    /// NOPs in front of the MSS option.
    pub nops: usize,
    pub payload: Vec<u8>,
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
    pub dont_fragment: bool,
}

fn packet(proto: u8, src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Packet {
    Packet {
        src: src.into(),
        dst: dst.into(),
        proto,
        flags: "",
        seq: 1000,
        ack: 0,
        ttl: 64,
        mss: None,
        nops: 0,
        payload: Vec::new(),
        smac: CLIENT_MAC,
        dmac: HERE_MAC,
        dont_fragment: true,
    }
}

/// A segment with these flags (letters of `SAFRP`).
pub fn tcp(flags: &'static str, src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Packet {
    let mut packet = packet(TCP, src, dst);
    packet.flags = flags;
    if flags.contains('A') {
        packet.ack = 2000;
    }
    packet
}

pub fn udp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Packet {
    let mut packet = packet(UDP, src, dst);
    packet.payload = b"hello".to_vec();
    packet
}

/// A packet with one chunk of this type.
pub fn sctp(chunk: u8, src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Packet {
    let mut packet = packet(SCTP, src, dst);
    packet.payload = vec![chunk, 0, 0, 20];
    packet.payload.extend_from_slice(&[7; 16]);
    packet
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

impl Packet {
    pub fn mss(mut self, mss: u16) -> Self {
        self.mss = Some(mss);
        self
    }

    pub fn payload(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|i| i as u8).collect();
        self
    }

    pub fn macs(mut self, smac: [u8; 6], dmac: [u8; 6]) -> Self {
        (self.smac, self.dmac) = (smac, dmac);
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The packet of the other direction, without payload.
    pub fn reversed(&self, flags: &'static str) -> Self {
        let mut packet = packet(self.proto, self.dst, self.src);
        packet.flags = flags;
        packet
    }

    pub fn ip_headers(&self) -> IpHeaders {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header =
                    Ipv4Header::new(0, self.ttl, IpNumber(self.proto), src.octets(), dst.octets())
                        .expect("short");
                header.dont_fragment = self.dont_fragment;
                header.identification = 77;
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber(self.proto),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                },
                Default::default(),
            ),
            _ => panic!("two families"),
        }
    }

    /// The frame, with correct checksums.
    pub fn frame(&self) -> Vec<u8> {
        if self.proto == SCTP {
            let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
            let mut transport = [&ports, &[9; 4][..], &[0; 4], &self.payload].concat();
            let sum = crc32c(&transport).to_le_bytes();
            transport[8..12].copy_from_slice(&sum);
            return raw_ip(self, &transport);
        }
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(self.smac, self.dmac).ip(self.ip_headers());
        if self.proto == UDP {
            let builder = builder.udp(self.src.port(), self.dst.port());
            builder.write(&mut frame, &self.payload).unwrap();
            return frame;
        }
        let mut builder = builder.tcp(self.src.port(), self.dst.port(), self.seq, 64_000);
        for flag in self.flags.chars() {
            builder = match flag {
                'S' => builder.syn(),
                'A' => builder.ack(self.ack),
                'F' => builder.fin(),
                'R' => builder.rst(),
                'P' => builder.psh(),
                other => panic!("no flag {other}"),
            };
        }
        if let Some(mss) = self.mss {
            let mut options = vec![TcpOptionElement::Noop; self.nops];
            options.push(TcpOptionElement::MaximumSegmentSize(mss));
            builder = builder.options(&options).unwrap();
        }
        builder.write(&mut frame, &self.payload).unwrap();
        frame
    }
}

/// A packet as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `tcp 1.2.3.4:5 > 6.7.8.9:10 [SA]`, `udp ...`, `icmp 1.2.3.4 > 5.6.7.8 3/3 (udp ... > ...)`.
    pub text: String,
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
    pub ttl: u8,
    pub mss: Option<u16>,
    pub seq: u32,
    pub ack: u32,
    /// The last two (IPv4) or four bytes of an ICMP header.
    pub mtu: u32,
    pub payload: Vec<u8>,
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u32 {
    let of = |ip| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    of(src) + of(dst) + u32::from(proto) + len as u32
}

/// Source, destination, protocol, transport part.
fn ip_of(packet: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
            (ip(12), ip(16), packet[9], &packet[header..total.min(packet.len())])
        }
        6 => {
            let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
            let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (ip(8), ip(24), packet[6], &packet[40..total.min(packet.len())])
        }
        other => panic!("version {other}"),
    }
}

fn ends(src: IpAddr, dst: IpAddr, proto: u8, transport: &[u8]) -> String {
    let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let name = match proto {
        TCP => "tcp",
        UDP => "udp",
        _ => "sctp",
    };
    format!("{name} {} > {}", SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2)))
}

/// What the frame is. Panics on a checksum that is wrong.
pub fn describe(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
    let (ethernet, _) = Ethernet2Header::from_slice(frame).unwrap();
    let packet = &frame[14..];
    let (src, dst, mut proto, mut transport) = ip_of(packet);
    let ttl = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            assert_eq!(ethernet.ether_type, EtherType::IPV4);
            let header = usize::from(packet[0] & 0xf) * 4;
            assert_eq!(folded(sum(&packet[..header])), 0xffff, "IPv4 header checksum");
            ip.header().ttl()
        }
        Some(NetSlice::Ipv6(ip)) => {
            assert_eq!(ethernet.ether_type, EtherType::IPV6);
            proto = ip.payload().ip_number.0;
            transport = ip.payload().payload;
            ip.header().hop_limit()
        }
        other => panic!("{other:?}"),
    };
    let mut seen = Seen {
        text: String::new(),
        smac: ethernet.source,
        dmac: ethernet.destination,
        ttl,
        mss: None,
        seq: 0,
        ack: 0,
        mtu: 0,
        payload: Vec::new(),
    };
    let total = pseudo(src, dst, proto, transport.len()) + sum(transport);
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(folded(total), 0xffff, "TCP checksum of {}", ends(src, dst, proto, transport));
            let flags = [('S', tcp.syn()), ('A', tcp.ack()), ('F', tcp.fin()), ('R', tcp.rst())];
            let flags: String = flags.into_iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect();
            seen.text = format!("{} [{flags}]", ends(src, dst, proto, transport));
            for option in tcp.options_iterator().flatten() {
                if let TcpOptionElement::MaximumSegmentSize(mss) = option {
                    seen.mss = Some(mss);
                }
            }
            (seen.seq, seen.ack) = (tcp.sequence_number(), tcp.acknowledgment_number());
            seen.payload = tcp.payload().to_vec();
        }
        Some(TransportSlice::Udp(udp)) => {
            if udp.checksum() != 0 {
                assert_eq!(folded(total), 0xffff, "UDP checksum of {}", ends(src, dst, proto, transport));
            }
            seen.text = ends(src, dst, proto, transport);
            seen.payload = udp.payload().to_vec();
        }
        Some(TransportSlice::Icmpv4(_)) => {
            assert_eq!(folded(sum(transport)), 0xffff, "ICMP checksum");
            seen.mtu = u16::from_be_bytes([transport[6], transport[7]]).into();
            seen.text = error(src, dst, transport);
        }
        Some(TransportSlice::Icmpv6(_)) => {
            assert_eq!(folded(total), 0xffff, "ICMPv6 checksum");
            seen.mtu = u32::from_be_bytes(transport[4..8].try_into().unwrap());
            seen.text = error(src, dst, transport);
        }
        None if proto == SCTP => {
            let sum = crc32c(&[&transport[..8], &[0; 4], &transport[12..]].concat());
            assert_eq!(transport[8..12], sum.to_le_bytes(), "CRC32c");
            seen.text = ends(src, dst, proto, transport);
            seen.payload = transport[12..].to_vec();
        }
        other => panic!("{other:?}"),
    }
    seen
}

fn error(src: IpAddr, dst: IpAddr, icmp: &[u8]) -> String {
    let quoted = &icmp[8..];
    let (of, to, proto, transport) = ip_of(quoted);
    if of.is_ipv4() {
        let header = usize::from(quoted[0] & 0xf) * 4;
        assert_eq!(folded(sum(&quoted[..header])), 0xffff, "quoted header checksum");
    }
    let about =
        if matches!(proto, TCP | UDP | SCTP) { ends(of, to, proto, transport) } else { proto.to_string() };
    format!("icmp {src} > {dst} {}/{} ({about})", icmp[0], icmp[1])
}

/// An ICMP error that `from` sends about `packet`, to whoever sent that.
pub fn icmp_about(packet: &Packet, from: IpAddr, kind: (u8, u8), rest: u32) -> Vec<u8> {
    let quoted = packet.frame()[14..].to_vec();
    let quoted = &quoted[..quoted.len().min(if from.is_ipv4() { 28 } else { 48 })];
    let mut icmp = vec![kind.0, kind.1, 0, 0];
    icmp.extend_from_slice(&rest.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let dst = packet.src.ip();
    let proto = if from.is_ipv4() { 1 } else { 58 };
    let start = if from.is_ipv4() { 0 } else { pseudo(from, dst, proto, icmp.len()) };
    let check = !folded(start + sum(&icmp));
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut outer = packet.clone();
    outer.src = SocketAddr::new(from, 0);
    outer.dst = SocketAddr::new(dst, 0);
    outer.proto = proto;
    raw_ip(&outer, &icmp)
}

/// A frame with the addresses of `packet` and this in place of its transport part.
pub fn raw_ip(packet: &Packet, transport: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut headers = packet.ip_headers();
    headers.set_payload_len(transport.len()).unwrap();
    let ether_type = if packet.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    Ethernet2Header { source: packet.smac, destination: packet.dmac, ether_type }.write(&mut frame).unwrap();
    match &mut headers {
        IpHeaders::Ipv4(ip, _) => {
            ip.header_checksum = ip.calc_header_checksum();
            ip.write(&mut frame).unwrap();
        }
        IpHeaders::Ipv6(ip, _) => ip.write(&mut frame).unwrap(),
    }
    frame.extend_from_slice(transport);
    frame
}
