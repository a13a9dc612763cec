//! What proxyd asks of a kernel mechanism.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use heddle_model::{FrontendAddr, Part, Plan, ServiceTable};
pub use heddle_reconcile::Error;
use serde::Serialize;

/// What became of a plan, by part of the table.
pub type Outcome = heddle_reconcile::Outcome<Part>;

/// A kernel mechanism that makes a [`ServiceTable`] true on this node.
pub trait Dataplane: Send {
    /// What this mechanism can hold of `desired`, and what it cannot (reported on the frontend, never
    /// silent). Pure, but for what it may remember. What it returns, applied, is what `observe` returns.
    fn project(&mut self, desired: &ServiceTable) -> (ServiceTable, Vec<Unsupported>);

    /// Works on these devices from now on: hooks are attached, the configuration is written. Called after
    /// the table was written: in the first pass, whenever the devices change, and in each full pass; with
    /// nothing changed it writes nothing. What it worked on before and is not named any more is let go.
    fn devices(&mut self, devices: &Devices) -> Result<(), Error>;

    /// Every source has said what it has: from now on a table that is desired is a whole one.
    fn synced(&mut self) {}

    /// What the kernel holds. Adopts, never flushes: what a previous process left is read as it is.
    fn observe(&mut self) -> Result<ServiceTable, Error>;

    /// What the kernel holds, if that is known without asking it: nobody else writes there, and no write has failed
    /// half-way.
    fn recall(&self) -> Option<ServiceTable> {
        None
    }

    /// What the kernel holds is `table`, all of it.
    fn settled(&mut self, table: &ServiceTable) {
        let _ = table;
    }

    /// Does the steps of a plan; each is idempotent. A part that fails does not stop the others.
    fn apply(&mut self, plan: &Plan) -> Outcome;

    /// Packets and flows, counted by the kernel, by name.
    fn counters(&mut self) -> Result<Counters, Error>;

    /// Housekeeping, about once a second: collects flows that ended or are stale.
    fn tend(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Something of a frontend that the mechanism cannot do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unsupported {
    pub frontend: FrontendAddr,
    pub what: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontend {}: {}", self.frontend, self.what)
    }
}

/// The devices of this node that services are met on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Where traffic from outside arrives. The first is the one with the node's address.
    pub underlay: Vec<Device>,
    /// The VXLAN device; absent until `vxland` has made it.
    pub overlay: Option<Device>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// Largest packet it carries, in bytes, headers of layer 2 not counted.
    pub mtu: u32,
    /// Its addresses, link-local ones left out; of a device of the underlay those that are the node's, if any
    /// are.
    pub addresses: BTreeSet<IpAddr>,
}

/// Counters of the kernel by name (`flow_new`, `drop_no_route`, ...).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counters(pub BTreeMap<String, u64>);
