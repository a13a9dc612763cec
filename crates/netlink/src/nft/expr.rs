//! What a rule is made of: loads into a register, comparisons, verdicts.
//!
//! The functions make the small sequences that `nft` makes of the words in their description, so that
//! `nft list ruleset` shows those words again. All of them work in register 1.

use ipnetwork::IpNetwork;

use super::write::Attributes;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
/// The register behind register 1 (`NFT_REG32_04`): the second part of a concatenation whose first is 16
/// bytes long.
const REG_2: u32 = 12;

const META_PROTOCOL: u32 = 1;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const PAYLOAD_LINK: u32 = 0;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;

const FIB_SADDR: u32 = 1;
const FIB_IIF: u32 = 8;
const FIB_PRESENT: u32 = 32;
const FIB_RESULT_OIF: u32 = 1;

const CT_STATE: u32 = 0;

/// `ct state` bits (`NF_CT_STATE_BIT` in include/uapi/linux/netfilter/nf_conntrack_common.h).
pub mod ct {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
}

/// What becomes of a packet at the end of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// A comparison (`enum nft_cmp_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Eq = 0,
    Neq = 1,
    Lt = 2,
    Lte = 3,
    Gt = 4,
    Gte = 5,
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Meta {
        key: u32,
    },
    MetaSet {
        key: u32,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
    },
    /// As `Payload`, behind the 16 bytes that were loaded before.
    PayloadBehind {
        base: u32,
        offset: u32,
        length: u32,
    },
    Bitwise {
        mask: Vec<u8>,
    },
    Cmp {
        op: Op,
        data: Vec<u8>,
    },
    Lookup {
        set: String,
        invert: bool,
    },
    Fib {
        flags: u32,
        result: u32,
    },
    Ct {
        key: u32,
    },
    NumgenRandom {
        modulus: u32,
    },
    HostToNetwork32,
    Immediate {
        data: Vec<u8>,
    },
    Masquerade,
    Counter,
    Verdict(Verdict),
    /// One whose attributes were written by a module of its own.
    Built {
        name: &'static str,
        data: Vec<u8>,
    },
}

impl Expr {
    /// An expression of this name, its attributes written by `fill`.
    pub(super) fn built(name: &'static str, fill: impl FnOnce(&mut Attributes)) -> Self {
        let mut data = Attributes::default();
        fill(&mut data);
        Self::Built { name, data: data.into_bytes() }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } | Self::PayloadBehind { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Fib { .. } => "fib",
            Self::Ct { .. } => "ct",
            Self::NumgenRandom { .. } => "numgen",
            Self::HostToNetwork32 => "byteorder",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Masquerade => "masq",
            Self::Counter => "counter",
            Self::Built { name, .. } => name,
        }
    }

    /// Writes the expression as an `NFTA_LIST_ELEM`.
    pub(super) fn write(&self, list: &mut Attributes) {
        const LIST_ELEM: u16 = 1;
        const EXPR_NAME: u16 = 1;
        const EXPR_DATA: u16 = 2;
        list.nested(LIST_ELEM, |element| {
            element.text(EXPR_NAME, self.name());
            element.nested(EXPR_DATA, |data| self.write_data(data));
        });
    }

    /// The attribute numbers are those of `enum nft_*_attributes` in
    /// include/uapi/linux/netfilter/nf_tables.h.
    fn write_data(&self, data: &mut Attributes) {
        match self {
            Self::Meta { key } => {
                data.number(1, REG_1);
                data.number(2, *key);
            }
            Self::MetaSet { key } => {
                data.number(2, *key);
                data.number(3, REG_1);
            }
            Self::Payload { base, offset, length } | Self::PayloadBehind { base, offset, length } => {
                data.number(1, if matches!(self, Self::Payload { .. }) { REG_1 } else { REG_2 });
                data.number(2, *base);
                data.number(3, *offset);
                data.number(4, *length);
            }
            Self::Bitwise { mask } => {
                data.number(1, REG_1);
                data.number(2, REG_1);
                data.number(3, mask.len() as u32);
                data.data(4, mask);
                data.data(5, &vec![0; mask.len()]);
            }
            Self::Cmp { op, data: value } => {
                data.number(1, REG_1);
                data.number(2, *op as u32);
                data.data(3, value);
            }
            Self::Lookup { set, invert } => {
                data.text(1, set);
                data.number(2, REG_1);
                if *invert {
                    data.number(5, 1);
                }
            }
            Self::Fib { flags, result } => {
                data.number(1, REG_1);
                data.number(2, *result);
                data.number(3, *flags);
            }
            Self::Ct { key } => {
                data.number(1, REG_1);
                data.number(2, *key);
            }
            Self::NumgenRandom { modulus } => {
                data.number(1, REG_1);
                data.number(2, *modulus);
                data.number(3, 1);
            }
            Self::HostToNetwork32 => {
                data.number(1, REG_1);
                data.number(2, REG_1);
                data.number(3, 1);
                data.number(4, 4);
                data.number(5, 4);
            }
            Self::Immediate { data: value } => {
                data.number(1, REG_1);
                data.data(2, value);
            }
            Self::Masquerade | Self::Counter => {}
            Self::Built { data: built, .. } => data.raw(built),
            Self::Verdict(verdict) => {
                data.number(1, REG_VERDICT);
                data.nested(2, |data| verdict.write(data));
            }
        }
    }
}

