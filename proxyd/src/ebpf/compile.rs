//! From a wanted table to writes, in an order in which nothing breaks on the way.
//!
//! For each frontend: its new backends, its choices, its lists; then the frontend itself, by one write;
//! then what it named before is put down. What is put down is free for reuse after a grace period, one
//! for all frontends of an application ([`State::settle`]). A node comes before the backends that name
//! it and goes after them.
//!
//! A write that fails before the frontend's own leaves the frontend as it was; one that fails
//! afterwards is [owed](State::owed). A frontend that does not fit is refused whole, and nothing is written for it.

use std::collections::{BTreeMap, BTreeSet};

use heddle_ebpf_common::{
    BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_FREE, Backend, ChoiceKey, FRONTEND_EXTERNAL, Frontend,
    FrontendKey, RING_BLOCK,
};
use heddle_model::{self as model, BackendState, Part, Step};

use super::encode;
use super::extents::Extent;
use super::state::{Entry, Member, State, choices, lists, maglev_len};
use super::write::{Maps, Write};

/// Why something was not carried out. It was left as it was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E: std::fmt::Display> {
    /// A map has no room for it. Nothing was written.
    #[error("map {map} is full: {need} more wanted, {free} of {size} free{}", option_of(map))]
    Full { map: &'static str, need: usize, free: usize, size: u32 },
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
    Write(E),
}

/// The way out of a full map.
pub fn option_of(map: &str) -> &'static str {
    match map {
        "frontends" | "services" | "ring" => " (raise --max-frontends)",
        "backends" | "choices" => " (raise --max-backends)",
        _ => "",
    }
}

/// What failed of a plan.
pub type Failures<E> = Vec<(Part, Refused<E>)>;

/// What one frontend needs, worked out and allocated, not yet written.
struct Change {
    entry: Entry,
    /// Written in this order before the frontend; each with what undoes it, if it is not enough to
    /// forget it.
    before: Vec<(Write, Option<Write>)>,
    after: Vec<Write>,
    /// Slots that are new, and slots that this change leaves.
    fresh: Vec<(u32, Backend)>,
    left: Vec<u32>,
    /// Slots that stop taking new flows, and slots that take them again.
    drained: Vec<u32>,
    woken: Vec<u32>,
    /// Extents taken and extents left.
    taken: Vec<Extent>,
    released: Vec<Extent>,
}

impl State {
    /// Does a plan. Returns what failed of it, each part with its reason, and whether something else is
    /// still owed.
    pub fn apply<M: Maps>(&mut self, plan: &[Step], maps: &mut M) -> (Failures<M::Error>, Option<M::Error>) {
        let mut failed = Vec::new();
        let mut nameless = false;
        for step in plan {
            if nameless {
                failed.push((step.part(), Refused::NoLocal));
                continue;
            }
            // An owed write may concern the same elements: it comes first or nothing does.
            let paid = self.pay(maps).map_err(Refused::Write);
            let done = paid.and_then(|()| match step {
                Step::SetLocal { name, .. } => self.set_local(name.as_ref(), maps),
                Step::PutNode { name, node, .. } => self.upsert_node(name, node, maps),
                Step::PutFrontend { at, frontend, .. } => self.upsert(at, frontend, maps),
                Step::RemoveFrontend { at } => self.remove(at, maps),
                Step::RemoveNode { name } if self.is_used(name) => Err(Refused::InUse),
                Step::RemoveNode { name } => self.remove_node(name, maps),
            });
            if let Err(refused) = done {
                // What of a node was written, only the maps know.
                self.stale |= !matches!(step, Step::PutFrontend { .. } | Step::RemoveFrontend { .. });
                nameless = matches!(step, Step::SetLocal { .. });
                failed.push((step.part(), refused));
            }
        }
        let owed = self.pay(maps).and_then(|()| self.settle(maps)).err();
        (failed, owed)
    }

