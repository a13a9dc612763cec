//! From a snapshot of the cluster to what this node must do. Pure, and the same on every node: nothing
//! depends on the order in which things arrived, and who wins a conflict is decided by age and name. The one
//! exception: a node's own object comes first on that node.
//!
//! All semantics of services live here, once. Dataplanes carry out the table. A service goes through
//! [`holders`] (which addresses it has), [`endpoints`] (who could answer), [`topology`] (who is near),
//! [`policy`] (who takes new flows), [`frontends`]; [`Resolver`] settles what several claim.

mod endpoints;
mod frontends;
mod health;
mod holders;
mod nodes;
mod overlay;
mod policy;
mod rules;
mod services;
#[cfg(test)]
mod tests;
mod topology;
mod tunnels;

use crate::cluster::{Endpoints, EndpointsName, ServiceName};
use crate::node::NodeName;
use crate::store::Snapshot;

pub use health::{HealthCheck, HealthChecks, health};
use holders::Holders;
pub use nodes::{AcceptedNode, Nodes};
pub use overlay::overlay;
pub use rules::{NodePorts, Rules, range};
pub use services::{Resolver, services};
pub use tunnels::Tunnels;

/// What a service's frontends depend on beside the service and its endpoints.
#[derive(Debug)]
struct Context<'a> {
    nodes: &'a Nodes,
    holders: &'a Holders,
    local: &'a NodeName,
    rules: &'a Rules,
}

/// The lists of a service's endpoints.
fn lists<'a>(snapshot: &'a Snapshot, service: &ServiceName) -> impl Iterator<Item = &'a Endpoints> {
    let first = EndpointsName { service: service.clone(), part: "".into() };
    let lists = snapshot.endpoints.starting_at(&first);
    lists.map(|(_, list)| list.as_ref()).take_while(|list: &&Endpoints| list.name.service == *service)
}
