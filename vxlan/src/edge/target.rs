//! The table as a target of the reconcile loop.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heddle_model::resolve::{self, Rules as Resolution};
use heddle_model::store::Snapshot;
use heddle_model::{Effect, Problem, RemoteNode};
use heddle_netlink::nft::{self, Batch, Chain, Family, Nft, Ruleset, SetKey};
use heddle_netlink::{Result, Socket, link, offload};
use heddle_reconcile::{Error, Outcome, Target};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use tokio::sync::watch;

use super::checksums::{Choice, Finding};
use super::report::Report;
use super::{Group, Part, Rules, Set, Settings, State, Step, Wake, desired, is_ours, plan, probe, rules};
use crate::desired::Settings as Overlay;
use crate::report::Left;

/// The table of nf_tables that is vxland's alone.
pub const TABLE: &str = "vxland";

/// Reads the table.
pub fn observe(nft: &mut Nft, socket: &mut Socket) -> Result<State> {
    let mut state = State { offload: offload(socket)?, ..State::default() };
    let listed = nft.rules(Family::Inet, TABLE, None)?;
    for group in Group::ALL {
        let mut tags = BTreeMap::new();
        for chain in rules::chains_of(group) {
            let of_chain = listed.iter().filter(|rule| rule.chain == *chain);
            let there: Vec<String> = of_chain.map(|rule| rule.comment.clone()).collect();
            if !there.is_empty() {
                tags.insert((*chain).to_owned(), there);
            }
        }
        if !tags.is_empty() {
            state.rules.insert(group, Rules { tags, chains: Vec::new() });
        }
    }
    for set in Set::ALL {
        for v4 in [true, false] {
            let members = nft.prefixes(Family::Inet, TABLE, set.name(v4))?.unwrap_or_default();
            state.members.extend(members.into_iter().map(|range| (set, range)));
        }
    }
    Ok(state)
}

