//! The overlay table of a node.

use crate::node::{Beside, NodeName, OverlayTable, RemoteNode, vtep_mac};
use crate::problem::{Object, Problem, What};
use crate::store::Snapshot;

use super::nodes::{AcceptedNode, Nodes};
use super::rules::Rules;
use super::tunnels::Tunnels;

/// What the overlay of node `local` must be. Default (nothing may be done) while the cluster does not know
/// this node, or knows no address of it that the overlay could use.
///
/// The outer packets are of one family, the same on all nodes: the one that more nodes with pods have an address of;
/// where both have equally many, the one that more of them have tunnels over, and then that of the first address of the
/// oldest of these nodes. It does not depend on what `local` claims for itself. The one exception are nodes of flannel's,
/// which have tunnels of its own for each family of pods.
pub fn overlay(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> (OverlayTable, Vec<Problem>) {
    let nodes = Nodes::seen_from(snapshot, local, rules);
    let mut problems = nodes.problems.clone();
    let v4 = runs_over_v4(&Nodes::new(snapshot, rules));
    let mut table = OverlayTable::default();
    for (name, node) in &nodes.accepted {
        let problem = |what| Problem::new(Object::Node(name.clone()), what);
        if name == local {
            table.underlay = node.address(v4);
            table.addresses.clone_from(&node.addresses);
            table.local.clone_from(&node.ranges);
            if table.underlay.is_none() {
                problems.insert(problem(no_underlay(v4)));
            }
            continue;
        }
        if node.ranges.is_empty() {
            continue;
        }
        match remote(name, node, v4, rules) {
            Ok((remote, wrong)) => {
                problems.extend(wrong.into_iter().map(problem));
                table.remotes.insert(name.clone(), remote);
            }
            Err(what) => drop(problems.insert(problem(what))),
        }
    }
    if table.underlay.is_none() {
        table = OverlayTable::default();
    }
    (table, problems.into_iter().collect())
}

const fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

const fn no_underlay(v4: bool) -> What {
    What::NoUnderlayAddress { family: family(v4) }
}

/// How another node is reached, and what of it is not; or why it is not at all.
fn remote(
    name: &NodeName,
    node: &AcceptedNode,
    v4: bool,
    rules: &Rules,
) -> Result<(RemoteNode, Vec<What>), What> {
    let new = |underlay, mac| RemoteNode {
        underlay,
        mac,
        ranges: node.ranges.clone(),
        beside: None,
        addresses: node.addresses.clone(),
    };
    match &node.tunnels {
        Tunnels::Others(which) => {
            Err(What::Said(format!("not reached by the overlay: the node announces {which}")))
        }
        Tunnels::Ours | Tunnels::OursAt(_) => {
            let underlay = node.underlay(v4).ok_or(no_underlay(v4))?;
            Ok((new(underlay, vtep_mac(name, rules.vni)), Vec::new()))
        }
        Tunnels::Flannel(_) => {
            let no_tunnels = |v4| {
                let what = "not reached by the overlay: the node announces no tunnels over";
                What::Said(format!("{what} {}", family(v4)))
            };
            let (underlay, mac) = node.tunnels.flannel(v4).ok_or(no_tunnels(v4))?;
            let mut remote = new(underlay, mac);
            let mut wrong = Vec::new();
            let others = node.ranges.iter().copied().find(|range| range.is_ipv4() != v4);
            if let Some(range) = others {
                remote.ranges.remove(&range);
                match node.tunnels.flannel(!v4) {
                    Some((underlay, mac)) => remote.beside = Some(Beside { underlay, mac, range }),
                    None => wrong.push(What::Said(format!("pod range {range}: {}", no_tunnels(!v4)))),
                }
            }
            Ok((remote, wrong))
        }
    }
}

/// The family of the outer packets.
pub(super) fn runs_over_v4(nodes: &Nodes) -> bool {
    let with_pods = || {
        nodes.by_age.iter().filter_map(|name| nodes.accepted.get(name)).filter(|node| !node.ranges.is_empty())
    };
    let count = |counts: fn(&AcceptedNode, bool) -> bool| {
        let count = |v4| with_pods().filter(|node| counts(node, v4)).count();
        count(true).cmp(&count(false))
    };
    let addresses = count(|node, v4| node.address(v4).is_some());
    match addresses.then_with(|| count(|node, v4| node.tunnels.takes(v4))) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => {
            with_pods().find_map(|node| node.addresses.first()).is_none_or(|address| address.is_ipv4())
        }
    }
}
