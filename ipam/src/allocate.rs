//! Giving addresses and taking them back.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use heddle_spec::Owner;
use ipnetwork::IpNetwork;

use crate::store::{self, Lease};
use crate::{Error, Locked, RangeSet, Result};

/// How many taken addresses we step over before we read which ones are free.
const STEPS: usize = 32;
/// How many leases are read to say who holds them.
const READ_AT_MOST: usize = 1024;

/// An address that an interface was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address and the prefix length of its subnet.
    pub ip: IpNetwork,
    pub gateway: IpAddr,
}

impl Locked<'_> {
    /// Gives `owner` an address from each of `sets`, one of `requested` where it is in the set.
    ///
    /// An owner that holds addresses already (its earlier call was cut off) gets the same again. If any
    /// set has none to give, none is given.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Taken`], [`Error::Unavailable`], and those of the file system.
    pub fn allocate(
        &self,
        owner: &Owner,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<Vec<Allocation>> {
        if let Some(address) =
            requested.iter().find(|ip| !sets.iter().any(|set| set.range_of(**ip).is_some()))
        {
            let gateway = sets.iter().flat_map(RangeSet::ranges).any(|range| range.gateway == *address);
            let reason = if gateway { "it is the gateway" } else { "it is in none of the ranges" };
            return Err(Error::Unavailable { address: *address, reason });
        }
        let noted = self.noted(owner).unwrap_or_default();
        let held: Vec<IpAddr> = noted.into_iter().filter(|ip| self.holds(owner, *ip)).collect();
        let mut chosen = Vec::new();
        for (n, set) in sets.iter().enumerate() {
            let wanted = requested.iter().copied().find(|ip| set.range_of(*ip).is_some());
            let again = held.iter().copied().find(|ip| set.range_of(*ip).is_some());
            let ip = match (wanted, again) {
                (Some(wanted), again) if again != Some(wanted) => self.claim(wanted)?,
                (_, Some(again)) => again,
                _ => self.choose(n, set)?,
            };
            chosen.push((n, set, ip));
        }
        let ips: Vec<IpAddr> = chosen.iter().map(|(_, _, ip)| *ip).collect();
        self.note(owner, &ips)?;
        let result = self.take(owner, &chosen, &held);
        if result.is_err() {
            // What was taken before the failure goes back; the first failure is the one to tell.
            drop(self.release_these(owner, &ips));
            drop(self.forget(owner));
        }
        result
    }

    fn take(
        &self,
        owner: &Owner,
        chosen: &[(usize, &RangeSet, IpAddr)],
        held: &[IpAddr],
    ) -> Result<Vec<Allocation>> {
        let mut allocations = Vec::new();
        for (n, set, ip) in chosen {
            // Nobody else can have taken it: we have the lock.
            if !held.contains(ip) && !self.create(*ip, owner)? {
                return Err(Error::Taken { address: *ip, holder: self.holder(*ip) });
            }
            self.set_last(*n, *ip)?;
            let Some(range) = set.range_of(*ip) else { continue };
            let ip = IpNetwork::new(*ip, range.subnet.prefix())
                .map_err(|error| Error::config("ipam.ranges", error.to_string()))?;
            allocations.push(Allocation { ip, gateway: range.gateway });
        }
        // What the owner held beside that came from a configuration that is no more.
        for ip in held.iter().filter(|ip| !chosen.iter().any(|(_, _, chosen)| chosen == *ip)) {
            self.free(*ip, owner)?;
        }
        Ok(allocations)
    }

    /// A requested address, if it is free.
    fn claim(&self, address: IpAddr) -> Result<IpAddr> {
        match self.lease(address) {
            Lease::Free => Ok(address),
            Lease::Empty => self.reclaim(address).map(|()| address),
            Lease::Held(_) | Lease::Strange => Err(Error::Taken { address, holder: self.holder(address) }),
        }
    }

    /// The next free address of a set.
    fn choose(&self, n: usize, set: &RangeSet) -> Result<IpAddr> {
        let last = self.last(n);
        for (ip, _) in set.after(last).take(STEPS) {
            match self.lease(ip) {
                Lease::Free => return Ok(ip),
                Lease::Empty => return self.reclaim(ip).map(|()| ip),
                Lease::Held(_) | Lease::Strange => {}
            }
        }
        let leased: HashSet<IpAddr> = self.addresses()?.into_iter().map(|(_, ip)| ip).collect();
        match set.after(last).find(|(ip, _)| !leased.contains(ip)) {
            Some((ip, _)) => Ok(ip),
            None => self.last_resort(set, &leased),
        }
    }

    /// Everything has a lease: one of nobody may still be found among them, if they can be read in time.
    fn last_resort(&self, set: &RangeSet, leased: &HashSet<IpAddr>) -> Result<IpAddr> {
        let in_set = || leased.iter().copied().filter(|ip| set.range_of(*ip).is_some());
        if in_set().count() <= READ_AT_MOST
            && let Some(ip) = in_set().find(|ip| self.lease(*ip) == Lease::Empty)
        {
            return self.reclaim(ip).map(|()| ip);
        }
        Err(Error::Exhausted { ranges: set.to_string(), held: self.describe(&in_set().collect::<Vec<_>>()) })
    }

    /// Who holds how many: an operator's first question when a range is full.
    fn describe(&self, leased: &[IpAddr]) -> String {
        let directory = self.directory();
        if leased.len() > READ_AT_MOST {
            return format!("{} leases in {directory}", leased.len());
        }
        let mut holders: BTreeMap<String, usize> = BTreeMap::new();
        for ip in leased {
            let container = match self.lease(*ip) {
                Lease::Held(content) => content.lines().next().unwrap_or_default().to_owned(),
                Lease::Free | Lease::Empty | Lease::Strange => "nobody".to_owned(),
            };
            *holders.entry(container).or_default() += 1;
        }
        let mut largest: Vec<_> = holders.iter().collect();
        largest.sort_by_key(|(container, count)| (std::cmp::Reverse(**count), container.as_str()));
        let names: Vec<_> =
            largest.iter().take(3).map(|(container, count)| format!("{container}: {count}")).collect();
        let more = if holders.len() > 3 { ", ..." } else { "" };
        format!(
            "{} leases of {} containers ({}{more}) in {directory}",
            leased.len(),
            holders.len(),
            names.join(", ")
        )
    }

    fn holder(&self, ip: IpAddr) -> String {
        match self.lease(ip) {
            Lease::Held(content) => content.replace("\r\n", " "),
            Lease::Free | Lease::Empty | Lease::Strange => format!("something in {}", self.directory()),
        }
    }

    /// Takes back what `owner` holds; returns the addresses. Nothing is no error.
    ///
    /// Without a note of ours (a lease of the reference plugin) all leases are read.
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let freed = match self.noted(owner) {
            Some(noted) => self.release_these(owner, &noted)?,
            None => {
                let all: Vec<IpAddr> = self.addresses()?.into_iter().map(|(_, ip)| ip).collect();
                self.release_these(owner, &all)?
            }
        };
        // After the leases: a note without leases is harmless, a lease without a note is not.
        self.forget(owner)?;
        Ok(freed)
    }

    fn release_these(&self, owner: &Owner, ips: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        for ip in ips {
            if self.free(*ip, owner)? {
                freed.push(*ip);
            }
        }
        Ok(freed)
    }

    /// Whether every set has an address left.
    ///
    /// # Errors
    /// [`Error::Exhausted`] for the first that has none.
    pub fn check_room(&self, sets: &[RangeSet]) -> Result<()> {
        sets.iter().enumerate().try_for_each(|(n, set)| self.choose(n, set).map(drop))
    }

    /// Everybody who holds anything. Reads all leases. What is no lease of an interface has no owner.
    pub fn owners(&self) -> Result<HashSet<Owner>> {
        let mut owners = HashSet::new();
        for (_, ip) in self.addresses()? {
            if let Lease::Held(content) = self.lease(ip) {
                owners.extend(store::owner_of(&content));
            }
        }
        Ok(owners)
    }

    /// What `owner` holds.
    pub fn held(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let ips = match self.noted(owner) {
            Some(noted) => noted,
            None => self.addresses()?.into_iter().map(|(_, ip)| ip).collect(),
        };
        Ok(ips.into_iter().filter(|ip| self.holds(owner, *ip)).collect())
    }
}
