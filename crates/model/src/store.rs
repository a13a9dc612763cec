//! What all sources say together: a sequence of immutable snapshots.
//!
//! Each source owns its slice and replaces it whole; what is equal is shared ([`SharedMap`]), so a replacement costs
//! what changed. A source says "synced" once, when it has told everything that existed when it began; before
//! all have, absence of an object means nothing. Nobody is ever called back: who follows the store holds a
//! [`Watch`] and gets the newest snapshot, however many there were in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::addr::FrontendAddr;
use crate::cluster::{Endpoints, EndpointsName, Service, ServiceName};
use crate::contact::Contact;
use crate::host_port::HostPort;
use crate::node::{Node, NodeName};
use crate::problem::{Object, Problem, What};
use crate::shared_map::SharedMap;

/// Numbers snapshots, from 0 on. A later snapshot has a higher number.
pub type Revision = u64;

/// Most moments that are remembered for somebody to ask for them.
const MOST_HEARD: usize = 1 << 14;

/// What one source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    pub nodes: SharedMap<NodeName, Arc<Node>>,
    pub services: SharedMap<ServiceName, Arc<Service>>,
    pub endpoints: SharedMap<EndpointsName, Arc<Endpoints>>,
    /// What pods of this node publish, by where it is met on loopback.
    pub host_ports: SharedMap<FrontendAddr, Arc<HostPort>>,
    /// What it could not read.
    pub problems: BTreeSet<Problem>,
}

/// What all sources say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    /// There are sources, and all of them have said "synced".
    pub synced: bool,
    pub nodes: SharedMap<NodeName, Arc<Node>>,
    pub services: SharedMap<ServiceName, Arc<Service>>,
    pub endpoints: SharedMap<EndpointsName, Arc<Endpoints>>,
    pub host_ports: SharedMap<FrontendAddr, Arc<HostPort>>,
    pub problems: BTreeSet<Problem>,
}

/// Holds the slices. Cheap to clone; all clones are the same store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    sources: Vec<Registered>,
    current: Arc<Snapshot>,
    /// When sources heard of what they told, by the snapshot in which it first was.
    heard: VecDeque<(Revision, Instant)>,
    next_watch: u64,
    /// Watches that wait; at most one waker each.
    waiting: BTreeMap<u64, Waker>,
}

#[derive(Debug)]
struct Registered {
    name: String,
    slice: Slice,
    synced: bool,
    contact: Option<Contact>,
}

impl Store {
    pub fn new() -> Self {
        Self::default()
    }

    /// A new source, not yet synced. All sources should be made before the first one reports. Where two
    /// describe one object, the one that was made first counts.
    pub fn source(&self, name: impl Into<String>) -> Source {
        let mut state = lock(&self.state);
        state.sources.push(Registered {
            name: name.into(),
            slice: Slice::default(),
            synced: false,
            contact: None,
        });
        let index = state.sources.len() - 1;
        state.publish();
        Source { state: Arc::clone(&self.state), index }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.state).current)
    }

    /// How the sources that ask somebody else are in touch with him.
    pub fn contacts(&self) -> Vec<Contact> {
        lock(&self.state).sources.iter().filter_map(|source| source.contact.clone()).collect()
    }

    /// When the sources heard of what is in the snapshots up to this one, as far as nobody has asked yet: a measure of
    /// what happens to it has its beginning there. Where nobody asks, the oldest are forgotten.
    pub fn heard_until(&self, revision: Revision) -> Vec<Instant> {
        let mut state = lock(&self.state);
        let known = state.heard.partition_point(|(first, _)| *first <= revision);
        state.heard.drain(..known).map(|(_, at)| at).collect()
    }

    /// A watch that has seen nothing yet: its first [`changed`](Watch::changed) returns at once.
    pub fn watch(&self) -> Watch {
        let mut state = lock(&self.state);
        state.next_watch += 1;
        Watch { id: state.next_watch, seen: None, state: Arc::clone(&self.state) }
    }
}

/// A source's hold on its slice. When it is dropped the slice stays as it was.
#[derive(Debug)]
pub struct Source {
    state: Arc<Mutex<State>>,
    index: usize,
}

