//! Who must hold what, after all that happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::op::Id;

/// What an interface holds: leases, a device, rules.
#[derive(Clone, Debug, PartialEq)]
pub enum Holds {
    Nothing,
    /// Everything, and this is what ADD said.
    All(Value),
    /// It was cut off, or lost something without a word: all, a part or nothing, until DEL or GC.
    Perhaps,
    /// Leases of an earlier boot, until the next command that touches the network's leases.
    Stale,
}

/// A pod of the reference plugin: it has leases and nothing else, and only GC may take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Theirs {
    Nothing,
    Leased(BTreeSet<IpAddr>),
    Perhaps,
}

/// The state of the world, as far as it is known.
#[derive(Debug, Default)]
pub struct Model {
    pub ours: BTreeMap<Id, Holds>,
    pub theirs: BTreeMap<u8, Theirs>,
    pub full: bool,
}

impl Model {
    pub fn holds(&self, id: Id) -> &Holds {
        self.ours.get(&id).unwrap_or(&Holds::Nothing)
    }

    pub fn set(&mut self, id: Id, holds: Holds) {
        self.ours.insert(id, holds);
    }

    pub fn their(&self, pod: u8) -> &Theirs {
        self.theirs.get(&pod).unwrap_or(&Theirs::Nothing)
    }

    /// A command of this network came to a good end: what an earlier boot left there is gone.
    pub fn swept(&mut self, net: u8) {
        for (_, holds) in self.ours.iter_mut().filter(|(id, _)| id.net == net) {
            if *holds == Holds::Stale {
                *holds = Holds::Nothing;
            }
        }
    }

    /// Whether an earlier boot's leases may still be there.
    pub fn is_stale(&self, net: u8) -> bool {
        self.ours.iter().any(|(id, holds)| id.net == net && *holds == Holds::Stale)
    }

    /// Something of this interface may be missing or left over from now on.
    pub fn doubt(&mut self, id: Id) {
        if matches!(self.holds(id), Holds::All(_)) {
            self.set(id, Holds::Perhaps);
        }
    }

    /// The machine was started again.
    pub fn reboot(&mut self) {
        for holds in self.ours.values_mut().filter(|holds| **holds != Holds::Nothing) {
            *holds = Holds::Stale;
        }
        for theirs in self.theirs.values_mut().filter(|theirs| **theirs != Theirs::Nothing) {
            *theirs = Theirs::Perhaps;
        }
    }

    /// Interfaces that may have a device.
    pub fn may_have_device(&self) -> impl Iterator<Item = Id> {
        let may = |holds: &Holds| matches!(holds, Holds::All(_) | Holds::Perhaps);
        self.ours.iter().filter(move |(_, holds)| may(holds)).map(|(id, _)| *id)
    }

    /// Addresses that a complete interface has.
    pub fn addresses(holds: &Holds) -> BTreeSet<IpAddr> {
        let Holds::All(result) = holds else { return BTreeSet::new() };
        let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
        ips.iter()
            .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap())
            .collect()
    }
}
