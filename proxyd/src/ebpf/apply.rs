//! Doing a plan: many frontends at once where many change.
//!
//! Some hundred frontends go together through three steps, each of which is a few system calls: all that they need,
//! the frontends themselves, all that they leave. When a call fails, what of the first step was done is taken back,
//! and the frontends go one by one, so that one of them fails and not its neighbours. The frontends of one service are
//! worked out together, before anything of them is written: where one does not fit, none is changed.
//!
//! What is left is free for reuse after a grace period, one for all ([`State::settle`]), for which no change waits
//! unless a map is full.

use std::sync::Arc;

use heddle_ebpf_common::{BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_FREE, Backend, ChoiceKey, FrontendKey};
use heddle_model::{self as model, BackendState, FrontendAddr, Part, Step};

use super::compile::{Change, Needs, Refused};
use super::encode;
use super::state::{Entry, State};
use super::write::{Maps, Write};

/// Frontends that go together, at most, if they are not of one service.
const TOGETHER: usize = 256;

/// What failed of a plan.
pub type Failures = Vec<(Part, Refused)>;

type Put<'a> = (&'a FrontendAddr, &'a Arc<model::Frontend>);

impl State {
    /// Does a plan. Returns what failed of it, each part with its reason, and whether something else is
    /// still owed.
    pub fn apply<M: Maps>(&mut self, plan: &[Step], maps: &mut M) -> (Failures, Option<M::Error>) {
        let mut failed = Vec::new();
        let mut nameless = false;
        let mut rest = plan;
        while let Some(step) = rest.first() {
            let puts: Vec<Put<'_>> = rest
                .iter()
                .map_while(|step| match step {
                    Step::PutFrontend { at, frontend, .. } if !nameless => Some((at, frontend)),
                    _ => None,
                })
                .collect();
            if !puts.is_empty() {
                rest = &rest[puts.len()..];
                let refused = self.put(puts, maps);
                failed.extend(refused.into_iter().map(|(at, why)| (Part::Frontend(at), why)));
                continue;
            }
            rest = &rest[1..];
            if nameless {
                failed.push((step.part(), Refused::NoLocal));
                continue;
            }
            // An owed write may concern the same elements: it comes first or nothing does.
            let paid = self.pay(maps).map_err(|error| Refused::Write(error.to_string()));
            let done = paid.and_then(|()| match step {
                Step::SetLocal { name, .. } => self.set_local(name.as_ref(), maps),
                Step::PutNode { name, node, .. } => self.upsert_node(name, node, maps),
                Step::PutFrontend { .. } => Ok(()),
                Step::RemoveFrontend { at } => self.remove(at, maps),
                Step::RemoveNode { name } if self.is_used(name) => Err(Refused::InUse),
                Step::RemoveNode { name } => self.remove_node(name, maps),
            });
            if let Err(refused) = done {
                // What of a node was written, only the maps know.
                self.stale |= !matches!(step, Step::RemoveFrontend { .. });
                nameless = matches!(step, Step::SetLocal { .. });
                failed.push((step.part(), refused));
            }
        }
        let owed = self.pay(maps).err();
        (failed, owed)
    }

    /// Makes frontends what is wanted. Writes nothing for those that are.
    pub fn put<M: Maps>(&mut self, mut puts: Vec<Put<'_>>, maps: &mut M) -> Vec<(FrontendAddr, Refused)> {
        // An owed write may concern the same elements: it comes first or nothing does. And what looks free may have been
        // given up a moment ago.
        let ready = self.pay(maps).and_then(|()| if self.unsettled { self.grace(maps) } else { Ok(()) });
        if let Err(error) = ready {
            let refused = |(at, _): Put<'_>| (*at, Refused::Write(error.to_string()));
            return puts.into_iter().map(refused).collect();
        }
        puts.sort_by_key(|(_, frontend)| service_of(frontend));
        let mut failed = Vec::new();
        let mut pending: Vec<(FrontendAddr, Change)> = Vec::new();
        for service in puts.chunk_by(|(_, a), (_, b)| service_of(a) == service_of(b)) {
            if pending.len() + service.len() > TOGETHER {
                failed.extend(self.write_changes(std::mem::take(&mut pending), maps));
            }
            let mut compiled = self.compile_service(service, pending.is_empty(), maps);
            if matches!(compiled, Err((_, Refused::Full { .. }))) && !pending.is_empty() {
                // What the others leave may be what is lacking here.
                failed.extend(self.write_changes(std::mem::take(&mut pending), maps));
                compiled = self.compile_service(service, true, maps);
            }
            match compiled {
                Ok(changes) => pending.extend(changes),
                Err((at, why)) => failed.extend(refuse(service, at, why)),
            }
        }
        failed.extend(self.write_changes(pending, maps));
        failed
    }

