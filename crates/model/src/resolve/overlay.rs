//! The overlay table of a node.

use crate::node::{NodeName, OverlayTable, RemoteNode, vtep_mac};
use crate::problem::{Object, Problem, What};
use crate::store::Snapshot;

use super::nodes::{AcceptedNode, Nodes};
use super::rules::Rules;

/// What the overlay of node `local` must be. Default (nothing may be done) while the cluster does not know
/// this node, or knows no address of it that the overlay could use.
///
/// The outer packets are of one family, the same on all nodes: the one that more nodes with pods have an
/// address of; where both have equally many, that of the first address of the oldest of these nodes.
/// It does not depend on what `local` claims for itself.
pub fn overlay(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> (OverlayTable, Vec<Problem>) {
    let nodes = Nodes::seen_from(snapshot, local, rules);
    let mut problems = nodes.problems.clone();
    let v4 = runs_over_v4(&Nodes::new(snapshot, rules));
    let mut table = OverlayTable::default();
    for (name, node) in &nodes.accepted {
        if node.ranges.is_empty() && name != local {
            continue;
        }
        let Some(underlay) = node.address(v4) else {
            let family = if v4 { "IPv4" } else { "IPv6" };
            problems.insert(Problem::new(Object::Node(name.clone()), What::NoUnderlayAddress { family }));
            continue;
        };
        if name == local {
            table.underlay = Some(underlay);
            table.local.clone_from(&node.ranges);
        } else {
            let remote = RemoteNode { underlay, mac: vtep_mac(name, rules.vni), ranges: node.ranges.clone() };
            table.remotes.insert(name.clone(), remote);
        }
    }
    if table.underlay.is_none() {
        table = OverlayTable::default();
    }
    (table, problems.into_iter().collect())
}

/// The family of the outer packets.
pub(super) fn runs_over_v4(nodes: &Nodes) -> bool {
    let with_pods = || {
        nodes.by_age.iter().filter_map(|name| nodes.accepted.get(name)).filter(|node| !node.ranges.is_empty())
    };
    let count = |v4| with_pods().filter(|node: &&AcceptedNode| node.address(v4).is_some()).count();
    match count(true).cmp(&count(false)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => {
            with_pods().find_map(|node| node.addresses.first()).is_none_or(|address| address.is_ipv4())
        }
    }
}
