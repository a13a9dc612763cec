//! A dataplane as a target of the reconcile loop.

use std::fmt;
use std::net::IpAddr;

use heddle_model::resolve::{Resolver, Rules};
use heddle_model::{
    BackendState, Effect, Frontend, NodeName, Object, Part as TablePart, Problem, ServiceTable, Snapshot,
    Step as TableStep, What,
};
use heddle_reconcile::{Error, Outcome, Target};

use crate::dataplane::{Dataplane, Devices};
use crate::devices::Found;

/// Finds the devices, given this node's addresses. The kernel's error is a reason like any other.
pub type Finder = Box<dyn FnMut(&[IpAddr]) -> Found + Send>;

/// The services of this node, made by a dataplane.
pub struct Services<D> {
    pub dataplane: D,
    find: Finder,
    /// What it found for which addresses, if nothing has happened since.
    found: Option<(Vec<IpAddr>, Found)>,
    node: NodeName,
    rules: Rules,
    resolver: Resolver,
}

/// What the loop compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `None`: not known. It never is after an observation: that the devices are as they must be is asserted
    /// in every full pass, by the dataplane, which knows best what is missing.
    pub devices: Option<Found>,
    pub table: ServiceTable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A part of the table.
    Table(TableStep),
    /// Work on these devices; or fail, because they cannot be told.
    Devices(Found),
}

/// What fails and is retried by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Table(TablePart),
    Devices,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(part) => part.fmt(f),
            Self::Devices => f.write_str("devices"),
        }
    }
}

impl<D: Dataplane> Services<D> {
    pub fn new(dataplane: D, find: Finder, node: NodeName, rules: Rules) -> Self {
        Self { dataplane, find, found: None, node, rules, resolver: Resolver::default() }
    }

    fn take_devices(&mut self, devices: &Found) -> Result<(), Error> {
        // As long as they cannot be told, the dataplane keeps those that it has.
        let devices: &Devices = devices.as_ref().map_err(Clone::clone)?;
        self.dataplane.devices(devices)
    }
}

/// Somebody takes new flows there.
fn leads(frontend: &Frontend) -> bool {
    frontend.backends.iter().any(|backend| backend.state == BackendState::Active)
}

impl<D: fmt::Debug> fmt::Debug for Services<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("dataplane", &self.dataplane).field("node", &self.node).finish()
    }
}

impl<D: Dataplane> Target for Services<D> {
    type Input = Snapshot;
    type State = State;
    type Step = Step;
    type Part = Part;

    fn desired(&mut self, snapshot: &Snapshot) -> (State, Vec<Problem>) {
        if snapshot.synced {
            self.dataplane.synced();
        }
        let (table, mut problems) = self.resolver.services(snapshot, &self.node, &self.rules);
        let (table, unsupported) = self.dataplane.project(&table);
        problems.extend(
            unsupported
                .into_iter()
                .map(|lack| Problem::new(Object::Frontend(lack.frontend), What::Said(lack.what))),
        );
        let addresses = self.resolver.nodes().accepted.get(&self.node).map(|node| node.addresses.as_slice());
        let addresses = addresses.unwrap_or_default();
        let devices = match self.found.take() {
            Some((known, found)) if known == addresses => (known, found),
            _ => (addresses.to_vec(), (self.find)(addresses)),
        };
        let devices = self.found.insert(devices).1.clone();
        (State { devices: Some(devices), table }, problems)
    }

    fn observe(&mut self) -> Result<State, Error> {
        Ok(State { devices: None, table: self.dataplane.observe()? })
    }

    fn diff(&self, observed: &State, desired: &State) -> Vec<Step> {
        let table = heddle_model::diff(&observed.table, &desired.table).into_iter().map(Step::Table);
        // Last: hooks come when the tables that they look into are as they must be.
        let changed = desired.devices.clone().filter(|_| desired.devices != observed.devices);
        table.chain(changed.map(Step::Devices)).collect()
    }

    fn recall(&mut self) -> Option<State> {
        Some(State { devices: None, table: self.dataplane.recall()? })
    }

    fn stirred(&mut self) {
        self.found = None;
    }

    fn settled(&mut self, state: &State) {
        self.dataplane.settled(&state.table);
    }

    /// Frontends that lead somewhere.
    fn guarded(&self, observed: &State) -> usize {
        observed.table.frontends.values().filter(|frontend| leads(frontend)).count()
    }

    fn takes_away(&self, observed: &State, step: &Step) -> bool {
        let led = |at| observed.table.frontends.get(at).is_some_and(|frontend| leads(frontend));
        match step {
            Step::Table(TableStep::RemoveFrontend { at }) => led(at),
            Step::Table(TableStep::PutFrontend { at, frontend, .. }) => !leads(frontend) && led(at),
            _ => false,
        }
    }

    fn part(step: &Step) -> Part {
        match step {
            Step::Table(step) => Part::Table(step.part()),
            Step::Devices(_) => Part::Devices,
        }
    }

    fn effect(step: &Step) -> Effect {
        match step {
            Step::Table(step) => step.effect(),
            // Devices are found here and not told by sources: there is no reason to wait for those.
            Step::Devices(_) => Effect::Create,
        }
    }

    fn apply(&mut self, steps: Vec<Step>) -> Outcome<Part> {
        let mut plan = Vec::new();
        let mut devices = None;
        for step in steps {
            match step {
                Step::Table(step) => plan.push(step),
                Step::Devices(found) => devices = Some(found),
            }
        }
        let mut outcome = Outcome::done();
        if !plan.is_empty() {
            for (part, why) in self.dataplane.apply(&plan).failed {
                outcome.fail(Part::Table(part), why);
            }
        }
        if let Some(devices) = devices
            && let Err(error) = self.take_devices(&devices)
        {
            outcome.fail(Part::Devices, heddle_daemon::exit::chain(error.as_ref()));
        }
        outcome
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.dataplane.tend()
    }
}
