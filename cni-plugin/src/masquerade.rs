//! `ipMasq`: what a pod sends to somewhere outside its own network goes out in the node's name.
//!
//! One static rule looks a packet's source up in a map of the pods that want it. The map leads to a chain that
//! knows the ranges of the pod's network; there is one for every different list of ranges, named after it, never a
//! rule for a pod:
//!
//! ```text
//! map masquerade4 { type ipv4_addr : verdict; elements = { 10.1.0.5 comment "hdl0123456789ab" : goto masq_1c0ffee5 } }
//! chain ipmasq { type nat hook postrouting priority srcnat; ip daddr 224.0.0.0/4 return; ip saddr vmap @masquerade4 }
//! chain masq_1c0ffee5 { ip daddr 10.1.0.0/16 return; masquerade fully-random }
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use heddle_netlink::nft::expr::{self, Side};
use heddle_netlink::nft::verdict::{Goto, masquerade_random, source_decides};
use heddle_netlink::nft::{
    Base, Batch, Chain, Family, Hook, Nft, Rule, Ruleset, Set, SetKey, Verdict, priority,
};
use heddle_netlink::{Socket, link};
use heddle_spec::{Failure, code};
use ipnetwork::IpNetwork;

use crate::addresses::Allocation;
use crate::conf::Conf;
use crate::elements::Removal;
use crate::guard::TABLE;
use crate::mark::Mark;
use crate::veth::PREFIX;

/// Not `masquerade`: `nft` takes that for its own word.
const CHAIN: &str = "ipmasq";
const IPV4: &str = "masquerade4";
const IPV6: &str = "masquerade6";

/// The ranges of a pod's network: among them its address stays what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// In order, without repetition.
    ranges: BTreeSet<IpNetwork>,
    /// Of the ranges; what the chain is named after.
    pub id: u32,
}

