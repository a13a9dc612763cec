//! What the maps hold, understood: read from a [`Dump`] at start and at every full observation, and
//! carried along by the writes in between.
//!
//! Reading never trusts. A daemon may have been killed between any two writes, and anybody with root may
//! have written there: what does not fit together makes its frontend [torn](Entry::whole), which no desired
//! table equals, so that the next reconciliation writes it anew; what no frontend claims is put away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_ebpf_common::{
    ADDR_NODE, ADDR_NODE_PORTS, ADDR_OVERLAY, Addr, BACKEND_ACTIVE, BACKEND_DOWN, BACKEND_DRAINING,
    BACKEND_FREE, Backend, ChoiceKey, FRONTEND_EXTERNAL, Frontend, FrontendKey, MAGLEV_SIZE, NODE_DOWN,
    NODE_FREE, NODE_SELF, Node, choice_hash,
};
use heddle_model::{
    self as model, BackendState, Mac, NodeName, Outside, Protocol, ServiceNode, ServiceTable,
};
use ipnetwork::IpNetwork;

use super::encode;
use super::extents::{Extent, Extents};
use super::maglev;
use super::slots::Slots;
use super::write::{Dump, Limits, Write};

/// An address of a node on which node ports answer.
const NODE_AND_PORTS: u32 = ADDR_NODE | ADDR_NODE_PORTS;

/// A backend of one frontend. The order is the one in which rings name them, on every node alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub ip: IpAddr,
    pub port: u16,
    pub proto: Protocol,
    /// Index into `nodes`: the same address on another node is another backend.
    pub node: u32,
}

impl Member {
    /// The member as an element of `backends`.
    pub fn backend(&self, generation: u32, state: u8) -> Backend {
        let addr = encode::addr(self.ip);
        let port = self.port.to_be();
        let proto = self.proto.number();
        let hash = choice_hash(&addr, port, proto);
        Backend { addr, generation, node: self.node, port, proto, state, hash }
    }

    fn of(backend: &Backend) -> Option<Self> {
        Some(Self {
            ip: encode::ip(backend.addr),
            port: u16::from_be(backend.port),
            proto: Protocol::from_number(backend.proto)?,
            node: backend.node,
        })
    }

    fn identity(&self) -> maglev::Identity {
        (self.ip, self.port, self.proto)
    }
}

/// A frontend with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Frontend,
    pub name: String,
    /// Its backends and their slots. No slot belongs to two frontends.
    pub members: BTreeMap<Member, u32>,
    /// Its part of `choices`: hash to slot.
    pub choices: BTreeMap<u32, u32>,
    /// The extents that are its own.
    pub ring: Option<Extent>,
    pub maglev: Option<Extent>,
    /// Everything fits together. If not, it is written anew.
    pub whole: bool,
}

/// What the slots of `members` say about the lists of a frontend.
pub fn lists(
    members: &BTreeMap<Member, u32>,
    external: bool,
    is_active: impl Fn(u32) -> bool,
) -> (Vec<u32>, Vec<u32>) {
    let active = members.iter().filter(|(_, slot)| is_active(**slot));
    let (identities, ring): (Vec<_>, Vec<u32>) =
        active.map(|(member, slot)| (member.identity(), *slot)).unzip();
    let maglev = match external {
        true => maglev::table(&identities).into_iter().map(|index| ring[index]).collect(),
        false => Vec::new(),
    };
    (ring, maglev)
}

/// What `choices` must say for these members: of two with one hash, the first is found.
pub fn choices(members: &BTreeMap<Member, u32>) -> BTreeMap<u32, u32> {
    let mut choices = BTreeMap::new();
    for (member, slot) in members {
        choices.entry(member.backend(0, 0).hash).or_insert(*slot);
    }
    choices
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
    pub fn new(index: u32, value: Node) -> Self {
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
            overlay: self.overlay.clone(),
            mac: (self.value.overlay == 1).then_some(Mac(self.value.mac)),
            ranges: self.ranges.clone(),
        }
    }
}

