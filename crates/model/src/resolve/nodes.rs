//! Which addresses and ranges of which nodes count.
//!
//! A node object may be written by whoever has taken that node. It is trusted with its own addresses and
//! pod ranges, and not with anybody else's: nodes are taken by age, and what an older one has is refused to
//! a younger one and reported. Services come after all nodes: whoever may write a service must not be able to
//! cut a node off by it. On a node itself its own object comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::node::{Node, NodeName};
use crate::problem::{Object, Problem, What};
use crate::store::Snapshot;
use crate::subnet::{Ranges, canonical, ends, hostile, hostile_part, overlap as overlap_each_other};

use super::rules::Rules;
use super::tunnels::Tunnels;

/// What counts of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptedNode {
    /// In the order of the cluster.
    pub addresses: Vec<IpAddr>,
    /// At most one of each family. Without any the node is not part of the overlay.
    pub ranges: BTreeSet<IpNetwork>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// How tunnels to it are made.
    pub tunnels: Tunnels,
}

impl AcceptedNode {
    /// The first address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// Where VXLAN packets of a family are sent: the address that it announces, or the first.
    pub fn underlay(&self, v4: bool) -> Option<IpAddr> {
        self.tunnels.underlay(v4).or_else(|| self.address(v4))
    }
}

/// All nodes, with what counts of them.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    pub accepted: BTreeMap<NodeName, AcceptedNode>,
    /// Oldest first.
    pub by_age: Vec<NodeName>,
    pub problems: BTreeSet<Problem>,
    addresses: BTreeMap<IpAddr, NodeName>,
    ranges: Ranges<NodeName>,
}

impl Nodes {
    /// As every node sees them alike: by age alone.
    pub fn new(snapshot: &Snapshot, rules: &Rules) -> Self {
        Self::take(snapshot, None, rules)
    }

    /// As node `local` sees them: what its own object claims comes first there. That this node is `local` is its own
    /// configuration, which no object of somebody else's overrules.
    pub fn seen_from(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> Self {
        Self::take(snapshot, Some(local), rules)
    }

    fn take(snapshot: &Snapshot, first: Option<&NodeName>, rules: &Rules) -> Self {
        let mut by_age: Vec<&Node> = snapshot.nodes.values().map(AsRef::as_ref).collect();
        by_age.sort_by_key(|node| (node.created, &node.name));
        let mut nodes =
            Self { by_age: by_age.iter().map(|node| node.name.clone()).collect(), ..Self::default() };
        // Stable: the others stay in the order of age.
        by_age.sort_by_key(|node| Some(&node.name) != first);
        for node in by_age {
            let mut accepted = AcceptedNode { zone: node.zone.clone(), ..AcceptedNode::default() };
            for ip in &node.addresses {
                nodes.take_address(node, *ip, &mut accepted, rules);
            }
            for range in &node.pod_ranges {
                nodes.take_range(node, canonical(*range), &mut accepted, rules);
            }
            // Of itself a node knows better than what an earlier program announced.
            if Some(&node.name) != first {
                let (tunnels, wrong) = Tunnels::of(node, &accepted.addresses, rules.vni);
                accepted.tunnels = tunnels;
                let object = || Object::Node(node.name.clone());
                nodes.problems.extend(wrong.into_iter().map(|what| Problem::new(object(), What::Said(what))));
            }
            nodes.accepted.insert(node.name.clone(), accepted);
        }
        nodes
    }

    /// The node that has this address, as its own or in its pod range.
    pub fn owner(&self, ip: IpAddr) -> Option<&NodeName> {
        self.addresses.get(&ip).or_else(|| self.ranges.holding(ip).map(|(_, owner)| owner))
    }

    fn take_address(&mut self, node: &Node, ip: IpAddr, accepted: &mut AcceptedNode, rules: &Rules) {
        if accepted.addresses.contains(&ip) {
            return;
        }
        let services = rules.service_range(ip).map(|_| Object::ServiceRanges);
        let owner = || self.owner(ip).map(|owner| Object::Node(owner.clone()));
        let what = match (hostile(ip), services.or_else(owner)) {
            (Some(kind), _) => What::Hostile { address: ip, kind },
            (None, Some(owner)) => What::Taken { address: ip, by: Box::new(owner) },
            (None, None) => {
                accepted.addresses.push(ip);
                self.addresses.insert(ip, node.name.clone());
                return;
            }
        };
        self.problems.insert(Problem::new(Object::Node(node.name.clone()), what));
    }

    fn take_range(&mut self, node: &Node, range: IpNetwork, accepted: &mut AcceptedNode, rules: &Rules) {
        if accepted.ranges.contains(&range) {
            return;
        }
        let (first, last) = ends(range);
        let overlap = |with: IpNetwork, of: Object| What::Overlap { range, with, of: Box::new(of) };
        let refused = if let Some(why) = unusable(range) {
            Some(What::BadRange { range, why })
        } else if accepted.ranges.iter().any(|other| other.is_ipv4() == range.is_ipv4()) {
            Some(What::SecondRange { range })
        } else if let Some(with) = rules.service_ranges.iter().find(|with| overlap_each_other(**with, range))
        {
            Some(overlap(*with, Object::ServiceRanges))
        } else if let Some((with, owner)) = self.ranges.overlapping(range) {
            Some(overlap(*with, Object::Node(owner.clone())))
        } else {
            let address = self.addresses.range(first..=last).next();
            address.map(|(ip, owner)| overlap((*ip).into(), Object::Node(owner.clone())))
        };
        match refused {
            Some(what) => {
                self.problems.insert(Problem::new(Object::Node(node.name.clone()), what));
            }
            None => {
                accepted.ranges.insert(range);
                self.ranges.insert(range, node.name.clone());
            }
        }
    }
}

/// Why a range cannot be a range of pods, whoever else has what.
fn unusable(range: IpNetwork) -> Option<&'static str> {
    let (narrowest_wide, longest) = match range {
        IpNetwork::V4(_) => (8, 30),
        IpNetwork::V6(_) => (16, 126),
    };
    if range.prefix() < narrowest_wide {
        return Some("wider than /8 (IPv4) or /16 (IPv6)");
    }
    if range.prefix() > longest {
        return Some("no room for a pod (longer than /30 or /126)");
    }
    hostile_part(range)
}
