//! The overlay as a target of the reconcile loop: what must be, what is, and getting from one to the other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use heddle_daemon::exit::chain;
use heddle_model::resolve::{self, Rules};
use heddle_model::store::Snapshot;
use heddle_model::{Effect, NodeName, Object, OverlayTable, Problem, What};
use heddle_netlink::Socket;
use heddle_reconcile::{Error, Outcome, Target};
use tokio::sync::watch;

use crate::announce::Facts;
use crate::desired::{Settings, desired};
use crate::kernel::{self, Applier};
use crate::plan::{Part, Step, plan};
use crate::report::{Left, Report};
use crate::state::{Family, KernelState, Route, RouteKey};
use crate::{firewall, forwarding, handoff};

#[cfg(test)]
mod tests;

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
    /// What the other nodes are to know of this one, once the overlay stands as it is wanted.
    facts: Option<Facts>,
    announced: watch::Sender<Option<Facts>>,
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
            facts: None,
            announced: watch::Sender::default(),
        })
    }

    /// Tells why, if the kernel turns out to lack what the overlay needs.
    pub fn unsupported(&self) -> watch::Receiver<Option<String>> {
        self.unsupported.subscribe()
    }

    /// This node's name.
    pub const fn node(&self) -> &NodeName {
        &self.options.settings.node
    }

    /// What the other nodes may know of this one: the overlay stands so.
    pub fn announced(&self) -> watch::Receiver<Option<Facts>> {
        self.announced.subscribe()
    }

    /// Lets the others know, if the overlay stands as it is wanted.
    fn announce(&self, observed: &KernelState) {
        let stands = |wanted: &KernelState| observed.carries(wanted) && observed.conflist == wanted.conflist;
        if self.facts.is_some() && self.wanted.as_ref().is_some_and(stands) {
            self.announced.send_if_modified(|known| {
                let news = *known != self.facts;
                known.clone_from(&self.facts);
                news
            });
        }
    }

    /// Everything that must be, with the underlay as it is at this moment.
    fn wanted(
        &mut self,
        table: &mut OverlayTable,
        problems: &mut Vec<Problem>,
    ) -> Result<KernelState, Error> {
        let name = &self.options.settings.node;
        let Some(first) = table.underlay else {
            return Err(
                format!("no source tells of node {name} and its address (is --node-name right?)").into()
            );
        };
        if table.local.is_empty() {
            let about = Object::Node(name.clone());
            let hint = match problems.iter().any(|problem| problem.object == about) {
                true => "none that can be used, see what is wrong with the node",
                false => {
                    "spec.podCIDRs is empty: does the controller manager run with --allocate-node-cidrs?"
                }
            };
            return Err(format!("node {name} has no pod range ({hint})").into());
        }
        let candidates: Vec<IpAddr> =
            table.addresses.iter().copied().filter(|ip| ip.is_ipv4() == first.is_ipv4()).collect();
        let underlay = kernel::underlay(&mut self.socket, &candidates, self.options.underlay.as_deref())?;
        table.underlay = Some(underlay.local);
        let desired = desired(table, &underlay, &self.options.settings)?;
        self.facts = Some(Facts::new(table, &underlay, &self.options.settings));
        problems.extend(desired.problems);
        let mut state = desired.state;
        if state.forwarding.contains(&Family::V6) {
            state.advertisements =
                forwarding::endangered(&mut self.socket, &underlay.device, &self.options.run_dir)?;
        }
        state.conflist =
            Some(handoff::conflist(&self.options.settings.network, &self.device, &table.local, desired.mtu));
        Ok(state)
    }

    /// What the packet filter of this machine drops, as problems of this node. A large filter takes a while
    /// to read: it is not read again for every change of a service.
    fn filtered(&mut self, state: &KernelState) -> Vec<Problem> {
        let fresh =
            self.filtered.as_ref().filter(|last| last.routes == state.routes && last.at.elapsed() < FRESH);
        let findings = match fresh {
            Some(last) => last.findings.clone(),
            None => firewall::findings(state, &self.device).missing,
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
            Ok(applier) => applier.replacing_flannel(self.options.settings.replace_flannel),
            Err(error) => {
                steps.iter().for_each(|step| outcome.fail(step.part(), &error));
                return outcome;
            }
        };
        let mut handoff = None;
        let (mut created, mut changed, mut removed) = (0, 0, 0);
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
                // The device could not be made, or must wait for another attempt: that is the failure. What is to
                // be on it follows when it is there, and must not have been set back meanwhile.
                _ if applier.lacks_device(step) => continue,
                _ => applier.take(step).map_err(|error| {
                    if error.is_unsupported() {
                        self.unsupported.send_replace(Some(error.to_string()));
                    }
                    Error::from(error)
                }),
            };
            match done {
                Ok(()) => {
                    tracing::debug!(?step, "done");
                    match step.effect() {
                        Effect::Create => created += 1,
                        Effect::Change => changed += 1,
                        Effect::Remove => removed += 1,
                    }
                }
                Err(error) => outcome.fail(step.part(), chain(error.as_ref())),
            }
        }
        if created + changed + removed > 0 {
            tracing::info!(created, changed, removed, "wrote to the kernel");
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
        let (State::Known(observed), Some(wanted)) = (self.observe()?, &self.wanted) else { return Ok(()) };
        if observed.device.is_none() {
            // That is the failure; this one must not be set back by it.
            return Ok(());
        }
        if !observed.carries(wanted) {
            return Err("not written: the overlay does not stand yet".into());
        }
        if handoff::write(&self.options.cni_conf_dir, content)? {
            let dir = self.options.cni_conf_dir.display();
            tracing::info!("wrote {dir}/{}: this node takes pods", handoff::CONFLIST);
        }
        self.announce(&KernelState { conflist: Some(content.to_owned()), ..*observed });
        Ok(())
    }
}

