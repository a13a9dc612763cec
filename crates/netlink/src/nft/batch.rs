//! One transaction: all of it or nothing.

use ipnetwork::IpNetwork;

use super::expr::Expr;
use super::write::Attributes;
use super::{Base, Family, Rule, SetKey, msg};

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const SET_INTERVAL: u32 = 4;
const ELEMENT_INTERVAL_END: u32 = 1;
/// Elements a message: an attribute holds 64 KiB.
const ELEMENTS: usize = 512;

/// Changes to be made together. Building it does nothing: [`super::Nft::commit`] does.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) messages: Vec<Message>,
    pub(super) sets: u32,
}

#[derive(Debug)]
pub(super) struct Message {
    pub kind: u16,
    pub flags: u16,
    pub family: Family,
    pub operation: &'static str,
    pub object: String,
    pub attributes: Vec<u8>,
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn push(
        &mut self,
        (kind, flags, operation): (u16, u16, &'static str),
        family: Family,
        object: String,
        fill: impl FnOnce(&mut Attributes),
    ) {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        let attributes = attributes.into_bytes();
        self.messages.push(Message { kind, flags, family, operation, object, attributes });
    }

    /// Creates a table if it is not there.
    pub fn add_table(&mut self, family: Family, table: &str) {
        self.push((msg::NEWTABLE, NLM_F_CREATE, "add"), family, format!("table {family} {table}"), |a| {
            a.text(1, table);
        });
    }

    /// Deletes a table with all that is in it. It need not be there.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        // There is NFT_MSG_DESTROYTABLE only since Linux 6.3.
        self.add_table(family, table);
        self.push((msg::DELTABLE, 0, "delete"), family, format!("table {family} {table}"), |a| {
            a.text(1, table);
        });
    }

    /// Creates a chain if it is not there; with `base`, one that is entered from a hook. A base chain that
    /// is there must have the same type, hook and priority; its policy becomes that of `base`.
    pub fn add_chain(&mut self, family: Family, table: &str, chain: &str, base: Option<&Base>) {
        let object = format!("chain {family} {table} {chain}");
        self.push((msg::NEWCHAIN, NLM_F_CREATE, "add"), family, object, |a| {
            a.text(1, table);
            a.text(3, chain);
            if let Some(base) = base {
                a.nested(4, |hook| {
                    hook.number(1, base.hook.number());
                    hook.number(2, base.priority.cast_unsigned());
                });
                a.number(5, u32::from(base.policy_accept));
                a.text(7, &base.kind);
            }
        });
    }

