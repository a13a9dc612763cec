//! The laws of the loop, over a fake of state, with paused time: every wait is exact and takes no time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_model::{Created, Effect, Node, NodeName, Object, Problem, Slice, Snapshot, Store, What, store};
use heddle_reconcile::fault::{Faulty, USUAL};
use heddle_reconcile::{Error, Outcome, Pace, Runner, Status, Target};
use proptest::prelude::*;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep};

type State = BTreeMap<String, i64>;

/// The "kernel": outlives every runner, and anybody may change it.
#[derive(Clone, Debug, Default)]
struct Kernel(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: State,
    writes: u64,
    observed: u64,
    tended: u64,
    deaf: bool,
    /// Parts that cannot be written.
    broken: BTreeSet<String>,
    /// When each failing attempt was made.
    attempts: Vec<(String, Instant)>,
}

impl Kernel {
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.0.lock().expect("nobody panics while holding it"))
    }

    fn state(&self) -> State {
        self.with(|inner| inner.state.clone())
    }

    fn writes(&self) -> u64 {
        self.with(|inner| inner.writes)
    }

    fn observed(&self) -> u64 {
        self.with(|inner| inner.observed)
    }
}

struct Fake(Kernel);

struct Step {
    part: String,
    value: Option<i64>,
    effect: Effect,
}

impl Target for Fake {
    type Input = Snapshot;
    type State = State;
    type Step = Step;
    type Part = String;

    fn desired(&mut self, snapshot: &Snapshot) -> (State, Vec<Problem>) {
        let state = snapshot.nodes.values().map(|node| (node.name.0.to_string(), node.created.0));
        (state.collect(), Vec::new())
    }

    fn observe(&mut self) -> Result<State, Error> {
        self.0.with(|inner| {
            inner.observed += 1;
            if inner.deaf { Err("no answer".into()) } else { Ok(inner.state.clone()) }
        })
    }

    fn diff(&self, observed: &State, desired: &State) -> Vec<Step> {
        let put =
            desired.iter().filter(|(part, value)| observed.get(*part) != Some(value)).map(|(part, value)| {
                let effect = if observed.contains_key(part) { Effect::Change } else { Effect::Create };
                Step { part: part.clone(), value: Some(*value), effect }
            });
        let gone = observed.keys().filter(|part| !desired.contains_key(*part));
        let remove = gone.map(|part| Step { part: part.clone(), value: None, effect: Effect::Remove });
        put.chain(remove).collect()
    }

    fn part(step: &Step) -> String {
        step.part.clone()
    }

    fn effect(step: &Step) -> Effect {
        step.effect
    }

    fn apply(&mut self, steps: Vec<Step>) -> Outcome<String> {
        let mut outcome = Outcome::done();
        self.0.with(|inner| {
            for Step { part, value, .. } in steps {
                if inner.broken.contains(&part) {
                    inner.attempts.push((part.clone(), Instant::now()));
                    outcome.fail(part, "no space left");
                    continue;
                }
                inner.writes += 1;
                match value {
                    Some(value) => inner.state.insert(part, value),
                    None => inner.state.remove(&part),
                };
            }
        });
        outcome
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.0.with(|inner| inner.tended += 1);
        Ok(())
    }
}

/// A running loop and all that it hangs on.
struct Rig {
    source: store::Source,
    events: Arc<Notify>,
    status: watch::Receiver<Arc<Status>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn pace() -> Pace {
    Pace::default()
}

fn rig(kernel: &Kernel) -> Rig {
    rig_over(Fake(kernel.clone()))
}

fn rig_over(
    target: impl Target<Input = Snapshot, State = State, Step = Step, Part = String> + 'static,
) -> Rig {
    let store = Store::new();
    let source = store.source("test");
    let events = Arc::new(Notify::new());
    let runner = Runner::new(target, pace(), 7);
    let status = runner.status();
    let (stop, stopped) = oneshot::channel();
    let (watch, kernel_events) = (store.watch(), Arc::clone(&events));
    let task = tokio::spawn(async move {
        runner.run(watch, &kernel_events, stopped).await;
    });
    Rig { source, events, status, stop, task }
}

fn slice(parts: &[(&str, i64)]) -> Slice {
    let node = |(name, value): &(&str, i64)| {
        let name = NodeName((*name).into());
        let node = Node { name: name.clone(), created: Created(*value), ..Node::default() };
        (name, Arc::new(node))
    };
    Slice { nodes: parts.iter().map(node).collect(), ..Slice::default() }
}

fn state(parts: &[(&str, i64)]) -> State {
    parts.iter().map(|(part, value)| ((*part).to_owned(), *value)).collect()
}

impl Rig {
    fn say(&self, parts: &[(&str, i64)]) {
        self.source.replace(slice(parts));
    }