    /// Makes a frontend what is wanted. Writes nothing if it is.
    pub fn upsert<M: Maps>(
        &mut self,
        at: &model::FrontendAddr,
        wanted: &model::Frontend,
        maps: &mut M,
    ) -> Result<(), Refused<M::Error>> {
        let key = encode::key(at).ok_or_else(|| Refused::Unsupported(at.to_string()))?;
        let change = self.compile(&key, wanted, maps)?;
        let swap = self.frontends.get(&key).is_none_or(|entry| entry.value != change.entry.value);
        let before = change.before.iter().map(|(write, _)| write);
        let swap = swap.then_some(Write::Frontend(key, Some(change.entry.value)));
        for (done, write) in before.chain(&swap).enumerate() {
            if let Err(e) = maps.write(write) {
                self.undo(change, done, maps);
                return Err(Refused::Write(e));
            }
        }
        self.commit(key, change, maps)
    }

    /// Removes a frontend. What follows its own removal and fails is owed.
    pub fn remove<M: Maps>(
        &mut self,
        at: &model::FrontendAddr,
        maps: &mut M,
    ) -> Result<(), Refused<M::Error>> {
        let Some(key) = encode::key(at) else { return Ok(()) };
        if !self.frontends.contains_key(&key) {
            return Ok(());
        }
        maps.write(&Write::Frontend(key, None)).map_err(Refused::Write)?;
        let Some(entry) = self.frontends.remove(&key) else { return Ok(()) };
        let service = entry.value.service;
        for slot in entry.members.into_values() {
            self.put_down(slot);
        }
        if service != 0 {
            let hashes = entry.choices.into_keys();
            self.owed.extend(hashes.map(|hash| Write::Choice(ChoiceKey { service, hash }, None)));
            self.owed.push(Write::Service(service, None));
            self.services.remove(&service);
        }
        for extent in entry.ring.into_iter().chain(entry.maglev) {
            self.extents.release(extent);
        }
        self.pay(maps).map_err(Refused::Write)
    }

    /// Does the writes that are owed. Those that fail stay owed; the first failure is returned.
    pub fn pay<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        let mut failed = None;
        let owed = std::mem::take(&mut self.owed);
        for write in owed {
            if let Err(e) = maps.write(&write) {
                self.owed.push(write);
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// After all changes of an application: one grace period, then what was left is made free. Nothing
    /// happens if nothing was left, or while a write that must come first is owed.
    pub fn settle<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        if self.owed.is_empty() && (self.slots.has_retired() || self.extents.is_cooling()) {
            self.grace(maps)?;
        }
        Ok(())
    }

    fn grace<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        maps.write(&Write::Grace)?;
        self.unsettled = false;
        self.extents.settle();
        for (slot, generation) in self.slots.settle() {
            if let Some(backend) = self.backends.remove(&slot) {
                let free = Backend { generation, state: BACKEND_FREE, ..backend };
                self.owed.push(Write::Backend(slot, free));
            }
        }
        self.pay(maps)
    }

    /// Works out what a frontend needs, and allocates it.
    fn compile<M: Maps>(
        &mut self,
        key: &FrontendKey,
        wanted: &model::Frontend,
        maps: &mut M,
    ) -> Result<Change, Refused<M::Error>> {
        let old = self.frontends.get(key).cloned();
        let states = self.wanted_members(wanted)?;
        let active = states.values().filter(|state| **state == BACKEND_ACTIVE).count();
        let known = |member: &Member| old.as_ref().and_then(|old| old.members.get(member)).copied();
        let fresh = states.keys().filter(|member| known(member).is_none()).count();
        let maglev_len = maglev_len(wanted.is_external(), active);
        let ring = (active as u32).next_multiple_of(RING_BLOCK) + maglev_len.next_multiple_of(RING_BLOCK);
        self.make_room(old.is_none(), fresh, ring, maps)?;

        let mut change = Change {
            entry: Entry {
                value: Frontend::default(),
                name: wanted.name.clone(),
                members: BTreeMap::new(),
                choices: BTreeMap::new(),
                ring: None,
                maglev: None,
                whole: true,
            },
            before: Vec::new(),
            after: Vec::new(),
            fresh: Vec::new(),
            left: Vec::new(),
            drained: Vec::new(),
            woken: Vec::new(),
            taken: Vec::new(),
            released: Vec::new(),
        };
        self.compile_members(&states, old.as_ref(), &mut change);
        if let Err(refused) = self.compile_lists(wanted, &states, old.as_ref(), &mut change) {
            self.undo(change, 0, maps);
            return Err(refused);
        }
        self.compile_service(old.as_ref(), &mut change);
        change.entry.value.flags = if wanted.is_external() { FRONTEND_EXTERNAL } else { 0 };
        change.entry.value = change.entry.value.sealed(key);
        Ok(change)
    }

