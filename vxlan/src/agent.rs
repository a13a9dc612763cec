//! The overlay as a target of the reconcile loop: what must be, what is, and getting from one to the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use heddle_daemon::exit::chain;
use heddle_model::store::Snapshot;
use heddle_model::{Effect, Object, OverlayTable, Problem, What, resolve};
use heddle_netlink::Socket;
use heddle_reconcile::{Error, Outcome, Target};
use tokio::sync::watch;

use crate::desired::{Settings, desired};
use crate::kernel::{self, Applier};
use crate::plan::{Part, Step, plan};
use crate::report::Report;
use crate::state::{Family, KernelState, Route, RouteKey};
use crate::{firewall, forwarding, handoff};

/// What the overlay of this node is made with.
#[derive(Clone, Debug)]
pub struct Options {
    pub settings: Settings,
    /// The underlay device, if the administrator named it.
    pub underlay: Option<String>,
    pub cni_conf_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// State of the kernel, or why it must be left alone.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Known(Box<KernelState>),
    /// Too little is known, of this node or of its underlay, to say what must be. What stands, stands.
    Hold(String),
}

/// For how long what was read of the packet filter holds.
const FRESH: Duration = Duration::from_secs(10);

/// What was read of the packet filter.
#[derive(Debug)]
struct Filtered {
    at: Instant,
    routes: BTreeMap<RouteKey, Route>,
    findings: Vec<String>,
}

/// The overlay of this node.
#[derive(Debug)]
pub struct Overlay {
    options: Options,
    device: String,
    socket: Socket,
    /// What was desired last: the hand-off waits for it.
    wanted: Option<KernelState>,
    filtered: Option<Filtered>,
    report: Report,
    /// As it stands in the run directory.
    written: Option<Report>,
    /// Set for good if the kernel cannot have the overlay at all.
    unsupported: watch::Sender<Option<String>>,
}

impl Overlay {
    pub fn new(options: Options) -> heddle_netlink::Result<Self> {
        let device = kernel::device_name(options.settings.vni);
        let report = Report {
            settings: options.settings.clone(),
            table: OverlayTable::default(),
            problems: Vec::new(),
            failed: BTreeMap::new(),
        };
        Ok(Self {
            options,
            device,
            socket: Socket::open()?,
            wanted: None,
            filtered: None,
            report,
            written: None,
            unsupported: watch::Sender::default(),
        })
    }

    /// Tells why, if the kernel turns out to lack what the overlay needs.
    pub fn unsupported(&self) -> watch::Receiver<Option<String>> {
        self.unsupported.subscribe()
    }

    /// Everything that must be, with the underlay as it is at this moment.
    fn wanted(&mut self, table: &OverlayTable, problems: &mut Vec<Problem>) -> Result<KernelState, Error> {
        let name = &self.options.settings.node;
        let Some(local) = table.underlay else {
            return Err(
                format!("no source tells of node {name} and its address (is --node-name right?)").into()
            );
        };
        if table.local.is_empty() {
            return Err(format!("node {name} has no pod range").into());
        }
        let underlay = kernel::underlay(&mut self.socket, local, self.options.underlay.as_deref())?;
        let desired = desired(table, &underlay, &self.options.settings)?;
        problems.extend(desired.problems);
        let mut state = desired.state;
        if state.forwarding.contains(&Family::V6) {
            state.advertisements =
                forwarding::endangered(&mut self.socket, &underlay.device, &self.options.run_dir)?;
        }
        state.conflist = Some(handoff::conflist(&table.local, desired.mtu));
        Ok(state)
    }

    /// What the packet filter of this machine drops, as problems of this node. A large filter takes a while
    /// to read: it is not read again for every change of a service.
    fn filtered(&mut self, state: &KernelState) -> Vec<Problem> {
        let fresh =
            self.filtered.as_ref().filter(|last| last.routes == state.routes && last.at.elapsed() < FRESH);
        let findings = match fresh {
            Some(last) => last.findings.clone(),
            None => firewall::findings(state, &self.device),
        };
        if fresh.is_none() {
            let (at, routes) = (Instant::now(), state.routes.clone());
            self.filtered = Some(Filtered { at, routes, findings: findings.clone() });
        }
        let about = |what| Problem::new(Object::Node(self.options.settings.node.clone()), What::Said(what));
        findings.into_iter().map(about).collect()
    }

