//! Who holds what when a range is full, and what of it can be freed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use heddle_spec::Owner;

use crate::allocate::Full;
use crate::file::read_at;
use crate::store::{Lease, owner_of};
use crate::surroundings::{Surroundings, Use};
use crate::{Locked, Namespace, RangeSet, Result};

/// How many leases one call reads. A larger range is surveyed in turns.
const AT_MOST: usize = 1024;
/// How many leases a call looks at that got an address while hardly any other was free.
const AHEAD: usize = 32;
/// Where the last turn of a large range ended.
const SURVEYED: &str = "surveyed";

/// An interface whose network namespace is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub owner: Owner,
    pub namespace: Namespace,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Leases in the set.
    total: usize,
    /// Those that were read.
    read: usize,
    /// Leases a container; what names none is under "nobody".
    holders: BTreeMap<String, usize>,
    /// Leases without a note of where they went.
    unknown: usize,
    /// Leases of nobody, which are freed by now.
    pub nobody: usize,
    /// Namespaces that are not at their path, but alive or in use.
    hidden: usize,
    /// An address that is not leased, but in use on the host.
    in_use: Option<IpAddr>,
    pub dead: Vec<Dead>,
}

impl Locked<'_> {
    /// Reads the leases of `set`, as many as one call may; frees those of nobody.
    pub(crate) fn survey(
        &self,
        set: &RangeSet,
        full: &Full,
        around: &mut dyn Surroundings,
    ) -> Result<Survey> {
        let mut leased = full.leased.clone();
        leased.retain(|ip| set.range_of(*ip).is_some());
        let total = leased.len();
        if total > AT_MOST {
            let before =
                read_at(self.ours(), SURVEYED).ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
            let before: Option<IpAddr> = before.and_then(|text| text.parse().ok());
            let begin = before.map_or(0, |before| leased.partition_point(|ip| *ip <= before));
            leased.rotate_left(begin);
            leased.truncate(AT_MOST);
            if let Some(last) = leased.last() {
                self.write_ours(SURVEYED, last.to_string().as_bytes())?;
            }
        }
        let mut survey = self.look_at(&leased, around)?;
        survey.total = total;
        survey.in_use = full.in_use.first().copied();
        Ok(survey)
    }

    /// The dead among the leases that come next when `set` goes round.
    pub(crate) fn dead_ahead(
        &self,
        n: usize,
        set: &RangeSet,
        around: &mut dyn Surroundings,
    ) -> Result<Vec<Dead>> {
        let next: Vec<IpAddr> = set.after(self.last(n)).take(AHEAD).map(|(ip, _)| ip).collect();
        Ok(self.look_at(&next, around)?.dead)
    }

    fn look_at(&self, ips: &[IpAddr], around: &mut dyn Surroundings) -> Result<Survey> {
        let mut survey = Survey { read: ips.len(), ..Survey::default() };
        let mut suspects: BTreeMap<Owner, Namespace> = BTreeMap::new();
        for ip in ips {
            // One that cannot be read is somebody's.
            let container = match self.lease(*ip).unwrap_or(Lease::Strange) {
                Lease::Free => continue,
                Lease::Empty => {
                    self.reclaim(*ip)?;
                    survey.nobody += 1;
                    continue;
                }
                Lease::Held(content) => {
                    let owner = owner_of(&content);
                    match owner.as_ref().and_then(|owner| self.went_to(*ip, owner)) {
                        Some(namespace) if namespace.is_at_its_path() => {}
                        Some(namespace) => suspects.extend(owner.map(|owner| (owner, namespace))),
                        None => survey.unknown += 1,
                    }
                    content.lines().next().unwrap_or_default().to_owned()
                }
                Lease::Strange => "nobody".to_owned(),
            };
            *survey.holders.entry(container).or_default() += 1;
        }
        let suspected = suspects.len();
        survey.dead = self.dead(suspects, around)?;
        survey.hidden = suspected - survey.dead.len();
        Ok(survey)
    }

    /// The namespace that a lease went to. Of a lease that the reference plugin made, our note says nothing: it is
    /// of an earlier interface that was called the same.
    fn went_to(&self, ip: IpAddr, owner: &Owner) -> Option<Namespace> {
        let note = self.noted(owner).ok().flatten().filter(|note| note.ips.contains(&ip))?;
        note.namespace.filter(|_| self.is_ours(ip).unwrap_or(false))
    }

    /// Those of `suspects`, whose namespaces are no longer where they were, that are dead for certain: nobody that
    /// can be seen holds the namespace, and the host has no route to an address of theirs alone.
    fn dead(&self, suspects: BTreeMap<Owner, Namespace>, around: &mut dyn Surroundings) -> Result<Vec<Dead>> {
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let inodes: BTreeSet<u64> = suspects.values().map(Namespace::inode).collect();
        let Some(living) = around.living(&inodes) else { return Ok(Vec::new()) };
        let mut dead = Vec::new();
        for (owner, namespace) in suspects {
            // One that has the number now, but another cookie, is another one.
            let gone = living
                .get(&namespace.inode())
                .is_none_or(|cookie| cookie.is_some_and(|cookie| cookie != namespace.cookie()));
            if gone && !self.is_wired(&owner, around)? {
                dead.push(Dead { owner, namespace });
            }
        }
        Ok(dead)
    }

    fn is_wired(&self, owner: &Owner, around: &mut dyn Surroundings) -> Result<bool> {
        for ip in self.held(owner)? {
            if around.usage(ip)? != Use::None {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is the same as when it was found: a container may have come back with a new namespace.
    pub(crate) fn is_still(&self, dead: &Dead) -> bool {
        let noted = self.noted(&dead.owner).ok().flatten();
        noted.is_some_and(|note| note.namespace.as_ref() == Some(&dead.namespace))
    }
}

impl Survey {
    /// Whether anything can be freed, or was.
    pub(crate) fn found_any(&self) -> bool {
        self.nobody > 0 || !self.dead.is_empty()
    }

    /// For the operator: who holds how many, and what can be done.
    pub(crate) fn describe(&self, directory: std::path::Display<'_>) -> String {
        let mut largest: Vec<_> = self.holders.iter().collect();
        largest.sort_by_key(|(container, count)| (std::cmp::Reverse(**count), container.as_str()));
        let names: Vec<_> =
            largest.iter().take(3).map(|(container, count)| format!("{container}: {count}")).collect();
        let more = if largest.len() > 3 { ", ..." } else { "" };
        let mut text = format!("{} leases", self.total);
        if self.read < self.total {
            text += &format!(", of which {} were read,", self.read);
        }
        if !names.is_empty() {
            text += &format!(" of {} containers ({}{more})", self.holders.len(), names.join(", "));
        }
        text += &format!(" in {directory}");
        if self.hidden > 0 {
            text += &format!("; {} are of pods that are not where they were, but still there", self.hidden);
        }
        if self.unknown > 0 {
            text += &format!("; of {} it is not known where they went (host-local's)", self.unknown);
        }
        if let Some(ip) = self.in_use {
            text += &format!("; {ip} (and others?) not leased, but in use on this node");
        }
        text += "; DEL or GC frees those of containers that are gone, a larger range gives more";
        text
    }
}