impl Source {
    /// The whole of what this source says now. If nothing changed there is no new snapshot.
    pub fn replace(&self, slice: Slice) {
        self.replace_heard(slice, []);
    }

    /// [`replace`](Self::replace) after events that reached the source at these moments
    /// ([`heard_until`](Store::heard_until)). To be told of are events, not what is read at the beginning.
    pub fn replace_heard(&self, slice: Slice, heard: impl IntoIterator<Item = Instant>) {
        let mut state = lock(&self.state);
        let Some(source) = state.sources.get_mut(self.index) else { return };
        if source.slice == slice {
            return;
        }
        source.slice = slice;
        state.publish();
        let revision = state.current.revision;
        state.heard.extend(heard.into_iter().map(|at| (revision, at)));
        let excess = state.heard.len().saturating_sub(MOST_HEARD);
        state.heard.drain(..excess);
    }

    /// Everything that existed when the source began has been told.
    pub fn synced(&self) {
        self.update(|source| !std::mem::replace(&mut source.synced, true));
    }

    /// How it is in touch: no part of what it says, and nobody is woken for it.
    pub fn contact(&self, change: impl FnOnce(&mut Contact)) {
        let mut state = lock(&self.state);
        if let Some(source) = state.sources.get_mut(self.index) {
            let name = &source.name;
            change(source.contact.get_or_insert_with(|| Contact::new(name.clone())));
        }
    }

    fn update(&self, change: impl FnOnce(&mut Registered) -> bool) {
        let mut state = lock(&self.state);
        if state.sources.get_mut(self.index).is_some_and(change) {
            state.publish();
        }
    }
}

/// Follows a store.
#[derive(Debug)]
pub struct Watch {
    id: u64,
    seen: Option<Revision>,
    state: Arc<Mutex<State>>,
}

impl Watch {
    /// The newest snapshot, as soon as there is one that this watch has not returned yet. Safe to cancel;
    /// needs no particular runtime.
    pub async fn changed(&mut self) -> Arc<Snapshot> {
        poll_fn(|context| {
            let mut state = lock(&self.state);
            if self.seen == Some(state.current.revision) {
                state.waiting.insert(self.id, context.waker().clone());
                return Poll::Pending;
            }
            self.seen = Some(state.current.revision);
            Poll::Ready(Arc::clone(&state.current))
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.state).waiting.remove(&self.id);
    }
}

impl State {
    fn publish(&mut self) {
        let synced = !self.sources.is_empty() && self.sources.iter().all(|source| source.synced);
        let mut next = Snapshot { revision: self.current.revision + 1, synced, ..Snapshot::default() };
        for source in &self.sources {
            next.problems.extend(source.slice.problems.iter().cloned());
        }
        let problems = &mut next.problems;
        next.nodes = merge(&self.sources, |slice| &slice.nodes, Object::Node, problems);
        next.services = merge(&self.sources, |slice| &slice.services, Object::Service, problems);
        next.endpoints = merge(&self.sources, |slice| &slice.endpoints, Object::Endpoints, problems);
        next.host_ports = merge(&self.sources, |slice| &slice.host_ports, Object::Frontend, problems);
        self.current = Arc::new(next);
        for waker in std::mem::take(&mut self.waiting).into_values() {
            waker.wake();
        }
    }
}

/// What all sources say of one kind of object. Costs what the second and later of those say that say anything.
fn merge<K: Ord + Clone, V>(
    sources: &[Registered],
    of: impl Fn(&Slice) -> &SharedMap<K, Arc<V>>,
    object: impl Fn(K) -> Object,
    problems: &mut BTreeSet<Problem>,
) -> SharedMap<K, Arc<V>> {
    let mut all = SharedMap::default();
    for source in sources {
        let said = of(&source.slice);
        if all.is_empty() {
            all = said.clone();
            continue;
        }
        for (key, value) in said {
            if !all.contains_key(key) {
                all.insert(key.clone(), Arc::clone(value));
                continue;
            }
            // The source that was made first counts; and this one is not it.
            let winner = sources.iter().find(|source| of(&source.slice).contains_key(key));
            let what = What::Duplicate {
                loser: format!("what {} says", source.name),
                winner: winner.map_or_else(String::new, |winner| winner.name.clone()),
            };
            problems.insert(Problem::new(object(key.clone()), what));
        }
    }
    all
}

/// A thread that panicked while it held the lock left a whole state: every change is made on a copy and
/// put in place in one step.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;
    use crate::cluster::Created;

