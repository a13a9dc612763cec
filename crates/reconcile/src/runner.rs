//! The loop.
//!
//! It is level-triggered: whatever wakes it (a snapshot, an event of the kernel, a timer, a retry), it looks
//! at what is and what must be, and does the difference. An error stays in the loop, as status, and is tried
//! again. Laws:
//!
//! - At start the kernel is observed first, and what is there is adopted.
//! - Before every source has said "synced", nothing that was there at start is changed or removed; new
//!   things are made, and what was made here may be changed.
//! - A part that failed waits (longer each time) without holding up the others.
//! - After a pass without failure only what changed between two desired states is done, without asking the
//!   kernel. A retry and the resync timer make a full pass: observe, diff, apply. So does an event of the kernel, or a
//!   change after a failure, unless the target [knows](Target::recall) what there is.
//! - What comes is done at once, unless a pass has just ended: then it waits, with what comes with it, for as long as that
//!   took. In a burst of the kernel's events it waits until the burst is over.
//! - A great loss is not believed before it has lasted ([`guard`](crate::guard)); what is new is made meanwhile.
//! - A full pass over what is already as it must be writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use heddle_model::store::Watch;
use heddle_model::{Effect, Snapshot};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::guard::{self, Guard};
use crate::pace::{Backoff, Pace, Random};
use crate::status::Status;
use crate::target::Target;

/// Drives one target.
#[derive(Debug)]
pub struct Runner<T: Target> {
    target: T,
    pace: Pace,
    random: Random,
    backoff: Backoff<Option<T::Part>>,
    guard: Guard,
    /// What the kernel was made to be by the last pass, if nothing of it failed or waits.
    settled: Option<T::State>,
    /// What this process has made, as long as not everything may be changed.
    own: BTreeSet<T::Part>,
    status: watch::Sender<Arc<Status>>,
}

impl<T: Target<Input = Snapshot>> Runner<T> {
    /// `seed` spreads retries.
    pub fn new(target: T, pace: Pace, seed: u64) -> Self {
        Self {
            target,
            pace,
            random: Random::new(seed),
            backoff: Backoff::default(),
            guard: Guard::default(),
            settled: None,
            own: BTreeSet::new(),
            status: watch::Sender::default(),
        }
    }

    /// Follows the status; it changes with every pass.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Runs until `stop` resolves. The kernel keeps what it has then. `kernel` is notified when something
    /// in the kernel changed that the target may care about.
    pub async fn run(mut self, mut store: Watch, kernel: &Notify, stop: impl Future) -> T {
        tokio::pin!(stop);
        let mut snapshot = tokio::select! {
            biased;
            _ = &mut stop => return self.target,
            snapshot = store.changed() => snapshot,
        };
        let patience = Instant::now() + self.pace.patience;
        while !snapshot.synced {
            tokio::select! {
                biased;
                _ = &mut stop => return self.target,
                newer = store.changed() => snapshot = newer,
                () = sleep_until(patience) => break,
            }
        }
        let mut rest = Rest::default();
        let mut resync = rest.after(self.pace.rest, || self.pass(&snapshot, true, true));
        let mut tend = Instant::now() + self.pace.tend;
        loop {
            // Not one of the branches below: in a storm of events it would never have its turn.
            if Instant::now() >= tend {
                tend = Instant::now() + self.pace.tend;
                if let Err(error) = self.target.tend() {
                    tracing::debug!("housekeeping: {error}");
                }
            }
            let retry = self.backoff.next().into_iter().chain(self.guard.until()).min();
            let (mut full, mut stirred) = (false, false);
            tokio::select! {
                biased;
                _ = &mut stop => return self.target,
                newer = store.changed() => snapshot = newer,
                () = kernel.notified() => stirred = true,
                () = sleep_until(retry.unwrap_or(resync)), if retry.is_some() => full = true,
                () = sleep_until(resync) => full = true,
                () = sleep_until(tend) => continue,
            }
            // What comes in a burst is done together.
            let limit = rest.until.max(Instant::now() + self.pace.longest);
            let calm = Instant::now() >= rest.ended + self.pace.calm;
            loop {
                let quiet = if stirred && !calm { Instant::now() + self.pace.quiet } else { rest.until };
                let until = rest.until.max(quiet).min(limit);
                if until <= Instant::now() {
                    break;
                }
                tokio::select! {
                    biased;
                    _ = &mut stop => return self.target,
                    () = sleep_until(until) => break,
                    newer = store.changed() => snapshot = newer,
                    () = kernel.notified() => stirred = true,
                }
            }
            full |= Instant::now() >= resync;
            let next = rest.after(self.pace.rest, || self.pass(&snapshot, full, stirred));
            if full && !stirred {
                // What the timers ask for is seldom by itself.
                rest.until = rest.ended + self.pace.rest;
            }
            if full || self.settled.is_none() {
                resync = next;
            }
        }
    }

