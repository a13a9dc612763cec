//! Which endpoints are near (`trafficDistribution`, hints of EndpointSlices; KEP-2433, KEP-3015).

use crate::cluster::Distribution;
use crate::node::NodeName;

use super::endpoints::{Candidate, Candidates, Life};
use super::nodes::Nodes;

/// The ready endpoints that take new flows of clients on this node.
///
/// Hints count whatever the service asks for, as in kube-proxy: they are what the control plane has made of it. Hints
/// at nodes come before hints at zones. Each kind counts only if every ready endpoint has one, and at least one
/// endpoint is meant for here; else nobody may be left out.
///
/// Where there is no hint at all (lists that were made by hand), the wish of the service itself counts, by the nodes
/// and zones that the endpoints are in, with the same fall-backs: everyone's must be known, and one must be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near<'a> {
    Everybody,
    HintedNode(&'a NodeName),
    HintedZone(&'a str),
    Node(&'a NodeName),
    Zone(&'a str),
}

impl<'a> Near<'a> {
    pub fn of(
        candidates: &Candidates<'_>,
        wish: Option<Distribution>,
        local: &'a NodeName,
        nodes: &'a Nodes,
    ) -> Self {
        let ready = || candidates.values().filter(|candidate| candidate.life == Life::Ready);
        let zone = nodes.accepted.get(local).and_then(|node| node.zone.as_deref());
        let usable = |hint: &dyn Fn(&Candidate<'_>) -> (bool, bool)| {
            ready().all(|candidate| hint(candidate).0) && ready().any(|candidate| hint(candidate).1)
        };
        if usable(&|candidate| candidate.node_hint(local)) {
            return Self::HintedNode(local);
        }
        if let Some(zone) = zone.filter(|zone| usable(&|candidate| candidate.zone_hint(Some(zone)))) {
            return Self::HintedZone(zone);
        }
        let hinted = |c: &Candidate<'_>| c.node_hint(local).0 || c.zone_hint(None).0;
        let Some(wish) = wish.filter(|_| !ready().any(hinted)) else { return Self::Everybody };
        let at_home = |candidate: &Candidate<'_>| {
            let home = candidate.home();
            (home.is_some(), home == Some(local))
        };
        if wish == Distribution::SameNode && usable(&at_home) {
            return Self::Node(local);
        }
        let in_zone = |candidate: &Candidate<'_>| {
            let its = candidate.zone(nodes);
            (its.is_some(), its == zone)
        };
        match zone {
            Some(zone) if usable(&in_zone) => Self::Zone(zone),
            _ => Self::Everybody,
        }
    }

    pub fn takes(self, candidate: &Candidate<'_>, nodes: &Nodes) -> bool {
        match self {
            Self::Everybody => true,
            Self::HintedNode(node) => candidate.node_hint(node).1,
            Self::HintedZone(zone) => candidate.zone_hint(Some(zone)).1,
            Self::Node(node) => candidate.home() == Some(node),
            Self::Zone(zone) => candidate.zone(nodes) == Some(zone),
        }
    }
}
