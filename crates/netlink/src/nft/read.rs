//! Reading what nf_tables holds: tables, chains, rules, elements; ours and others'.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

use super::decode::{self, Action};
use super::write::Attributes;
use super::{Base, Family, Hook, Nft, msg};
use crate::wire::{Frame, attributes, text};
use crate::{Error, Result};

/// A table of any owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedTable {
    pub family: Family,
    pub name: String,
}

/// A set or map of any owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedSet {
    pub family: Family,
    pub table: String,
    pub name: String,
}

/// A chain of any owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    pub family: Family,
    pub table: String,
    pub name: String,
    /// Set if packets enter it from a hook.
    pub base: Option<Base>,
}

/// A rule of any owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    pub family: Family,
    pub table: String,
    pub chain: String,
    pub handle: u64,
    pub comment: String,
    /// Names of its expressions, in order: `meta`, `cmp`, `fib`, `immediate`.
    pub exprs: Vec<String>,
    /// What they do, in the same order.
    pub actions: Vec<Action>,
    /// The verdict at its end: 0 drop, 1 accept, negative: `NFT_JUMP` and so on. `None`: it decides nothing.
    pub verdict: Option<i32>,
    /// Packets that its counter counted, if it has one.
    pub packets: Option<u64>,
}

/// The key of an element, and whether it is the end of an interval.
pub type Element = (Vec<u8>, bool);

impl Nft {
    /// All tables of all families.
    pub fn tables(&mut self) -> Result<Vec<ListedTable>> {
        self.dump(
            msg::GETTABLE,
            Family::Other(0),
            "nf_tables tables",
            &Attributes::default(),
            |family, frame| {
                let mut name = String::new();
                for (kind, value) in attributes(frame) {
                    if kind == 1 {
                        name = text(value);
                    }
                }
                Some(ListedTable { family, name })
            },
        )
    }

    /// All chains of all families.
    pub fn chains(&mut self) -> Result<Vec<ListedChain>> {
        self.dump(msg::GETCHAIN, Family::Other(0), "nf_tables chains", &Attributes::default(), chain)
    }

