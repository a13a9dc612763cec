//! Frontends and backends: what this node must do for services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::addr::{FrontendAddr, Protocol};
use crate::node::{Mac, NodeName};

/// Whether a backend may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BackendState {
    /// Takes new flows.
    Active,
    /// Takes no new flows; those it has run on.
    Draining,
    /// Its flows are stale: TCP is reset, UDP moves to another backend.
    Down,
}

/// An address that answers for a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    pub ip: IpAddr,
    pub port: u16,
    pub proto: Protocol,
    /// The node that it runs on. `None`: no node of ours; it is reached by `snat`.
    pub node: Option<NodeName>,
    pub state: BackendState,
}

/// What happens at a [`FrontendAddr`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// `namespace/name:port`, for people; the datapath never reads it.
    pub name: String,
    /// Every backend, in a fixed order. Empty or none active: new flows are rejected at once.
    pub backends: BTreeSet<Backend>,
    /// Reached from outside the cluster: every node must choose alike.
    pub external: bool,
}

/// What the datapath knows of a node, this one included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNode {
    /// Its addresses in the underlay; node ports answer on them.
    pub addresses: BTreeSet<IpAddr>,
    /// Its addresses inside the overlay (one a family); the source of `snat` there.
    pub overlay: BTreeSet<IpAddr>,
    /// The Ethernet address of its VXLAN device. `None`: no overlay there, `tunnel` is impossible.
    pub mac: Option<Mac>,
    /// Its pod ranges. What comes out of its tunnel has its source there; and not with another node.
    pub ranges: BTreeSet<IpNetwork>,
}

/// What this node must do for services: a pure function of the cluster's objects and this node's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTable {
    #[serde(with = "as_list")]
    pub frontends: BTreeMap<FrontendAddr, Frontend>,
    pub nodes: BTreeMap<NodeName, ServiceNode>,
    /// This node's name; one of the keys of `nodes` once the cluster knows it.
    pub local: Option<NodeName>,
}

/// JSON keys are strings, and a frontend's address is not one: the map is written as a list of pairs.
mod as_list {
    use super::{BTreeMap, Frontend, FrontendAddr};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        map: &BTreeMap<FrontendAddr, Frontend>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<FrontendAddr, Frontend>, D::Error> {
        Ok(Vec::<(FrontendAddr, Frontend)>::deserialize(from)?.into_iter().collect())
    }
}
