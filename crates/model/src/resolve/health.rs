//! What this node tells the load balancers that ask for it (`healthCheckNodePort`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cluster::{Service, ServiceName};
use crate::node::NodeName;
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
    let asking = |service: &&Service| service.health_check_port.is_some();
    let mut services: Vec<&Service> = snapshot.services.values().map(AsRef::as_ref).filter(asking).collect();
    if services.is_empty() {
        return BTreeMap::new();
    }
    services.sort_by_key(|service| (service.created, &service.name));
    let nodes = Nodes::seen_from(snapshot, local, rules);
    let context = Context { nodes: &nodes, holders: &super::Holders::default(), local, rules };
    let mut checks = BTreeMap::new();
    for service in services {
        let Some(port) = service.health_check_port else { continue };
        let lists = super::lists(snapshot, &service.name);
        let check = || HealthCheck {
            service: service.name.clone(),
            local: Pool::new(service, lists, &context, &mut Vec::new()).ready_here(local),
        };
        checks.entry(port).or_insert_with(check);
    }
    checks
}