    /// The backends that a frontend shall have, and the state byte of each. One that is down is none.
    fn wanted_members<E: std::fmt::Display>(
        &self,
        wanted: &model::Frontend,
    ) -> Result<BTreeMap<Member, u8>, Refused<E>> {
        let mut states = BTreeMap::new();
        for backend in &wanted.backends {
            let state = match backend.state {
                BackendState::Active => BACKEND_ACTIVE,
                BackendState::Draining => BACKEND_DRAINING,
                BackendState::Down => continue,
            };
            let node = self.node_index(backend.node.as_ref());
            let member = Member { ip: backend.ip, port: backend.port, proto: backend.proto, node };
            states.entry(member).or_insert(state);
        }
        Ok(states)
    }

    /// Checks that everything fits, after a grace period if that helps.
    fn make_room<M: Maps>(
        &mut self,
        new: bool,
        slots: usize,
        ring: u32,
        maps: &mut M,
    ) -> Result<(), Refused<M::Error>> {
        let used = self.frontends.len();
        if new && used >= self.limits.frontends as usize {
            let size = self.limits.frontends;
            return Err(Refused::Full { map: "frontends", need: 1, free: 0, size });
        }
        if self.unsettled && (slots > 0 || ring > 0) {
            self.grace(maps).map_err(Refused::Write)?;
        }
        let short = |state: &Self| state.slots.available() < slots || state.extents.available() < ring;
        for _ in 0..2 {
            let helps = self.slots.is_cooling() || self.slots.has_retired() || self.extents.is_cooling();
            if short(self) && helps && self.owed.is_empty() {
                self.grace(maps).map_err(Refused::Write)?;
            }
        }
        let free = self.slots.available();
        if free < slots {
            return Err(Refused::Full { map: "backends", need: slots, free, size: self.limits.backends });
        }
        Ok(())
    }

    fn compile_members(&mut self, states: &BTreeMap<Member, u8>, old: Option<&Entry>, change: &mut Change) {
        for (member, state) in states {
            let known = old.and_then(|old| old.members.get(member)).copied();
            if let Some(slot) = known
                && let Some(backend) = self.backends.get(&slot).copied()
            {
                change.entry.members.insert(*member, slot);
                match (backend.state, *state) {
                    (BACKEND_DRAINING, BACKEND_ACTIVE) => {
                        change.woken.push(slot);
                        let awake = Backend { state: BACKEND_ACTIVE, ..backend };
                        let write = Write::Backend(slot, awake);
                        change.before.push((write, Some(Write::Backend(slot, backend))));
                    }
                    (BACKEND_ACTIVE, BACKEND_DRAINING) => {
                        change.drained.push(slot);
                        let drained = Backend { state: BACKEND_DRAINING, ..backend };
                        change.after.push(Write::Backend(slot, drained));
                    }
                    _ => {}
                }
            } else if let Some((slot, generation)) = self.slots.allocate() {
                let backend = member.backend(generation, *state);
                change.fresh.push((slot, backend));
                change.entry.members.insert(*member, slot);
                change.before.push((Write::Backend(slot, backend), None));
            }
        }
        let gone = old.into_iter().flat_map(|old| old.members.iter());
        change.left =
            gone.filter(|(member, _)| !states.contains_key(*member)).map(|(_, slot)| *slot).collect();
    }