/// The understood content of the maps.
#[derive(Clone, Debug)]
pub struct State {
    pub frontends: BTreeMap<FrontendKey, Entry>,
    /// Every slot that is not free; those on their way there are DOWN.
    pub backends: BTreeMap<u32, Backend>,
    pub nodes: BTreeMap<NodeName, NodeEntry>,
    pub slots: Slots,
    pub extents: Extents,
    /// Service numbers in use.
    pub services: BTreeSet<u32>,
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
    /// What `dump` holds. Writes nothing: what must be put away is in [`owed`](Self::owed).
    pub fn read(dump: &Dump, limits: Limits) -> Self {
        let mut state = Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            nodes: BTreeMap::new(),
            slots: Slots::new(limits.backends),
            extents: Extents::new(limits.ring),
            services: BTreeSet::new(),
            last_service: 0,
            last_node: NODE_SELF,
            owed: Vec::new(),
            unsettled: true,
            stale: false,
            limits,
        };
        state.read_nodes(dump);
        for (slot, backend) in (0..).zip(&dump.backends).skip(1) {
            let used = backend.state != BACKEND_FREE;
            state.slots.adopt(backend.generation, used);
            if used {
                state.backends.insert(slot, *backend);
            }
        }
        state.read_frontends(dump);
        state
    }

    fn read_nodes(&mut self, dump: &Dump) {
        let mut by_index = BTreeMap::new();
        for (index, name) in &dump.node_names {
            let name = NodeName(name.clone());
            let value = dump.nodes.get(*index as usize).copied().unwrap_or_default();
            let known = value.state != NODE_FREE || *index == NODE_SELF;
            if !known || self.nodes.contains_key(&name) {
                self.owed.push(Write::NodeName(*index, None));
                continue;
            }
            by_index.insert(*index, name.clone());
            self.nodes.insert(name, NodeEntry::new(*index, value));
            self.last_node = self.last_node.max(*index);
        }
        for (addr, at) in &dump.addrs {
            let entry = by_index.get(&at.node).and_then(|name| self.nodes.get_mut(name));
            let fresh = match (entry, at.kind) {
                (Some(entry), ADDR_NODE) => entry.addresses.insert(encode::ip(*addr)),
                (Some(entry), NODE_AND_PORTS) => {
                    entry.node_ports.insert(encode::ip(*addr));
                    entry.addresses.insert(encode::ip(*addr))
                }
                (Some(entry), ADDR_OVERLAY) => entry.overlay.insert(encode::ip(*addr)),
                _ => false,
            };
            if !fresh {
                self.owed.push(Write::KnownAddr(*addr, None));
            }
        }
        for (range, index) in &dump.ranges {
            let entry = by_index.get(index).and_then(|name| self.nodes.get_mut(name));
            if !entry.is_some_and(|entry| entry.ranges.insert(*range)) {
                self.owed.push(Write::Range(*range, None));
            }
        }
        for (index, node) in (0..).zip(&dump.nodes) {
            if *node != Node::default() && !by_index.contains_key(&index) {
                self.owed.push(Write::Node(index, Node::default()));
            }
        }
    }

    fn read_frontends(&mut self, dump: &Dump) {
        let mut names: BTreeMap<u32, &String> = dump.services.iter().map(|(id, name)| (*id, name)).collect();
        let mut choices: BTreeMap<u32, BTreeMap<u32, u32>> = BTreeMap::new();
        for (key, slot) in &dump.choices {
            choices.entry(key.service).or_default().insert(key.hash, *slot);
        }
        let mut claimed: BTreeSet<u32> = BTreeSet::new();
        for (key, value) in &dump.frontends {
            if encode::frontend_addr(key).is_none() {
                self.owed.push(Write::Frontend(*key, None));
                continue;
            }
            let mut entry = self.read_frontend(key, value, &dump.ring);
            if value.service != 0 && self.services.insert(value.service) {
                self.last_service = self.last_service.max(value.service);
                match names.remove(&value.service) {
                    Some(name) => entry.name.clone_from(name),
                    None => entry.whole = false,
                }
                entry.choices = choices.remove(&value.service).unwrap_or_default();
            } else {
                // Another frontend's number: it gets one of its own.
                entry.value.service = 0;
                entry.whole = false;
            }
            self.read_members(&mut entry, &dump.ring, &mut claimed);
            self.frontends.insert(*key, entry);
        }
        for (service, _) in names {
            self.owed.push(Write::Service(service, None));
        }
        for (service, hashes) in choices {
            for hash in hashes.into_keys() {
                self.owed.push(Write::Choice(ChoiceKey { service, hash }, None));
            }
        }
        let unclaimed: Vec<u32> =
            self.backends.keys().copied().filter(|slot| !claimed.contains(slot)).collect();
        for slot in unclaimed {
            self.put_down(slot);
        }
    }

    /// The extents of a frontend, and whether they can be.
    fn read_frontend(&mut self, key: &FrontendKey, value: &Frontend, ring: &[u32]) -> Entry {
        let mut whole = value.check == value.sum(key) && value.flags & !FRONTEND_EXTERNAL == 0;
        let mut own = |start: u32, len: u32| {
            let extent = Extent { start, len };
            let there = u64::from(start) + u64::from(len) <= ring.len() as u64;
            let own = len > 0 && there && self.extents.reserve(extent);
            whole &= own || len == 0;
            own.then_some(extent)
        };
        let dense = own(value.ring, value.ring_len);
        let maglev = own(value.outside, value.outside_len);
        Entry {
            value: *value,
            name: String::new(),
            members: BTreeMap::new(),
            choices: BTreeMap::new(),
            ring: dense,
            maglev,
            whole,
        }
    }

    /// The members of a frontend, and whether all says the same about them.
    fn read_members(&mut self, entry: &mut Entry, ring: &[u32], claimed: &mut BTreeSet<u32>) {
        let part = |extent: Option<Extent>| match extent {
            Some(Extent { start, len }) => &ring[start as usize..(start + len) as usize],
            None => &[],
        };
        let named: BTreeSet<u32> = part(entry.ring).iter().chain(entry.choices.values()).copied().collect();
        for slot in named {
            let member = self.backends.get(&slot).and_then(|backend| {
                let member = Member::of(backend)?;
                let live = matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING);
                (live && member.backend(backend.generation, backend.state) == *backend).then_some(member)
            });
            match member {
                Some(member) if !entry.members.contains_key(&member) && claimed.insert(slot) => {
                    entry.members.insert(member, slot);
                }
                _ => entry.whole = false,
            }
        }
        // A choice of a slot that is on its way to another backend must not outlive the next grace period.
        let members: BTreeSet<u32> = entry.members.values().copied().collect();
        let service = entry.value.service;
        let astray = entry.choices.extract_if(.., |_, slot| !members.contains(slot));
        self.owed.extend(astray.map(|(hash, _)| Write::Choice(ChoiceKey { service, hash }, None)));
        let external = entry.value.flags & FRONTEND_EXTERNAL != 0;
        let is_active = |slot| self.backends.get(&slot).is_some_and(|b| b.state == BACKEND_ACTIVE);
        let (dense, maglev) = lists(&entry.members, external, is_active);
        entry.whole &= part(entry.ring) == dense.as_slice()
            && part(entry.maglev) == maglev.as_slice()
            && choices(&entry.members) == entry.choices;
    }

    /// Whether something is to be put away.
    pub fn has_remains(&self) -> bool {
        self.stale || !self.owed.is_empty() || self.slots.has_retired()
    }

    /// Sends a slot that is in no ring on its way to being free. Its flows are stale from now on.
    pub fn put_down(&mut self, slot: u32) {
        if let Some(backend) = self.backends.get_mut(&slot)
            && backend.state != BACKEND_DOWN
        {
            backend.state = BACKEND_DOWN;
            self.owed.push(Write::Backend(slot, *backend));
        }
        self.slots.retire(slot);
    }

    /// This node's name, as an earlier daemon wrote it.
    pub fn local(&self) -> Option<&NodeName> {
        self.nodes.iter().find(|(_, entry)| entry.index == NODE_SELF).map(|(name, _)| name)
    }

    /// The index of a node; 0 if it is none of ours.
    pub fn node_index(&self, name: Option<&NodeName>) -> u32 {
        name.and_then(|name| self.nodes.get(name)).map_or(0, |entry| entry.index)
    }

    /// The table that the maps carry out. A frontend that is not [whole](Entry::whole) has no name, which
    /// no frontend that is wanted lacks.
    pub fn table(&self) -> ServiceTable {
        let names: BTreeMap<u32, &NodeName> =
            self.nodes.iter().map(|(name, entry)| (entry.index, name)).collect();
        let frontends = self.frontends.iter().filter_map(|(key, entry)| {
            let backends = entry.members.iter().filter_map(|(member, slot)| {
                let state = match self.backends.get(slot)?.state {
                    BACKEND_ACTIVE => BackendState::Active,
                    BACKEND_DRAINING => BackendState::Draining,
                    _ => BackendState::Down,
                };
                Some(model::Backend {
                    ip: member.ip,
                    port: member.port,
                    proto: member.proto,
                    node: names.get(&member.node).map(|name| (*name).clone()),
                    state,
                })
            });
            let known = |member: &Member| member.node == 0 || names.contains_key(&member.node);
            let frontend = model::Frontend {
                name: if entry.whole && entry.members.keys().all(known) {
                    entry.name.clone()
                } else {
                    String::new()
                },
                backends: backends.collect(),
                outside: (entry.value.flags & FRONTEND_EXTERNAL != 0).then_some(Outside::Cluster),
                ..model::Frontend::default()
            };
            Some((encode::frontend_addr(key)?, Arc::new(frontend)))
        });
        let known = self.nodes.iter().filter(|(_, entry)| entry.value.state != NODE_FREE);
        ServiceTable {
            frontends: frontends.collect(),
            nodes: known.map(|(name, entry)| (name.clone(), entry.service_node())).collect(),
            local: self.local().cloned(),
        }
    }

    /// The addresses of a node as keys of `addrs`, with their kind.
    pub fn addrs(node: &ServiceNode) -> BTreeMap<Addr, u32> {
        let underlay = node.addresses.iter().map(|ip| {
            let kind = if node.node_ports.contains(ip) { NODE_AND_PORTS } else { ADDR_NODE };
            (encode::addr(*ip), kind)
        });
        let overlay = node.overlay.iter().map(|ip| (encode::addr(*ip), ADDR_OVERLAY));
        overlay.chain(underlay).collect()
    }
}

/// Slots that a Maglev table takes; 0 for a frontend that is not reached from outside or has no backend.
pub fn maglev_len(external: bool, active: usize) -> u32 {
    if external && active > 0 { MAGLEV_SIZE } else { 0 }
}
