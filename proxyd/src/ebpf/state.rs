//! What the maps hold, understood: [read](mod@super::read) at start and at every full observation, and carried along by
//! the writes in between.
//!
//! Everything here is found by its key: a change costs what it changes, however many services there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_ebpf_common::{
    ADDR_NODE, ADDR_NODE_PORTS, ADDR_OVERLAY, Addr, BACKEND_ACTIVE, BACKEND_DOWN, BACKEND_DRAINING,
    BACKEND_FREE, Backend, FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, FRONTEND_EXTERNAL, FRONTEND_LOCAL,
    FRONTEND_SOURCES, Frontend, FrontendKey, NODE_DOWN, NODE_FREE, NODE_SELF, Node, choice_hash,
};
use heddle_model::{
    self as model, BackendState, Mac, NodeName, Outside, Protocol, Refusal, ServiceNode, ServiceTable,
};
use ipnetwork::IpNetwork;

use super::encode;
use super::extents::{Extent, Extents};
use super::ledger::Ledger;
use super::maglev;
use super::slots::Slots;
use super::write::{Limits, Write};

/// An address of a node on which node ports answer.
pub const NODE_AND_PORTS: u32 = ADDR_NODE | ADDR_NODE_PORTS;

/// A frontend with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in the map; of one that is not whole, without the lists that are not its own.
    pub value: Frontend,
    /// What it does, in the model's words. The name of one that is not whole is empty.
    pub shown: Arc<model::Frontend>,
    /// The slots of `shown.backends`, in their order. No slot belongs to two frontends: a backend that one of them
    /// loses must be stale there, whoever else has it, and none shares another's fate.
    pub slots: Box<[u32]>,
    /// Of what stands in `outside`.
    pub digest: u64,
    /// Everything fits together. If not, it is written anew.
    pub whole: bool,
}

impl Entry {
    pub const fn ring(&self) -> Option<Extent> {
        extent(self.value.ring, self.value.ring_len)
    }

    pub const fn outside(&self) -> Option<Extent> {
        extent(self.value.outside, self.value.outside_len)
    }

    /// Its backends, each with its slot.
    pub fn backends(&self) -> impl Iterator<Item = (&model::Backend, u32)> {
        self.shown.backends.iter().zip(self.slots.iter().copied())
    }
}

const fn extent(start: u32, len: u32) -> Option<Extent> {
    if len == 0 { None } else { Some(Extent { start, len }) }
}

/// Whether a list of `frontend` names this backend: only then its slot takes new flows.
pub fn is_named(frontend: &model::Frontend, backend: &model::Backend) -> bool {
    backend.state == BackendState::Active || is_local(frontend, backend)
}

/// Whether it is one of those that answer clients from outside on this node alone.
fn is_local(frontend: &model::Frontend, backend: &model::Backend) -> bool {
    let at = (backend.ip, backend.port);
    matches!(&frontend.outside, Some(Outside::Local { backends, .. }) if backends.contains(&at))
}

/// The dense list of a frontend whose backends have these slots.
pub fn ring(frontend: &model::Frontend, slots: &[u32]) -> Vec<u32> {
    let backends = frontend.backends.iter().zip(slots);
    let active = backends.filter(|(backend, _)| backend.state == BackendState::Active);
    active.map(|(_, slot)| *slot).collect()
}

/// The list for clients from outside.
pub fn outside(frontend: &model::Frontend, slots: &[u32]) -> Vec<u32> {
    let backends = || frontend.backends.iter().zip(slots);
    match &frontend.outside {
        None => Vec::new(),
        Some(Outside::Local { .. }) => {
            backends().filter(|(b, _)| is_local(frontend, b)).map(|(_, slot)| *slot).collect()
        }
        Some(Outside::Cluster) => {
            let active = backends().filter(|(backend, _)| backend.state == BackendState::Active);
            let (identities, slots): (Vec<_>, Vec<u32>) =
                active.map(|(b, slot)| ((b.ip, b.port, b.proto), *slot)).unzip();
            maglev::table(&identities).into_iter().map(|index| slots[index as usize]).collect()
        }
    }
}