impl Verdict {
    fn write(&self, data: &mut Attributes) {
        const DATA_VERDICT: u16 = 2;
        // NF_DROP, NF_ACCEPT, NFT_RETURN, NFT_JUMP, NFT_GOTO
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Return => (-5i32, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        data.nested(DATA_VERDICT, |verdict| {
            verdict.number(1, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    }
}

/// `iifname "NAME"`; a final `*` matches every name that begins so.
pub fn iifname(name: &str) -> Vec<Expr> {
    interface(META_IIFNAME, name)
}

/// `oifname "NAME"`; a final `*` matches every name that begins so.
pub fn oifname(name: &str) -> Vec<Expr> {
    interface(META_OIFNAME, name)
}

fn interface(key: u32, name: &str) -> Vec<Expr> {
    let data = match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        // The whole name: compared with the zeros up to IFNAMSIZ.
        None => {
            let mut data = name.as_bytes().to_vec();
            data.resize(16, 0);
            data
        }
    };
    vec![Expr::Meta { key }, Expr::Cmp { op: Op::Eq, data }]
}

/// `meta nfproto ipv4|ipv6`.
pub fn nfproto(v4: bool) -> Vec<Expr> {
    let number = if v4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
    vec![Expr::Meta { key: META_NFPROTO }, Expr::Cmp { op: Op::Eq, data: vec![number as u8] }]
}

/// `ip|ip6 saddr|daddr PREFIX`.
pub fn address(side: Side, prefix: IpNetwork) -> Vec<Expr> {
    let mut exprs = load_address(side, prefix.is_ipv4());
    let (mask, network) = match prefix {
        IpNetwork::V4(net) => (net.mask().octets().to_vec(), net.network().octets().to_vec()),
        IpNetwork::V6(net) => (net.mask().octets().to_vec(), net.network().octets().to_vec()),
    };
    if mask.iter().any(|byte| *byte != 0xff) {
        exprs.push(Expr::Bitwise { mask });
    }
    exprs.push(Expr::Cmp { op: Op::Eq, data: network });
    exprs
}

/// `ip|ip6 saddr|daddr [!=] @SET`.
pub fn address_in(side: Side, v4: bool, set: &str, invert: bool) -> Vec<Expr> {
    let mut exprs = load_address(side, v4);
    exprs.push(Expr::Lookup { set: set.into(), invert });
    exprs
}

pub(super) fn load_address(side: Side, v4: bool) -> Vec<Expr> {
    let (offset, length) = match (v4, side) {
        (true, Side::Source) => (12, 4),
        (true, Side::Destination) => (16, 4),
        (false, Side::Source) => (8, 16),
        (false, Side::Destination) => (24, 16),
    };
    let mut exprs = nfproto(v4);
    exprs.push(Expr::Payload { base: PAYLOAD_NETWORK, offset, length });
    exprs
}

/// `meta l4proto PROTO th dport PORT`.
pub fn destination_port(protocol: u8, port: u16) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_L4PROTO },
        Expr::Cmp { op: Op::Eq, data: vec![protocol] },
        Expr::Payload { base: PAYLOAD_TRANSPORT, offset: 2, length: 2 },
        Expr::Cmp { op: Op::Eq, data: port.to_be_bytes().to_vec() },
    ]
}

