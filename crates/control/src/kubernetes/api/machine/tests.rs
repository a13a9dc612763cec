//! The machine against an API server that remembers all it ever was, with everything that may go wrong between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_model::{Node, NodeName, Slice};
use proptest::prelude::*;

use super::*;
use crate::kubernetes::api::combined;

/// What there was, and when it changed.
#[derive(Debug, Default)]
struct Server {
    /// In order; the version is the place, from 1 on.
    history: Vec<(u8, Option<u8>)>,
    forgotten: u64,
}

/// Everything happens by and by.
const MINUTES: Duration = Duration::from_secs(600);

fn name(key: u8) -> String {
    format!("n{key}")
}

fn version(number: u64) -> Version {
    Version(number.to_string().into())
}

fn number(version: &Version) -> u64 {
    version.0.parse().unwrap()
}

fn item(key: u8, content: u8, at: u64) -> Item {
    let node =
        Node { name: NodeName(name(key).into()), zone: Some(content.to_string().into()), ..Node::default() };
    let key = Key::Node(node.name.0.clone());
    Item { key, version: version(at), value: Ok(Value::Node(Arc::new(node))), notes: Vec::new() }
}

impl Server {
    fn now(&self) -> u64 {
        self.history.len() as u64
    }

    fn at(&self, version: u64) -> BTreeMap<u8, u8> {
        let mut state = BTreeMap::new();
        for (key, content) in &self.history[..usize::try_from(version).unwrap()] {
            match content {
                Some(content) => drop(state.insert(*key, *content)),
                None => drop(state.remove(key)),
            }
        }
        state
    }

    fn event(&self, number: u64) -> Event {
        let (key, content) = self.history[usize::try_from(number).unwrap() - 1];
        match content {
            Some(content) => Event::Is(item(key, content, number)),
            None => Event::Deleted(Key::Node(name(key).into()), version(number)),
        }
    }

    /// A page of the list as of `at`.
    fn page(&self, at: u64, from: usize, limit: usize) -> Page {
        let state = self.at(at);
        let items: Vec<Item> =
            state.iter().skip(from).take(limit).map(|(key, content)| item(*key, *content, at)).collect();
        let next = from + items.len();
        let remaining = (state.len() - next) as u64;
        let token = (remaining > 0).then(|| format!("{at}/{next}"));
        Page { version: version(at), token, remaining, items }
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Set(u8, u8),
    Delete(u8),
    DeleteAll,
    /// The API server forgets what was before now.
    Forget,
    /// The machine's wish comes true, as far as this many pages or events.
    Work(u8),
    /// The next list is as old as this many changes.
    Stale(u8),
    /// A next page that is of another list; a last page that is not the last; the connection breaks.
    Mixed,
    Truncated,
    Break,
    /// An event that was there before comes again.
    Replay(u8),
    Mark,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..30, 0u8..4).prop_map(|(key, content)| Step::Set(key, content)),
        3 => (0u8..30).prop_map(Step::Delete),
        1 => Just(Step::DeleteAll),
        1 => Just(Step::Forget),
        8 => (1u8..6).prop_map(Step::Work),
        1 => (1u8..9).prop_map(Step::Stale),
        2 => prop_oneof![Just(Step::Mixed), Just(Step::Truncated), Just(Step::Break)],
        2 => (1u8..9).prop_map(Step::Replay),
        1 => Just(Step::Mark),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

#[derive(Debug)]
struct World {
    server: Server,
    machine: Machine,
    now: Instant,
    held: Slice,
    /// The newest version that was ever held.
    newest: u64,
}

impl World {
    fn new() -> Self {
        let machine = Machine::new(DOUBT);
        // Something was there before: no API server is at version 0.
        let server = Server { history: vec![(200, Some(0)), (200, None)], forgotten: 0 };
        Self { server, machine, now: Instant::now(), held: Slice::default(), newest: 0 }
    }

    fn list(&mut self, at: u64, change: impl FnOnce(&mut Page)) {
        let Want::List { paged, token } = self.machine.want() else { return };
        let limit = if paged { 4 } else { usize::MAX };
        let (at, from) = match token {
            None => (at, 0),
            Some(token) => {
                let (at, from) = token.split_once('/').unwrap();
                (at.parse().unwrap(), from.parse().unwrap())
            }
        };
        if from > 0 && at < self.server.forgotten {
            self.machine.failed(&Failure::Gone("continue".into()));
            return;
        }
        let mut page = self.server.page(at, from, limit);
        change(&mut page);
        let mut out = Vec::new();
        if let Err(failure) = self.machine.page(page, self.now, &mut out) {
            assert!(out.is_empty(), "a list that does not count changes nothing");
            self.machine.failed(&failure);
        }
        self.apply(out);
    }

    fn apply(&mut self, out: Vec<Change>) {
        out.into_iter().for_each(|change| combined::apply(&mut self.held, change));
    }

    fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        if let Err(failure) = self.machine.event(event, &mut out) {
            self.machine.failed(&failure);
        }
        self.apply(out);
    }

