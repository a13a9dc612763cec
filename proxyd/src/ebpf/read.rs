//! Reading what the maps hold.
//!
//! Reading never trusts. A daemon may have been killed between any two writes, and anybody with root may
//! have written there: what does not fit together makes its frontend [torn](Entry::whole), which no desired
//! table equals, so that the next reconciliation writes it anew; what no frontend claims is put away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_ebpf_common::{
    ADDR_NODE, ADDR_OVERLAY, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_FREE, Backend, ChoiceKey,
    FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, FRONTEND_EXTERNAL, FRONTEND_LOCAL, FRONTEND_SOURCES, Frontend,
    FrontendKey, NODE_FREE, NODE_SELF, Node,
};
use heddle_model::{
    self as model, BackendState, FrontendAddr, NodeName, Outside, Protocol, Refusal, SharedMap,
};
use ipnetwork::IpNetwork;

use super::encode;
use super::extents::{Extent, Extents};
use super::ledger::Ledger;
use super::slots::Slots;
use super::state::{Entry, NODE_AND_PORTS, NodeEntry, State, digest, element, flags, outside, ring};
use super::write::{Dump, Limits, Maps, Write};

/// What frontends leave to be claimed by their number.
struct Loose {
    names: BTreeMap<u32, String>,
    /// In order. There are many, so they lie together, and leave no holes in the heap.
    choices: Vec<(ChoiceKey, u32)>,
    sources: BTreeMap<u32, BTreeSet<IpNetwork>>,
    /// Slots that a frontend has.
    claimed: Vec<bool>,
}

impl Loose {
    /// Hash and slot of each choice of a service, by hash.
    fn choices(&self, service: u32) -> Vec<(u32, u32)> {
        let start = self.choices.partition_point(|(key, _)| key.service < service);
        let of = self.choices[start..].iter().take_while(|(key, _)| key.service == service);
        of.map(|(key, slot)| (key.hash, *slot)).collect()
    }
}

/// What frontends probably are: of what is found to be so there is no copy.
pub type Probable = SharedMap<FrontendAddr, Arc<model::Frontend>>;

impl State {
    /// What `dump` holds, with the lists that `maps` are asked for. Writes nothing: what must be put away is
    /// [`owed`](Self::owed). `before`: what this same process knew; what is still the same is shared with it. What is as
    /// `probable` has it is shared with that.
    pub fn read<M: Maps>(
        dump: Dump,
        limits: Limits,
        before: Option<&Self>,
        probable: &Probable,
        maps: &mut M,
    ) -> Result<Self, M::Error> {
        let mut state = Self {
            frontends: BTreeMap::new(),
            backends: Vec::new(),
            nodes: BTreeMap::new(),
            indices: BTreeMap::new(),
            slots: Slots::new(limits.backends),
            extents: Extents::new(limits.ring),
            ledger: Ledger::new(&dump.addrs, &dump.ports, dump.snat_ports),
            services: BTreeSet::new(),
            sources: 0,
            last_service: 0,
            last_node: NODE_SELF,
            owed: Vec::new(),
            unsettled: before.is_none_or(Self::is_cooling),
            stale: false,
            limits,
        };
        state.read_nodes(&dump);
        for backend in dump.backends.iter().skip(1) {
            state.slots.adopt(backend.generation, backend.state != BACKEND_FREE, !state.unsettled);
        }
        state.backends = dump.backends;
        let mut loose = Loose {
            names: dump.services.into_iter().collect(),
            choices: dump.choices,
            sources: BTreeMap::new(),
            claimed: vec![false; state.backends.len()],
        };
        loose.choices.sort_unstable_by_key(|(key, _)| (key.service, key.hash));
        for (service, range) in dump.sources {
            loose.sources.entry(service).or_default().insert(range);
        }
        for (key, value) in &dump.frontends {
            let Some(at) = encode::frontend_addr(key) else {
                state.owed.push(Write::Frontend(*key, None));
                continue;
            };
            let probable = (before, probable.get(&at));
            let entry = state.read_frontend(key, value, probable, &mut loose, maps)?;
            state.ledger.add(key, entry.value.flags);
            state.frontends.insert(*key, entry);
        }
        state.read_rest(loose);
        state.ledger.clean();
        Ok(state)
    }

    /// Something that looks free in the maps may still be in somebody's hands.
    fn is_cooling(&self) -> bool {
        self.unsettled
            || self.stale
            || self.slots.is_cooling()
            || self.slots.has_retired()
            || self.extents.is_cooling()
    }

