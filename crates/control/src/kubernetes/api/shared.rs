//! What the followers of all kinds say together, and how they are in touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_model::{Created, Object, Problem, Slice, What, store};
use tokio::time::Instant;

use super::combined;
use super::failure::Failure;
use super::item::Kind;
use super::machine::{Change, Machine};
use super::wall_clock;
use crate::kubernetes::time;

/// An API server that is away for less is not worth a word: it was started anew.
const WORTH_A_WORD: Duration = Duration::from_secs(2);
/// What is told of a failure that lasts changes at most so often.
const SAME_WORDS: Duration = Duration::from_secs(60);
/// For so long nobody else tries what was refused.
const REFUSED: Duration = Duration::from_millis(300);
/// Objects that are told of one by one.
const MOST: usize = 50;

#[derive(Debug)]
pub struct Shared {
    source: store::Source,
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slice: Slice,
    /// Kinds of which not everything has been told.
    unsynced: BTreeSet<Kind>,
    /// What is wrong with objects.
    broken: BTreeMap<Kind, BTreeSet<Problem>>,
    away: BTreeMap<Kind, Away>,
    /// The last attempt that nobody answered.
    refused: Option<(Instant, Failure)>,
}

/// The API server does not tell us of a kind.
#[derive(Debug)]
struct Away {
    since: Instant,
    /// By the clock on the wall.
    date: Created,
    reason: &'static str,
    words: String,
    told: Instant,
    is_shown: bool,
}

impl Shared {
    pub fn new(source: store::Source, name: String, kinds: &[Kind]) -> Self {
        let state = State { unsynced: kinds.iter().copied().collect(), ..State::default() };
        Self { source, name, state: Mutex::new(state) }
    }

    /// A follower that panicked while it held the lock left a state that is right, or to which its next list is applied.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a follower knows now. `heard`: when events came, if that is how.
    pub fn publish(
        &self,
        kind: Kind,
        changes: &mut Vec<Change>,
        heard: Vec<std::time::Instant>,
        machine: &Machine,
    ) {
        let mut state = self.lock();
        let broken = self.problems(kind, machine);
        let news = !changes.is_empty() || state.broken.get(&kind).is_some_and(|known| *known != broken);
        let first = state.broken.insert(kind, broken).is_none();
        for change in changes.drain(..) {
            combined::apply(&mut state.slice, change);
        }
        if news || first {
            self.tell(&mut state, heard);
        }
        if let Some(version) = machine.version() {
            self.source.contact(|contact| drop(contact.versions.insert(kind.plural(), version.0.clone())));
        }
        if machine.is_synced() && state.unsynced.remove(&kind) && state.unsynced.is_empty() {
            self.source.synced();
        }
    }

    fn tell(&self, state: &mut State, heard: Vec<std::time::Instant>) {
        let mut problems: BTreeSet<_> = state.broken.values().flatten().cloned().collect();
        problems.extend(self.out_of_touch(&state.away));
        state.slice.problems = problems;
        self.source.replace_heard(state.slice.clone(), heard);
    }

    /// Nobody answers at any of the addresses.
    pub fn refuse(&self, failure: &Failure) {
        self.lock().refused = Some((Instant::now(), failure.clone()));
    }

    /// Why it makes no sense to try just now.
    pub fn refused(&self) -> Option<Failure> {
        let (at, failure) = self.lock().refused.clone()?;
        (at.elapsed() < REFUSED).then_some(failure)
    }

    /// The API server has said something.
    pub fn heard(&self, _kind: Kind) {
        self.source.contact(|contact| contact.heard = Some(Instant::now().into_std()));
    }

    /// The API server tells what happens.
    pub fn touched(&self, kind: Kind) {
        self.heard(kind);
        let mut state = self.lock();
        if let Some(away) = state.away.remove(&kind) {
            let since = state.away.values().map(|away| away.since.into_std()).min();
            self.source.contact(|contact| contact.away = since);
            if away.is_shown {
                self.tell(&mut state, Vec::new());
            }
        }
    }

    /// The API server does not tell what happens.
    pub fn lost(&self, kind: Kind, failure: &Failure) {
        let now = Instant::now();
        let mut state = self.lock();
        let away = state.away.entry(kind).or_insert_with(|| Away {
            since: now,
            date: wall_clock::now(),
            reason: failure.reason(),
            words: failure.to_string(),
            told: now,
            is_shown: false,
        });
        let mut news = false;
        if away.reason != failure.reason() && (!away.is_shown || away.told + SAME_WORDS <= now) {
            (away.reason, away.words, away.told) = (failure.reason(), failure.to_string(), now);
            news = away.is_shown;
        }
        if !away.is_shown && away.since + WORTH_A_WORD <= now {
            away.is_shown = true;
            news = true;
        }
        let since = state.away.values().map(|away| away.since.into_std()).min();
        self.source.contact(|contact| {
            contact.away = since;
            *contact.reconnects.entry(failure.reason()).or_default() += 1;
        });
        if news {
            self.tell(&mut state, Vec::new());
        }
    }

    fn out_of_touch(&self, away: &BTreeMap<Kind, Away>) -> Option<Problem> {
        let mut words: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut since = None;
        for (kind, away) in away.iter().filter(|(_, away)| away.is_shown) {
            words.entry(&away.words).or_default().push(kind.plural());
            since = Some(since.unwrap_or(away.date).min(away.date));
        }
        let since = time::text(since?);
        let words: Vec<_> =
            words.into_iter().map(|(words, kinds)| format!("{} ({words})", kinds.join(", "))).collect();
        let what =
            format!("nothing is heard since {since} of {}: the last that was heard stands", words.join(", "));
        Some(Problem::new(Object::Input(self.name.clone()), What::Said(what)))
    }

    fn problems(&self, kind: Kind, machine: &Machine) -> BTreeSet<Problem> {
        let about = |object: &str, what: String| {
            Problem::new(Object::Input(format!("{}: {object}", self.name)), What::Said(what))
        };
        let broken = machine.broken();
        let mut problems: BTreeSet<_> =
            broken.iter().take(MOST).map(|(object, why)| about(object, why.clone())).collect();
        if let Some(more) = broken.len().checked_sub(MOST).filter(|more| *more > 0) {
            problems.insert(about(kind.plural(), format!("and {more} more that are not understood")));
        }
        if let Some((missing, held)) = machine.doubted() {
            let what = format!(
                "{missing} of {held} are not in the API server's list any more: kept until another list, a while later, \
                 lacks them too"
            );
            problems.insert(about(kind.plural(), what));
        }
        problems
    }
}