    fn take(&mut self, steps: &[Step]) -> Outcome<Part> {
        let mut outcome = Outcome::done();
        let run_dir = &self.options.run_dir;
        let mut applier = match Applier::new(&mut self.socket, &self.device) {
            Ok(applier) => applier,
            Err(error) => {
                steps.iter().for_each(|step| outcome.fail(step.part(), &error));
                return outcome;
            }
        };
        let mut handoff = None;
        for step in steps {
            let done = match step {
                Step::Hold(why) => Err(Error::from(why.clone())),
                Step::KeepAdvertisements(device) => {
                    forwarding::keep_advertisements(device, run_dir).map_err(Error::from)
                }
                Step::SwitchForwarding { family, hearing } => hearing
                    .iter()
                    .try_for_each(|device| forwarding::keep_advertisements(device, run_dir))
                    .and_then(|()| forwarding::switch_on(*family, run_dir))
                    .map_err(Error::from),
                Step::WriteConflist { content, .. } => {
                    handoff = Some(content);
                    continue;
                }
                // What is to be on a device that could not be made is no failure of its own.
                _ if applier.lacks_device(step) && outcome.failed.contains_key(&Part::Device) => continue,
                _ => applier.take(step).map_err(|error| {
                    if error.is_unsupported() {
                        self.unsupported.send_replace(Some(error.to_string()));
                    }
                    Error::from(error)
                }),
            };
            match done {
                Ok(()) => tracing::debug!(?step, "done"),
                Err(error) => outcome.fail(step.part(), chain(error.as_ref())),
            }
        }
        if let Some(content) = handoff
            && !outcome.failed.contains_key(&Part::Device)
            && let Err(error) = self.hand_off(content)
        {
            outcome.fail(Part::Conflist, chain(error.as_ref()));
        }
        outcome
    }

    /// Writes the CNI configuration, if the node can take pods.
    fn hand_off(&mut self, content: &str) -> Result<(), Error> {
        let observed = self.observe()?;
        let carries = match (&observed, &self.wanted) {
            (State::Known(observed), Some(wanted)) => observed.carries(wanted),
            _ => false,
        };
        if !carries {
            return Err("not written: the overlay does not stand yet".into());
        }
        if handoff::write(&self.options.cni_conf_dir, content)? {
            let dir = self.options.cni_conf_dir.display();
            tracing::info!("wrote {dir}/{}: this node takes pods", handoff::CONFLIST);
        }
        Ok(())
    }