    fn read_nodes(&mut self, dump: &Dump) {
        for (index, name) in &dump.node_names {
            let name = NodeName(name.as_str().into());
            let value = dump.nodes.get(*index as usize).copied().unwrap_or_default();
            let known = value.state != NODE_FREE || *index == NODE_SELF;
            if !known || self.nodes.contains_key(&name) {
                self.owed.push(Write::NodeName(*index, None));
                continue;
            }
            self.indices.insert(*index, name.clone());
            self.nodes.insert(name, NodeEntry::new(*index, value));
            self.last_node = self.last_node.max(*index);
        }
        for (addr, at) in &dump.addrs {
            let entry = self.indices.get(&at.node).and_then(|name| self.nodes.get_mut(name));
            match (entry, at.kind) {
                (Some(entry), ADDR_NODE) => entry.addresses.insert(encode::ip(*addr)),
                (Some(entry), NODE_AND_PORTS) => {
                    entry.node_ports.insert(encode::ip(*addr));
                    entry.addresses.insert(encode::ip(*addr))
                }
                (Some(entry), ADDR_OVERLAY) => entry.overlay.insert(encode::ip(*addr)),
                _ => continue,
            };
        }
        for entry in self.nodes.values() {
            self.ledger.set_node(entry.index, &entry.addrs(), &BTreeMap::new());
        }
        for (range, index) in &dump.ranges {
            let entry = self.indices.get(index).and_then(|name| self.nodes.get_mut(name));
            if !entry.is_some_and(|entry| entry.ranges.insert(*range)) {
                self.owed.push(Write::Range(*range, None));
            }
        }
        for (index, node) in (0..).zip(&dump.nodes) {
            if *node != Node::default() && !self.indices.contains_key(&index) {
                self.owed.push(Write::Node(index, Node::default()));
            }
        }
    }

