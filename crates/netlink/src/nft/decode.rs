//! What the rules of others do, as far as it is needed to say which packets they let pass.

use super::expr::{Op, Verdict};
use crate::wire::{attributes, text};

/// What one expression of a rule of any owner does.
///
/// Registers are counted in the 32-bit numbering from 0: the kernel names a register either by one of four
/// names of 16 bytes or by one of sixteen names of 4 bytes, which overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Loads a property of the packet (`enum nft_meta_keys`).
    Meta {
        key: u32,
        to: u32,
    },
    /// Loads bytes of the packet; base 1 is the network header, 2 the transport header.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// `to = (from & mask) ^ xor`
    Bitwise {
        from: u32,
        to: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// The rule goes on only if the register compares so.
    Cmp {
        register: u32,
        op: Op,
        data: Vec<u8>,
    },
    /// The rule goes on only if the register is (`invert`: is not) in the set.
    Lookup {
        register: u32,
        set: String,
        invert: bool,
    },
    Verdict(Verdict),
    /// Drops the packet and says so to its sender.
    Reject,
    /// Does not decide which packets match: counter, log, comment, mark.
    Nothing,
    /// Not understood: the rule may match or not.
    Other(String),
}

/// `NFT_REG_1` to `NFT_REG_4` are 1 to 4, `NFT_REG32_00` is 8.
fn register(value: &[u8]) -> Option<u32> {
    match number(value)? {
        name @ 1..=4 => Some((name - 1) * 4),
        name @ 8..=23 => Some(name - 8),
        _ => None,
    }
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// `NFTA_DATA_VALUE` in a nested attribute.
fn data(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    Some(find(find(bytes, wanted)?, 1)?.to_vec())
}

/// Decodes an expression from its name and `NFTA_EXPR_DATA`. The attribute numbers are those of
/// `enum nft_*_attributes` in include/uapi/linux/netfilter/nf_tables.h.
pub(super) fn action(name: &str, bytes: &[u8]) -> Action {
    let decoded = match name {
        "meta" if find(bytes, 1).is_some() => meta(bytes),
        "payload" if find(bytes, 1).is_some() => payload(bytes),
        "bitwise" => bitwise(bytes),
        "cmp" => cmp(bytes),
        "lookup" => lookup(bytes),
        "immediate" => Some(verdict(bytes).map_or(Action::Nothing, Action::Verdict)),
        "reject" => Some(Action::Reject),
        "counter" | "log" | "notrack" | "meta" => Some(Action::Nothing),
        // What iptables-nft has no expression for it does by the old extensions; of these a comment is one.
        "match" if find(bytes, 1).map(text).as_deref() == Some("comment") => Some(Action::Nothing),
        _ => None,
    };
    decoded.unwrap_or_else(|| Action::Other(name.to_owned()))
}

fn meta(bytes: &[u8]) -> Option<Action> {
    Some(Action::Meta { key: number(find(bytes, 2)?)?, to: register(find(bytes, 1)?)? })
}

fn payload(bytes: &[u8]) -> Option<Action> {
    let field = |kind| find(bytes, kind).and_then(number);
    Some(Action::Payload {
        to: register(find(bytes, 1)?)?,
        base: field(2)?,
        offset: field(3)?,
        length: field(4)?,
    })
}

fn bitwise(bytes: &[u8]) -> Option<Action> {
    // NFTA_BITWISE_OP: 0 is mask and xor, others are shifts and operations on two registers.
    if find(bytes, 6).and_then(number).unwrap_or(0) != 0 {
        return None;
    }
    Some(Action::Bitwise {
        from: register(find(bytes, 1)?)?,
        to: register(find(bytes, 2)?)?,
        mask: data(bytes, 4)?,
        xor: data(bytes, 5)?,
    })
}

fn cmp(bytes: &[u8]) -> Option<Action> {
    let op = match number(find(bytes, 2)?)? {
        0 => Op::Eq,
        1 => Op::Neq,
        2 => Op::Lt,
        3 => Op::Lte,
        4 => Op::Gt,
        5 => Op::Gte,
        _ => return None,
    };
    Some(Action::Cmp { register: register(find(bytes, 1)?)?, op, data: data(bytes, 3)? })
}

fn lookup(bytes: &[u8]) -> Option<Action> {
    // With a destination register (NFTA_LOOKUP_DREG) it is a map.
    if find(bytes, 3).is_some() {
        return None;
    }
    Some(Action::Lookup {
        set: text(find(bytes, 1)?),
        register: register(find(bytes, 2)?)?,
        invert: find(bytes, 5).and_then(number).is_some_and(|flags| flags & 1 != 0),
    })
}

/// `None`: the immediate is no verdict, but a value for a register.
fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let verdict = find(find(bytes, 2)?, 2)?;
    let chain = || find(verdict, 2).map(text);
    match number(find(verdict, 1)?)?.cast_signed() {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => Some(Verdict::Jump(chain()?)),
        -4 => Some(Verdict::Goto(chain()?)),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}