    /// Works out the frontends of one service together. `alone`: nothing else is worked out and not yet written.
    fn compile_service<M: Maps>(
        &mut self,
        puts: &[Put<'_>],
        alone: bool,
        maps: &mut M,
    ) -> Result<Vec<(FrontendAddr, Change)>, (FrontendAddr, Refused)> {
        let mut wanted: Vec<(FrontendAddr, FrontendKey, Arc<model::Frontend>)> = Vec::new();
        let mut needs = Needs::default();
        for (at, frontend) in puts {
            let key = encode::key(at).ok_or_else(|| (**at, Refused::Unsupported(at.to_string())))?;
            let frontend = conform(frontend);
            let more = self.needs(&key, &frontend);
            needs.frontends += more.frontends;
            needs.slots += more.slots;
            needs.ring += more.ring;
            needs.addrs += more.addrs;
            needs.sources += more.sources;
            self.make_room(&needs, alone, maps).map_err(|refused| (**at, refused))?;
            wanted.push((**at, key, frontend));
        }
        let mut changes = Vec::with_capacity(wanted.len());
        for (at, key, frontend) in wanted {
            match self.compile(&key, &frontend) {
                Ok(change) => changes.push((at, change)),
                Err((refused, change)) => {
                    self.undo(*change);
                    changes.into_iter().for_each(|(_, change)| self.undo(change));
                    // Nothing was written: there is nothing to be taken back from the maps.
                    return Err((at, refused));
                }
            }
        }
        Ok(changes)
    }

    /// Checks that everything fits, after a grace period if that helps.
    fn make_room<M: Maps>(&mut self, needs: &Needs, alone: bool, maps: &mut M) -> Result<(), Refused> {
        let short =
            |state: &Self| state.slots.available() < needs.slots || state.extents.available() < needs.ring;
        for _ in 0..2 {
            let helps = self.slots.is_cooling() || self.slots.has_retired() || self.extents.is_cooling();
            if alone && short(self) && helps && self.owed.is_empty() {
                self.grace(maps).map_err(|error| Refused::Write(error.to_string()))?;
            }
        }
        let fits = |map, need: usize, free: usize, size: u32| match need <= free {
            true => Ok(()),
            false => Err(Refused::Full { map, need, free, size }),
        };
        let left = |size: u32, used: usize| (size as usize).saturating_sub(used);
        let limits = self.limits;
        // Every frontend has a number; those that are not written yet have theirs already.
        fits("frontends", needs.frontends, left(limits.frontends, self.services.len()), limits.frontends)?;
        fits("backends", needs.slots, self.slots.available(), limits.backends)?;
        fits("ring", needs.ring as usize, self.extents.available() as usize, limits.ring)?;
        fits("addrs", needs.addrs, left(limits.addrs, self.ledger.len()), limits.addrs)?;
        fits("sources", needs.sources, left(limits.sources, self.sources), limits.sources)
    }

    /// Writes what was worked out.
    fn write_changes<M: Maps>(
        &mut self,
        changes: Vec<(FrontendAddr, Change)>,
        maps: &mut M,
    ) -> Vec<(FrontendAddr, Refused)> {
        if changes.is_empty() {
            return Vec::new();
        }
        if let Err((at, error)) = self.prepare(&changes, maps) {
            return self.one_by_one(changes, at, error, maps);
        }
        let swaps: Vec<Option<Write>> = changes.iter().map(|(_, change)| change.swap()).collect();
        let writes: Vec<&Write> = swaps.iter().flatten().collect();
        let (done, error) = match maps.write_all(&writes) {
            Ok(()) => (writes.len(), None),
            Err((done, error)) => (done, Some(error)),
        };
        let mut swapped = 0;
        let mut left = Vec::new();
        for ((at, change), swap) in changes.into_iter().zip(&swaps) {
            let stands = swap.is_none() || swapped < done;
            swapped += usize::from(swap.is_some());
            if stands { self.commit(change) } else { left.push((at, change)) }
        }
        let failed = match error {
            None => Vec::new(),
            Some(error) => self.one_by_one(left, 0, error, maps),
        };
        // What fails here stays owed.
        let _ = self.pay(maps);
        failed
    }

    /// The first step. `Err`: the change that failed, or one of those that may have.
    fn prepare<M: Maps>(
        &mut self,
        changes: &[(FrontendAddr, Change)],
        maps: &mut M,
    ) -> Result<(), (usize, M::Error)> {
        self.pay_owed(maps).map_err(|error| (0, error))?;
        let additions = self.ledger.additions();
        let own = (0..)
            .zip(changes)
            .flat_map(|(at, (_, change))| change.before.iter().map(move |(write, _)| (at, write)));
        let mut writes: Vec<(usize, &Write)> = own.chain(additions.iter().map(|write| (0, write))).collect();
        writes.sort_by_key(|(_, write)| write.kind());
        let all: Vec<&Write> = writes.iter().map(|(_, write)| *write).collect();
        let outcome = maps.write_all(&all);
        let done = outcome.as_ref().map_or_else(|(done, _)| *done, |()| all.len());
        all[..done].iter().for_each(|write| self.ledger.note(write));
        outcome.map_err(|(done, error)| (writes.get(done).map_or(0, |(at, _)| *at), error))
    }

    /// After a failure at the change `at`: all of them are taken back, and each goes alone.
    fn one_by_one<M: Maps>(
        &mut self,
        changes: Vec<(FrontendAddr, Change)>,
        at: usize,
        error: M::Error,
        maps: &mut M,
    ) -> Vec<(FrontendAddr, Refused)> {
        let alone = changes.len() == 1;
        let error = error.to_string();
        let mut again = Vec::new();
        for (address, change) in changes {
            again.push((address, Arc::clone(&change.entry.shown)));
            self.undo(change);
        }
        let mut failed = Vec::new();
        if self.pay(maps).is_err() || alone {
            let refused = |(address, _)| (address, Refused::Write(error.clone()));
            return again.into_iter().map(refused).collect();
        }
        // The one that failed comes last: the others have done nothing wrong.
        if at < again.len() {
            let culprit = again.remove(at);
            again.push(culprit);
        }
        for (address, frontend) in again {
            match self.compile_service(&[(&address, &frontend)], true, maps) {
                Ok(changes) => failed.extend(self.write_changes(changes, maps)),
                Err(refused) => failed.push(refused),
            }
        }
        failed
    }

    /// Removes a frontend. What follows its own removal and fails is owed.
    pub fn remove<M: Maps>(&mut self, at: &FrontendAddr, maps: &mut M) -> Result<(), Refused> {
        let Some(key) = encode::key(at) else { return Ok(()) };
        if !self.frontends.contains_key(&key) {
            return Ok(());
        }
        maps.write(&Write::Frontend(key, None)).map_err(|error| Refused::Write(error.to_string()))?;
        let Some(entry) = self.frontends.remove(&key) else { return Ok(()) };
        let service = entry.value.service;
        if service != 0 {
            let choices = self.choices(&entry.slots).into_iter();
            let choice = |(hash, _)| Write::Choice(ChoiceKey { service, hash }, None);
            self.owed.extend(choices.map(choice));
            let sources = entry.shown.sources.iter().flatten();
            self.owed.extend(sources.map(|range| Write::Source(service, *range, false)));
            self.owed.push(Write::Service(service, None));
            self.services.remove(&service);
        }
        for slot in &entry.slots {
            self.put_down(*slot);
        }
        for extent in entry.ring().into_iter().chain(entry.outside()) {
            self.extents.release(extent);
        }
        self.sources -= sources_of(&entry);
        self.ledger.remove(&key, entry.value.flags);
        self.pay(maps).map_err(|error| Refused::Write(error.to_string()))
    }

    /// Takes back a change whose frontend was not written; the frontend stands as it stood.
    fn undo(&mut self, change: Change) {
        // Also what was not done, or seems not to have been: to undo it does no harm.
        self.owed.extend(change.before.into_iter().rev().filter_map(|(_, undo)| undo));
        change.fresh.into_iter().for_each(|slot| self.put_down(slot));
        change.taken.into_iter().for_each(|extent| self.extents.release(extent));
        self.ledger.remove(&change.key, change.entry.value.flags);
        if let Some(old) = &change.old {
            self.ledger.add(&change.key, old.value.flags);
        }
        if change.old.as_ref().is_none_or(|old| old.value.service == 0) {
            self.services.remove(&change.entry.value.service);
        }
    }

    /// The frontend's own write is done: what it left follows.
    fn commit(&mut self, change: Change) {
        self.sources += sources_of(&change.entry);
        self.sources -= change.old.as_ref().map_or(0, sources_of);
        self.frontends.insert(change.key, change.entry);
        for (slots, state) in [(change.woken, BACKEND_ACTIVE), (change.drained, BACKEND_DRAINING)] {
            for slot in slots {
                self.set_backend(slot, Backend { state, ..self.backend(slot) });
            }
        }
        change.left.into_iter().for_each(|slot| self.put_down(slot));
        self.owed.extend(change.after);
        change.released.into_iter().for_each(|extent| self.extents.release(extent));
    }

    /// Does the writes that are owed. Those that fail stay owed; the first failure is returned.
    pub fn pay<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        let owed = self.pay_owed(maps);
        let rest = self.ledger.rest();
        let Done { done, error, .. } = each(rest, maps);
        done.iter().for_each(|write| self.ledger.note(write));
        self.ledger.clean();
        owed.and(error.map_or(Ok(()), Err))
    }