    fn read_frontend<M: Maps>(
        &mut self,
        key: &FrontendKey,
        value: &Frontend,
        (before, probable): (Option<&Self>, Option<&Arc<model::Frontend>>),
        loose: &mut Loose,
        maps: &mut M,
    ) -> Result<Entry, M::Error> {
        let mut whole = value.check == value.sum(key);
        let mut value = *value;
        let mut own = |start: &mut u32, len: &mut u32| {
            let there = u64::from(*start) + u64::from(*len) <= u64::from(self.limits.ring);
            whole &= *len > 0 || *start == 0;
            if *len > 0 && !(there && self.extents.reserve(Extent { start: *start, len: *len })) {
                // Another's: it gets one of its own.
                (*start, *len) = (0, 0);
                whole = false;
            }
            if *len == 0 { Ok(Vec::new()) } else { maps.read_list(*start, *len) }
        };
        let dense = own(&mut value.ring, &mut value.ring_len)?;
        let table = own(&mut value.outside, &mut value.outside_len)?;

        let (mut name, mut chosen, mut sources) = (String::new(), Vec::new(), None);
        if value.service != 0 && self.services.insert(value.service) {
            self.last_service = self.last_service.max(value.service);
            name = loose.names.remove(&value.service).unwrap_or_default();
            chosen = loose.choices(value.service);
            sources = loose.sources.remove(&value.service);
        } else {
            value.service = 0;
        }
        self.sources += sources.as_ref().map_or(0, BTreeSet::len);
        whole &= !name.is_empty();
        if value.flags & FRONTEND_SOURCES != 0 {
            sources.get_or_insert_default();
        }
        let shows_sources = sources.is_some();

        // Who is there: whoever is named, whatever is wrong with the rest.
        let mut members: BTreeMap<(IpAddr, u16), u32> = BTreeMap::new();
        let chosen_slots = chosen.iter().map(|(_, slot)| slot);
        let mut named: Vec<u32> = dense.iter().chain(&table).chain(chosen_slots).copied().collect();
        named.sort_unstable();
        named.dedup();
        for slot in named {
            let backend = self.backend(slot);
            let at = (encode::ip(backend.addr), u16::from_be(backend.port));
            let free = loose.claimed.get(slot as usize) == Some(&false);
            if free && self.is_backend(key, &backend) && !members.contains_key(&at) {
                loose.claimed[slot as usize] = true;
                members.insert(at, slot);
            } else {
                whole = false;
            }
        }
        let slots: Box<[u32]> = members.values().copied().collect();
        let in_ring: BTreeSet<u32> = dense.iter().copied().collect();
        let local = table.iter().filter_map(|slot| {
            let backend = self.backend(*slot);
            let at = (encode::ip(backend.addr), u16::from_be(backend.port));
            (members.get(&at) == Some(slot)).then_some(at)
        });
        let external = value.flags & FRONTEND_EXTERNAL != 0;
        let refusal = |flag| if value.flags & flag == 0 { Refusal::Reject } else { Refusal::Drop };
        let mut shown = model::Frontend {
            name,
            backends: members.values().map(|slot| self.shown(*slot, in_ring.contains(slot))).collect(),
            refusal: refusal(FRONTEND_DROP),
            outside: match (external, value.flags & FRONTEND_LOCAL != 0) {
                (false, _) => None,
                (true, false) => Some(Outside::Cluster),
                (true, true) => Some(Outside::Local {
                    backends: local.collect(),
                    refusal: refusal(FRONTEND_DROP_OUTSIDE),
                }),
            },
            affinity: (value.affinity != 0).then_some(value.affinity),
            sources,
        };
        whole &= flags(&shown) == value.flags
            && shows_sources == (value.flags & FRONTEND_SOURCES != 0)
            && shown.backends.len() == slots.len()
            && ring(&shown, &slots) == dense;
        let digest = digest(&table);
        for (backend, slot) in shown.backends.iter().zip(&slots) {
            whole &= self.backend(*slot).state == Self::wanted_state(&shown, backend);
        }
        let choices = self.choices(&slots);
        whole &= choices == chosen;
        // A choice of a slot that is on its way to another backend must not outlive the next grace period.
        let service = value.service;
        let astray = chosen.into_iter().filter(|choice| !choices.contains(choice));
        self.owed.extend(astray.map(|(hash, _)| Write::Choice(ChoiceKey { service, hash }, None)));
        if !whole {
            shown.name = String::new();
        }
        // The table is long to reckon: what it was, it need not be asked again.
        let known = before.and_then(|before| {
            let entry = before.frontends.get(key)?;
            let same = entry.whole && entry.value == value && entry.slots == slots && entry.digest == digest;
            let elements = || slots.iter().all(|slot| before.backend(*slot) == self.backend(*slot));
            (same && whole && *entry.shown == shown && elements()).then_some(entry)
        });
        if let Some(entry) = known {
            return Ok(entry.clone());
        }
        if whole && outside(&shown, &slots) != table {
            whole = false;
            shown.name = String::new();
        }
        let shown = match probable.filter(|probable| ***probable == shown) {
            Some(probable) => Arc::clone(probable),
            None => Arc::new(shown),
        };
        Ok(Entry { value, shown, slots, digest, whole })
    }

    /// Whether an element can be a backend of this frontend.
    fn is_backend(&self, key: &FrontendKey, backend: &Backend) -> bool {
        let live = matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING);
        let Some(proto) = Protocol::from_number(backend.proto) else { return false };
        let sound = element(encode::ip(backend.addr), u16::from_be(backend.port), proto, backend.node);
        live && backend.proto == key.proto
            && Backend { generation: backend.generation, state: backend.state, ..sound } == *backend
            && (backend.node == 0 || self.indices.contains_key(&backend.node))
    }

    fn shown(&self, slot: u32, active: bool) -> model::Backend {
        let backend = self.backend(slot);
        model::Backend {
            ip: encode::ip(backend.addr),
            port: u16::from_be(backend.port),
            // It was looked at: `is_backend`.
            proto: Protocol::from_number(backend.proto).unwrap_or(Protocol::Tcp),
            node: self.indices.get(&backend.node).cloned(),
            state: if active { BackendState::Active } else { BackendState::Draining },
        }
    }

    /// What no frontend claims.
    fn read_rest(&mut self, loose: Loose) {
        for service in loose.names.into_keys() {
            self.owed.push(Write::Service(service, None));
        }
        for (key, _) in loose.choices {
            if !self.services.contains(&key.service) {
                self.owed.push(Write::Choice(key, None));
            }
        }
        for (service, ranges) in loose.sources {
            for range in ranges {
                self.owed.push(Write::Source(service, range, false));
            }
        }
        for slot in 1..self.backends.len() as u32 {
            if self.backend(slot).state != BACKEND_FREE && !loose.claimed[slot as usize] {
                self.put_down(slot);
            }
        }
    }
}