    /// Lets the loop do what is due, and no time pass beyond its quiet time.
    async fn settle(&self) {
        sleep(pace().quiet * 2).await;
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    async fn end(self) {
        let _ = self.stop.send(());
        self.task.await.expect("the loop does not panic");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_was_there_is_touched_before_synced() {
    let kernel = Kernel::default();
    kernel.with(|inner| inner.state = state(&[("old", 1), ("changed", 1), ("same", 1)]));
    let rig = rig(&kernel);
    rig.settle().await;
    assert_eq!(kernel.observed(), 0, "sources have a moment");
    sleep(pace().patience).await;
    assert_eq!((kernel.observed(), kernel.writes()), (1, 0), "observed first, adopted");
    rig.say(&[("changed", 2), ("same", 1), ("new", 1)]);
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("old", 1), ("changed", 1), ("same", 1), ("new", 1)]));
    // What this process made, it may change and remove.
    rig.say(&[("changed", 2), ("same", 1), ("new", 2), ("newer", 1)]);
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("old", 1), ("changed", 1), ("same", 1), ("new", 2), ("newer", 1)]));
    rig.say(&[("changed", 2), ("same", 1), ("new", 2)]);
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("old", 1), ("changed", 1), ("same", 1), ("new", 2)]));
    assert!(!rig.status().ready && rig.status().troubles.contains_key("sources"));
    rig.source.synced();
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("changed", 2), ("same", 1), ("new", 2)]));
    assert!(rig.status().ready && rig.status().troubles.is_empty());
    rig.end().await;
}