/// How long [`outside`] is.
pub fn outside_len(frontend: &model::Frontend) -> u32 {
    let active = || frontend.backends.iter().filter(|backend| backend.state == BackendState::Active);
    match &frontend.outside {
        None => 0,
        Some(Outside::Local { backends, .. }) => backends.len() as u32,
        Some(Outside::Cluster) => maglev::size(active().count()),
    }
}

/// What tells one list from another.
pub fn digest(slots: &[u32]) -> u64 {
    let step =
        |hash: u64, slot: &u32| (hash.rotate_left(5) ^ u64::from(*slot)).wrapping_mul(0x517c_c1b7_2722_0a95);
    slots.iter().fold(slots.len() as u64, step)
}

/// `FRONTEND_*` of a frontend.
pub const fn flags(frontend: &model::Frontend) -> u32 {
    let outside = match &frontend.outside {
        None => 0,
        Some(Outside::Cluster) => FRONTEND_EXTERNAL,
        Some(Outside::Local { refusal: Refusal::Drop, .. }) => {
            FRONTEND_EXTERNAL | FRONTEND_LOCAL | FRONTEND_DROP_OUTSIDE
        }
        Some(Outside::Local { .. }) => FRONTEND_EXTERNAL | FRONTEND_LOCAL,
    };
    let inside = if matches!(frontend.refusal, Refusal::Drop) { FRONTEND_DROP } else { 0 };
    let sources = if frontend.sources.is_some() { FRONTEND_SOURCES } else { 0 };
    outside | inside | sources
}

/// A backend as an element of `backends`.
pub fn element(ip: IpAddr, port: u16, proto: Protocol, node: u32) -> Backend {
    let addr = encode::addr(ip);
    let port = port.to_be();
    let proto = proto.number();
    let hash = choice_hash(&addr, port, proto);
    Backend { addr, generation: 0, node, port, proto, state: BACKEND_FREE, hash }
}

/// A node with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    pub index: u32,
    pub value: Node,
    pub addresses: BTreeSet<IpAddr>,
    pub node_ports: BTreeSet<IpAddr>,
    pub overlay: BTreeSet<IpAddr>,
    pub ranges: BTreeSet<IpNetwork>,
}

impl NodeEntry {
    /// A node without anything.
    pub const fn new(index: u32, value: Node) -> Self {
        Self {
            index,
            value,
            addresses: BTreeSet::new(),
            node_ports: BTreeSet::new(),
            overlay: BTreeSet::new(),
            ranges: BTreeSet::new(),
        }
    }

    /// This node, as long as the cluster does not know it.
    pub fn nobody() -> Self {
        Self::new(NODE_SELF, Node::default())
    }

    pub fn service_node(&self) -> ServiceNode {
        ServiceNode {
            addresses: self.addresses.clone(),
            node_ports: self.node_ports.clone(),
            down: self.value.state == NODE_DOWN,
            underlay: (self.value.underlay != Addr::ANY6).then(|| encode::ip(self.value.underlay)),
            overlay: self.overlay.clone(),
            mac: (self.value.overlay == 1).then_some(Mac(self.value.mac)),
            ranges: self.ranges.clone(),
        }
    }

    /// Its addresses as keys of `addrs`, with their kind.
    pub fn addrs(&self) -> BTreeMap<Addr, u32> {
        let underlay = self.addresses.iter().map(|ip| {
            let kind = if self.node_ports.contains(ip) { NODE_AND_PORTS } else { ADDR_NODE };
            (encode::addr(*ip), kind)
        });
        let overlay = self.overlay.iter().map(|ip| (encode::addr(*ip), ADDR_OVERLAY));
        overlay.chain(underlay).collect()
    }
}

