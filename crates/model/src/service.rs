//! Frontends and backends: what this node must do for services.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::addr::{FrontendAddr, Protocol};
use crate::node::{Mac, NodeName};
use crate::shared_map::SharedMap;

/// Whether a backend may be chosen by clients in the cluster.
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

/// What a client gets where nobody takes new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The client learns it at once: RST, ICMP port unreachable, ECONNREFUSED.
    #[default]
    Reject,
    /// There are backends, but a traffic policy keeps this client from them: silence, as the API asks for. A
    /// socket hook says EHOSTUNREACH.
    Drop,
}

/// Who answers clients from outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outside {
    /// The backends that are active; every node chooses alike.
    Cluster,
    /// externalTrafficPolicy Local: only these, by address and port; all are on this node and among
    /// [`Frontend::backends`].
    Local { backends: BTreeSet<(IpAddr, u16)>, refusal: Refusal },
}

/// What happens at a [`FrontendAddr`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// `namespace/name:port`, for people; the datapath never reads it.
    pub name: String,
    /// Every backend, in a fixed order. Those that are active take the new flows of clients in the cluster
    /// (pods and nodes), at random.
    pub backends: BTreeSet<Backend>,
    /// What clients in the cluster get if none is active.
    pub refusal: Refusal,
    /// `None`: not reached from outside.
    pub outside: Option<Outside>,
    /// Session affinity by client address: new flows of a client go where its last one went, unless that is
    /// this many seconds ago.
    pub affinity: Option<u32>,
    /// `loadBalancerSourceRanges`: others are dropped. `None`: everybody may.
    pub sources: Option<BTreeSet<IpNetwork>>,
}

impl Frontend {
    /// Reached from outside the cluster.
    pub const fn is_external(&self) -> bool {
        self.outside.is_some()
    }
}

/// What the datapath knows of a node, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNode {
    /// Its addresses in the underlay.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of them that node ports answer on.
    pub node_ports: BTreeSet<IpAddr>,
    /// Backends there take no new flows, wherever others are.
    pub down: bool,
    /// Its addresses inside the overlay (one a family); the source of `snat` there.
    pub overlay: BTreeSet<IpAddr>,
    /// Where VXLAN packets for it are sent. `None`: not known.
    pub underlay: Option<IpAddr>,
    /// The Ethernet address of its VXLAN device. `None`: no overlay there, `tunnel` is impossible.
    pub mac: Option<Mac>,
    /// Its pod ranges. What comes out of its tunnel has its source there; and not with another node.
    pub ranges: BTreeSet<IpNetwork>,
}

/// What this node must do for services: a pure function of the cluster's objects and this node's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTable {
    pub frontends: SharedMap<FrontendAddr, Arc<Frontend>>,
    pub nodes: SharedMap<NodeName, ServiceNode>,
    /// This node's name; one of the keys of `nodes` once the cluster knows it.
    pub local: Option<NodeName>,
}
