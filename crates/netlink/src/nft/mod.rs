//! nf_tables without a program and without a library: the few messages that a static rule set needs.
//!
//! A [`Batch`] is one transaction. Nothing of it is seen by any packet before all of it is, and if any
//! part fails, nothing has happened. `nft list ruleset` shows what was made here as it shows its own.
//!
//! Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nfnetlink.c.

mod batch;
mod decode;
pub mod egress;
pub mod expr;
pub mod frame;
mod map;
pub mod port;
mod read;
mod ruleset;
pub mod tunnel;
pub mod verdict;
mod write;

use std::fmt;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};

pub use batch::Batch;
pub use decode::Action;
pub use expr::{Expr, Verdict};
pub use map::{Entry, MapData};
pub use read::{Element, ListedChain, ListedRule, ListedSet, ListedTable};
pub use ruleset::{Chain, Ruleset, Set};

use crate::socket::acknowledged;
use crate::wire::NLMSG_ERROR;
use crate::{Error, NetNs, Result, Socket};

/// Numbers of `enum nf_tables_msg_types`, with the subsystem (NFNL_SUBSYS_NFTABLES) before them.
mod msg {
    const SUBSYSTEM: u16 = 10 << 8;
    pub const NEWTABLE: u16 = SUBSYSTEM;
    pub const GETTABLE: u16 = SUBSYSTEM | 1;
    pub const DELTABLE: u16 = SUBSYSTEM | 2;
    pub const NEWCHAIN: u16 = SUBSYSTEM | 3;
    pub const GETCHAIN: u16 = SUBSYSTEM | 4;
    pub const DELCHAIN: u16 = SUBSYSTEM | 5;
    pub const NEWRULE: u16 = SUBSYSTEM | 6;
    pub const GETRULE: u16 = SUBSYSTEM | 7;
    pub const DELRULE: u16 = SUBSYSTEM | 8;
    pub const NEWSET: u16 = SUBSYSTEM | 9;
    pub const GETSET: u16 = SUBSYSTEM | 10;
    pub const DELSET: u16 = SUBSYSTEM | 11;
    pub const NEWSETELEM: u16 = SUBSYSTEM | 12;
    pub const GETSETELEM: u16 = SUBSYSTEM | 13;
    pub const DELSETELEM: u16 = SUBSYSTEM | 14;
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
}

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    Ip,
    Ip6,
    Arp,
    Bridge,
    Netdev,
    Other(u8),
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Arp => f.write_str("arp"),
            Self::Bridge => f.write_str("bridge"),
            Self::Netdev => f.write_str("netdev"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

/// Where in a packet's way a base chain stands (the numbers of the IP and bridge families).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Other(u32),
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Prerouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            4 => Self::Postrouting,
            other => Self::Other(other),
        }
    }
}

/// Priorities with a name (`enum nf_ip_hook_priorities`).
pub mod priority {
    pub const RAW: i32 = -300;
    pub const MANGLE: i32 = -150;
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SRCNAT: i32 = 100;
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    pub hook: Hook,
    /// Smaller comes first.
    pub priority: i32,
    /// What becomes of a packet that no rule decided: accepted, else dropped.
    pub policy_accept: bool,
}

impl Base {
    /// A filter chain that lets pass what no rule decided.
    pub fn filter(hook: Hook, priority: i32) -> Self {
        Self { kind: "filter".into(), hook, priority, policy_accept: true }
    }

    /// A chain that the first packet of a connection goes through, to have its addresses translated.
    pub fn nat(hook: Hook, priority: i32) -> Self {
        Self { kind: "nat".into(), hook, priority, policy_accept: true }
    }
}

/// A rule to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub exprs: Vec<Expr>,
    /// Shown by `nft list ruleset`; by it [`Nft::ensure_chain`] knows the rule again, so it is at most
    /// 100 characters long.
    pub comment: String,
}

