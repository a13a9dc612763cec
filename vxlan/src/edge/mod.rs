//! What passes the edge of the overlay, and in whose name.
//!
//! Three things, which need no other node: pods' packets that leave the cluster leave in the node's name; VXLAN packets
//! are taken of the cluster's nodes alone; the kernel leaves checksums of what goes into the tunnel to a device only
//! where one can do them. The first two are one table of nf_tables, `inet vxland`, which nobody else writes: a
//! static rule set over sets of the cluster's ranges. All of it is a target of a loop of its own: what it cannot do
//! holds up nothing of the overlay.

pub mod checksums;
mod desired;
pub mod probe;
mod report;
mod rules;
mod seen;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use heddle_model::Effect;
use heddle_netlink::monitor::Event;
use heddle_netlink::nft::{Chain, Nft};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::report::Left;
use desired::desired;
use report::Report;
pub use seen::{Seen, seen};
pub use target::{Edge, TABLE};

/// What the administrator chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether pods' packets that leave the cluster leave in the node's name.
    pub masquerade: bool,
    /// Ranges outside the cluster that see pods' own addresses all the same.
    pub unmasqueraded: BTreeSet<IpNetwork>,
    pub checksums: checksums::Choice,
}

/// Wakes the loop.
#[derive(Debug, Default)]
pub struct Wake(pub Notify);

/// The sets that the rules look into; each is one set per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Ranges of this node's pods.
    Pods,
    /// Ranges of other nodes' pods.
    Others,
    /// Ranges that see pods' own addresses, beside those.
    Kept,
    /// Where VXLAN packets of other nodes come from.
    Peers,
    /// All addresses of other nodes.
    Nodes,
    /// Where VXLAN packets for this node are sent.
    Ends,
}

impl Set {
    pub const ALL: [Self; 6] = [Self::Pods, Self::Others, Self::Kept, Self::Peers, Self::Nodes, Self::Ends];

    /// Its name in the table.
    pub const fn name(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Pods, true) => "pods4",
            (Self::Pods, false) => "pods6",
            (Self::Others, true) => "others4",
            (Self::Others, false) => "others6",
            (Self::Kept, true) => "kept4",
            (Self::Kept, false) => "kept6",
            (Self::Peers, true) => "peers4",
            (Self::Peers, false) => "peers6",
            (Self::Nodes, true) => "nodes4",
            (Self::Nodes, false) => "nodes6",
            (Self::Ends, true) => "ends4",
            (Self::Ends, false) => "ends6",
        }
    }
}

/// Rules that come and go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Whose name packets leave in.
    Masquerade,
    /// Who may send VXLAN packets, and what may be inside.
    Senders,
}

impl Group {
    pub const ALL: [Self; 2] = [Self::Masquerade, Self::Senders];
}

/// Rules as the kernel has them, or as they are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What tells each rule from all others ([`heddle_netlink::nft::Rule::tag`]), by chain, in order.
    pub tags: BTreeMap<String, Vec<String>>,
    /// What they are made of; chains that others jump to come first. Not read from the kernel.
    pub chains: Vec<Chain>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// A group without rules is not there.
    pub rules: BTreeMap<Group, Rules>,
    pub members: BTreeSet<(Set, IpNetwork)>,
    /// Whether checksums are left to the device, by VXLAN device.
    pub offload: BTreeMap<String, bool>,
}

/// One change of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Add(Set, IpNetwork),
    Remove(Set, IpNetwork),
    /// Makes the chains of a group hold what they should. `replaces`: something of it is there.
    Put {
        group: Group,
        chains: Vec<Chain>,
        replaces: bool,
    },
    /// Deletes the chains of a group.
    Drop(Group, Vec<String>),
    /// Leaves checksums to the device, or does not.
    Offload(String, bool),
}

/// What fails, backs off and is retried by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Group(Group),
    Member(Set, IpNetwork),
    Offload(String),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "masquerade",
            Self::Senders => "check of VXLAN senders",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => group.fmt(f),
            Self::Member(set, range) => write!(f, "{range} in nftables set {}", set.name(range.is_ipv4())),
            Self::Offload(device) => write!(f, "checksum offload of {device}"),
        }
    }
}

impl Step {
    pub fn part(&self) -> Part {
        match self {
            Self::Add(set, range) | Self::Remove(set, range) => Part::Member(*set, *range),
            Self::Put { group, .. } | Self::Drop(group, _) => Part::Group(*group),
            Self::Offload(device, _) => Part::Offload(device.clone()),
        }
    }

    pub const fn effect(&self) -> Effect {
        match self {
            // Before everything is known a check would drop packets of nodes that are merely not known yet.
            Self::Put { group: Group::Senders, .. }
            | Self::Put { replaces: true, .. }
            | Self::Offload(..) => Effect::Change,
            Self::Add(..) | Self::Put { .. } => Effect::Create,
            Self::Remove(..) | Self::Drop(..) => Effect::Remove,
        }
    }
}

impl fmt::Display for Step {
    /// What it would put right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(..) => write!(f, "{} is missing", self.part()),
            Self::Remove(..) => write!(f, "{} is left over", self.part()),
            Self::Put { group, replaces: false, .. } => {
                write!(f, "{group}: its rules are not in nftables table inet {TABLE}")
            }
            Self::Put { group, .. } => {
                write!(f, "{group}: nftables table inet {TABLE} has other rules than it should")
            }
            Self::Drop(group, _) => write!(f, "{group}: its rules are left over"),
            Self::Offload(device, true) => write!(f, "checksums are not left to device {device}"),
            Self::Offload(device, false) => write!(f, "checksums are left to device {device}"),
        }
    }
}

/// The steps from what is to what must be: members before the rules that ask for them.
pub fn plan(observed: &State, desired: &State) -> Vec<Step> {
    let mut steps: Vec<Step> = observed
        .members
        .difference(&desired.members)
        .map(|(set, range)| Step::Remove(*set, *range))
        .collect();
    steps.extend(desired.members.difference(&observed.members).map(|(set, range)| Step::Add(*set, *range)));
    for group in [Group::Masquerade, Group::Senders] {
        let there = observed.rules.get(&group);
        match desired.rules.get(&group) {
            Some(rules) if there.is_some_and(|there| there.tags == rules.tags) => {}
            Some(rules) => {
                let chains = rules.chains.clone();
                steps.push(Step::Put { group, chains, replaces: there.is_some() });
            }
            None => {
                let chains = |there: &Rules| there.tags.keys().cloned().collect();
                steps.extend(there.map(|there| Step::Drop(group, chains(there))));
            }
        }
    }
    for (device, left) in &desired.offload {
        if observed.offload.get(device).is_some_and(|there| there != left) {
            steps.push(Step::Offload(device.clone(), *left));
        }
    }
    steps
}

/// Whether it is one of our VXLAN devices.
fn is_ours(device: &str) -> bool {
    device.starts_with("heddle")
}

/// Whether an event of the kernel asks for a look at the table.
pub fn concerns(event: &Event) -> bool {
    match event {
        Event::Nft(table) => table == TABLE,
        // A device that is new, or whose offloads were changed.
        Event::Link(_, link) => is_ours(&link.name),
        Event::Lost => true,
        _ => false,
    }
}

/// Removes all of it. Returns what was there.
pub fn clean(run_dir: &Path) -> Result<Vec<String>, heddle_reconcile::Error> {
    let mut removed = Vec::new();
    if target::remove(&mut Nft::open()?)? {
        removed.push(format!("nftables table inet {TABLE}"));
    }
    Report::remove(run_dir)?;
    Ok(removed)
}
