//! From a wanted frontend to writes, in an order in which nothing breaks on the way.
//!
//! For each frontend: its name, sources, new backends, choices and lists; then the frontend itself, by one write;
//! then what it named before is put down. What is worked out here is allocated, not yet written
//! ([`apply`](mod@super::apply) does that); a frontend that does not fit is refused, and nothing is written for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use heddle_ebpf_common::{
    BACKEND_ACTIVE, BACKEND_DRAINING, Backend, ChoiceKey, Frontend, FrontendKey, RING_BLOCK,
};
use heddle_model as model;
use ipnetwork::IpNetwork;

use super::extents::Extent;
use super::state::{self, Entry, State, digest, element, flags};
use super::write::Write;

/// Why something was not carried out. It was left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A map has no room for it. Nothing was written.
    #[error("map {map} is full: {need} more wanted, {free} of {size} free{}", option_of(map))]
    Full { map: &'static str, need: usize, free: usize, size: u32 },
    /// Another frontend of its service was refused: a service is served whole or as it was.
    #[error("frontend {at} of the same service: {why}")]
    Fellow { at: model::FrontendAddr, why: String },
    /// The programs cannot hold it; `project` says so beforehand.
    #[error("{0} cannot be held by the eBPF programs")]
    Unsupported(String),
    /// Nothing can be done before this node has its index.
    #[error("this node's name could not be written")]
    NoLocal,
    /// A frontend that could not be changed still leads there.
    #[error("a frontend still has a backend on it")]
    InUse,
    /// The kernel refused a write.
    #[error("{0}")]
    Write(String),
}

/// The way out of a full map.
pub fn option_of(map: &str) -> &'static str {
    match map {
        "frontends" | "services" | "ring" | "addrs" => " (raise --max-frontends)",
        "backends" | "choices" => " (raise --max-backends)",
        _ => "",
    }
}

/// What one frontend needs, worked out and allocated, not yet written.
#[derive(Debug)]
pub struct Change {
    pub key: FrontendKey,
    pub entry: Entry,
    /// What it was.
    pub old: Option<Entry>,
    /// Written before the frontend; each with what undoes it, if it is not enough to forget it.
    pub before: Vec<(Write, Option<Write>)>,
    pub after: Vec<Write>,
    /// Slots that are new, and slots that this change leaves.
    pub fresh: Vec<u32>,
    pub left: Vec<u32>,
    /// Slots that stop taking new flows, and slots that take them again.
    pub drained: Vec<u32>,
    pub woken: Vec<u32>,
    /// Extents taken and extents left.
    pub taken: Vec<Extent>,
    pub released: Vec<Extent>,
}

impl Change {
    /// The frontend's own write, if it is one.
    pub fn swap(&self) -> Option<Write> {
        let stands = self.old.as_ref().is_some_and(|old| old.whole && old.value == self.entry.value);
        (!stands).then_some(Write::Frontend(self.key, Some(self.entry.value)))
    }
}

/// What a change needs of each map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    pub frontends: usize,
    pub slots: usize,
    pub ring: u32,
    pub addrs: usize,
    pub sources: usize,
}

/// What was there before, in the order of the backends: those that are wanted in the same order go along it.
struct Known<'a> {
    rest: std::iter::Peekable<std::vec::IntoIter<(&'a model::Backend, u32)>>,
    gone: Vec<u32>,
}

impl<'a> Known<'a> {
    fn of(old: Option<&'a Entry>) -> Self {
        let all: Vec<_> = old.into_iter().flat_map(Entry::backends).collect();
        Self { rest: all.into_iter().peekable(), gone: Vec::new() }
    }

    /// The slot of this backend, if it has one.
    fn find(&mut self, wanted: &model::Backend) -> Option<u32> {
        let at = |backend: &model::Backend| (backend.ip, backend.port, backend.proto);
        while let Some((_, slot)) = self.rest.next_if(|(backend, _)| at(backend) < at(wanted)) {
            self.gone.push(slot);
        }
        self.rest.next_if(|(backend, _)| at(backend) == at(wanted)).map(|(_, slot)| slot)
    }
}

impl State {
    /// What a frontend needs at the most, beside what it has.
    pub fn needs(&self, key: &FrontendKey, wanted: &model::Frontend) -> Needs {
        let old = self.frontends.get(key);
        let mut known = Known::of(old);
        let mut slots = 0;
        for backend in &wanted.backends {
            let node = self.node_index(backend.node.as_ref());
            let stays = known.find(backend).is_some_and(|slot| self.backend(slot).node == node);
            slots += usize::from(!stays);
        }
        let active = wanted.backends.iter().filter(|b| b.state == model::BackendState::Active).count() as u32;
        let blocks = |len: u32| len.next_multiple_of(RING_BLOCK);
        let sources = |frontend: &model::Frontend| frontend.sources.as_ref().map_or(0, BTreeSet::len);
        Needs {
            frontends: usize::from(old.is_none()),
            slots,
            ring: blocks(active) + blocks(state::outside_len(wanted)),
            addrs: usize::from(old.is_none() && self.ledger.is_new(key)),
            sources: sources(wanted).saturating_sub(old.map_or(0, |old| sources(&old.shown))),
        }
    }

