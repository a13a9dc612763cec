//! A packet as it should be, to be made into a frame.

use heddle_ebpf_common::{Addr, Tuple};

use crate::place::bytes16;
use crate::rewrite::{fold, sum};
use crate::wire::{ETH, FIN, ICMP, ICMP6, RST, SCTP, SYN, TCP, UDP};

#[derive(Clone, Debug)]
pub struct Draft {
    pub src: Addr,
    pub dst: Addr,
    /// Network byte order.
    pub sport: u16,
    pub dport: u16,
    pub proto: u8,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub id: u32,
    /// Of IPv4, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Of IPv6: types and units of 8 bytes after the first, in order.
    pub extensions: Vec<(u8, u8)>,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    /// UDP without a checksum.
    pub unsummed: bool,
    pub smac: [u8; 6],
    pub dmac: [u8; 6],
}

pub const HERE_MAC: [u8; 6] = [0x02, 0x11, 0, 0, 0, 1];
pub const THERE_MAC: [u8; 6] = [0x02, 0xc1, 0, 0, 0, 1];

impl Draft {
    pub fn of(tuple: &Tuple) -> Self {
        Self {
            src: tuple.src,
            dst: tuple.dst,
            sport: tuple.sport,
            dport: tuple.dport,
            proto: tuple.proto,
            flags: 0,
            seq: 1000,
            ack: 0,
            ttl: 64,
            dont_fragment: true,
            id: 77,
            options: Vec::new(),
            extensions: Vec::new(),
            tcp_options: Vec::new(),
            payload: Vec::new(),
            unsummed: false,
            smac: THERE_MAC,
            dmac: HERE_MAC,
        }
    }

    pub fn is_v4(&self) -> bool {
        self.dst.is_v4()
    }

    fn pseudo(&self, proto: u8, len: usize) -> u64 {
        if self.is_v4() {
            let (src, dst) = (self.src.as_v4().to_ne_bytes(), self.dst.as_v4().to_ne_bytes());
            sum(&src) + sum(&dst) + u64::from(proto) + len as u64
        } else {
            sum(&bytes16(self.src)) + sum(&bytes16(self.dst)) + u64::from(proto) + len as u64
        }
    }