    /// One chain, if there is one of this name.
    pub fn chain(&mut self, family: Family, table: &str, name: &str) -> Result<Option<ListedChain>> {
        let mut wanted = Attributes::default();
        wanted.text(1, table);
        wanted.text(3, name);
        let object = format!("chain {family} {table} {name}");
        let object = format_args!("{object}");
        let payload = payload(family, &wanted);
        let sequence =
            self.socket.send("find", object, msg::GETCHAIN, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        let mut found = None;
        let result = self.socket.receive("find", object, sequence, |frame| {
            if let Some((family, rest)) = split(&frame) {
                found = chain(family, rest);
            }
            Ok(())
        });
        match result {
            Ok(()) => Ok(found),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The rules of a table, or of one of its chains, in order. Empty if there is no such table.
    pub fn rules(&mut self, family: Family, table: &str, chain: Option<&str>) -> Result<Vec<ListedRule>> {
        let mut wanted = Attributes::default();
        wanted.text(1, table);
        if let Some(chain) = chain {
            wanted.text(2, chain);
        }
        let listed = self.dump(msg::GETRULE, family, "nf_tables rules", &wanted, rule);
        match listed {
            // Kernels differ in whether a filter that matches nothing is an error.
            Err(error) if error.not_found() => Ok(Vec::new()),
            other => Ok(other?
                .into_iter()
                .filter(|rule| rule.table == table && chain.is_none_or(|chain| rule.chain == chain))
                .collect()),
        }
    }

    /// The prefixes of an interval set; `None` if there is no such set.
    pub fn prefixes(&mut self, family: Family, table: &str, set: &str) -> Result<Option<Vec<IpNetwork>>> {
        let Some(mut ends) = self.elements(family, table, set)? else { return Ok(None) };
        // Order in the answer is the tree's; an end sorts before the start at the same address.
        ends.sort_by(|a, b| (&a.0, !a.1).cmp(&(&b.0, !b.1)));
        let mut prefixes = Vec::new();
        let mut open: Option<Vec<u8>> = None;
        for (key, end) in ends {
            if let Some(start) = open.take() {
                prefixes.extend(range_to_prefixes(&start, Some(&key)));
            }
            if !end {
                open = Some(key);
            }
        }
        if let Some(start) = open {
            prefixes.extend(range_to_prefixes(&start, None));
        }
        Ok(Some(prefixes))
    }

    /// All sets and maps of all families.
    pub fn sets(&mut self) -> Result<Vec<ListedSet>> {
        self.dump(msg::GETSET, Family::Other(0), "nf_tables sets", &Attributes::default(), |family, frame| {
            let (mut table, mut name) = (String::new(), String::new());
            for (kind, value) in attributes(frame) {
                match kind {
                    1 => table = text(value),
                    2 => name = text(value),
                    _ => {}
                }
            }
            Some(ListedSet { family, table, name })
        })
    }

    /// The elements of a set: key, and whether it is the end of an interval. `None`: no such set.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Option<Vec<Element>>> {
        let mut wanted = Attributes::default();
        wanted.text(1, table);
        wanted.text(2, set);
        let dumped = self.dump(msg::GETSETELEM, family, "nf_tables elements", &wanted, |_, frame| {
            let list =
                attributes(frame).find(|(kind, _)| *kind == 3).map(|(_, list)| list).unwrap_or_default();
            Some(attributes(list).filter_map(|(_, element)| self::element(element)).collect::<Vec<_>>())
        });
        match dumped {
            Ok(parts) => Ok(Some(parts.into_iter().flatten().collect())),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        family: Family,
        what: &'static str,
        wanted: &Attributes,
        mut parse: impl FnMut(Family, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let object: fmt::Arguments<'_> = format_args!("{what}");
        let payload = payload(family, wanted);
        self.socket.consistent("list", object, |socket| {
            let sequence = socket.send("list", object, kind, NLM_F_REQUEST | NLM_F_DUMP, &payload)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump("list", object, sequence, |frame| {
                let (family, rest) =
                    split(&frame).ok_or_else(|| Error::answer("list", object, "it is too short"))?;
                found.extend(parse(family, rest));
                Ok(())
            })?;
            Ok(whole.then_some(found))
        })
    }
}

pub(super) fn payload(family: Family, wanted: &Attributes) -> Vec<u8> {
    let mut payload = vec![family.number(), 0, 0, 0];
    payload.extend(wanted.as_bytes());
    payload
}

/// Family and attributes of an answer.
pub(super) fn split<'a>(frame: &Frame<'a>) -> Option<(Family, &'a [u8])> {
    let family = *frame.payload.first()?;
    Some((Family::from_number(family), frame.payload.get(4..)?))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

fn chain(family: Family, frame: &[u8]) -> Option<ListedChain> {
    let mut chain = ListedChain { family, table: String::new(), name: String::new(), base: None };
    let (mut hook, mut policy, mut kind) = (None, None, String::new());
    for (attribute, value) in attributes(frame) {
        match attribute {
            1 => chain.table = text(value),
            3 => chain.name = text(value),
            4 => {
                let find =
                    |wanted| attributes(value).find(|(k, _)| *k == wanted).and_then(|(_, v)| number(v));
                hook = find(1).zip(find(2));
            }
            5 => policy = number(value),
            7 => kind = text(value),
            _ => {}
        }
    }
    if let Some((hook, priority)) = hook {
        chain.base = Some(Base {
            kind,
            hook: Hook::from_number(hook),
            priority: priority.cast_signed(),
            policy_accept: policy != Some(0),
        });
    }
    Some(chain)
}

fn rule(family: Family, frame: &[u8]) -> Option<ListedRule> {
    let mut rule = ListedRule {
        family,
        table: String::new(),
        chain: String::new(),
        handle: 0,
        comment: String::new(),
        exprs: Vec::new(),
        actions: Vec::new(),
        verdict: None,
        packets: None,
    };
    for (attribute, value) in attributes(frame) {
        match attribute {
            1 => rule.table = text(value),
            2 => rule.chain = text(value),
            3 => rule.handle = long(value)?,
            4 => {
                for (_, element) in attributes(value) {
                    expression(&mut rule, element);
                }
            }
            7 => rule.comment = comment(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(rule)
}

fn expression(rule: &mut ListedRule, element: &[u8]) {
    let (mut name, mut data) = (String::new(), &[][..]);
    for (kind, value) in attributes(element) {
        match kind {
            1 => name = text(value),
            2 => data = value,
            _ => {}
        }
    }
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    match name.as_str() {
        "immediate" => {
            rule.verdict = find(data, 2)
                .and_then(|data| find(data, 2))
                .and_then(|verdict| find(verdict, 1))
                .and_then(number)
                .map(u32::cast_signed)
                .or(rule.verdict);
        }
        "counter" => rule.packets = find(data, 2).and_then(long),
        _ => {}
    }
    rule.actions.push(decode::action(&name, data));
    rule.exprs.push(name);
}

/// The comment in user data of a rule or an element: type 0, length, text.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}

fn element(element: &[u8]) -> Option<Element> {
    let (mut key, mut end) = (None, false);
    for (kind, value) in attributes(element) {
        match kind {
            1 => key = attributes(value).find(|(kind, _)| *kind == 1).map(|(_, value)| value.to_vec()),
            3 => end = number(value).is_some_and(|flags| flags & 1 != 0),
            _ => {}
        }
    }
    Some((key?, end))
}

/// The prefixes that make up the addresses from `start` to just before `end`, or to the last of all.
fn range_to_prefixes(start: &[u8], end: Option<&[u8]>) -> Vec<IpNetwork> {
    let bits = start.len() as u32 * 8;
    if bits != 32 && bits != 128 {
        return Vec::new();
    }
    let value = |bytes: &[u8]| bytes.iter().fold(0u128, |value, byte| (value << 8) | u128::from(*byte));
    let top = if bits == 128 { u128::MAX } else { (1 << 32) - 1 };
    let last = end.map_or(top, |end| value(end).wrapping_sub(1));
    let mut first = value(start);
    let mut prefixes = Vec::new();
    loop {
        // The largest aligned block that begins here and does not go past the end.
        let mut size = first.trailing_zeros().min(bits);
        while size > 0 && (size == 128 || first.checked_add((1 << size) - 1).is_none_or(|end| end > last)) {
            if size == 128 && first == 0 && last == u128::MAX {
                break;
            }
            size -= 1;
        }
        let ip = if bits == 32 {
            IpAddr::from((first as u32).to_be_bytes())
        } else {
            IpAddr::from(first.to_be_bytes())
        };
        prefixes.extend(IpNetwork::new(ip, (bits - size) as u8));
        match 1u128.checked_shl(size).and_then(|step| first.checked_add(step)) {
            Some(next) if next <= last => first = next,
            _ => return prefixes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_the_fewest_prefixes() {
        let prefixes = |start: &str, end: Option<&str>| {
            let bytes = |ip: &str| match ip.parse().unwrap() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let found = range_to_prefixes(&bytes(start), end.map(bytes).as_deref());
            found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(prefixes("10.0.1.0", Some("10.0.2.0")), "10.0.1.0/24");
        assert_eq!(prefixes("10.0.1.0", Some("10.0.1.3")), "10.0.1.0/31 10.0.1.2/32");
        assert_eq!(prefixes("255.255.255.0", None), "255.255.255.0/24");
        assert_eq!(prefixes("0.0.0.0", None), "0.0.0.0/0");
        assert_eq!(prefixes("fd00::", Some("fd00:0:0:1::")), "fd00::/64");
        assert_eq!(prefixes("::", None), "::/0");
        assert_eq!(prefixes("ff00::", None), "ff00::/8");
    }
}
