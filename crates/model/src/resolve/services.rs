//! The service table of a node, all of it, or what changed of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{FrontendAddr, ProtoMatch};
use crate::cluster::{Created, Service, ServiceName};
use crate::node::{NodeName, vtep_mac};
use crate::problem::{Object, Problem, What};
use crate::service::{Backend, BackendState, Frontend, ServiceNode, ServiceTable};
use crate::shared_map::{SharedMap, changed};
use crate::store::Snapshot;
use crate::subnet::hostile;

use super::frontends::{Asked, asked};
use super::holders::{Kind, named, refused};
use super::overlay::runs_over_v4;
use super::{Context, Holders, Nodes, Rules, lists};

/// What node `local` must do for services.
pub fn services(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> (ServiceTable, Vec<Problem>) {
    Resolver::default().services(snapshot, local, rules)
}

/// [`services`], with a memory: of a snapshot that differs little from the one before, only what differs is
/// computed, and a frontend that stayed as it was is the very same `Arc`. What it answers does not depend on what
/// it was asked before.
#[derive(Debug, Default)]
pub struct Resolver {
    seen: Option<(Snapshot, NodeName, Rules)>,
    nodes: Nodes,
    /// What the table says of them, and what is wrong with it.
    node_table: SharedMap<NodeName, ServiceNode>,
    node_problems: BTreeSet<Problem>,
    /// What is published on loopback, and what is wrong with that.
    published: Vec<FrontendAddr>,
    published_problems: BTreeSet<Problem>,
    holders: Holders,
    asked: BTreeMap<ServiceName, Asked>,
    /// Services with problems.
    troubled: BTreeSet<ServiceName>,
    /// Who asks for which frontend; the first has it.
    claims: BTreeSet<(FrontendAddr, Created, ServiceName)>,
    /// Who asks for it and does not have it, and who has.
    conflicts: BTreeMap<(FrontendAddr, ServiceName), ServiceName>,
    frontends: SharedMap<FrontendAddr, Arc<Frontend>>,
}

impl Resolver {
    /// The nodes of the last snapshot, as seen from this one.
    pub const fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    pub fn services(
        &mut self,
        snapshot: &Snapshot,
        local: &NodeName,
        rules: &Rules,
    ) -> (ServiceTable, Vec<Problem>) {
        let dirty = self.take(snapshot, local, rules);
        let mut touched = BTreeSet::new();
        for name in dirty {
            self.ask(&name, snapshot, local, rules, &mut touched);
        }
        for at in touched {
            self.settle(at);
        }
        self.seen = Some((snapshot.clone(), local.clone(), rules.clone()));
        let table = ServiceTable {
            frontends: self.frontends.clone(),
            nodes: self.node_table.clone(),
            local: Some(local.clone()),
        };
        (table, self.problems().into_iter().collect())
    }

    /// Learns who has which address; says which services must be asked again.
    fn take(&mut self, snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> BTreeSet<ServiceName> {
        let seen = self.seen.take().filter(|(_, node, old)| node == local && old == rules);
        let before = seen.as_ref().map(|(before, ..)| before);
        let mut all = before.is_none();
        if before.is_none_or(|before| before.host_ports != snapshot.host_ports) {
            self.publish(snapshot, local);
        }
        if before.is_none_or(|before| before.nodes != snapshot.nodes) {
            let nodes = Nodes::seen_from(snapshot, local, rules);
            all |= nodes.accepted != self.nodes.accepted;
            self.nodes = nodes;
            self.node_problems.clear();
            self.node_table = node_table(&self.nodes, snapshot, local, rules, &mut self.node_problems);
        }
        let Some(before) = before.filter(|_| !all) else {
            self.holders = Holders::default();
            for service in snapshot.services.values() {
                for (ip, kind) in self.may_have(service, rules) {
                    self.holders.insert(ip, kind, &service.name);
                }
            }
            return snapshot.services.keys().chain(self.asked.keys()).cloned().collect();
        };
        let mut dirty = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for name in changed(&before.services, &snapshot.services) {
            let of = |snapshot: &Snapshot| -> BTreeSet<(IpAddr, Kind)> {
                snapshot
                    .services
                    .get(name)
                    .map_or_else(BTreeSet::new, |service| self.may_have(service, rules))
            };
            let (old, new) = (of(before), of(snapshot));
            for (ip, kind) in old.difference(&new) {
                self.holders.remove(*ip, *kind, name);
            }
            for (ip, kind) in new.difference(&old) {
                self.holders.insert(*ip, *kind, name);
            }
            addresses.extend(old.symmetric_difference(&new).map(|(ip, _)| *ip));
            dirty.insert(name.clone());
        }
        for name in changed(&before.endpoints, &snapshot.endpoints) {
            dirty.insert(name.service.clone());
        }
        if !addresses.is_empty() {
            // Whoever names such an address, as its own or as an endpoint's.
            let names = |service: &&Arc<Service>| named(service).any(|(ip, _)| addresses.contains(&ip));
            dirty.extend(snapshot.services.values().filter(names).map(|service| service.name.clone()));
            for list in snapshot.endpoints.values() {
                if list.endpoints.iter().any(|endpoint| addresses.contains(&endpoint.ip)) {
                    dirty.insert(list.name.service.clone());
                }
            }
        }
        dirty
    }

    /// The addresses that a service can have, as far as nodes and configuration go.
    fn may_have(&self, service: &Service, rules: &Rules) -> BTreeSet<(IpAddr, Kind)> {
        named(service).filter(|(ip, kind)| refused(*ip, *kind, &self.nodes, rules).is_none()).collect()
    }

    fn ask(
        &mut self,
        name: &ServiceName,
        snapshot: &Snapshot,
        local: &NodeName,
        rules: &Rules,
        touched: &mut BTreeSet<FrontendAddr>,
    ) {
        let old = self.asked.remove(name);
        let context = Context { nodes: &self.nodes, holders: &self.holders, local, rules };
        let new = snapshot
            .services
            .get(name)
            .map(|service| asked(service, lists(snapshot, name), &context, old.as_ref()));
        if let Some(old) = &old {
            for (at, _) in &old.frontends {
                self.claims.remove(&(*at, old.created, name.clone()));
                touched.insert(*at);
            }
        }
        self.troubled.remove(name);
        let Some(new) = new else { return };
        for (at, _) in &new.frontends {
            self.claims.insert((*at, new.created, name.clone()));
            touched.insert(*at);
        }
        if !new.problems.is_empty() {
            self.troubled.insert(name.clone());
        }
        self.asked.insert(name.clone(), new);
    }

    /// Gives a frontend to the oldest of those who ask for it.
    fn settle(&mut self, at: FrontendAddr) {
        let first = ServiceName::default();
        let losers = self.conflicts.range((at, first.clone())..).map(|((of, name), _)| (*of, name.clone()));
        for loser in losers.take_while(|(of, _)| *of == at).collect::<Vec<_>>() {
            self.conflicts.remove(&loser);
        }
        let mut claims = self
            .claims
            .range((at, Created(i64::MIN), first)..)
            .take_while(|(of, ..)| *of == at)
            .map(|c| &c.2);
        let winner = claims.next();
        let frontend = winner.and_then(|winner| self.asked.get(winner)?.get(&at));
        match (frontend, self.frontends.get(&at)) {
            // What stays is shared with every table that was told.
            (Some(new), Some(old)) if Arc::ptr_eq(new, old) => {}
            (Some(new), _) => drop(self.frontends.insert(at, Arc::clone(new))),
            (None, _) => drop(self.frontends.remove(&at)),
        }
        if let Some(winner) = winner {
            self.conflicts.extend(claims.map(|loser| ((at, loser.clone()), winner.clone())));
        }
    }

    /// What this node's own pods publish, for its own processes. No service can have a loopback address.
    fn publish(&mut self, snapshot: &Snapshot, local: &NodeName) {
        for at in std::mem::take(&mut self.published) {
            self.frontends.remove(&at);
        }
        self.published_problems.clear();
        for (at, published) in &snapshot.host_ports {
            let ProtoMatch::Proto(proto) = at.proto else { continue };
            let address = published.address;
            if let Some(kind) = hostile(address) {
                let what = What::Hostile { address, kind };
                self.published_problems.insert(Problem::new(Object::Frontend(*at), what));
                continue;
            }
            let backend = Backend {
                ip: address,
                port: published.port,
                proto,
                node: Some(local.clone()),
                state: BackendState::Active,
            };
            let name = format!("hostport/{}", published.owner);
            let frontend = Frontend { name, backends: [backend].into(), ..Frontend::default() };
            self.frontends.insert(*at, Arc::new(frontend));
            self.published.push(*at);
        }
    }

    fn problems(&self) -> BTreeSet<Problem> {
        let mut problems = self.nodes.problems.clone();
        problems.extend(self.node_problems.iter().chain(&self.published_problems).cloned());
        for asked in self.troubled.iter().filter_map(|name| self.asked.get(name)) {
            problems.extend(asked.problems.iter().cloned());
        }
        for ((at, loser), winner) in &self.conflicts {
            let what = What::Conflict { frontend: *at, winner: winner.clone() };
            problems.insert(Problem::new(Object::Service(loser.clone()), what));
        }
        problems
    }
}

fn node_table(
    nodes: &Nodes,
    snapshot: &Snapshot,
    local: &NodeName,
    rules: &Rules,
    problems: &mut BTreeSet<Problem>,
) -> SharedMap<NodeName, ServiceNode> {
    let is_down = |name: &NodeName| name != local && snapshot.nodes.get(name).is_some_and(|node| node.down);
    let (down, known) = (snapshot.nodes.values().filter(|node| node.down).count(), snapshot.nodes.len());
    // Rather has whoever hears the nodes gone deaf: their pods may answer as ever.
    let believed = down * 2 <= known;
    if !believed {
        let what = format!("{down} of {known} are not ready: none is taken for down");
        problems.insert(Problem::new(Object::Input("nodes".into()), What::Said(what)));
    }
    let v4 = runs_over_v4(&Nodes::new(snapshot, rules));
    let table = nodes.accepted.iter().map(|(name, node)| {
        let table = ServiceNode {
            addresses: node.addresses.iter().copied().collect(),
            // `vxland` gives its device the first address of each range.
            overlay: node.ranges.iter().map(ipnetwork::IpNetwork::network).collect(),
            underlay: node.underlay(v4),
            // A node of flannel's takes what comes from pods, and knows nothing of a service's packets.
            mac: (!node.ranges.is_empty() && node.tunnels.are_ours()).then(|| vtep_mac(name, rules.vni)),
            ranges: node.ranges.clone(),
            node_ports: rules.node_ports(&node.addresses).collect(),
            down: believed && is_down(name),
        };
        (name.clone(), table)
    });
    let table: SharedMap<_, ServiceNode> = table.collect();
    if table.get(local).is_some_and(|node| node.node_ports.is_empty() && !node.addresses.is_empty()) {
        let what = "node ports answer on none of its addresses: --nodeport-addresses names none of them";
        problems.insert(Problem::new(Object::Node(local.clone()), What::Said(what.into())));
    }
    table
}