    /// Works out what a frontend needs, and allocates it. `Err`: a list found no room, all is as it was.
    pub fn compile(
        &mut self,
        key: &FrontendKey,
        wanted: &Arc<model::Frontend>,
    ) -> Result<Change, (Refused, Box<Change>)> {
        let old = self.frontends.get(key).cloned();
        let had = old.as_ref().map(|old| old.value.service).filter(|service| *service != 0);
        let service = had.unwrap_or_else(|| self.free_service());
        let value = Frontend {
            service,
            flags: flags(wanted),
            affinity: wanted.affinity.unwrap_or(0),
            ..Frontend::default()
        };
        let entry = Entry { value, shown: Arc::clone(wanted), slots: Box::default(), digest: 0, whole: true };
        let mut change = Change {
            key: *key,
            entry,
            old,
            before: Vec::new(),
            after: Vec::new(),
            fresh: Vec::new(),
            left: Vec::new(),
            drained: Vec::new(),
            woken: Vec::new(),
            taken: Vec::new(),
            released: Vec::new(),
        };
        if let Some(old) = &change.old {
            self.ledger.remove(key, old.value.flags);
        }
        self.ledger.add(key, change.entry.value.flags);
        self.compile_name(had, &mut change);
        self.compile_members(&mut change);
        if change.entry.slots.len() < change.entry.shown.backends.len() {
            let need = change.entry.shown.backends.len() - change.entry.slots.len();
            let refused = Refused::Full { map: "backends", need, free: 0, size: self.limits.backends };
            return Err((refused, Box::new(change)));
        }
        self.compile_choices(&mut change);
        if let Err(refused) = self.compile_lists(&mut change) {
            return Err((refused, Box::new(change)));
        }
        change.entry.value = change.entry.value.sealed(key);
        Ok(change)
    }

    /// The frontend's name and the ranges that it allows.
    fn compile_name(&mut self, had: Option<u32>, change: &mut Change) {
        let service = change.entry.value.service;
        let name = &change.entry.shown.name;
        let old_name = change.old.as_ref().map(|old| &old.shown.name);
        if had.is_none() || old_name != Some(name) {
            let write = Write::Service(service, Some(name.clone()));
            let undo = had.and(old_name).filter(|name| !name.is_empty()).cloned();
            change.before.push((write, Some(Write::Service(service, undo))));
        }
        let nothing = BTreeSet::new();
        let wanted: &BTreeSet<IpNetwork> = change.entry.shown.sources.as_ref().unwrap_or(&nothing);
        let whole = change.old.as_ref().filter(|old| old.whole);
        let stood = whole.and_then(|old| old.shown.sources.as_ref()).unwrap_or(&nothing);
        for range in wanted.difference(stood) {
            let write = |there| Write::Source(service, *range, there);
            change.before.push((write(true), Some(write(false))));
        }
        let had = change.old.as_ref().and_then(|old| old.shown.sources.as_ref()).unwrap_or(&nothing);
        change.after.extend(had.difference(wanted).map(|range| Write::Source(service, *range, false)));
    }

    fn compile_members(&mut self, change: &mut Change) {
        let wanted = Arc::clone(&change.entry.shown);
        let mut known = Known::of(change.old.as_ref());
        let mut slots = Vec::with_capacity(wanted.backends.len());
        let mut of_node = (None, 0);
        for backend in &wanted.backends {
            let state = Self::wanted_state(&wanted, backend);
            if of_node.0 != Some(&backend.node) {
                of_node = (Some(&backend.node), self.node_index(backend.node.as_ref()));
            }
            let node = of_node.1;
            let element = element(backend.ip, backend.port, backend.proto, node);
            if let Some(slot) = known.find(backend) {
                let stood = self.backend(slot);
                // The same address on another node is another backend.
                if stood.node == node {
                    slots.push(slot);
                    if stood.state == BACKEND_DRAINING && state == BACKEND_ACTIVE {
                        change.woken.push(slot);
                        let write = Write::Backend(slot, Backend { state, ..stood });
                        change.before.push((write, Some(Write::Backend(slot, stood))));
                    } else if stood.state == BACKEND_ACTIVE && state == BACKEND_DRAINING {
                        change.drained.push(slot);
                        change.after.push(Write::Backend(slot, Backend { state, ..stood }));
                    }
                    continue;
                }
                known.gone.push(slot);
            }
            // There is room: `needs`.
            if let Some((slot, generation)) = self.slots.allocate() {
                let element = Backend { generation, state, ..element };
                self.set_backend(slot, element);
                slots.push(slot);
                change.fresh.push(slot);
                change.before.push((Write::Backend(slot, element), None));
                if generation > 1 {
                    change.before.push((Write::Unused(slot), None));
                }
            }
        }
        change.left = known.gone;
        change.left.extend(known.rest.map(|(_, slot)| slot));
        change.entry.slots = slots.into();
    }

