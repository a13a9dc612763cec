//! Who answers for a port of a service, and in which state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::addr::Protocol;
use crate::cluster::{Endpoint, Endpoints, EndpointsName, Service, ServicePort, TrafficPolicy};
use crate::node::NodeName;
use crate::problem::{Object, Problem, What};
use crate::service::{Backend, BackendState};
use crate::store::Snapshot;
use crate::subnet::hostile;

use super::nodes::Nodes;

/// How alive an endpoint is. Of two that name one address and port, the more alive counts (while an
/// endpoint moves from one list to another it may stand in both).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Ready,
    /// Serves, but is about to end.
    Ending,
    /// Does not serve.
    Deaf,
}

impl Life {
    const fn of(endpoint: &Endpoint) -> Self {
        match (endpoint.serving, endpoint.terminating) {
            (true, false) => Self::Ready,
            (true, true) => Self::Ending,
            (false, _) => Self::Deaf,
        }
    }
}

pub(super) type Candidates<'a> = BTreeMap<(IpAddr, u16), (Life, Option<&'a NodeName>)>;

/// The endpoints of a service, found through all of its lists.
pub(super) struct Pool<'a> {
    lists: Vec<&'a Endpoints>,
    nodes: &'a Nodes,
    services: &'a BTreeMap<IpAddr, Object>,
}

impl<'a> Pool<'a> {
    /// `services`: the addresses at which services answer.
    pub(super) fn of(
        service: &Service,
        snapshot: &'a Snapshot,
        nodes: &'a Nodes,
        services: &'a BTreeMap<IpAddr, Object>,
    ) -> Self {
        let first = EndpointsName { service: service.name.clone(), part: String::new() };
        let lists = snapshot.endpoints.range(first..).take_while(|(name, _)| name.service == service.name);
        Self { lists: lists.map(|(_, list)| list.as_ref()).collect(), nodes, services }
    }

    /// The backends of `port` for clients that use an address of the given family.
    pub(super) fn backends(
        &self,
        port: &ServicePort,
        v4: bool,
        policy: TrafficPolicy,
        local: &NodeName,
        problems: &mut BTreeSet<Problem>,
    ) -> BTreeSet<Backend> {
        let mut candidates = self.candidates(port, v4, problems);
        if policy == TrafficPolicy::Local {
            candidates.retain(|_, (_, node)| *node == Some(local));
        }
        states(port.proto, candidates)
    }

    fn candidates(&self, port: &ServicePort, v4: bool, problems: &mut BTreeSet<Problem>) -> Candidates<'a> {
        let mut candidates = Candidates::new();
        for list in &self.lists {
            let matching = |p: &&crate::EndpointPort| p.name == port.name && p.proto == port.proto;
            for number in list.ports.iter().filter(matching).map(|p| p.port).filter(|number| *number != 0) {
                for endpoint in list.endpoints.iter().filter(|endpoint| endpoint.ip.is_ipv4() == v4) {
                    if let Some(what) = self.refused(endpoint.ip) {
                        problems.insert(Problem::new(Object::Endpoints(list.name.clone()), what));
                        continue;
                    }
                    let node = self.nodes.owner(endpoint.ip);
                    if let Some(what) = self.elsewhere(endpoint, node) {
                        problems.insert(Problem::new(Object::Endpoints(list.name.clone()), what));
                    }
                    let life = Life::of(endpoint);
                    let known = candidates.entry((endpoint.ip, number)).or_insert((life, node));
                    known.0 = known.0.min(life);
                }
            }
        }
        candidates
    }

    /// Why nothing is sent to an endpoint. A service's address is no endpoint: what is translated to it would
    /// have to be translated again (Kubernetes forbids it too, and does not check it).
    fn refused(&self, address: IpAddr) -> Option<What> {
        let hostile = hostile(address).map(|kind| What::Hostile { address, kind });
        hostile.or_else(|| {
            self.services.get(&address).map(|by| What::Taken { address, by: Box::new(by.clone()) })
        })
    }

    /// Where an endpoint is, its address alone decides, as packets go where that belongs. If nobody has it, a node
    /// that is named for it would not know it either: what was sent there would be lost, or answered by somebody
    /// else. This says so.
    fn elsewhere(&self, endpoint: &Endpoint, owner: Option<&NodeName>) -> Option<What> {
        let said = endpoint.node.as_ref().filter(|name| self.nodes.accepted.contains_key(name))?;
        let ip = endpoint.ip;
        owner.is_none().then(|| {
            What::Said(format!(
                "address {ip} counts as no node's: node {said} has it neither as its own nor in its pod ranges"
            ))
        })
    }
}

/// What readiness and termination mean for flows.
///
/// - Ready: takes new flows.
/// - Ending: keeps its flows. If nobody is ready, those that end and still serve take the new flows as
///   well (as Kubernetes does since 1.26, KEP-1669).
/// - Deaf: takes no new flows. A TCP connection to it is between the two of them and runs on; a UDP client
///   cannot notice, so its flow moves at once.
pub(super) fn states(proto: Protocol, candidates: Candidates<'_>) -> BTreeSet<Backend> {
    let nobody_is_ready = candidates.values().all(|(life, _)| *life != Life::Ready);
    let state = |life: Life| match (life, proto) {
        (Life::Ready, _) => BackendState::Active,
        (Life::Ending, _) if nobody_is_ready => BackendState::Active,
        (Life::Ending, _) => BackendState::Draining,
        (Life::Deaf, Protocol::Udp) => BackendState::Down,
        (Life::Deaf, _) => BackendState::Draining,
    };
    let backend = |((ip, port), (life, node)): (_, (Life, Option<&NodeName>))| Backend {
        ip,
        port,
        proto,
        node: node.cloned(),
        state: state(life),
    };
    candidates.into_iter().map(backend).collect()
}