impl Rule {
    /// A rule from its parts, in order.
    pub fn new(comment: &str, parts: impl IntoIterator<Item = Vec<Expr>>, verdict: Verdict) -> Self {
        let mut exprs: Vec<Expr> = parts.into_iter().flatten().collect();
        exprs.push(Expr::Verdict(verdict));
        Self { exprs, comment: comment.into() }
    }

    /// What the rule's user data says: the comment, and a fingerprint of what the rule does, so that a
    /// rule of an older version with the same comment is not taken for this one. Listed rules have it as comment.
    pub fn tag(&self) -> String {
        let mut bytes = write::Attributes::default();
        self.exprs.iter().for_each(|expr| expr.write(&mut bytes));
        // FNV-1a.
        let hash = bytes.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("{} [{:08x}]", self.comment, (hash ^ (hash >> 32)) as u32)
    }

    /// `NFTNL_UDATA_RULE_COMMENT` (0), length, text with a final zero, as libnftnl writes it.
    fn user_data(&self) -> Vec<u8> {
        let mut tag = self.tag().into_bytes();
        tag.truncate(120);
        tag.push(0);
        let mut data = vec![0, tag.len() as u8];
        data.extend(tag);
        data
    }
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKey {
    /// IPv4 prefixes.
    Prefix4,
    /// IPv6 prefixes.
    Prefix6,
    /// Single IPv4 addresses.
    Ipv4,
    /// Single IPv6 addresses.
    Ipv6,
    /// Names of devices, padded to 16 bytes with zeros.
    Ifname,
    /// A name, and an Ethernet address padded to 8 bytes.
    IfnameMac,
    /// A name, and an IPv4 address.
    IfnameIpv4,
    /// A name, and an IPv6 address.
    IfnameIpv6,
    /// A name, and the address that neighbour discovery is about ([`frame::neighbour_target_in`]).
    IfnameTarget,
    /// A protocol and a port, each padded to 4 bytes (see [`port`]).
    Port,
    /// An IPv4 address, a protocol, a port.
    Ipv4Port,
    /// An IPv6 address, a protocol, a port.
    Ipv6Port,
    /// Two IPv4 addresses.
    Ipv4Pair,
    /// Two IPv6 addresses.
    Ipv6Pair,
}

impl SetKey {
    const fn is_interval(self) -> bool {
        matches!(self, Self::Prefix4 | Self::Prefix6)
    }

    /// What `nft` needs to know of the type beyond its number.
    fn user_data(self) -> Option<Vec<u8>> {
        matches!(self, Self::IfnameTarget).then(frame::typeof_target)
    }

