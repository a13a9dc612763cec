//! What this node tells the load balancers that ask for it (`healthCheckNodePort`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::cluster::{Created, Service, ServiceName};
use crate::node::NodeName;
use crate::shared_map::{changed, differences};
use crate::store::Snapshot;

use super::endpoints::Pool;
use super::{Context, Nodes, Rules};

/// What is told at a port: whether clients from outside may be sent to this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    pub service: ServiceName,
    /// Its ready endpoints on this node, each address once. 0: clients must not be sent here, even if some that are
    /// about to end still serve.
    pub local: usize,
}

/// The health checks of node `local`, by port. Of two services that name one port, the older has it.
pub fn health(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> BTreeMap<u16, HealthCheck> {
    let mut checks = HealthChecks::default();
    checks.follow(snapshot, local, rules);
    checks.now
}

/// [`health`], with a memory: only what differs from the snapshot before is computed.
#[derive(Debug, Default)]
pub struct HealthChecks {
    seen: Option<(Snapshot, NodeName, Rules)>,
    nodes: Nodes,
    /// Who asks for which port; the first has it.
    claims: BTreeSet<(u16, Created, ServiceName)>,
    /// The port of each, and what is told of it.
    asking: BTreeMap<ServiceName, (u16, Created, usize)>,
    now: BTreeMap<u16, HealthCheck>,
}

impl HealthChecks {
    pub const fn now(&self) -> &BTreeMap<u16, HealthCheck> {
        &self.now
    }

    /// True if something is told otherwise from now on.
    pub fn follow(&mut self, snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> bool {
        let seen = self.seen.take().filter(|(_, node, old)| node == local && old == rules);
        let nothing = Snapshot::default();
        let before = seen.as_ref().map_or(&nothing, |(before, ..)| before);
        let mut touched: BTreeSet<ServiceName> = BTreeSet::new();
        if seen.is_none() {
            touched.extend(self.asking.keys().cloned());
            self.nodes = Nodes::default();
        }
        let asks = |service: &Service| service.health_check_port.is_some();
        for (name, old, new) in differences(&before.services, &snapshot.services) {
            if old.into_iter().chain(new).any(|service| asks(service)) {
                touched.insert(name.clone());
            }
        }
        for list in changed(&before.endpoints, &snapshot.endpoints) {
            if self.asking.contains_key(&list.service) {
                touched.insert(list.service.clone());
            }
        }
        if before.nodes != snapshot.nodes {
            touched.extend(self.asking.keys().cloned());
        }
        // Nodes are many, and most clusters have no such service.
        if !touched.is_empty() && (self.nodes.accepted.is_empty() || before.nodes != snapshot.nodes) {
            self.nodes = Nodes::seen_from(snapshot, local, rules);
        } else if before.nodes != snapshot.nodes {
            self.nodes = Nodes::default();
        }
        let mut ports = BTreeSet::new();
        for name in touched {
            self.ask(&name, snapshot, local, rules, &mut ports);
        }
        let mut differs = false;
        for port in ports {
            differs |= self.settle(port);
        }
        self.seen = Some((snapshot.clone(), local.clone(), rules.clone()));
        differs
    }

    fn ask(
        &mut self,
        name: &ServiceName,
        snapshot: &Snapshot,
        local: &NodeName,
        rules: &Rules,
        ports: &mut BTreeSet<u16>,
    ) {
        if let Some((port, created, _)) = self.asking.remove(name) {
            self.claims.remove(&(port, created, name.clone()));
            ports.insert(port);
        }
        let Some(service) = snapshot.services.get(name) else { return };
        let Some(port) = service.health_check_port else { return };
        let context = Context { nodes: &self.nodes, holders: &super::Holders::default(), local, rules };
        let lists = super::lists(snapshot, name);
        let here = Pool::new(service, lists, &context, &mut Vec::new()).ready_here(local);
        self.asking.insert(name.clone(), (port, service.created, here));
        self.claims.insert((port, service.created, name.clone()));
        ports.insert(port);
    }

    fn settle(&mut self, port: u16) -> bool {
        let first = (port, Created(i64::MIN), ServiceName::default());
        let winner = self.claims.range(first..).next().filter(|(of, ..)| *of == port);
        let check = winner.and_then(|(.., service)| {
            let (.., local) = self.asking.get(service)?;
            Some(HealthCheck { service: service.clone(), local: *local })
        });
        let before = self.now.get(&port);
        if before == check.as_ref() {
            return false;
        }
        match check {
            Some(check) => drop(self.now.insert(port, check)),
            None => drop(self.now.remove(&port)),
        }
        true
    }
}