    fn compile_choices(&self, change: &mut Change) {
        let service = change.entry.value.service;
        let choice = |hash| ChoiceKey { service, hash };
        let wanted = self.choices(&change.entry.slots);
        let had = change.old.as_ref().map(|old| self.choices(&old.slots)).unwrap_or_default();
        let find = |choices: &[(u32, u32)], hash: u32| {
            choices.binary_search_by_key(&hash, |(hash, _)| *hash).ok().map(|at| choices[at].1)
        };
        let whole = change.old.as_ref().is_some_and(|old| old.whole);
        for (hash, slot) in &wanted {
            let stood = find(&had, *hash);
            if !whole || stood != Some(*slot) {
                let undo = Write::Choice(choice(*hash), stood);
                change.before.push((Write::Choice(choice(*hash), Some(*slot)), Some(undo)));
            }
        }
        let gone = had.iter().filter(|(hash, _)| find(&wanted, *hash).is_none());
        change.after.extend(gone.map(|(hash, _)| Write::Choice(choice(*hash), None)));
    }

    fn compile_lists(&mut self, change: &mut Change) -> Result<(), Refused> {
        let (shown, slots) = (Arc::clone(&change.entry.shown), change.entry.slots.clone());
        let ring = state::ring(&shown, &slots);
        let whole = change.old.as_ref().filter(|old| old.whole);
        let same_ring = whole.is_some_and(|old| state::ring(&old.shown, &old.slots) == ring);
        // The table follows from the dense list; it is long to reckon.
        let same_kind = whole.is_some_and(|old| {
            matches!(
                (&old.shown.outside, &shown.outside),
                (Some(model::Outside::Cluster), Some(model::Outside::Cluster)) | (None, None)
            )
        });
        let (outside, same_outside) = if same_ring && same_kind {
            (Vec::new(), true)
        } else {
            let list = state::outside(&shown, &slots);
            let local = matches!(shown.outside, Some(model::Outside::Local { .. }));
            let same = local
                && whole.is_some_and(|old| {
                    matches!(old.shown.outside, Some(model::Outside::Local { .. }))
                        && state::outside(&old.shown, &old.slots) == list
                });
            (list, same)
        };
        let old = change.old.as_ref();
        let old_ring = old.and_then(Entry::ring);
        let old_outside = old.and_then(Entry::outside);
        let old_digest = old.map_or(0, |old| old.digest);
        let new_ring = if same_ring { old_ring } else { self.list(ring, old_ring, change)? };
        let value = &mut change.entry.value;
        (value.ring, value.ring_len) = new_ring.map_or((0, 0), |e| (e.start, e.len));
        change.entry.digest = if same_outside { old_digest } else { digest(&outside) };
        let new_outside = if same_outside { old_outside } else { self.list(outside, old_outside, change)? };
        let value = &mut change.entry.value;
        (value.outside, value.outside_len) = new_outside.map_or((0, 0), |e| (e.start, e.len));
        Ok(())
    }

    /// A list in an extent of its own, in the place of another.
    fn list(
        &mut self,
        list: Vec<u32>,
        old: Option<Extent>,
        change: &mut Change,
    ) -> Result<Option<Extent>, Refused> {
        let mut new = None;
        if !list.is_empty() {
            let Some(extent) = self.extents.allocate(list.len() as u32) else {
                let free = self.extents.available() as usize;
                let (map, size) = ("ring", self.limits.ring);
                return Err(Refused::Full { map, need: list.len(), free, size });
            };
            change.taken.push(extent);
            change.before.push((Write::Ring(extent.start, list), None));
            new = Some(extent);
        }
        change.released.extend(old);
        Ok(new)
    }

    /// A service number that was not in use for as long as possible.
    fn free_service(&mut self) -> u32 {
        // There are more numbers than frontends.
        loop {
            self.last_service = self.last_service.wrapping_add(1).max(1);
            if self.services.insert(self.last_service) {
                return self.last_service;
            }
        }
    }
}