    /// Leaves for `vxland status` what has changed.
    fn write_report(&mut self) {
        if self.written.as_ref() == Some(&self.report) {
            return;
        }
        match self.report.write(&self.options.run_dir) {
            Ok(()) => self.written = Some(self.report.clone()),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

impl Target for Overlay {
    type Input = Snapshot;
    type State = State;
    type Step = Step;
    type Part = Part;

    fn desired(&mut self, snapshot: &Snapshot) -> (State, Vec<Problem>) {
        let Settings { node, vni, .. } = &self.options.settings;
        let (table, mut problems) = resolve::overlay(snapshot, node, *vni);
        let wanted = self.wanted(&table, &mut problems);
        self.report.table = table;
        self.report.problems = problems.iter().map(ToString::to_string).collect();
        let state = match wanted {
            Ok(state) => {
                // What the filter drops, `vxland status` finds out for itself.
                problems.extend(self.filtered(&state));
                self.wanted = Some(state.clone());
                State::Known(Box::new(state))
            }
            Err(error) => {
                self.wanted = None;
                let hold = State::Hold(chain(error.as_ref()));
                // The sources have just begun to tell: nothing is wrong yet.
                if snapshot.synced { hold } else { self.observe().unwrap_or(hold) }
            }
        };
        self.report.failed.remove(&Part::Overlay.to_string());
        self.write_report();
        (state, problems)
    }

    fn observe(&mut self) -> Result<State, Error> {
        let mut state = kernel::observe(&mut self.socket, &self.device)?;
        state.forwarding = forwarding::forwarded()?;
        state.conflist = handoff::read(&self.options.cni_conf_dir)?;
        Ok(State::Known(Box::new(state)))
    }

    fn diff(&self, observed: &State, desired: &State) -> Vec<Step> {
        match (observed, desired) {
            (State::Known(observed), State::Known(desired)) => plan(observed, desired),
            (_, State::Hold(why)) | (State::Hold(why), _) => vec![Step::Hold(why.clone())],
        }
    }

    fn part(step: &Step) -> Part {
        step.part()
    }

    fn effect(step: &Step) -> Effect {
        step.effect()
    }

    fn apply(&mut self, steps: Vec<Step>) -> Outcome<Part> {
        let outcome = self.take(&steps);
        let taken = || steps.iter().filter(|step| !outcome.failed.contains_key(&step.part()));
        if taken().next().is_some() {
            let count = |wanted| taken().filter(|step| step.effect() == wanted).count();
            let (created, changed, removed) =
                (count(Effect::Create), count(Effect::Change), count(Effect::Remove));
            tracing::info!(created, changed, removed, "wrote to the kernel");
        }
        for step in &steps {
            let part = step.part();
            match outcome.failed.get(&part) {
                Some(why) => self.report.failed.insert(part.to_string(), why.clone()),
                None => self.report.failed.remove(&part.to_string()),
            };
        }
        self.write_report();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use heddle_model::store::{Slice, Store};
    use heddle_model::{Created, Node, NodeName};
    use heddle_netlink::link::{self, VethEnd};
    use heddle_netlink::monitor::Monitor;
    use heddle_netlink::{NetNs, addr};
    use heddle_reconcile::fault::{Faulty, USUAL};
    use heddle_reconcile::{Pace, Runner};
    use tokio::sync::Notify;

    use super::*;
    use crate::events::Filter;
    use crate::fake::{ip, name, net};

    fn node(number: u8, range: u8) -> Node {
        Node {
            name: name(&format!("n{number}")),
            created: Created(i64::from(number)),
            addresses: vec![ip(&format!("192.168.77.{number}"))],
            pod_ranges: vec![net(&format!("10.244.{range}.0/24")), net(&format!("fd00:10:244:{range}::/64"))],
        }
    }

    fn slice(nodes: impl IntoIterator<Item = Node>) -> Slice {
        let nodes = nodes.into_iter().map(|node| (node.name.clone(), Arc::new(node))).collect();
        Slice { nodes, ..Slice::default() }
    }

    fn options(root: &std::path::Path) -> Options {
        let (run_dir, cni_conf_dir) = (root.join("run"), root.join("net.d"));
        std::fs::create_dir_all(&run_dir).unwrap();
        let settings = Settings { node: NodeName("n1".into()), vni: 1, port: 8472, mtu: None };
        Options { settings, underlay: None, cni_conf_dir, run_dir }
    }

    /// A machine with the address of node 1. Its underlay leads nowhere: nothing is sent here.
    fn machine() -> NetNs {
        let ns = NetNs::create().unwrap();
        ns.run(|| {
            let mut socket = Socket::open().unwrap();
            let (near, far) = (
                VethEnd { name: "eth0", ..VethEnd::default() },
                VethEnd { name: "far", ..VethEnd::default() },
            );
            link::create_veth(&mut socket, &near, &far).unwrap();
            for name in ["eth0", "far"] {
                let index = link::by_name(&mut socket, name).unwrap().unwrap().index;
                link::set_up(&mut socket, index).unwrap();
            }
            let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
            addr::add(&mut socket, &addr::Addr::new(index, net("192.168.77.1/24"))).unwrap();
        })
        .unwrap();
        ns
    }

    /// What is, without what other tests look at, and what should be.
    fn both(options: &Options, store: &Store) -> (KernelState, KernelState) {
        let mut overlay = Overlay::new(options.clone()).unwrap();
        let (State::Known(desired), _) = overlay.desired(&store.snapshot()) else { panic!("held") };
        let State::Known(observed) = overlay.observe().unwrap() else { panic!("held") };
        (*observed, *desired)
    }

    /// The loop over the real kernel, of which one operation in ten fails, before or after it was done.
    #[test]
    fn the_loop_gets_there_although_one_operation_in_ten_fails() {
        let root = tempfile::tempdir().unwrap();
        let options = options(root.path());
        machine()
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(converge(&options));
            })
            .unwrap();
    }

    async fn converge(options: &Options) {
        let store = Store::new();
        let source = store.source("test");
        let target = Faulty::new(Overlay::new(options.clone()).unwrap(), USUAL, 1);
        let pace = Pace {
            first_retry: Duration::from_millis(5),
            last_retry: Duration::from_millis(50),
            ..Pace::default()
        };
        let runner = Runner::new(target, pace, 1);
        let mut status = runner.status();
        let wake = Notify::new();
        let mut monitor = Monitor::open().unwrap();
        let mut filter = Filter::new("heddle.1".into(), &[]);
        let events = async {
            loop {
                if filter.concerns(&monitor.next().await.unwrap()) {
                    wake.notify_one();
                }
            }
        };
        let changes = async {
            let others = |range: u8| (2..8_u8).map(move |n| node(n, n + range));
            for (round, nodes) in [
                slice([node(1, 1)].into_iter().chain(others(0))),
                slice([node(1, 1)].into_iter().chain(others(20))),
                slice([node(1, 1), node(3, 2)]),
                slice([node(1, 9), node(2, 2)]),
            ]
            .into_iter()
            .enumerate()
            {
                source.replace(nodes);
                source.synced();
                let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
                loop {
                    let (observed, desired) = both(options, &store);
                    if plan(&observed, &desired).is_empty() {
                        break;
                    }
                    let changed = tokio::time::timeout_at(deadline, status.changed()).await;
                    changed
                        .unwrap_or_else(|_| panic!("round {round}: {:#?}", plan(&observed, &desired)))
                        .unwrap();
                }
            }
            let (observed, desired) = both(options, &store);
            assert_eq!(observed.routes, desired.routes);
            assert_eq!(observed.fdb.len(), 1);
            assert_eq!(observed.forwarding, BTreeSet::from([Family::V4, Family::V6]));
            assert!(observed.conflist.unwrap().contains("10.244.9.0/24"));
        };
        tokio::select! {
            _ = runner.run(store.watch(), &wake, std::future::pending::<()>()) => {}
            () = events => {}
            () = changes => {}
        }
    }

    /// Before the sources have told everything nothing that was there is changed, and what is new is made.
    #[test]
    fn before_the_sources_are_synced_nothing_is_changed_or_removed() {
        let root = tempfile::tempdir().unwrap();
        let options = options(root.path());
        let ns = machine();
        let effects = |slice: Slice, synced: bool| {
            ns.run(|| {
                let store = Store::new();
                let source = store.source("test");
                source.replace(slice);
                if synced {
                    source.synced();
                }
                let (observed, desired) = both(&options, &store);
                plan(&observed, &desired).iter().map(Step::effect).collect::<Vec<_>>()
            })
            .unwrap()
        };
        // A fresh node: all is new but for the forwarding, which is switched on when everything is known.
        let fresh = effects(slice([node(1, 1), node(2, 2)]), false);
        assert_eq!(fresh.iter().filter(|effect| **effect != Effect::Create).count(), 2, "{fresh:?}");
    }

    #[test]
    fn what_cannot_be_known_holds_everything_and_is_said() {
        let root = tempfile::tempdir().unwrap();
        let options = options(root.path());
        machine()
            .run(|| {
                let mut overlay = Overlay::new(options.clone()).unwrap();
                let store = Store::new();
                let source = store.source("test");
                let mut said = |slice: Slice| {
                    source.replace(slice);
                    source.synced();
                    let (desired, _) = overlay.desired(&store.snapshot());
                    let observed = overlay.observe().unwrap();
                    let steps = overlay.diff(&observed, &desired);
                    let outcome = overlay.apply(steps);
                    outcome.failed.get(&Part::Overlay).cloned().unwrap_or_else(|| panic!("{desired:?}"))
                };
                assert!(said(slice([node(2, 2)])).starts_with("no source tells of node n1"));
                assert_eq!(
                    said(slice([Node { pod_ranges: vec![], ..node(1, 1) }])),
                    "node n1 has no pod range"
                );
                let elsewhere = Node { addresses: vec![ip("192.168.77.200")], ..node(1, 1) };
                assert!(
                    said(slice([elsewhere])).starts_with("no device has this node's address 192.168.77.200")
                );
                overlay_mtu(&options, &store);
            })
            .unwrap();
    }

    /// An MTU that does not fit is refused, and what stands, stands.
    fn overlay_mtu(options: &Options, store: &Store) {
        let settings = Settings { mtu: Some(1451), ..options.settings.clone() };
        let mut overlay = Overlay::new(Options { settings, ..options.clone() }).unwrap();
        store.source("more").replace(slice([node(1, 1)]));
        let mut snapshot = Snapshot::clone(&store.snapshot());
        snapshot.synced = true;
        snapshot.nodes = slice([node(1, 1)]).nodes;
        let (State::Hold(why), _) = overlay.desired(&snapshot) else { panic!("not held") };
        assert!(why.starts_with("mtu 1451 is too large: eth0 carries 1500 bytes"), "{why}");
    }
}
