//! What user space has told the programs: the state that they only read.

use std::collections::BTreeMap;

use heddle_ebpf_common::{
    Addr, BACKEND_FREE, Backend, Config, FrontendKey, KnownAddr, NODE_DOWN, Node, Routes,
};

/// A frontend, with its lists in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Front {
    /// For clients inside.
    pub ring: Vec<u32>,
    /// For clients outside.
    pub outside: Vec<u32>,
    pub service: u32,
    /// `FRONTEND_*`.
    pub flags: u32,
    /// Seconds; 0: none.
    pub affinity: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub config: Config,
    /// Whether flows may remember their way.
    pub routes: Routes,
    pub frontends: BTreeMap<FrontendKey, Front>,
    /// By index; 0 is not used.
    pub backends: Vec<Backend>,
    pub nodes: Vec<Node>,
    pub addrs: BTreeMap<Addr, KnownAddr>,
    /// (Range, bits as people write them) of pods -> node.
    pub ranges: Vec<(Addr, u8, u32)>,
    /// (Service, hash of a backend) -> index of the backend, which is on this node.
    pub choices: BTreeMap<(u32, u32), u32>,
    /// (Service, range, bits as people write them).
    pub sources: Vec<(u32, Addr, u8)>,
}

/// A change by user space while packets pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Backend(u32, Backend),
    Frontend(FrontendKey, Option<Front>),
    Node(u32, Node),
    Config(Box<Config>),
    Choice(u32, u32, Option<u32>),
    Addr(Addr, Option<KnownAddr>),
}

impl Table {
    pub fn apply(&mut self, change: &Change) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        match change {
            Change::Backend(index, backend) => self.backends[*index as usize] = *backend,
            Change::Frontend(key, front) => put(&mut self.frontends, *key, front.clone()),
            Change::Node(index, node) => self.nodes[*index as usize] = *node,
            Change::Config(config) => self.config = **config,
            Change::Choice(service, hash, index) => put(&mut self.choices, (*service, *hash), *index),
            Change::Addr(addr, known) => put(&mut self.addrs, *addr, *known),
        }
    }

    /// A backend in use.
    pub fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize).filter(|backend| index != 0 && backend.state != BACKEND_FREE)
    }

    pub fn known(&self, addr: Addr) -> KnownAddr {
        self.addrs.get(&addr).copied().unwrap_or_default()
    }

    /// Not known to be down.
    pub fn is_up(&self, node: u32) -> bool {
        self.nodes.get(node as usize).is_some_and(|node| node.state != NODE_DOWN)
    }

    /// The Ethernet address of a node's VXLAN device, if it can be reached by it.
    pub fn by_tunnel(&self, node: u32) -> Option<[u8; 6]> {
        let node = self.nodes.get(node as usize)?;
        (node.overlay != 0 && self.config.vxlan_ifindex != 0).then_some(node.mac)
    }

    /// May this client use a service that names those who may?
    pub fn allows(&self, service: u32, client: Addr) -> bool {
        self.sources.iter().any(|(of, range, bits)| *of == service && within(client, *range, *bits))
    }

    /// The node whose pods live there.
    pub fn range_of(&self, addr: Addr) -> Option<u32> {
        self.ranges
            .iter()
            .filter(|(range, bits, _)| within(addr, *range, *bits))
            .max_by_key(|(_, bits, _)| *bits)
            .map(|(_, _, node)| *node)
    }
}

/// Does `addr` lie in `range`, whose first `bits` (in its own family) count?
pub fn within(addr: Addr, range: Addr, bits: u8) -> bool {
    if addr.is_v4() != range.is_v4() {
        return false;
    }
    let number = |addr: Addr| u128::from_be_bytes(crate::place::bytes16(addr));
    let bits = u32::from(bits) + if range.is_v4() { 96 } else { 0 };
    bits == 0 || (number(addr) ^ number(range)) >> (128 - bits) == 0
}