/// The understood content of the maps.
#[derive(Clone, Debug)]
pub struct State {
    pub frontends: BTreeMap<FrontendKey, Entry>,
    /// By slot; those on their way to being free are DOWN.
    pub backends: Vec<Backend>,
    pub nodes: BTreeMap<NodeName, NodeEntry>,
    /// Names by index.
    pub indices: BTreeMap<u32, NodeName>,
    pub slots: Slots,
    pub extents: Extents,
    pub ledger: Ledger,
    /// Service numbers in use.
    pub services: BTreeSet<u32>,
    /// Elements of `sources`.
    pub sources: usize,
    /// The service number and node index given last.
    pub last_service: u32,
    pub last_node: u32,
    /// Writes that are still owed: remains of a daemon that was killed, or writes that failed.
    pub owed: Vec<Write>,
    /// Just read: what seems free may have been given up a moment ago, by a daemon that is gone.
    pub unsettled: bool,
    /// A write failed half-way: read the maps again before anything else.
    pub stale: bool,
    pub limits: Limits,
}

impl State {
    /// The element of a slot.
    pub fn backend(&self, slot: u32) -> Backend {
        self.backends.get(slot as usize).copied().unwrap_or_default()
    }

    pub fn set_backend(&mut self, slot: u32, backend: Backend) {
        let at = slot as usize;
        if at >= self.backends.len() {
            self.backends.resize(at + 1, Backend::default());
        }
        self.backends[at] = backend;
    }

    /// What `choices` must say of a frontend with these slots, by hash: of two with one hash, the first is found.
    pub fn choices(&self, slots: &[u32]) -> Vec<(u32, u32)> {
        let mut choices: Vec<_> = slots.iter().map(|slot| (self.backend(*slot).hash, *slot)).collect();
        choices.sort_by_key(|(hash, _)| *hash);
        choices.dedup_by_key(|(hash, _)| *hash);
        choices
    }

    /// Whether something is to be put away, or to be waited for: [`settle`](Self::settle).
    pub fn has_remains(&self) -> bool {
        let cooling = self.unsettled || self.slots.has_retired() || self.extents.is_cooling();
        self.stale || !self.owed.is_empty() || self.ledger.is_dirty() || cooling
    }

    /// Sends a slot that is in no list on its way to being free. Its flows are stale from now on.
    pub fn put_down(&mut self, slot: u32) {
        let backend = self.backend(slot);
        if !matches!(backend.state, BACKEND_DOWN | BACKEND_FREE) {
            let down = Backend { state: BACKEND_DOWN, ..backend };
            self.set_backend(slot, down);
            self.owed.push(Write::Backend(slot, down));
        }
        self.slots.retire(slot);
    }

    /// This node's name, as an earlier daemon wrote it.
    pub fn local(&self) -> Option<&NodeName> {
        self.indices.get(&NODE_SELF)
    }

    /// The index of a node; 0 if it is none of ours.
    pub fn node_index(&self, name: Option<&NodeName>) -> u32 {
        name.and_then(|name| self.nodes.get(name)).map_or(0, |entry| entry.index)
    }

    /// The table that the maps carry out. A frontend that is not [whole](Entry::whole) has no name, which
    /// no frontend that is wanted lacks.
    pub fn table(&self) -> ServiceTable {
        let frontends = self.frontends.iter();
        let frontends = frontends
            .filter_map(|(key, entry)| Some((encode::frontend_addr(key)?, Arc::clone(&entry.shown))));
        let known = self.nodes.iter().filter(|(_, entry)| entry.value.state != NODE_FREE);
        ServiceTable {
            frontends: frontends.collect(),
            nodes: known.map(|(name, entry)| (name.clone(), entry.service_node())).collect(),
            local: self.local().cloned(),
        }
    }

    /// Keeps, of every frontend that `table` has alike, the table's copy instead of one of its own.
    pub fn share(&mut self, table: &ServiceTable) {
        for (key, entry) in &mut self.frontends {
            let theirs = encode::frontend_addr(key).and_then(|at| table.frontends.get(&at));
            if let Some(theirs) = theirs.filter(|theirs| **theirs == entry.shown) {
                entry.shown = Arc::clone(theirs);
            }
        }
    }

    /// The state byte of a slot of this frontend.
    pub fn wanted_state(frontend: &model::Frontend, backend: &model::Backend) -> u8 {
        if is_named(frontend, backend) { BACKEND_ACTIVE } else { BACKEND_DRAINING }
    }
}