/// What of a frame says who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// `ether saddr`
    Mac,
    /// `ip saddr`
    Ipv4,
    /// `ip6 saddr`
    Ipv6,
    /// `arp saddr ip`
    Arp,
}

/// `iifname . SENDER [!=] @SET`, for sets of [`super::SetKey::IfnameMac`] and its like.
pub fn sender_in(sender: Sender, set: &str, invert: bool) -> Vec<Expr> {
    let (base, offset, length) = match sender {
        Sender::Mac => (PAYLOAD_LINK, 6, 6),
        Sender::Ipv4 => (PAYLOAD_NETWORK, 12, 4),
        Sender::Ipv6 => (PAYLOAD_NETWORK, 8, 16),
        // RFC 826 with the sizes of Ethernet and IPv4: 8 bytes of header, 6 of hardware address.
        Sender::Arp => (PAYLOAD_NETWORK, 14, 4),
    };
    vec![
        Expr::Meta { key: META_IIFNAME },
        Expr::PayloadBehind { base, offset, length },
        Expr::Lookup { set: set.into(), invert },
    ]
}

/// `meta protocol ETHERTYPE`.
pub fn ethertype(number: u16) -> Vec<Expr> {
    vec![Expr::Meta { key: META_PROTOCOL }, Expr::Cmp { op: Op::Eq, data: number.to_be_bytes().to_vec() }]
}

/// `ip6 saddr PREFIX` where IPv6 is known already (tables of the bridge family).
pub fn sender6(prefix: ipnetwork::Ipv6Network) -> Vec<Expr> {
    let mut exprs = vec![Expr::Payload { base: PAYLOAD_NETWORK, offset: 8, length: 16 }];
    if prefix.prefix() < 128 {
        exprs.push(Expr::Bitwise { mask: prefix.mask().octets().to_vec() });
    }
    exprs.push(Expr::Cmp { op: Op::Eq, data: prefix.network().octets().to_vec() });
    exprs
}

/// `icmpv6 type TYPE`.
pub fn icmp6(kind: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { key: META_L4PROTO },
        Expr::Cmp { op: Op::Eq, data: vec![libc::IPPROTO_ICMPV6 as u8] },
        Expr::Payload { base: PAYLOAD_TRANSPORT, offset: 0, length: 1 },
        Expr::Cmp { op: Op::Eq, data: vec![kind] },
    ]
}

/// `ct state BITS`; see [`ct`].
pub fn ct_state(bits: u32) -> Vec<Expr> {
    vec![
        Expr::Ct { key: CT_STATE },
        Expr::Bitwise { mask: bits.to_ne_bytes().to_vec() },
        Expr::Cmp { op: Op::Neq, data: vec![0; 4] },
    ]
}

/// `fib saddr . iif oif missing`: the routing table would not answer the sender by the device that the
/// packet came in by.
pub fn source_is_spoofed() -> Vec<Expr> {
    vec![
        Expr::Fib { flags: FIB_SADDR | FIB_IIF | FIB_PRESENT, result: FIB_RESULT_OIF },
        Expr::Cmp { op: Op::Eq, data: vec![0; 4] },
    ]
}

/// `meta mark set MARK`.
pub fn set_mark(mark: u32) -> Vec<Expr> {
    vec![Expr::Immediate { data: mark.to_ne_bytes().to_vec() }, Expr::MetaSet { key: META_MARK }]
}

/// `meta mark MARK`.
pub fn mark(mark: u32) -> Vec<Expr> {
    vec![Expr::Meta { key: META_MARK }, Expr::Cmp { op: Op::Eq, data: mark.to_ne_bytes().to_vec() }]
}

/// `numgen random mod OUT_OF < HITS`.
pub fn random(hits: u32, out_of: u32) -> Vec<Expr> {
    vec![
        Expr::NumgenRandom { modulus: out_of },
        Expr::HostToNetwork32,
        Expr::Cmp { op: Op::Lt, data: hits.to_be_bytes().to_vec() },
    ]
}