impl Group {
    /// The group of these ranges.
    pub fn new(ranges: impl IntoIterator<Item = IpNetwork>) -> Self {
        let network = |range: IpNetwork| IpNetwork::new(range.network(), range.prefix()).unwrap_or(range);
        let ranges: BTreeSet<IpNetwork> = ranges.into_iter().map(network).collect();
        // FNV-1a.
        let id = ranges
            .iter()
            .flat_map(|range| range.to_string().into_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        Self { ranges, id: (id ^ (id >> 32)) as u32 }
    }

    /// The group of a pod with these addresses: all ranges of its network as the configuration has them, and the
    /// addresses' own subnets.
    pub fn of(conf: &Conf, allocations: &[Allocation]) -> Self {
        let sets = conf.ipam.pool().map_or(&[][..], |pool| pool.sets.as_slice());
        let ranges = sets.iter().flat_map(|set| set.ranges()).map(|range| range.subnet);
        Self::new(ranges.chain(allocations.iter().map(|allocation| allocation.ip)))
    }

    fn chain(&self) -> String {
        chain(self.id)
    }
}

fn chain(id: u32) -> String {
    format!("masq_{id:08x}")
}

fn ruleset(group: &Group) -> Result<Ruleset, Failure> {
    let internal = |error: ipnetwork::IpNetworkError| Failure::new(code::INTERNAL, error.to_string());
    let to = |comment: &str, range: IpNetwork| {
        Rule::new(comment, [expr::address(Side::Destination, range)], Verdict::Return)
    };
    let multicast4 = IpNetwork::new([224, 0, 0, 0].into(), 4).map_err(internal)?;
    let multicast6 = IpNetwork::new([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8).map_err(internal)?;
    let decides = |comment: &str, v4, map| Rule { comment: comment.into(), exprs: source_decides(v4, map) };
    let mut rules: Vec<Rule> = group.ranges.iter().map(|range| to("its own network", *range)).collect();
    rules.push(Rule { comment: "all else leaves in the node's name".into(), exprs: masquerade_random() });
    Ok(Ruleset {
        family: Family::Inet,
        table: TABLE,
        sets: [(IPV4, SetKey::Ipv4), (IPV6, SetKey::Ipv6)]
            .map(|(name, key)| Set { name, key, verdicts: true })
            .to_vec(),
        chains: vec![
            Chain { name: group.chain(), base: None, rules },
            Chain {
                name: CHAIN.into(),
                base: Some(Base::nat(Hook::Postrouting, priority::SRCNAT)),
                rules: vec![
                    to("multicast", multicast4),
                    to("multicast", multicast6),
                    decides("pods with ipMasq", true, IPV4),
                    decides("pods with ipMasq", false, IPV6),
                ],
            },
        ],
    })
}

/// Masquerades these addresses, which are of the pod with this host side. Puts back what somebody flushed, for the
/// other pods with the same ranges too.
pub fn enter(device: &str, ips: &[IpAddr], group: &Group) -> Result<(), Failure> {
    /// ADDs that mend the same at the same moment; each time one of them succeeds.
    const ATTEMPTS: u32 = 32;
    let ruleset = ruleset(group)?;
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    if nft.missing(&ruleset)?.is_empty() {
        add(&mut batch, device, ips, group);
    } else {
        mend(&mut nft, &mut batch, &ruleset, device, ips, group)?;
    }
    for _ in 0..ATTEMPTS {
        match nft.commit(&batch) {
            // Flushed between the two requests; or an address whose earlier pod was not taken down, or had other
            // ranges; or another ADD was quicker with a part of it.
            Err(error) if error.not_found() || error.already_exists() => {
                batch = Batch::new();
                mend(&mut nft, &mut batch, &ruleset, device, ips, group)?;
            }
            other => return Ok(other?),
        }
    }
    Ok(nft.commit(&batch)?)
}

/// The rules, and the elements that are missing: of this pod, and of the others of its group.
fn mend(
    nft: &mut Nft,
    batch: &mut Batch,
    ruleset: &Ruleset,
    device: &str,
    ips: &[IpAddr],
    group: &Group,
) -> Result<(), Failure> {
    let all: Vec<&Chain> = ruleset.chains.iter().collect();
    nft.mend(batch, ruleset, &all)?;
    let there = dump(nft)?;
    // What is there of these addresses is of pods that are gone.
    for old in there.iter().filter(|(_, key, _)| ips.iter().any(|ip| octets(*ip) == *key)) {
        removal(old.clone()).add_to(batch);
    }
    for (other, mark) in marked()? {
        let held = mark.holdings.filter(|held| mark.complete && held.masquerade == Some(group.id));
        if let Some(held) = held.filter(|_| other != device) {
            // An element that is there is not added again, with whatever it says.
            let gone =
                |ip: &IpAddr| !ips.contains(ip) && !there.iter().any(|(_, key, _)| *key == octets(*ip));
            let missing: Vec<IpAddr> = held.ips.iter().copied().filter(gone).collect();
            add(batch, &other, &missing, group);
        }
    }
    add(batch, device, ips, group);
    Ok(())
}

/// Host sides and their marks.
fn marked() -> Result<Vec<(String, Mark)>, Failure> {
    let links = link::list(&mut Socket::open()?)?;
    let pods = links.into_iter().filter(|link| link.name.starts_with(PREFIX));
    Ok(pods.filter_map(|link| Some((link.name, Mark::parse(&link.alias?)?))).collect())
}

fn add(batch: &mut Batch, device: &str, ips: &[IpAddr], group: &Group) {
    for (map, v4) in [(IPV4, true), (IPV6, false)] {
        let gotos: Vec<Goto> = ips
            .iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .map(|ip| Goto { key: octets(*ip), chain: group.chain(), comment: device.to_owned() })
            .collect();
        if !gotos.is_empty() {
            batch.add_gotos(Family::Inet, TABLE, map, &gotos);
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Says what of the pod's masquerading is not there, by what its mark says that there was.
pub fn lacks(device: &str, mark: &Mark) -> Result<Option<String>, Failure> {
    let Some(held) = &mark.holdings else { return Ok(None) };
    let Some(id) = held.masquerade else {
        return Ok(Some("ipMasq: it is on, and was not when the pod was added".into()));
    };
    let mut nft = Nft::open()?;
    let mut ruleset = ruleset(&Group { ranges: BTreeSet::new(), id })?;
    // What the ranges were, the chain alone knows; its name follows from them.
    ruleset.chains.retain(|chain| chain.base.is_some());
    let own = nft.rules(Family::Inet, TABLE, Some(&chain(id)))?;
    if own.is_empty() || !nft.missing(&ruleset)?.is_empty() {
        return Ok(Some("ipMasq: the nf_tables rules are not there".into()));
    }
    for ip in &held.ips {
        let map = if ip.is_ipv4() { IPV4 } else { IPV6 };
        let there = nft.entry(Family::Inet, TABLE, map, &octets(*ip))?;
        if there.is_none_or(|entry| entry.comment != device) {
            return Ok(Some(format!("ipMasq: {ip} is not in the nf_tables map {map}")));
        }
    }
    Ok(None)
}

/// What DEL takes away of a pod whose mark says what it has.
pub fn held(mark: &Mark) -> Vec<Removal> {
    let Some(held) = mark.holdings.as_ref().filter(|held| held.masquerade.is_some()) else {
        return Vec::new();
    };
    held.ips
        .iter()
        .map(|ip| Removal {
            family: Family::Inet,
            set: if ip.is_ipv4() { IPV4 } else { IPV6 }.into(),
            keys: vec![octets(*ip)],
        })
        .collect()
}

/// All elements, each with the name of the device that it belongs to.
pub fn all(nft: &mut Nft) -> Result<Vec<(String, Removal)>, Failure> {
    Ok(dump(nft)?.into_iter().map(|one| (one.2.clone(), removal(one))).collect())
}

type Found = (&'static str, Vec<u8>, String);

fn dump(nft: &mut Nft) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for map in [IPV4, IPV6] {
        let Some(entries) = nft.entries(Family::Inet, TABLE, map)? else { break };
        found.extend(entries.into_iter().map(|entry| (map, entry.key, entry.comment)));
    }
    Ok(found)
}

fn removal((map, key, _): Found) -> Removal {
    Removal { family: Family::Inet, set: map.into(), keys: vec![key] }
}

/// Removes the chains that no element leads to any more. The kernel refuses to delete one that is in use.
pub fn sweep() -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    for chain in nft.chains()? {
        if (chain.family, chain.table.as_str()) == (Family::Inet, TABLE) && chain.name.starts_with("masq_") {
            let mut batch = Batch::new();
            batch.flush_chain(Family::Inet, TABLE, &chain.name);
            batch.delete_chain(Family::Inet, TABLE, &chain.name);
            drop(nft.commit(&batch));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_its_ranges_and_not_their_order() {
        let group = |ranges: &[&str]| Group::new(ranges.iter().map(|range| range.parse().unwrap()));
        let one = group(&["10.1.0.0/16", "fd00::/64"]);
        assert_eq!(one, group(&["fd00::7/64", "10.1.0.5/16", "10.1.0.0/16"]));
        assert_ne!(one.id, group(&["10.1.0.0/17", "fd00::/64"]).id);
    }
}