/// A source that takes long to read: meanwhile there is nothing to do, which is no reason to call the first pass
/// that counts a small one.
#[tokio::test(start_paused = true)]
async fn a_late_source_makes_it_ready_at_once() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    sleep(pace().patience * 2).await;
    assert!(!rig.status().ready && kernel.observed() == 1);
    rig.source.synced();
    rig.say(&[("a", 1)]);
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("a", 1)]));
    assert!(rig.status().ready);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn only_what_changed_is_done_and_a_second_pass_writes_nothing() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("a", 1), ("b", 1)]);
    rig.settle().await;
    assert_eq!(kernel.writes(), 2);
    let observed = kernel.observed();
    rig.say(&[("a", 1), ("b", 2)]);
    rig.settle().await;
    assert_eq!(
        (kernel.writes(), kernel.observed()),
        (3, observed),
        "the kernel is not asked for a small change"
    );
    advance(pace().resync * 2).await;
    rig.settle().await;
    assert!(kernel.observed() > observed, "but it is from time to time");
    assert_eq!(kernel.writes(), 3);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_of_the_kernel_is_answered_at_once() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("a", 1), ("b", 1)]);
    rig.settle().await;
    kernel.with(|inner| {
        inner.state.remove("a");
        inner.state.insert("foreign".into(), 1);
    });
    rig.events.notify_one();
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("a", 1), ("b", 1)]));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_alone_is_done_at_once() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    rig.source.synced();
    rig.settle().await;
    for value in 1..10 {
        sleep(pace().calm).await;
        let now = Instant::now();
        rig.say(&[("a", value)]);
        while kernel.state() != state(&[("a", value)]) {
            tokio::task::yield_now().await;
        }
        assert_eq!(now.elapsed(), Duration::ZERO, "paused time goes on only where somebody waits");
        // What follows waits for what comes with it, for a moment.
        rig.say(&[("a", 100)]);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(kernel.state(), state(&[("a", value)]));
        rig.say(&[("a", 101)]);
        sleep(pace().rest * 2).await;
        assert_eq!(kernel.state(), state(&[("a", 101)]));
    }
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_two_passes_and_a_storm_does_not_starve() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    rig.source.synced();
    rig.settle().await;
    let passes = |rig: &Rig| rig.status().full_passes + rig.status().quick_passes;
    let before = passes(&rig);
    for value in 0..100 {
        rig.say(&[("a", value)]);
        tokio::task::yield_now().await;
    }
    rig.settle().await;
    assert_eq!((passes(&rig), kernel.writes()), (before + 2, 2), "the first of them, and the others");
    // Sources that never pause do not drive it faster than it may go.
    let before = passes(&rig);
    for value in 0..1_000 {
        rig.say(&[("a", value)]);
        if value % 10 == 0 {
            sleep(pace().rest).await;
        }
    }
    let stormed = passes(&rig) - before;
    assert!((40..=110).contains(&stormed), "{stormed} in 0.1 s");
    rig.settle().await;
    // It never becomes quiet: the loop acts all the same, tends, and resyncs.
    let before = passes(&rig);
    let (tended, full) = (kernel.with(|inner| inner.tended), rig.status().full_passes);
    for _ in 0..20_000 {
        rig.events.notify_one();
        sleep(pace().quiet / 2).await;
    }
    let stormed = passes(&rig) - before;
    assert!((1_800..=2_200).contains(&stormed), "{stormed} in 100 s");
    assert!(
        kernel.with(|inner| inner.tended) - tended >= 80,
        "{}",
        kernel.with(|inner| inner.tended) - tended
    );
    assert!(rig.status().full_passes - full >= 2);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_waits_alone() {
    let kernel = Kernel::default();
    kernel.with(|inner| inner.broken.extend(["bad".to_owned()]));
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("bad", 1), ("good", 1)]);
    rig.settle().await;
    assert_eq!(kernel.state(), state(&[("good", 1)]));
    let trouble = rig.status().troubles["bad"].clone();
    assert_eq!(trouble.what, "no space left");
    assert!(!rig.status().ready);
    for value in 2..50 {
        rig.say(&[("bad", 1), ("good", value)]);
        rig.settle().await;
        assert_eq!(kernel.state(), state(&[("good", value)]), "others are not held up");
    }
    sleep(Duration::from_secs(300)).await;
    let attempts = kernel.with(|inner| inner.attempts.clone());
    assert!((15..30).contains(&attempts.len()), "{}", attempts.len());
    let waits: Vec<_> = attempts.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    let slack = pace().quiet * 4;
    assert!(waits[0] <= pace().first_retry * 5 / 4 + slack, "{waits:?}");
    assert!(*waits.last().unwrap() >= pace().last_retry * 3 / 4, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= pace().last_retry * 5 / 4 + slack), "{waits:?}");
    assert_eq!(rig.status().troubles["bad"].since, trouble.since, "in trouble since the first time");
    kernel.with(|inner| inner.broken.clear());
    sleep(pace().last_retry * 2).await;
    assert_eq!(kernel.state(), state(&[("bad", 1), ("good", 49)]));
    assert!(rig.status().ready && rig.status().troubles.is_empty());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn several_troubles_of_one_object_are_told_together_and_do_not_pile_up() {
    let kernel = Kernel::default();
    kernel.with(|inner| inner.broken.extend(["bad".to_owned()]));
    let rig = rig(&kernel);
    rig.source.synced();
    let mut said = slice(&[("bad", 1)]);
    said.problems.insert(Problem::new(Object::Input("bad".into()), What::Said("odd".into())));
    rig.source.replace(said.clone());
    rig.settle().await;
    let first = rig.status().troubles["bad"].clone();
    assert_eq!(first.what, "odd; no space left");
    sleep(Duration::from_secs(300)).await;
    assert_eq!(rig.status().troubles["bad"], first, "many attempts later");
    for n in 0..100 {
        said.problems.insert(Problem::new(Object::Input("bad".into()), What::Said(format!("odd {n}"))));
    }
    rig.source.replace(said);
    rig.settle().await;
    let what = rig.status().troubles["bad"].what.clone();
    assert!(what.len() < 500 && what.ends_with("; ..."), "{what}");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_no_longer_asked_for_is_forgotten() {
    let kernel = Kernel::default();
    kernel.with(|inner| inner.broken.extend(["bad".to_owned()]));
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("bad", 1)]);
    rig.settle().await;
    rig.say(&[]);
    rig.settle().await;
    assert!(rig.status().troubles.is_empty());
    let attempts = kernel.with(|inner| inner.attempts.len());
    sleep(Duration::from_secs(100)).await;
    assert_eq!(kernel.with(|inner| inner.attempts.len()), attempts);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_does_not_answer_is_asked_again() {
    let kernel = Kernel::default();
    kernel.with(|inner| inner.deaf = true);
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("a", 1)]);
    rig.settle().await;
    assert_eq!((kernel.writes(), rig.status().ready), (0, false));
    assert_eq!(rig.status().troubles["kernel"].what, "cannot observe: no answer");
    sleep(Duration::from_secs(60)).await;
    assert!((5..15).contains(&kernel.observed()), "{}", kernel.observed());
    kernel.with(|inner| inner.deaf = false);
    sleep(pace().last_retry * 2).await;
    assert_eq!(kernel.state(), state(&[("a", 1)]));
    assert!(rig.status().ready && rig.status().troubles.is_empty());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_the_kernel_as_it_is() {
    let kernel = Kernel::default();
    let rig = rig(&kernel);
    rig.source.synced();
    rig.say(&[("a", 1)]);
    rig.settle().await;
    rig.end().await;
    assert_eq!(kernel.state(), state(&[("a", 1)]));
}

