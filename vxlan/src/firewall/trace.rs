//! The way of one packet through the chains of a table, as far as their rules are understood.

use std::net::IpAddr;

use heddle_netlink::Result;
use heddle_netlink::nft::expr::{Op, Verdict};
use heddle_netlink::nft::{Action, Family, ListedRule, Nft};

/// `enum nft_meta_keys`
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`
const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`
const TRANSPORT_HEADER: u32 = 2;
const UDP: u8 = 17;
/// Deeper the kernel does not jump (`NFT_JUMP_STACK_SIZE`).
const DEPTH: u32 = 16;

/// A packet of which the addresses and devices are known, perhaps that it is UDP, and nothing else.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub input: String,
    pub output: String,
    /// Destination port, where it is a UDP datagram.
    pub udp: Option<u16>,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Accepted,
    Dropped {
        chain: String,
        handle: u64,
    },
    /// By no rule that surely matches.
    Undecided,
}

/// Reads the chains of one table.
#[derive(Debug)]
pub struct Tracer<'a> {
    nft: &'a mut Nft,
    family: Family,
    table: &'a str,
}

impl<'a> Tracer<'a> {
    pub fn new(nft: &'a mut Nft, family: Family, table: &'a str) -> Self {
        Self { nft, family, table }
    }

    /// What becomes of a packet that enters `chain`. A rule with a condition that is not understood, or
    /// about something that is not known of the packet, is taken not to match.
    pub fn fate(&mut self, chain: &str, packet: &Packet) -> Result<Fate> {
        self.walk(chain, packet, DEPTH)
    }

    fn walk(&mut self, chain: &str, packet: &Packet, depth: u32) -> Result<Fate> {
        if depth == 0 {
            return Ok(Fate::Undecided);
        }
        for rule in self.nft.rules(self.family, self.table, Some(chain))? {
            match self.verdict(&rule, packet)? {
                None => {}
                Some(Verdict::Accept) => return Ok(Fate::Accepted),
                Some(Verdict::Drop) => {
                    return Ok(Fate::Dropped { chain: chain.to_owned(), handle: rule.handle });
                }
                Some(Verdict::Return) => return Ok(Fate::Undecided),
                Some(Verdict::Jump(target)) => match self.walk(&target, packet, depth - 1)? {
                    Fate::Undecided => {}
                    decided => return Ok(decided),
                },
                Some(Verdict::Goto(target)) => return self.walk(&target, packet, depth - 1),
            }
        }
        Ok(Fate::Undecided)
    }