    /// The number by which `nft` knows the type, and the length in bytes.
    const fn kind_and_length(self) -> (u32, u32) {
        match self {
            Self::Prefix4 | Self::Ipv4 => (7, 4),
            Self::Prefix6 | Self::Ipv6 => (8, 16),
            Self::Ifname => (41, 16),
            // Concatenations: six bits a type, each part padded to 4 bytes.
            Self::IfnameMac => (41 << 6 | 9, 24),
            Self::IfnameIpv4 => (41 << 6 | 7, 20),
            Self::IfnameIpv6 => (41 << 6 | 8, 32),
            Self::IfnameTarget => (41 << 6 | 4, 32),
            Self::Port => (12 << 6 | 13, 8),
            Self::Ipv4Port => (7 << 12 | 12 << 6 | 13, 12),
            Self::Ipv6Port => (8 << 12 | 12 << 6 | 13, 24),
            Self::Ipv4Pair => (7 << 6 | 7, 8),
            Self::Ipv6Pair => (8 << 6 | 8, 32),
        }
    }
}

/// A socket to the nf_tables of one network namespace.
#[derive(Debug)]
pub struct Nft {
    pub(self) socket: Socket,
}

impl Nft {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open_protocol(NETLINK_NETFILTER, "nf_tables socket")? })
    }

    /// Opens a socket in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Makes the changes of `batch`, all or none.
    ///
    /// # Errors
    /// The first change that the kernel refused, by name.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        let Some(last) = batch.messages.len().checked_sub(1) else { return Ok(()) };
        let object = format_args!("nf_tables transaction");
        let mut bytes = Vec::new();
        let begin = self.envelope(&mut bytes, msg::BATCH_BEGIN);
        let mut first = begin;
        for (position, message) in batch.messages.iter().enumerate() {
            let sequence = self.socket.next_sequence();
            if position == 0 {
                first = sequence;
            }
            // Acknowledgements wait in the socket's buffer until all is done: one is enough. Errors come
            // unasked.
            let ack = if position == last { NLM_F_ACK } else { 0 };
            put(
                &mut bytes,
                message.kind,
                NLM_F_REQUEST | ack | message.flags,
                sequence,
                [message.family.number(), 0, 0, 0],
                &message.attributes,
            );
        }
        self.envelope(&mut bytes, msg::BATCH_END);
        if bytes.len() > 200_000 {
            // The default send buffer takes one message of 208 KiB.
            setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &(bytes.len() * 2 + 65536))
                .map_err(|errno| Error::errno_of("send", object, errno))?;
        }
        self.socket.send_bytes("send", object, &bytes)?;
        self.await_end(batch, begin, first, last)
    }

    /// Reads errors and the last message's acknowledgement. The kernel answers in the order of the
    /// messages; what concerns the whole transaction (no permission, no memory) it says of its beginning.
    fn await_end(&mut self, batch: &Batch, begin: u32, first: u32, last: usize) -> Result<()> {
        let object = format_args!("nf_tables transaction");
        let mut failed = None;
        loop {
            self.socket.fill("commit", object)?;
            for frame in self.socket.filled() {
                if frame.kind != NLMSG_ERROR {
                    continue;
                }
                if frame.sequence == begin {
                    acknowledged("commit", object, &frame)?;
                    continue;
                }
                let position = frame.sequence.wrapping_sub(first) as usize;
                let Some(message) = batch.messages.get(position) else { continue };
                let what = format_args!("{}", message.object);
                if let Err(error) = acknowledged(message.operation, what, &frame) {
                    failed.get_or_insert(error);
                }
                if position == last {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn envelope(&mut self, bytes: &mut Vec<u8>, kind: u16) -> u32 {
        let sequence = self.socket.next_sequence();
        // nfgenmsg: AF_UNSPEC, version 0, the subsystem in network byte order.
        put(bytes, kind, NLM_F_REQUEST, sequence, [0, 0, 0, 10], &[]);
        sequence
    }

    /// Whether the chain holds exactly `rules`.
    pub fn holds(&mut self, family: Family, table: &str, chain: &str, rules: &[Rule]) -> Result<bool> {
        let listed = self.rules(family, table, Some(chain))?;
        Ok(listed.iter().map(|rule| rule.comment.clone()).eq(rules.iter().map(Rule::tag)))
    }

    /// Makes the chain hold exactly `rules`, in one transaction, and only if it does not already. Safe
    /// against others who do the same at the same moment. Returns whether anything had to be done.
    pub fn ensure_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        base: &Base,
        rules: &[Rule],
    ) -> Result<bool> {
        let present = self.chain(family, table, chain)?;
        let fits = present.as_ref().is_some_and(|present| present.base.as_ref() == Some(base));
        if fits && self.holds(family, table, chain, rules)? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.add_table(family, table);
        if present.is_some() && !fits {
            batch.flush_chain(family, table, chain);
            batch.delete_chain(family, table, chain);
        }
        batch.add_chain(family, table, chain, Some(base));
        batch.flush_chain(family, table, chain);
        for rule in rules {
            batch.add_rule(family, table, chain, rule);
        }
        self.commit(&batch)?;
        Ok(true)
    }
}

/// Writes one message: netlink header, `struct nfgenmsg`, attributes.
fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, nfgen: [u8; 4], attributes: &[u8]) {
    let length = crate::wire::HEADER + nfgen.len() + attributes.len();
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(nfgen);
    bytes.extend(attributes);
    bytes.resize(crate::wire::align(bytes.len()), 0);
}
