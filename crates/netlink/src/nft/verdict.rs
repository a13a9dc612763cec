//! Maps whose keys lead to a chain: one rule for any number of keys.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::expr::{self, Expr, Side};
use super::map::user_data;
use super::{Batch, Family, msg};

const NFT_GOTO: i32 = -4;
/// Elements a message: an attribute holds 64 KiB, an element with comment and chain at most 400 bytes.
const ELEMENTS: usize = 128;

/// An element of a verdict map: packets with this key go on in `chain`, and do not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goto {
    pub key: Vec<u8>,
    pub chain: String,
    /// Shown by `nft list ruleset`; cut off after 127 bytes.
    pub comment: String,
}

impl Batch {
    /// Adds elements to a verdict map. That none of them is there yet is part of the transaction (`EEXIST`).
    pub fn add_gotos(&mut self, family: Family, table: &str, map: &str, gotos: &[Goto]) {
        for part in gotos.chunks(ELEMENTS) {
            let object = format!("{} elements of map {family} {table} {map}", part.len());
            self.push((msg::NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, "add"), family, object, |a| {
                a.text(1, table);
                a.text(2, map);
                a.nested(3, |list| {
                    for goto in part {
                        list.nested(1, |element| {
                            element.data(1, &goto.key);
                            element.nested(2, |data| {
                                data.nested(2, |verdict| {
                                    verdict.number(1, NFT_GOTO.cast_unsigned());
                                    verdict.text(2, &goto.chain);
                                });
                            });
                            element.bytes(6, &user_data(&goto.comment));
                        });
                    }
                });
            });
        }
    }
}

/// `ip|ip6 saddr vmap @MAP`.
pub fn source_decides(v4: bool, map: &str) -> Vec<Expr> {
    let mut exprs = expr::load_address(Side::Source, v4);
    exprs.push(Expr::built("lookup", |a| {
        const REG_1: u32 = 1;
        const REG_VERDICT: u32 = 0;
        a.text(1, map);
        a.number(2, REG_1);
        a.number(3, REG_VERDICT);
        a.number(5, 0);
    }));
    exprs
}

/// `masquerade fully-random`: the source becomes the address of the device that the packet leaves by, with a
/// port that two connections hardly ever race for (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
pub fn masquerade_random() -> Vec<Expr> {
    const RANDOM_FULLY: u32 = 1 << 4;
    vec![Expr::built("masq", |a| a.number(1, RANDOM_FULLY))]
}
