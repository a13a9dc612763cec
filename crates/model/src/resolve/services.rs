//! The service table of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::addr::{FrontendAddr, ProtoMatch};
use crate::cluster::{Service, ServiceName, ServicePort, TrafficPolicy};
use crate::node::{NodeName, vtep_mac};
use crate::problem::{Object, Problem, What};
use crate::service::{Backend, BackendState, Frontend, Outside, ServiceNode, ServiceTable};
use crate::store::Snapshot;
use crate::subnet::hostile;

use super::backends::Pool;
use super::nodes::Nodes;

/// What node `local` must do for services. `vni` is that of the overlay, from which the Ethernet addresses
/// of the other nodes' VXLAN devices follow.
pub fn services(snapshot: &Snapshot, local: &NodeName, vni: u32) -> (ServiceTable, Vec<Problem>) {
    let nodes = Nodes::seen_from(snapshot, local);
    let addresses = service_addresses(snapshot, &nodes);
    let mut resolver = Resolver {
        snapshot,
        addresses: &addresses,
        local,
        problems: nodes.problems.clone(),
        nodes: &nodes,
        frontends: BTreeMap::new(),
        owners: BTreeMap::new(),
    };
    let mut by_age: Vec<&Service> = snapshot.services.values().map(AsRef::as_ref).collect();
    by_age.sort_by_key(|service| (service.created, &service.name));
    for service in by_age {
        resolver.service(service);
    }
    resolver.host_ports();
    let Resolver { frontends, problems, .. } = resolver;
    let nodes = nodes.accepted.iter().map(|(name, node)| {
        let table = ServiceNode {
            addresses: node.addresses.iter().copied().collect(),
            // `vxland` gives its device the first address of each range.
            overlay: node.ranges.iter().map(ipnetwork::IpNetwork::network).collect(),
            mac: (!node.ranges.is_empty()).then(|| vtep_mac(name, vni)),
            ranges: node.ranges.clone(),
            node_ports: node.addresses.iter().copied().collect(),
            down: false,
        };
        (name.clone(), table)
    });
    let table = ServiceTable { frontends, nodes: nodes.collect(), local: Some(local.clone()) };
    (table, problems.into_iter().collect())
}

/// All addresses of all services but those that nodes and their pods have: at such a one no service answers, so
/// that it stays an endpoint.
fn service_addresses(snapshot: &Snapshot, nodes: &Nodes) -> BTreeMap<IpAddr, Object> {
    let of = |service: &Service| {
        let object = Object::Service(service.name.clone());
        let free = service.addresses.iter().filter(|ip| nodes.owner(**ip).is_none());
        free.map(move |ip| (*ip, object.clone())).collect::<Vec<_>>()
    };
    snapshot.services.values().flat_map(|service| of(service)).collect()
}

struct Resolver<'a> {
    snapshot: &'a Snapshot,
    addresses: &'a BTreeMap<IpAddr, Object>,
    nodes: &'a Nodes,
    local: &'a NodeName,
    frontends: BTreeMap<FrontendAddr, Arc<Frontend>>,
    owners: BTreeMap<FrontendAddr, ServiceName>,
    problems: BTreeSet<Problem>,
}

impl Resolver<'_> {
    fn service(&mut self, service: &Service) {
        let pool = Pool::of(service, self.snapshot, self.nodes, self.addresses);
        for what in &service.refused {
            self.problem(service, What::Said(what.clone()));
        }
        let addresses: Vec<IpAddr> =
            service.addresses.iter().copied().filter(|ip| self.may_have(service, *ip)).collect();
        let mut ports: Vec<&ServicePort> = service.ports.iter().collect();
        ports.sort();
        for port in ports {
            for ip in &addresses {
                let at = FrontendAddr::new(*ip, port.port, port.proto);
                self.frontend(service, port, &pool, at, service.internal_policy);
            }
            let Some(number) = port.node_port else { continue };
            let any: [(bool, IpAddr); 2] = [
                (service.families.v4, Ipv4Addr::UNSPECIFIED.into()),
                (service.families.v6, Ipv6Addr::UNSPECIFIED.into()),
            ];
            for (_, ip) in any.into_iter().filter(|(has, _)| *has) {
                let at = FrontendAddr::new(ip, number, port.proto);
                // The policy for clients from outside belongs here, once it is built.
                self.frontend(service, port, &pool, at, TrafficPolicy::Cluster);
            }
        }
    }

    /// What this node's own pods publish, for its own processes. No service can have a loopback address.
    fn host_ports(&mut self) {
        for (at, published) in &self.snapshot.host_ports {
            let ProtoMatch::Proto(proto) = at.proto else { continue };
            let address = published.address;
            if let Some(kind) = hostile(address) {
                self.problems.insert(Problem::new(Object::Frontend(*at), What::Hostile { address, kind }));
                continue;
            }
            let backend = Backend {
                ip: address,
                port: published.port,
                proto,
                node: Some(self.local.clone()),
                state: BackendState::Active,
            };
            let name = format!("hostport/{}", published.owner);
            let frontend = Frontend { name, backends: [backend].into(), ..Frontend::default() };
            self.frontends.insert(*at, Arc::new(frontend));
        }
    }

    /// A service may not take an address over from a node or its pods, nor one that is nobody's to take.
    fn may_have(&mut self, service: &Service, address: IpAddr) -> bool {
        if let Some(kind) = hostile(address) {
            self.problem(service, What::Hostile { address, kind });
            return false;
        }
        if let Some(node) = self.nodes.owner(address) {
            let by = Box::new(Object::Node(node.clone()));
            self.problem(service, What::Taken { address, by });
            return false;
        }
        true
    }

    fn frontend(
        &mut self,
        service: &Service,
        port: &ServicePort,
        pool: &Pool<'_>,
        at: FrontendAddr,
        policy: TrafficPolicy,
    ) {
        if let Some(winner) = self.owners.get(&at) {
            self.problem(service, What::Conflict { frontend: at, winner: winner.clone() });
            return;
        }
        let v4 = at.ip.is_ipv4();
        let backends = pool.backends(port, v4, policy, self.local, &mut self.problems);
        let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
        let name = format!("{}:{label}", service.name);
        self.owners.insert(at, service.name.clone());
        let outside = at.is_node_port().then_some(Outside::Cluster);
        self.frontends.insert(at, Arc::new(Frontend { name, backends, outside, ..Frontend::default() }));
    }

    fn problem(&mut self, service: &Service, what: What) {
        self.problems.insert(Problem::new(Object::Service(service.name.clone()), what));
    }
}
