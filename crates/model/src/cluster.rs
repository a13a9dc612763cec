//! What the cluster says: services and their endpoints, without a word of Kubernetes or Swarm.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::addr::Protocol;
use crate::node::NodeName;

/// When an object was made, in seconds since the epoch. Of two that claim one thing the older has it; an
/// object without a time counts as younger than any with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Created(pub i64);

impl Created {
    pub const UNKNOWN: Self = Self(i64::MAX);
}

impl Default for Created {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

/// A service's name, unique in the cluster. Cheap to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which address families something has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

/// Which backends a client may be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All of the cluster.
    #[default]
    Cluster,
    /// Only those on the node where the client is met.
    Local,
}

/// A wish to be answered from near by (`spec.trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Distribution {
    /// `PreferClose` and `PreferSameZone`.
    SameZone,
    /// `PreferSameNode`.
    SameNode,
}

/// A service: addresses and ports that its endpoints answer for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    pub created: Created,
    /// Its addresses inside the cluster. None: it is found by name only, and has no frontends there.
    pub addresses: BTreeSet<IpAddr>,
    /// The families that its node ports answer on.
    pub families: Families,
    pub ports: Vec<ServicePort>,
    /// For clients in the cluster, at `addresses`.
    pub internal_policy: TrafficPolicy,
    /// For clients from outside: at node ports, external and load-balancer addresses.
    pub external_policy: TrafficPolicy,
    /// Addresses that its owner claims (`spec.externalIPs`); believed only where the configuration allows it.
    pub external_ips: BTreeSet<IpAddr>,
    /// Addresses that a load balancer has given it and does not answer itself (`ipMode: VIP`).
    pub balancer_ips: BTreeSet<IpAddr>,
    /// Who may use `balancer_ips`. `None`: everybody.
    pub source_ranges: Option<BTreeSet<IpNetwork>>,
    /// Session affinity by client address, in seconds.
    pub affinity: Option<u32>,
    pub distribution: Option<Distribution>,
    /// Endpoints that are not ready take part.
    pub publish_not_ready: bool,
    /// Where a load balancer asks whether this node has endpoints of it.
    pub health_check_port: Option<u16>,
    /// What it says and nothing can be made of, in words for people.
    pub refused: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// Finds the port of the same name in the endpoints; empty if the service has one port.
    pub name: String,
    pub port: u16,
    pub proto: Protocol,
    /// The port of every node that leads here.
    pub node_port: Option<u16>,
}

/// A list of a service's endpoints. A service may have many; `part` tells them apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointsName {
    pub service: ServiceName,
    pub part: Arc<str>,
}

impl fmt::Display for EndpointsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part.is_empty() {
            true => write!(f, "{}", self.service),
            false => write!(f, "{}/{}", self.service.namespace, self.part),
        }
    }
}

/// Endpoints that share their ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub name: EndpointsName,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// A port that endpoints listen on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    pub name: String,
    pub port: u16,
    pub proto: Protocol,
}

/// Somebody who answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// The node that it is said to run on.
    pub node: Option<NodeName>,
    /// It answers, whether or not it is about to end.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Whose clients it is meant for. `None`: nothing is said of that.
    pub hints: Option<Box<Hints>>,
}

/// The zones and nodes whose clients an endpoint is meant for. Empty: no hint of that kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hints {
    pub zones: BTreeSet<Arc<str>>,
    pub nodes: BTreeSet<NodeName>,
}

impl Endpoint {
    /// One that serves, of no node, zone or hint.
    pub const fn new(ip: IpAddr) -> Self {
        Self { ip, node: None, serving: true, terminating: false, zone: None, hints: None }
    }
}