    /// Deletes a chain, which must be empty and not be jumped to.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        let object = format!("chain {family} {table} {chain}");
        self.push((msg::DELCHAIN, 0, "delete"), family, object, |a| {
            a.text(1, table);
            a.text(3, chain);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        let object = format!("rules of chain {family} {table} {chain}");
        self.push((msg::DELRULE, 0, "delete"), family, object, |a| {
            a.text(1, table);
            a.text(2, chain);
        });
    }

    /// Deletes one rule, whoever made it.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        let object = format!("rule {handle} of chain {family} {table} {chain}");
        self.push((msg::DELRULE, 0, "delete"), family, object, |a| {
            a.text(1, table);
            a.text(2, chain);
            a.bytes(3, &handle.to_be_bytes());
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        let object = format!("rule {:?} to chain {family} {table} {chain}", rule.comment);
        self.push((msg::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, "add"), family, object, |a| {
            a.text(1, table);
            a.text(2, chain);
            a.nested(4, |list| rule.exprs.iter().for_each(|expr: &Expr| expr.write(list)));
            a.bytes(7, &rule.user_data());
        });
    }

    /// Creates a set of prefixes or single values if it is not there.
    pub fn add_set(&mut self, family: Family, table: &str, set: &str, key: SetKey) {
        self.sets += 1;
        let id = self.sets;
        let object = format!("set {family} {table} {set}");
        self.push((msg::NEWSET, NLM_F_CREATE, "add"), family, object, |a| {
            a.text(1, table);
            a.text(2, set);
            a.number(3, if key.is_interval() { SET_INTERVAL } else { 0 });
            let (kind, length) = key.kind_and_length();
            a.number(4, kind);
            a.number(5, length);
            a.number(10, id);
            if let Some(data) = key.user_data() {
                a.bytes(13, &data);
            }
        });
    }

    /// Deletes a set, which no rule may use.
    pub fn delete_set(&mut self, family: Family, table: &str, set: &str) {
        let object = format!("set {family} {table} {set}");
        self.push((msg::DELSET, 0, "delete"), family, object, |a| {
            a.text(1, table);
            a.text(2, set);
        });
    }

    /// Empties a set.
    pub fn flush_set(&mut self, family: Family, table: &str, set: &str) {
        let object = format!("elements of set {family} {table} {set}");
        self.push((msg::DELSETELEM, 0, "delete"), family, object, |a| {
            a.text(1, table);
            a.text(2, set);
        });
    }

    /// Adds prefixes to an interval set of their family. They must not overlap.
    pub fn add_prefixes(&mut self, family: Family, table: &str, set: &str, prefixes: &[IpNetwork]) {
        self.prefixes((msg::NEWSETELEM, NLM_F_CREATE, "add"), family, table, set, prefixes);
    }

    /// Removes prefixes from an interval set.
    pub fn delete_prefixes(&mut self, family: Family, table: &str, set: &str, prefixes: &[IpNetwork]) {
        self.prefixes((msg::DELSETELEM, 0, "delete"), family, table, set, prefixes);
    }

    fn prefixes(
        &mut self,
        how: (u16, u16, &'static str),
        family: Family,
        table: &str,
        set: &str,
        prefixes: &[IpNetwork],
    ) {
        let ends: Vec<(Vec<u8>, bool)> = prefixes.iter().flat_map(interval).collect();
        for part in ends.chunks(ELEMENTS) {
            self.elements(how, family, table, set, part);
        }
    }

    /// Adds single values to a set: device names are padded to 16 bytes by the caller.
    pub fn add_elements(&mut self, family: Family, table: &str, set: &str, keys: &[Vec<u8>]) {
        let keys: Vec<_> = keys.iter().map(|key| (key.clone(), false)).collect();
        for part in keys.chunks(ELEMENTS) {
            self.elements((msg::NEWSETELEM, NLM_F_CREATE, "add"), family, table, set, part);
        }
    }

    /// Removes single values from a set.
    pub fn delete_elements(&mut self, family: Family, table: &str, set: &str, keys: &[Vec<u8>]) {
        let keys: Vec<_> = keys.iter().map(|key| (key.clone(), false)).collect();
        for part in keys.chunks(ELEMENTS) {
            self.elements((msg::DELSETELEM, 0, "delete"), family, table, set, part);
        }
    }

    fn elements(
        &mut self,
        how: (u16, u16, &'static str),
        family: Family,
        table: &str,
        set: &str,
        keys: &[(Vec<u8>, bool)],
    ) {
        let object = format!("{} elements of set {family} {table} {set}", keys.len());
        self.push(how, family, object, |a| {
            a.text(1, table);
            a.text(2, set);
            a.nested(3, |list| {
                for (key, end) in keys {
                    list.nested(1, |element| {
                        element.data(1, key);
                        if *end {
                            element.number(3, ELEMENT_INTERVAL_END);
                        }
                    });
                }
            });
        });
    }
}

/// First address of a prefix, and the one after its last (flagged), which the last prefix of all lacks.
fn interval(prefix: &IpNetwork) -> Vec<(Vec<u8>, bool)> {
    let (start, end) = match prefix {
        IpNetwork::V4(net) => {
            let after = u32::from(net.broadcast()).checked_add(1);
            (net.network().octets().to_vec(), after.map(|a| a.to_be_bytes().to_vec()))
        }
        IpNetwork::V6(net) => {
            let after = u128::from(net.broadcast()).checked_add(1);
            (net.network().octets().to_vec(), after.map(|a| a.to_be_bytes().to_vec()))
        }
    };
    let mut ends = vec![(start, false)];
    ends.extend(end.map(|end| (end, true)));
    ends
}