    /// The transport part, with its checksum.
    pub fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.sport.to_ne_bytes());
        bytes.extend_from_slice(&self.dport.to_ne_bytes());
        let sum_at = match self.proto {
            TCP => {
                bytes.extend_from_slice(&self.seq.to_be_bytes());
                bytes.extend_from_slice(&self.ack.to_be_bytes());
                let words = 5 + self.tcp_options.len().div_ceil(4);
                bytes.extend_from_slice(&[(words as u8) << 4, self.flags, 0xfa, 0, 0, 0, 0, 0]);
                bytes.extend_from_slice(&self.tcp_options);
                bytes.resize(words * 4, 0);
                16
            }
            UDP => {
                bytes.extend_from_slice(&(8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend_from_slice(&[0, 0]);
                6
            }
            SCTP => {
                // Tag, CRC32c (of which nobody here knows), the first chunk.
                let kind = match self.flags {
                    SYN => 1,
                    _ if self.flags & RST != 0 => 6,
                    _ if self.flags & FIN != 0 => [7, 8, 14][self.seq as usize % 3],
                    _ => [0, 2, 3, 4, 10, 11][self.seq as usize % 6],
                };
                bytes.extend_from_slice(&self.seq.to_be_bytes());
                bytes.extend_from_slice(&self.ack.to_be_bytes());
                bytes.extend_from_slice(&[kind, 0, 0, 4]);
                bytes.extend_from_slice(&self.payload);
                return bytes;
            }
            _ => {
                bytes.extend_from_slice(&self.payload);
                return bytes;
            }
        };
        bytes.extend_from_slice(&self.payload);
        if !self.unsummed || self.proto != UDP {
            let mut check = !fold(self.pseudo(self.proto, bytes.len()) + sum(&bytes));
            if check == 0 && self.proto == UDP {
                check = 0xffff;
            }
            bytes[sum_at..sum_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }

    /// A frame with this behind the IP header. `fragment`: offset (a multiple of 8) and whether more follow.
    pub fn around(&self, proto: u8, body: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETH + 60 + body.len());
        frame.extend_from_slice(&self.dmac);
        frame.extend_from_slice(&self.smac);
        if self.is_v4() {
            let header = 20 + self.options.len();
            let field = fragment.map_or(if self.dont_fragment { 0x4000 } else { 0 }, |(offset, more)| {
                (offset / 8) | if more { 0x2000 } else { 0 }
            });
            frame.extend_from_slice(&[8, 0, 0x40 | (header / 4) as u8, 0]);
            frame.extend_from_slice(&((header + body.len()) as u16).to_be_bytes());
            frame.extend_from_slice(&(self.id as u16).to_ne_bytes());
            frame.extend_from_slice(&field.to_be_bytes());
            frame.extend_from_slice(&[self.ttl, proto, 0, 0]);
            frame.extend_from_slice(&self.src.as_v4().to_ne_bytes());
            frame.extend_from_slice(&self.dst.as_v4().to_ne_bytes());
            frame.extend_from_slice(&self.options);
            let check = !fold(sum(&frame[ETH..]));
            frame[ETH + 10..ETH + 12].copy_from_slice(&check.to_be_bytes());
        } else {
            let mut headers = self.extensions.clone();
            if fragment.is_some() {
                headers.push((44, 0));
            }
            let mut extensions = Vec::new();
            for (i, (kind, more)) in headers.iter().enumerate() {
                let next = headers.get(i + 1).map_or(proto, |(next, _)| *next);
                if *kind == 44 {
                    let (offset, more) = fragment.unwrap_or((0, false));
                    let field = (offset | u16::from(more)).to_be_bytes();
                    extensions.extend_from_slice(&[next, 0, field[0], field[1]]);
                    extensions.extend_from_slice(&self.id.to_ne_bytes());
                    continue;
                }
                // One option that pads (RFC 8200 section 4.2); the authentication header counts words of 4 less 2.
                let len = 8 + 8 * usize::from(*more);
                extensions.extend_from_slice(&[next, if *kind == 51 { len as u8 / 4 - 2 } else { *more }]);
                extensions.extend_from_slice(&[1, (len - 4) as u8]);
                extensions.resize(extensions.len() + len - 4, 0);
            }
            let next = headers.first().map_or(proto, |(kind, _)| *kind);
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&((extensions.len() + body.len()) as u16).to_be_bytes());
            frame.extend_from_slice(&[next, self.ttl]);
            frame.extend_from_slice(&bytes16(self.src));
            frame.extend_from_slice(&bytes16(self.dst));
            frame.extend_from_slice(&extensions);
        }
        frame.extend_from_slice(body);
        frame
    }

    pub fn frame(&self) -> Vec<u8> {
        self.around(self.proto, &self.transport(), None)
    }

    /// Two fragments, the first with `first` bytes of the transport part (a multiple of 8).
    pub fn fragments(&self, first: usize) -> [Vec<u8>; 2] {
        let whole = self.transport();
        let (a, b) = whole.split_at(first.min(whole.len()));
        [self.around(self.proto, a, Some((0, true))), self.around(self.proto, b, Some((first as u16, false)))]
    }

    /// An ICMP error about this packet, which `from` sends to `self.src`. `quote`: how much of it is quoted.
    pub fn error(&self, from: Addr, kind: [u8; 2], rest: u32, quote: usize) -> Vec<u8> {
        let packet = self.frame();
        let quoted = &packet[ETH..];
        let mut body = vec![kind[0], kind[1], 0, 0];
        body.extend_from_slice(&rest.to_be_bytes());
        body.extend_from_slice(&quoted[..quote.min(quoted.len())]);
        let proto = if self.is_v4() { ICMP } else { ICMP6 };
        let outer = Self { dst: self.src, ..Self::of(&Tuple { src: from, ..Tuple::default() }) };
        let start = if self.is_v4() { 0 } else { outer.pseudo(proto, body.len()) };
        let check = !fold(start + sum(&body));
        body[2..4].copy_from_slice(&check.to_be_bytes());
        outer.around(proto, &body, None)
    }
}