    /// One pass; says when the next full one is due if nothing happens. `stirred`: something in the kernel changed.
    fn pass(&mut self, snapshot: &Snapshot, full: bool, stirred: bool) -> Instant {
        let now = Instant::now();
        let mut status = Status::clone(&self.status.borrow());
        status.revision = snapshot.revision;
        status.synced = snapshot.synced;
        let mut troubles = BTreeMap::new();
        let mut trouble = |object: String, what: String| add(&mut troubles, object, &what);
        if full || stirred || self.settled.is_none() {
            self.target.stirred();
        }
        let (desired, problems) = self.target.desired(snapshot);
        for problem in snapshot.problems.iter().chain(&problems) {
            trouble(problem.object.to_string(), problem.what.to_string());
        }
        if !snapshot.synced {
            trouble(
                "sources".into(),
                "not synced: what was here before is neither changed nor removed".into(),
            );
        }
        // The pass that makes it ready is a full one, also if those before it had nothing to do.
        let first = snapshot.synced && !status.ready;
        let must = full || first;
        let settled = self.settled.take().filter(|_| !must && !stirred);
        let known = settled.or_else(|| if must { None } else { self.target.recall() });
        let full = known.is_none();
        let observed = known.map_or_else(
            || {
                let start = Instant::now();
                let observed = self.target.observe();
                status.observe = start.elapsed();
                observed
            },
            Ok,
        );
        match observed {
            Err(error) => {
                let why = format!("cannot observe: {error}");
                trouble("kernel".into(), why.clone());
                self.backoff.failed(None, why, now, &self.pace, &mut self.random);
            }
            Ok(observed) => {
                self.backoff.forget(&None);
                let complete = self.drive(&observed, &desired, snapshot.synced, &mut status, &mut trouble);
                if complete {
                    if full {
                        self.target.settled(&desired);
                    }
                    self.settled = Some(desired);
                }
                if complete && full && snapshot.synced && !status.ready {
                    status.ready = true;
                }
            }
        }
        *if full { &mut status.full_passes } else { &mut status.quick_passes } += 1;
        (status.took, status.last_full) = (now.elapsed(), full);
        status.report(troubles, now);
        self.status.send_replace(Arc::new(status));
        // With much to look at it is looked at less often: what changes meanwhile has to wait for that.
        Instant::now() + self.random.spread(self.pace.resync.max(now.elapsed() * SHARE))
    }

    /// Does what may be done now; true if that was everything.
    fn drive(
        &mut self,
        observed: &T::State,
        desired: &T::State,
        synced: bool,
        status: &mut Status,
        trouble: &mut impl FnMut(String, String),
    ) -> bool {
        let now = Instant::now();
        if synced {
            self.own.clear();
        }
        let mut steps = Vec::new();
        let mut parts = BTreeMap::new();
        let mut complete = true;
        let mut missing = BTreeSet::new();
        let all = self.target.diff(observed, desired);
        let taken = |step: &&T::Step| self.target.takes_away(observed, step);
        let lost = if synced { all.iter().filter(taken).count() } else { 0 };
        // Counted only where it may matter: there may be many.
        let had = if lost < guard::FEWEST { 0 } else { self.target.guarded(observed) };
        let lost = if had == 0 { 0 } else { lost };
        let held = self.guard.holds(lost, had, self.pace.removal_delay, now);
        if held {
            trouble(
                "sources".into(),
                format!(
                    "{lost} of {had} would go at once: kept until they have been gone for {} s",
                    self.pace.removal_delay.as_secs()
                ),
            );
        }
        for step in all {
            let (part, effect) = (T::part(&step), T::effect(&step));
            missing.insert(Some(part.clone()));
            let doubted = held && (effect == Effect::Remove || self.target.takes_away(observed, &step));
            if doubted || (!synced && effect != Effect::Create && !self.own.contains(&part)) {
                complete = false;
                self.backoff.forget(&Some(part));
            } else if let Some(why) = self.backoff.must_wait(&Some(part.clone()), now) {
                complete = false;
                trouble(part.to_string(), why.to_owned());
            } else {
                parts.insert(part, effect);
                steps.push(step);
            }
        }
        // A part that needs no step any more does not fail any more.
        self.backoff.retain(|part| missing.contains(part));
        if steps.is_empty() {
            return complete;
        }
        let start = Instant::now();
        let outcome = self.target.apply(steps);
        status.longest_apply = status.longest_apply.max(start.elapsed());
        // What failed together is tried again together: it may be that only all of it makes sense.
        let spread = self.random.next();
        for (part, why) in &outcome.failed {
            complete = false;
            status.failed += 1;
            trouble(part.to_string(), why.clone());
            self.backoff.failed(Some(part.clone()), why.clone(), now, &self.pace, &mut Random::new(spread));
            parts.remove(part);
        }
        status.done += parts.len() as u64;
        tracing::debug!(done = parts.len(), failed = outcome.failed.len(), "pass");
        for (part, effect) in parts {
            self.backoff.forget(&Some(part.clone()));
            if !synced && effect == Effect::Create {
                self.own.insert(part);
            }
        }
        complete
    }
}

/// Of the time, full passes that nothing but the timer asks for take the 200th part at the most.
const SHARE: u32 = 200;

/// As long as a pass took (up to a second) there is no other: a large cluster in turmoil costs half a core
/// and not a whole one.
struct Rest {
    until: Instant,
    ended: Instant,
}

impl Default for Rest {
    fn default() -> Self {
        Self { until: Instant::now(), ended: Instant::now() }
    }
}

impl Rest {
    fn after<R>(&mut self, shortest: Duration, pass: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let outcome = pass();
        self.ended = Instant::now();
        self.until = self.ended + start.elapsed().clamp(shortest, Duration::from_secs(1));
        outcome
    }
}

/// Longest text about one object, in bytes: whoever writes a thousand bad endpoints into one gets no more.
const LONGEST: usize = 400;

/// Several things may be wrong with one object.
fn add(troubles: &mut BTreeMap<String, String>, object: String, what: &str) {
    let all = troubles.entry(object).or_default();
    if all.is_empty() {
        all.push_str(what);
    } else if all.len() + what.len() <= LONGEST {
        all.push_str("; ");
        all.push_str(what);
    } else if !all.ends_with("...") {
        all.push_str("; ...");
    }
}