    /// The rule's verdict if it surely matches.
    fn verdict(&mut self, rule: &ListedRule, packet: &Packet) -> Result<Option<Verdict>> {
        let mut registers = Registers::default();
        for action in &rule.actions {
            match action {
                Action::Meta { key, to } => registers.store(*to, meta(*key, packet)),
                Action::Payload { base: NETWORK_HEADER, offset, length, to } => {
                    registers.store(*to, network_header(packet, *offset as usize, *length as usize));
                }
                Action::Payload { base: TRANSPORT_HEADER, offset: 2, length: 2, to } => {
                    registers.store(*to, packet.udp.map(|port| port.to_be_bytes().to_vec()));
                }
                Action::Payload { to, .. } => registers.store(*to, None),
                Action::Bitwise { from, to, mask, xor } => {
                    let bytes = registers.load(*from, mask.len());
                    let masked = bytes.map(|bytes| {
                        bytes
                            .iter()
                            .zip(mask)
                            .zip(xor)
                            .map(|((byte, mask), xor)| (byte & mask) ^ xor)
                            .collect()
                    });
                    registers.store(*to, masked);
                }
                Action::Cmp { register, op, data } => {
                    let Some(bytes) = registers.load(*register, data.len()) else { return Ok(None) };
                    let holds = match op {
                        Op::Eq => bytes == *data,
                        Op::Neq => bytes != *data,
                        Op::Lt => bytes < *data,
                        Op::Lte => bytes <= *data,
                        Op::Gt => bytes > *data,
                        Op::Gte => bytes >= *data,
                    };
                    if !holds {
                        return Ok(None);
                    }
                }
                Action::Lookup { register, set, invert } => {
                    if self.holds(set, &registers, *register)? != Some(!invert) {
                        return Ok(None);
                    }
                }
                Action::Verdict(verdict) => return Ok(Some(verdict.clone())),
                Action::Reject => return Ok(Some(Verdict::Drop)),
                Action::Nothing => {}
                Action::Other(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether the set holds what is in the register. `None`: not known.
    fn holds(&mut self, set: &str, registers: &Registers, register: u32) -> Result<Option<bool>> {
        let Some(elements) = self.nft.elements(self.family, self.table, set)? else { return Ok(None) };
        let Some(length) = elements.first().map(|(key, _)| key.len()) else { return Ok(Some(false)) };
        let Some(value) = registers.load(register, length) else { return Ok(None) };
        if !elements.iter().any(|(_, end)| *end) {
            return Ok(Some(elements.iter().any(|(key, _)| *key == value)));
        }
        // Intervals: the last boundary at or below the value opens one or closes one.
        let last =
            elements.iter().filter(|(key, _)| *key <= value).max_by(|a, b| (&a.0, !a.1).cmp(&(&b.0, !b.1)));
        Ok(Some(last.is_some_and(|(_, end)| !end)))
    }
}

/// Sixteen registers of four bytes. What is not known is not stored.
#[derive(Default)]
struct Registers([Option<[u8; 4]>; 16]);

impl Registers {
    fn store(&mut self, register: u32, bytes: Option<Vec<u8>>) {
        // Of what is not known the length is not known either: a name or an address at most.
        let words = bytes.as_ref().map_or(4, |bytes| bytes.len().div_ceil(4));
        for (index, slot) in self.0.iter_mut().skip(register as usize).take(words).enumerate() {
            *slot = bytes.as_ref().map(|bytes| {
                let mut word = [0; 4];
                let part = bytes.iter().skip(index * 4).take(4);
                word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                word
            });
        }
    }

    fn load(&self, register: u32, length: usize) -> Option<Vec<u8>> {
        let words = self.0.get(register as usize..)?.get(..length.div_ceil(4))?;
        let mut bytes: Vec<u8> = words.iter().copied().collect::<Option<Vec<_>>>()?.concat();
        bytes.truncate(length);
        Some(bytes)
    }
}

fn meta(key: u32, packet: &Packet) -> Option<Vec<u8>> {
    let v4 = packet.source.is_ipv4();
    let name = |name: &str| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        bytes
    };
    match key {
        META_IIFNAME => Some(name(&packet.input)).filter(|_| !packet.input.is_empty()),
        META_OIFNAME => Some(name(&packet.output)),
        META_NFPROTO => Some(vec![if v4 { libc_nfproto::IPV4 } else { libc_nfproto::IPV6 }]),
        META_L4PROTO => packet.udp.map(|_| vec![UDP]),
        META_PROTOCOL => Some(if v4 { vec![0x08, 0x00] } else { vec![0x86, 0xdd] }),
        _ => None,
    }
}

/// `NFPROTO_*` (include/uapi/linux/netfilter.h).
mod libc_nfproto {
    pub const IPV4: u8 = 2;
    pub const IPV6: u8 = 10;
}

/// Bytes of the IP header, if they are of its addresses or the protocol.
fn network_header(packet: &Packet, offset: usize, length: usize) -> Option<Vec<u8>> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (protocol, first) = if packet.source.is_ipv4() { (9, 12) } else { (6, 8) };
    if (offset, length) == (protocol, 1) {
        return packet.udp.map(|_| vec![UDP]);
    }
    let addresses = [octets(packet.source), octets(packet.destination)].concat();
    let begin = offset.checked_sub(first)?;
    addresses.get(begin..begin.checked_add(length)?).map(<[u8]>::to_vec)
}
