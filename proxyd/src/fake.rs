//! A dataplane without a kernel, for tests, and a poor one that can do half.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heddle_model::{BackendState, Frontend, Part, Plan, ProtoMatch, Protocol, ServiceTable, Step};

use crate::dataplane::{Counters, Dataplane, Devices, Error, Outcome, Unsupported};

/// What the "kernel" holds. Clones are the same kernel; it outlives every dataplane.
#[derive(Clone, Debug, Default)]
pub struct Kernel(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
pub struct Held {
    pub table: ServiceTable,
    pub devices: Option<Devices>,
    /// Steps that were done.
    pub writes: u64,
    /// Laws that were broken.
    pub broken: Vec<String>,
}

impl Kernel {
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The dataplane.
#[derive(Debug)]
pub struct Fake {
    pub kernel: Kernel,
    /// Knows IPv4 and TCP only, and no backend that is not active.
    pub poor: bool,
}

impl Dataplane for Fake {
    fn project(&mut self, desired: &ServiceTable) -> (ServiceTable, Vec<Unsupported>) {
        let mut table = desired.clone();
        let mut lacks = Vec::new();
        if self.poor {
            let held = desired.frontends.iter().filter_map(|(at, frontend)| {
                if !at.ip.is_ipv4() || at.proto != ProtoMatch::Proto(Protocol::Tcp) {
                    lacks.push(Unsupported { frontend: *at, what: "only TCP over IPv4".into() });
                    return None;
                }
                let mut frontend = Frontend::clone(frontend);
                frontend.backends.retain(|backend| backend.state == BackendState::Active);
                Some((*at, Arc::new(frontend)))
            });
            table.frontends = held.collect();
        }
        (table, lacks)
    }

    fn devices(&mut self, devices: &Devices) -> Result<(), Error> {
        self.kernel.held().devices = Some(devices.clone());
        Ok(())
    }

    fn observe(&mut self) -> Result<ServiceTable, Error> {
        Ok(self.kernel.held().table.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Outcome {
        let mut held = self.kernel.held();
        let mut outcome = Outcome::done();
        for step in plan {
            match step {
                // As a kernel that keeps backends by their node's number.
                Step::PutFrontend { at, frontend, .. } => {
                    let strange = frontend.backends.iter().filter_map(|backend| backend.node.as_ref());
                    if let Some(node) = strange.into_iter().find(|node| !held.table.nodes.contains_key(*node))
                    {
                        outcome.fail(Part::Frontend(*at), format!("node {node} is not known"));
                        continue;
                    }
                }
                Step::RemoveNode { name } => {
                    let mut backends = held.table.frontends.values().flat_map(|frontend| &frontend.backends);
                    if backends.any(|backend| backend.node.as_ref() == Some(name)) {
                        outcome.fail(step.part(), "still in use");
                        continue;
                    }
                }
                _ => {}
            }
            held.writes += 1;
            step.apply(&mut held.table);
            if self.poor && held.table.frontends.keys().any(|at| at.ip.is_ipv6()) {
                held.broken.push(format!("{} was not projected", step.part()));
            }
        }
        outcome
    }

    fn counters(&mut self) -> Result<Counters, Error> {
        Ok(Counters::default())
    }
}