    fn pay_owed<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        if self.owed.is_empty() {
            return Ok(());
        }
        let mut owed = std::mem::take(&mut self.owed);
        owed.sort_by_key(Write::kind);
        let Done { left, error, .. } = each(owed, maps);
        self.owed = left;
        error.map_or(Ok(()), Err)
    }

    /// One grace period, then what was left is made free. Nothing happens if nothing was left, or while a write that
    /// must come first is owed.
    pub fn settle<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        self.pay(maps)?;
        if self.unsettled || self.slots.has_retired() || self.extents.is_cooling() {
            self.grace(maps)?;
        }
        Ok(())
    }

    fn grace<M: Maps>(&mut self, maps: &mut M) -> Result<(), M::Error> {
        maps.write(&Write::Grace)?;
        self.unsettled = false;
        self.extents.settle();
        for (slot, generation) in self.slots.settle() {
            let free = Backend { generation, state: BACKEND_FREE, ..self.backend(slot) };
            self.set_backend(slot, free);
            self.owed.push(Write::Backend(slot, free));
        }
        self.pay_owed(maps)
    }
}

/// What became of some writes.
struct Done<E> {
    done: Vec<Write>,
    left: Vec<Write>,
    /// Why, of the first that was not done.
    error: Option<E>,
}

/// Does them all, also after one has failed.
fn each<M: Maps>(writes: Vec<Write>, maps: &mut M) -> Done<M::Error> {
    let mut outcome = Done { done: Vec::with_capacity(writes.len()), left: Vec::new(), error: None };
    let mut rest = writes;
    while !rest.is_empty() {
        let all: Vec<&Write> = rest.iter().collect();
        match maps.write_all(&all) {
            Ok(()) => outcome.done.append(&mut rest),
            Err((count, error)) => {
                let mut failed = rest.split_off(count.min(rest.len() - 1));
                outcome.done.append(&mut rest);
                rest = failed.split_off(1);
                outcome.left.append(&mut failed);
                outcome.error.get_or_insert(error);
            }
        }
    }
    outcome
}

/// `namespace/name` of `namespace/name:port`.
fn service_of(frontend: &model::Frontend) -> &str {
    frontend.name.rsplit_once(':').map_or(frontend.name.as_str(), |(service, _)| service)
}

/// Without backends that are down: to the programs they are none.
fn conform(frontend: &Arc<model::Frontend>) -> Arc<model::Frontend> {
    let down = |backend: &model::Backend| backend.state == BackendState::Down;
    if !frontend.backends.iter().any(down) {
        return Arc::clone(frontend);
    }
    let mut frontend = model::Frontend::clone(frontend);
    frontend.backends.retain(|backend| !down(backend));
    Arc::new(frontend)
}

fn sources_of(entry: &Entry) -> usize {
    entry.shown.sources.as_ref().map_or(0, std::collections::BTreeSet::len)
}

/// One frontend was refused, and with it its service.
fn refuse(service: &[Put<'_>], culprit: FrontendAddr, why: Refused) -> Vec<(FrontendAddr, Refused)> {
    let fellow = Refused::Fellow { at: culprit, why: why.to_string() };
    let refused = |(at, _): &Put<'_>| match **at == culprit {
        true => (culprit, why.clone()),
        false => (**at, fellow.clone()),
    };
    service.iter().map(refused).collect()
}
