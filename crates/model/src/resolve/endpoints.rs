//! Who could answer for a port of a service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cluster::{Endpoint, Endpoints, Hints, Service, ServicePort};
use crate::node::NodeName;
use crate::problem::{Object, Problem, What};
use crate::subnet::hostile;

use super::Context;
use super::nodes::Nodes;

/// How alive an endpoint is. Of two that name one address and port, the more alive counts (while an
/// endpoint moves from one list to another it may stand in both).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    Ready,
    /// Serves, but is about to end.
    Ending,
    /// Does not serve.
    Deaf,
}

impl Life {
    /// `publish`: the service wants all of its endpoints to take part; so the API has it, those that end included.
    const fn of(endpoint: &Endpoint, publish: bool) -> Self {
        match (endpoint.serving, endpoint.terminating) {
            _ if publish => Self::Ready,
            (true, false) => Self::Ready,
            (true, true) => Self::Ending,
            (false, _) => Self::Deaf,
        }
    }
}

/// An address and port that could answer.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub life: Life,
    /// The node that has its address.
    pub node: Option<&'a NodeName>,
    /// As the lists describe it that say so of its life; at least one.
    said: Vec<&'a Endpoint>,
}

/// By address and port.
pub type Candidates<'a> = BTreeMap<(IpAddr, u16), Candidate<'a>>;

impl<'a> Candidate<'a> {
    /// Whether there is a hint for which zones it is, and whether it is for this one. Two lists that hint at
    /// different zones mean both.
    pub fn zone_hint(&self, zone: Option<&str>) -> (bool, bool) {
        let hinted = self.hints().any(|hints| !hints.zones.is_empty());
        (hinted, zone.is_some_and(|zone| self.hints().any(|hints| hints.zones.contains(zone))))
    }

    /// The same for nodes.
    pub fn node_hint(&self, node: &NodeName) -> (bool, bool) {
        let hinted = self.hints().any(|hints| !hints.nodes.is_empty());
        (hinted, self.hints().any(|hints| hints.nodes.contains(node)))
    }

    fn hints(&self) -> impl Iterator<Item = &Hints> {
        self.said.iter().filter_map(|said| said.hints.as_deref())
    }

    /// The node that it runs on: the one that has its address, else the one that is named for it.
    pub fn home(&self) -> Option<&'a NodeName> {
        self.node.or_else(|| self.said.iter().filter_map(|said| said.node.as_ref()).min())
    }

    /// The zone that it is in: the one that is named for it, else that of its node.
    pub fn zone(&self, nodes: &'a Nodes) -> Option<&'a str> {
        let said = self.said.iter().filter_map(|said| said.zone.as_deref()).min();
        said.or_else(|| nodes.accepted.get(self.home()?)?.zone.as_deref())
    }
}

/// The endpoints of a service, found through all of its lists, each with the node that has its address.
#[derive(Debug)]
pub struct Pool<'a> {
    publish: bool,
    lists: Vec<(&'a Endpoints, Vec<Known<'a>>)>,
}

type Known<'a> = (&'a Endpoint, Option<&'a NodeName>);

impl<'a> Pool<'a> {
    pub fn new(
        service: &Service,
        lists: impl Iterator<Item = &'a Endpoints>,
        context: &Context<'a>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut say = |list: &Endpoints, what| {
            problems.push(Problem::new(Object::Endpoints(list.name.clone()), what));
        };
        let known = |list: &'a Endpoints| {
            let mut known = Vec::with_capacity(list.endpoints.len());
            for endpoint in &list.endpoints {
                if let Some(what) = refused(endpoint.ip, context) {
                    say(list, what);
                    continue;
                }
                let node = context.nodes.owner(endpoint.ip);
                if let Some(what) = elsewhere(endpoint, node, context.nodes) {
                    say(list, what);
                }
                known.push((endpoint, node));
            }
            (list, known)
        };
        Self { publish: service.publish_not_ready, lists: lists.map(known).collect() }
    }

    /// Those of a port, of one family. Every list has ports of its own, so one name may stand for several numbers.
    pub fn candidates(&self, port: &ServicePort, v4: bool) -> Candidates<'a> {
        let mut candidates = Candidates::new();
        for (list, endpoints) in &self.lists {
            let matching = |p: &&crate::EndpointPort| p.name == port.name && p.proto == port.proto;
            for number in list.ports.iter().filter(matching).map(|p| p.port).filter(|number| *number != 0) {
                for (endpoint, node) in endpoints.iter().filter(|(endpoint, _)| endpoint.ip.is_ipv4() == v4) {
                    let life = Life::of(endpoint, self.publish);
                    let new = || Candidate { life, node: *node, said: Vec::with_capacity(1) };
                    let known = candidates.entry((endpoint.ip, number)).or_insert_with(new);
                    if life < known.life {
                        known.life = life;
                        known.said.clear();
                    }
                    if life == known.life {
                        known.said.push(endpoint);
                    }
                }
            }
        }
        candidates
    }

    /// How many addresses of this node are ready. An endpoint of both families counts once.
    pub fn ready_here(&self, local: &NodeName) -> usize {
        let count = |v4: bool| {
            let lists = self.lists.iter().filter(|(list, _)| !list.ports.is_empty());
            let here = lists.flat_map(|(_, known)| known).filter(|(endpoint, node)| {
                endpoint.ip.is_ipv4() == v4
                    && *node == Some(local)
                    && Life::of(endpoint, self.publish) == Life::Ready
            });
            here.map(|(endpoint, _)| endpoint.ip).collect::<std::collections::BTreeSet<_>>().len()
        };
        count(true).max(count(false))
    }
}

/// Why nothing is sent to an endpoint. A service's address is no endpoint: what is translated to it would
/// have to be translated again (Kubernetes forbids it too, and does not check it).
fn refused(address: IpAddr, context: &Context<'_>) -> Option<What> {
    let hostile = hostile(address).map(|kind| What::Hostile { address, kind });
    hostile.or_else(|| {
        let holder = context.holders.of(address)?;
        Some(What::Taken { address, by: Box::new(Object::Service(holder.clone())) })
    })
}

/// Where an endpoint is, its address alone decides, as packets go where that belongs. If nobody has it, a node
/// that is named for it would not know it either: what was sent there would be lost, or answered by somebody
/// else. This says so.
fn elsewhere(endpoint: &Endpoint, owner: Option<&NodeName>, nodes: &Nodes) -> Option<What> {
    let said = endpoint.node.as_ref().filter(|name| nodes.accepted.contains_key(name))?;
    let ip = endpoint.ip;
    owner.is_none().then(|| {
        What::Said(format!(
            "address {ip} counts as no node's: node {said} has it neither as its own nor in its pod ranges"
        ))
    })
}
