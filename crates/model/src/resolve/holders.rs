//! Which service has which address.
//!
//! A service may take no address over from a node, a pod or another service, whoever was first: a ClusterIP (which the
//! control plane gives) comes before a load balancer's (which its controller gives), and that before an external one
//! (which anybody may write who may write a service). Two services may share an address of one kind; port by port
//! the older one has it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::{Service, ServiceName};
use crate::problem::{Object, What};
use crate::subnet::hostile;

use super::nodes::Nodes;
use super::rules::Rules;

/// By what a service has an address; the first come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Balancer,
    External,
}

/// Who claims which address, of those that a service may claim at all.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    claims: BTreeSet<(IpAddr, Kind, ServiceName)>,
}

/// All addresses that a service names.
pub fn named(service: &Service) -> impl Iterator<Item = (IpAddr, Kind)> + '_ {
    let cluster = service.addresses.iter().map(|ip| (*ip, Kind::Cluster));
    let balancer = service.balancer_ips.iter().map(|ip| (*ip, Kind::Balancer));
    cluster.chain(balancer).chain(service.external_ips.iter().map(|ip| (*ip, Kind::External)))
}

/// Why no service can have this address in this way, whatever the others have.
pub fn refused(ip: IpAddr, kind: Kind, nodes: &Nodes, rules: &Rules) -> Option<What> {
    if let Some(kind) = hostile(ip) {
        return Some(What::Hostile { address: ip, kind });
    }
    let taken = |by| Some(What::Taken { address: ip, by: Box::new(by) });
    if let Some(node) = nodes.owner(ip) {
        return taken(Object::Node(node.clone()));
    }
    if kind != Kind::Cluster && rules.service_range(ip).is_some() {
        return taken(Object::ServiceRanges);
    }
    (kind == Kind::External && !rules.allows_external(ip)).then_some(What::NotAllowed { address: ip })
}

impl Holders {
    pub fn insert(&mut self, ip: IpAddr, kind: Kind, service: &ServiceName) {
        self.claims.insert((ip, kind, service.clone()));
    }

    pub fn remove(&mut self, ip: IpAddr, kind: Kind, service: &ServiceName) {
        self.claims.remove(&(ip, kind, service.clone()));
    }

    /// A service that answers at this address.
    pub fn of(&self, ip: IpAddr) -> Option<&ServiceName> {
        self.first(ip).map(|(_, holder)| holder)
    }

    /// Why this service, which claims the address, does not have it in this way.
    pub fn refuse(&self, ip: IpAddr, kind: Kind, service: &ServiceName) -> Option<What> {
        let (first, holder) = self.first(ip)?;
        // By its own load balancer's address an external one of the same service is covered.
        let taken = first < kind && !(first == Kind::Balancer && self.has(ip, first, service));
        taken.then(|| What::Taken { address: ip, by: Box::new(Object::Service(holder.clone())) })
    }

    /// Whether this service claims the address in this way.
    pub fn has(&self, ip: IpAddr, kind: Kind, service: &ServiceName) -> bool {
        self.claims.contains(&(ip, kind, service.clone()))
    }

    fn first(&self, ip: IpAddr) -> Option<(Kind, &ServiceName)> {
        let from = (ip, Kind::Cluster, ServiceName::default());
        let (held, kind, holder) = self.claims.range(from..).next()?;
        (*held == ip).then_some((*kind, holder))
    }
}