    fn slice(names: &[&str], created: i64) -> Slice {
        let node = |name: &&str| {
            let name = NodeName((*name).into());
            let node = Node { name: name.clone(), created: Created(created), ..Node::default() };
            (name, Arc::new(node))
        };
        Slice { nodes: names.iter().map(node).collect(), ..Slice::default() }
    }

    #[test]
    fn synced_when_every_source_is() {
        let store = Store::new();
        assert!(!store.snapshot().synced, "without sources nothing is known");
        let (a, b) = (store.source("a"), store.source("b"));
        a.synced();
        a.replace(slice(&["n1"], 1));
        assert!(!store.snapshot().synced);
        b.synced();
        let snapshot = store.snapshot();
        assert!(snapshot.synced && snapshot.nodes.len() == 1);
        b.synced();
        a.replace(slice(&["n1"], 1));
        assert_eq!(store.snapshot().revision, snapshot.revision, "nothing new, no new snapshot");
        drop(a);
        b.replace(slice(&["n2"], 1));
        assert_eq!(store.snapshot().nodes.len(), 2, "a source that ended keeps its slice");
    }

    #[test]
    fn moments_belong_to_the_first_snapshot_that_tells_of_them() {
        let store = Store::new();
        let source = store.source("a");
        let [first, second, third] = [1, 2, 3].map(|n| Instant::now() + std::time::Duration::from_secs(n));
        source.replace_heard(slice(&["n1"], 1), [first]);
        let revision = store.snapshot().revision;
        source.replace_heard(slice(&["n1"], 1), [second]);
        assert_eq!(store.snapshot().revision, revision, "it told nothing new");
        source.replace_heard(slice(&["n2"], 1), [second, third]);
        assert_eq!(store.heard_until(revision - 1), []);
        assert_eq!(store.heard_until(revision), [first]);
        assert_eq!(store.heard_until(revision + 1), [second, third]);
        assert_eq!(store.heard_until(revision + 1), []);
        for n in 0..MOST_HEARD as i64 + 10 {
            source.replace_heard(slice(&["n1"], n), [first]);
        }
        assert_eq!(store.heard_until(Revision::MAX).len(), MOST_HEARD);
    }

    #[test]
    fn of_two_sources_the_first_counts_whoever_spoke_first() {
        let store = Store::new();
        let (a, b) = (store.source("a"), store.source("b"));
        b.replace(slice(&["n1"], 2));
        a.replace(slice(&["n1"], 1));
        let snapshot = store.snapshot();
        assert_eq!(snapshot.nodes[&NodeName("n1".into())].created, Created(1));
        let problems: Vec<_> = snapshot.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["node n1: what b says ignored: a describes the same object"]);
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_watch_gets_the_newest_and_sleeps_between() {
        let store = Store::new();
        let source = store.source("a");
        let mut watch = store.watch();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut poll = |watch: &mut Watch| match pin!(watch.changed()).poll(&mut context) {
            Poll::Ready(snapshot) => Some(snapshot.nodes.len()),
            Poll::Pending => None,
        };
        assert_eq!(poll(&mut watch), Some(0), "the first answer is what there is");
        assert_eq!(poll(&mut watch), None);
        assert_eq!(poll(&mut watch), None, "cancelled and asked again");
        source.replace(slice(&["n1"], 1));
        source.replace(slice(&["n1", "n2"], 1));
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "woken once");
        assert_eq!(poll(&mut watch), Some(2), "what was in between is not told");
        assert_eq!(poll(&mut watch), None);
        drop(watch);
        assert!(lock(&store.state).waiting.is_empty());
    }
}