impl Target for Overlay {
    type Input = Snapshot;
    type State = State;
    type Step = Step;
    type Part = Part;

    fn desired(&mut self, snapshot: &Snapshot) -> (State, Vec<Problem>) {
        let Settings { node, vni, service_ranges, .. } = &self.options.settings;
        let rules = Rules { vni: *vni, service_ranges: service_ranges.clone(), ..Rules::default() };
        let (mut table, mut problems) = resolve::overlay(snapshot, node, &rules);
        let wanted = self.wanted(&mut table, &mut problems);
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
        self.report.leave(&self.options.run_dir, &mut self.written);
        (state, problems)
    }

    fn observe(&mut self) -> Result<State, Error> {
        let mut state = kernel::observe(&mut self.socket, &self.device)?;
        state.forwarding = forwarding::forwarded()?;
        state.conflist = handoff::read(&self.options.cni_conf_dir)?;
        self.announce(&state);
        Ok(State::Known(Box::new(state)))
    }

    fn diff(&self, observed: &State, desired: &State) -> Vec<Step> {
        match (observed, desired) {
            (State::Known(observed), State::Known(desired)) => plan(observed, desired),
            (_, State::Hold(why)) | (State::Hold(why), _) => vec![Step::Hold(why.clone())],
        }
    }

    fn guarded(&self, observed: &State) -> usize {
        match observed {
            State::Known(state) => {
                state.routes.values().filter(|route| **route != Route::Unreachable).count()
            }
            State::Hold(_) => 0,
        }
    }

    /// A route to another node's pods.
    fn takes_away(&self, _observed: &State, step: &Step) -> bool {
        matches!(step, Step::RemoveRoute(_, Route::Via { .. } | Route::Direct { .. }))
    }

    fn part(step: &Step) -> Part {
        step.part()
    }

    fn effect(step: &Step) -> Effect {
        step.effect()
    }

    fn apply(&mut self, steps: Vec<Step>) -> Outcome<Part> {
        let outcome = self.take(&steps);
        for step in &steps {
            let part = step.part();
            match outcome.failed.get(&part) {
                Some(why) => self.report.failed.insert(part.to_string(), why.clone()),
                None => self.report.failed.remove(&part.to_string()),
            };
        }
        self.report.leave(&self.options.run_dir, &mut self.written);
        outcome
    }
}