#[derive(Clone, Debug)]
enum Happening {
    Say(BTreeMap<u8, i64>),
    /// Somebody else writes to the kernel; heard of or not.
    Tamper(u8, Option<i64>, bool),
    Wait(u16),
    /// The process is killed and started again.
    Restart,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        3 => prop::collection::btree_map(0u8..8, 0i64..3, 0..8).prop_map(Happening::Say),
        2 => (0u8..10, prop::option::of(0i64..3), any::<bool>()).prop_map(|(p, v, heard)| Happening::Tamper(p, v, heard)),
        2 => (0u16..2000).prop_map(Happening::Wait),
        1 => Just(Happening::Restart),
    ];
    prop::collection::vec(one, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens, with one operation in ten failing: some time after it ends the kernel is as desired,
    /// and from then on nothing is written.
    #[test]
    fn it_converges(happenings in happenings(), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let kernel = Kernel::default();
            let start = |seed: u64| rig_over(Faulty::new(Fake(kernel.clone()), USUAL, seed));
            let mut said = Slice::default();
            let mut rig = start(seed);
            rig.source.synced();
            for (n, happening) in (1..).zip(happenings) {
                match happening {
                    Happening::Say(parts) => {
                        let parts: Vec<_> = parts.iter().map(|(part, value)| (part.to_string(), *value)).collect();
                        said = slice(&parts.iter().map(|(part, value)| (part.as_str(), *value)).collect::<Vec<_>>());
                        rig.source.replace(said.clone());
                    }
                    Happening::Tamper(part, value, heard) => {
                        kernel.with(|inner| match value {
                            Some(value) => inner.state.insert(part.to_string(), value),
                            None => inner.state.remove(&part.to_string()),
                        });
                        if heard {
                            rig.events.notify_one();
                        }
                    }
                    Happening::Wait(millis) => sleep(Duration::from_millis(millis.into())).await,
                    Happening::Restart => {
                        rig.task.abort();
                        rig = start(seed.wrapping_add(n));
                        rig.source.replace(said.clone());
                        rig.source.synced();
                    }
                }
            }
            // Longer than any chain of retries that is likely once in the age of the universe.
            sleep(Duration::from_secs(600)).await;
            let desired: State = said.nodes.values().map(|node| (node.name.0.to_string(), node.created.0)).collect();
            prop_assert_eq!(kernel.state(), desired);
            prop_assert!(rig.status().ready, "{:?}", rig.status());
            let writes = kernel.writes();
            sleep(Duration::from_secs(600)).await;
            prop_assert_eq!(kernel.writes(), writes, "a pass over what is right writes nothing");
            Ok(())
        })?;
    }
}