/// Whether checksums are left to our VXLAN devices.
fn offload(socket: &mut Socket) -> Result<BTreeMap<String, bool>> {
    let mut devices = BTreeMap::new();
    for link in link::list(socket)?.into_iter().filter(|link| link.vxlan.is_some() && is_ours(&link.name)) {
        match offload::transmit_checksums(socket, &link.name) {
            Ok(left) => drop(devices.insert(link.name, left)),
            // Just deleted.
            Err(error) if error.errno() == Some(Errno::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

/// Deletes the table. Returns whether there was one.
pub fn remove(nft: &mut Nft) -> Result<bool> {
    let ours = |table: &nft::ListedTable| table.family == Family::Inet && table.name == TABLE;
    if !nft.tables()?.iter().any(ours) {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.delete_table(Family::Inet, TABLE);
    nft.commit(&batch)?;
    Ok(true)
}

fn add_sets(batch: &mut Batch) {
    batch.add_table(Family::Inet, TABLE);
    for set in Set::ALL {
        batch.add_set(Family::Inet, TABLE, set.name(true), SetKey::Prefix4);
        batch.add_set(Family::Inet, TABLE, set.name(false), SetKey::Prefix6);
    }
}

/// Makes all changes of members in one transaction: what leaves one range and joins another is never in neither.
fn members(nft: &mut Nft, steps: &[&Step]) -> Result<()> {
    let (mut gone, mut new) = (BTreeMap::new(), BTreeMap::new());
    for step in steps {
        let (list, set, range) = match step {
            Step::Remove(set, range) => (&mut gone, set, range),
            Step::Add(set, range) => (&mut new, set, range),
            _ => continue,
        };
        list.entry(set.name(range.is_ipv4())).or_insert_with(Vec::<IpNetwork>::new).push(*range);
    }
    let mut batch = Batch::new();
    add_sets(&mut batch);
    for (set, ranges) in &gone {
        batch.delete_prefixes(Family::Inet, TABLE, set, ranges);
    }
    for (set, ranges) in &new {
        batch.add_prefixes(Family::Inet, TABLE, set, ranges);
    }
    nft.commit(&batch)
}

fn put(nft: &mut Nft, chains: &[Chain]) -> Result<()> {
    let ruleset = Ruleset { family: Family::Inet, table: TABLE, sets: Vec::new(), chains: chains.to_vec() };
    let mut batch = Batch::new();
    add_sets(&mut batch);
    nft.mend(&mut batch, &ruleset, &ruleset.chains.iter().collect::<Vec<_>>())?;
    nft.commit(&batch)
}

fn delete(nft: &mut Nft, chains: &[String]) -> Result<()> {
    let mut batch = Batch::new();
    chains.iter().for_each(|chain| batch.flush_chain(Family::Inet, TABLE, chain));
    chains.iter().for_each(|chain| batch.delete_chain(Family::Inet, TABLE, chain));
    nft.commit(&batch)
}

/// The edge of this node.
#[derive(Debug)]
pub struct Edge {
    overlay: Overlay,
    settings: Settings,
    nft: Nft,
    socket: Socket,
    finding: Arc<Finding>,
    /// Other nodes' addresses in the overlay.
    peers: watch::Sender<Vec<IpAddr>>,
    run_dir: PathBuf,
    report: Report,
    /// As it stands in the run directory.
    written: Option<Report>,
}

impl Edge {
    pub fn new(overlay: Overlay, settings: Settings, run_dir: &Path) -> Result<Self> {
        // What was found out since the machine was started: it is not asked again.
        let broken = Report::read(run_dir).ok().flatten().and_then(|report| report.broken);
        let report = Report { settings: settings.clone(), failed: BTreeMap::new(), broken: broken.clone() };
        Ok(Self {
            overlay,
            settings,
            nft: Nft::open()?,
            socket: Socket::open()?,
            finding: Arc::new(Finding::new(broken)),
            peers: watch::Sender::default(),
            run_dir: run_dir.to_owned(),
            report,
            written: None,
        })
    }

    /// Finds out, as long as it runs, whether checksums may be left to the device, if that is to be found out.
    pub fn probe(&self, wake: Arc<Wake>) -> impl Future<Output = ()> + Send + use<> {
        let wanted = self.settings.checksums == Choice::Auto && self.finding.why().is_none();
        let device = crate::kernel::device_name(self.overlay.vni);
        let (peers, finding) = (self.peers.subscribe(), Arc::clone(&self.finding));
        async move {
            if wanted {
                probe::watch(device, peers, finding, wake).await;
            }
        }
    }
}

impl Target for Edge {
    type Input = Snapshot;
    type State = State;
    type Step = Step;
    type Part = Part;

    fn desired(&mut self, snapshot: &Snapshot) -> (State, Vec<Problem>) {
        let Overlay { node, vni, service_ranges, .. } = &self.overlay;
        let resolution =
            Resolution { vni: *vni, service_ranges: service_ranges.clone(), ..Resolution::default() };
        // What is wrong with the nodes the overlay reports.
        let (table, _) = resolve::overlay(snapshot, node, &resolution);
        // While nothing is known of this node, what stands, stands.
        let mut state = desired(&table, &self.overlay, &self.settings)
            .or_else(|| observe(&mut self.nft, &mut self.socket).ok())
            .unwrap_or_default();
        let left = self.settings.checksums.leaves_them(&self.finding);
        let devices = offload(&mut self.socket).unwrap_or_default();
        state.offload = devices.into_keys().map(|device| (device, left)).collect();
        let first = |remote: &RemoteNode| remote.ranges.first().map(IpNetwork::network);
        let peers: Vec<IpAddr> = table.remotes.values().filter_map(first).collect();
        self.peers.send_if_modified(|known| std::mem::replace(known, peers.clone()) != peers);
        self.report.broken = self.finding.why();
        self.report.leave(&self.run_dir, &mut self.written);
        (state, Vec::new())
    }

    fn observe(&mut self) -> std::result::Result<State, Error> {
        Ok(observe(&mut self.nft, &mut self.socket)?)
    }

    fn diff(&self, observed: &State, desired: &State) -> Vec<Step> {
        plan(observed, desired)
    }

    fn guarded(&self, observed: &State) -> usize {
        observed.members.len()
    }

    fn part(step: &Step) -> Part {
        step.part()
    }

    fn effect(step: &Step) -> Effect {
        step.effect()
    }

    fn apply(&mut self, steps: Vec<Step>) -> Outcome<Part> {
        let mut outcome = Outcome::done();
        let changes: Vec<&Step> =
            steps.iter().filter(|step| matches!(step, Step::Add(..) | Step::Remove(..))).collect();
        if !changes.is_empty()
            && let Err(error) = members(&mut self.nft, &changes)
        {
            changes.iter().for_each(|step| outcome.fail(step.part(), &error));
        }
        for step in &steps {
            let done = match step {
                Step::Add(..) | Step::Remove(..) => continue,
                // A rule that asks for members who are not there would drop or translate what it must not.
                Step::Put { .. } if !outcome.failed.is_empty() => {
                    outcome.fail(step.part(), "waits for its sets");
                    continue;
                }
                Step::Put { chains, .. } => put(&mut self.nft, chains),
                Step::Drop(_, chains) => delete(&mut self.nft, chains),
                Step::Offload(device, left) => offload::set_transmit_checksums(&self.socket, device, *left),
            };
            match done {
                Ok(()) => tracing::info!("{step}: put right"),
                Err(error) => outcome.fail(step.part(), error),
            }
        }
        for step in &steps {
            let part = step.part();
            match outcome.failed.get(&part) {
                Some(why) => self.report.failed.insert(part.to_string(), why.clone()),
                None => self.report.failed.remove(&part.to_string()),
            };
        }
        self.report.leave(&self.run_dir, &mut self.written);
        outcome
    }
}