    fn compile_lists<E: std::fmt::Display>(
        &mut self,
        wanted: &model::Frontend,
        states: &BTreeMap<Member, u8>,
        old: Option<&Entry>,
        change: &mut Change,
    ) -> Result<(), Refused<E>> {
        let active: BTreeSet<u32> = change
            .entry
            .members
            .iter()
            .filter(|(member, _)| states.get(member) == Some(&BACKEND_ACTIVE))
            .map(|(_, slot)| *slot)
            .collect();
        let is_active = |slot| active.contains(&slot);
        let (ring, maglev) = lists(&change.entry.members, wanted.is_external(), is_active);
        let was = old.filter(|old| old.whole);
        let same = was.is_some_and(|old| {
            let external = old.value.flags & FRONTEND_EXTERNAL != 0;
            let awake = |slot| self.backends.get(&slot).is_some_and(|b| b.state == BACKEND_ACTIVE);
            external == wanted.is_external() && lists(&old.members, false, awake).0 == ring
        });
        if let (true, Some(old)) = (same, was) {
            change.entry.ring = old.ring;
            change.entry.maglev = old.maglev;
        } else {
            for (list, extent) in [(ring, &mut change.entry.ring), (maglev, &mut change.entry.maglev)] {
                let len = list.len() as u32;
                if len == 0 {
                    continue;
                }
                let Some(new) = self.extents.allocate(len) else {
                    let free = self.extents.available() as usize;
                    let size = self.limits.ring;
                    return Err(Refused::Full { map: "ring", need: list.len(), free, size });
                };
                change.taken.push(new);
                *extent = Some(new);
                change.before.push((Write::Ring(new.start, list), None));
            }
            change.released =
                old.into_iter().flat_map(|old| old.ring.into_iter().chain(old.maglev)).collect();
        }
        let at = |extent: Option<Extent>| extent.map_or((0, 0), |e| (e.start, e.len));
        let value = &mut change.entry.value;
        (value.ring, value.ring_len) = at(change.entry.ring);
        (value.outside, value.outside_len) = at(change.entry.maglev);
        Ok(())
    }

    /// The frontend's number, name and choices.
    fn compile_service(&mut self, old: Option<&Entry>, change: &mut Change) {
        let had = old.map(|old| old.value.service).filter(|service| *service != 0);
        let service = had.unwrap_or_else(|| self.free_service());
        change.entry.value.service = service;
        let name = Write::Service(service, Some(change.entry.name.clone()));
        if had.is_none() {
            change.before.insert(0, (name, Some(Write::Service(service, None))));
        } else if let Some(old) = old.filter(|old| old.name != change.entry.name) {
            change.before.insert(0, (name, Some(Write::Service(service, Some(old.name.clone())))));
        }
        change.entry.choices = choices(&change.entry.members);
        let nothing = BTreeMap::new();
        let had = old.map_or(&nothing, |old| &old.choices);
        for (hash, slot) in &change.entry.choices {
            if had.get(hash) != Some(slot) {
                let key = ChoiceKey { service, hash: *hash };
                let undo = Write::Choice(key, had.get(hash).copied());
                change.before.push((Write::Choice(key, Some(*slot)), Some(undo)));
            }
        }
        let gone = had.keys().filter(|hash| !change.entry.choices.contains_key(*hash));
        change.after.extend(gone.map(|hash| Write::Choice(ChoiceKey { service, hash: *hash }, None)));
    }

    /// Takes back a change of which the first `done` writes were made; the frontend stands as it stood.
    fn undo<M: Maps>(&mut self, change: Change, done: usize, maps: &mut M) {
        for (at, (_, undo)) in change.before.into_iter().enumerate().rev() {
            // The write that failed may have been done all the same; undoing is idempotent.
            if let Some(undo) = undo
                && at <= done
            {
                self.owed.push(undo);
            }
        }
        for (slot, backend) in change.fresh {
            self.backends.insert(slot, backend);
            self.put_down(slot);
        }
        change.taken.into_iter().for_each(|extent| self.extents.release(extent));
        if !self.frontends.values().any(|entry| entry.value.service == change.entry.value.service) {
            self.services.remove(&change.entry.value.service);
        }
        // What fails here stays owed.
        let _ = self.pay(maps);
    }

    /// The frontend's own write is done: what it left follows.
    fn commit<M: Maps>(
        &mut self,
        key: FrontendKey,
        change: Change,
        maps: &mut M,
    ) -> Result<(), Refused<M::Error>> {
        self.services.insert(change.entry.value.service);
        self.frontends.insert(key, change.entry);
        self.backends.extend(change.fresh);
        for (slots, state) in [(change.woken, BACKEND_ACTIVE), (change.drained, BACKEND_DRAINING)] {
            for slot in slots {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.state = state;
                }
            }
        }
        for slot in change.left {
            self.put_down(slot);
        }
        self.owed.extend(change.after);
        change.released.into_iter().for_each(|extent| self.extents.release(extent));
        self.pay(maps).map_err(Refused::Write)
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