    fn work(&mut self, times: u8) {
        for _ in 0..times {
            match self.machine.want() {
                Want::List { .. } => self.list(self.server.now(), |_| ()),
                Want::Watch(from) if number(&from) < self.server.forgotten => {
                    self.machine.failed(&Failure::Gone("watch".into()));
                }
                Want::Watch(from) if number(&from) < self.server.now() => {
                    self.event(self.server.event(number(&from) + 1));
                }
                Want::Watch(_) => return,
            }
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.server.now();
        match step {
            Step::Set(key, content) => self.server.history.push((key, Some(content))),
            Step::Delete(key) => {
                if self.server.at(now).contains_key(&key) {
                    self.server.history.push((key, None));
                }
            }
            Step::DeleteAll => {
                for key in self.server.at(now).into_keys() {
                    self.server.history.push((key, None));
                }
            }
            Step::Forget => self.server.forgotten = now,
            Step::Work(times) => self.work(times),
            Step::Stale(by) => self.list(now.saturating_sub(u64::from(by)).max(1), |_| ()),
            Step::Mixed => {
                if let Want::List { token: Some(token), .. } = self.machine.want() {
                    let (_, from) = token.split_once('/').unwrap();
                    let other = self.server.page(now, from.parse().unwrap(), 4);
                    self.list(now, |page| *page = other);
                }
            }
            Step::Truncated => self.list(now, |page| page.token = None),
            Step::Break => self.machine.failed(&Failure::Lost("cut".into())),
            Step::Replay(by) => {
                if let Want::Watch(from) = self.machine.want() {
                    let before = number(&from).saturating_sub(u64::from(by));
                    if (1..=now).contains(&before) {
                        self.event(self.server.event(before));
                    }
                }
            }
            Step::Mark => {
                if let Want::Watch(from) = self.machine.want()
                    && number(&from) + 1 == now
                    && self
                        .server
                        .history
                        .last()
                        .is_some_and(|(key, content)| self.server.at(now - 1).get(key) == content.as_ref())
                {
                    // Nothing changed in what the watch is about.
                    self.event(Event::Bookmark(version(now)));
                }
            }
            Step::Wait => {
                // An old state that lasts is believed: not here.
                self.now += if self.machine.older.is_some() { Duration::ZERO } else { MINUTES };
                if self.machine.deadline().is_some_and(|deadline| deadline <= self.now) {
                    self.machine.settle();
                }
            }
        }
    }

    /// What is held is what was there at the version that is held, and what is doubted to be gone.
    fn check(&mut self) {
        let held: BTreeMap<String, String> = self
            .held
            .nodes
            .iter()
            .map(|(name, node)| (name.0.to_string(), node.zone.as_deref().unwrap().to_owned()))
            .collect();
        let Some(known) = self.machine.version().map(number) else {
            assert!(held.is_empty());
            return;
        };
        assert!(known >= self.newest, "nothing goes back in time");
        self.newest = known;
        let doubted: BTreeSet<String> = match &self.machine.doubt {
            None => BTreeSet::new(),
            Some(doubt) => doubt.missing.iter().map(|key| key.to_string().replace("Node ", "")).collect(),
        };
        let there = self.server.at(known.min(self.server.now()));
        let there: BTreeMap<String, String> =
            there.into_iter().map(|(key, content)| (name(key), content.to_string())).collect();
        for name in &doubted {
            assert!(held.contains_key(name) && !there.contains_key(name), "{name} is doubted");
        }
        let sure: BTreeMap<_, _> = held.into_iter().filter(|(name, _)| !doubted.contains(name)).collect();
        assert_eq!(sure, there);
    }
}

proptest! {
    #[test]
    fn fault_119_what_is_held_was_true_and_becomes_true(all in steps()) {
        let mut world = World::new();
        for step in all {
            world.step(step);
            world.check();
        }
        // All is well from here on.
        for _ in 0..4 {
            world.work(200);
            world.step(Step::Wait);
            world.work(200);
            world.check();
        }
        prop_assert_eq!(world.machine.version().map(number).unwrap_or(0), world.server.now());
        prop_assert!(world.machine.doubt.is_none());
    }
}

fn filled(count: u8) -> World {
    let mut world = World::new();
    for key in 0..count {
        world.step(Step::Set(key, 0));
    }
    world.work(100);
    assert_eq!(world.held.nodes.len(), usize::from(count));
    world
}

#[test]
fn fault_112_an_empty_list_is_doubted_and_believed_when_another_says_the_same() {
    let mut world = filled(3);
    world.step(Step::DeleteAll);
    world.step(Step::Forget);
    world.work(10);
    assert_eq!((world.held.nodes.len(), world.machine.doubted()), (3, Some((3, 3))));
    // What is told one by one is true.
    world.step(Step::Set(1, 1));
    world.step(Step::Set(2, 1));
    world.step(Step::Delete(2));
    world.work(10);
    assert_eq!((world.held.nodes.len(), world.machine.doubted()), (2, Some((1, 2))));
    // Another list meanwhile prolongs nothing.
    let deadline = world.machine.deadline();
    world.step(Step::Forget);
    world.machine.failed(&Failure::Gone(String::new()));
    world.work(10);
    assert_eq!(world.machine.doubted(), None, "one of two is not most, and not all");
    assert!(deadline.is_some() && world.held.nodes.len() == 1);
}

#[test]
fn fault_112_a_list_that_lacks_most_is_doubted_for_a_while() {
    let mut world = filled(30);
    for key in 0..20 {
        world.step(Step::Delete(key));
    }
    world.step(Step::Forget);
    world.work(20);
    assert_eq!((world.held.nodes.len(), world.machine.doubted()), (30, Some((20, 30))));
    let deadline = world.machine.deadline().unwrap();
    world.now += DOUBT / 2;
    world.machine.settle();
    world.work(20);
    assert_eq!(world.machine.deadline(), Some(deadline), "another list begins no new doubt");
    world.now = deadline;
    world.machine.settle();
    assert_eq!(world.machine.deadline(), None);
    world.work(20);
    assert_eq!((world.held.nodes.len(), world.machine.doubted()), (10, None));
}

#[test]
fn fault_116_an_older_list_is_passed_over_until_it_is_all_there_is() {
    let mut world = filled(8);
    world.machine.failed(&Failure::Behind("too large".into()));
    // A cache that lags.
    world.list(5, |_| ());
    world.machine.failed(&Failure::Lost("cut".into()));
    world.list(7, |page| (page.token, page.remaining) = (None, 0));
    assert_eq!(world.held.nodes.len(), 8);
    world.work(10);
    world.check();
    // A backup of last night, with another object.
    world.server.history.truncate(6);
    world.server.history.push((20, Some(1)));
    for round in 0..4 {
        world.machine.failed(&Failure::Behind("too large".into()));
        world.work(3);
        assert_eq!(world.held.nodes.len(), 8, "{round}");
        world.now += RESTORED.0 / 4;
    }
    world.now += RESTORED.0;
    world.work(10);
    world.newest = 0;
    world.check();
    assert_eq!(world.held.nodes.len(), 5);
}

#[test]
fn fault_116_a_server_that_knows_less_is_asked_for_a_list() {
    let mut world = filled(3);
    world.event(Event::Bookmark(world.machine.version().unwrap().clone()));
    assert!(matches!(world.machine.want(), Want::Watch(_)));
    world.event(Event::Bookmark(version(2)));
    assert!(matches!(world.machine.want(), Want::List { .. }), "its events would be passed over in silence");
}

#[test]
fn fault_120_lists_that_never_come_to_their_end_are_asked_for_in_one_piece() {
    let mut world = filled(12);
    world.machine.failed(&Failure::Gone("watch".into()));
    for _ in 0..TOO_LONG {
        assert!(matches!(world.machine.want(), Want::List { paged: true, token: None }));
        world.list(14, |_| ());
        assert!(matches!(world.machine.want(), Want::List { token: Some(_), .. }));
        world.machine.failed(&Failure::Gone("continue".into()));
    }
    assert_eq!(world.machine.want(), Want::List { paged: false, token: None });
    world.list(14, |_| ());
    assert_eq!(world.machine.want(), Want::Watch(version(14)));
}

#[test]
fn fault_120_pages_of_two_lists_are_no_list() {
    let mut world = filled(6);
    world.machine.failed(&Failure::Gone("watch".into()));
    world.work(1);
    assert!(matches!(world.machine.want(), Want::List { token: Some(_), .. }));
    world.step(Step::Delete(0));
    world.step(Step::Set(4, 1));
    world.step(Step::Mixed);
    assert!(matches!(world.machine.want(), Want::List { token: None, .. }));
    world.check();
    world.work(3);
    world.check();
    assert_eq!(world.held.nodes.len(), 5);
}

#[test]
fn fault_122_what_is_not_understood_stays_as_it_was() {
    let mut world = filled(2);
    let broken =
        |key: u8, at| Event::Is(Item { value: Err("spec: what is this".into()), ..item(key, 0, at) });
    world.event(broken(1, 5));
    world.event(broken(7, 6));
    assert_eq!(world.held.nodes.len(), 2);
    assert_eq!(world.machine.broken().keys().collect::<Vec<_>>(), ["Node n1", "Node n7"]);
    world.event(Event::Is(Item { notes: vec!["new".into()], ..item(7, 0, 7) }));
    world.event(Event::Is(item(1, 3, 8)));
    assert_eq!((world.held.nodes.len(), world.machine.broken().len()), (3, 1));
    world.event(Event::Deleted(Key::Node("n7".into()), version(9)));
    world.event(Event::Other);
    assert_eq!((world.held.nodes.len(), world.machine.broken().len()), (2, 0));
    // What it was is not forgotten: it goes with the object.
    world.event(broken(1, 10));
    world.event(Event::Deleted(Key::Node("n1".into()), version(11)));
    assert_eq!((world.held.nodes.len(), world.machine.broken().len()), (1, 0));
}
