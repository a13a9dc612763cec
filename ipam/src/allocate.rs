//! Giving addresses and taking them back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use heddle_spec::Owner;
use ipnetwork::IpNetwork;

use crate::note::Note;
use crate::store::{Lease, owner_of};
use crate::surroundings::{Surroundings, Use};
use crate::{Error, Locked, Namespace, RangeSet, Result};

/// How many taken addresses we step over before we list which ones are free.
const STEPS: usize = 32;
/// How many free addresses that the host has in use itself we step over before we call the range full.
const MOST_IN_USE: usize = 64;
/// A range runs low when no more than one address in so many is free.
const LOW: u128 = 8;

/// Who wants which addresses.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub owner: &'a Owner,
    /// One address from each.
    pub sets: &'a [RangeSet],
    /// Addresses that are asked for by name, at most one from each set.
    pub ips: &'a [IpAddr],
    /// Where they go.
    pub namespace: Option<&'a Namespace>,
}

/// An address that an interface was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address and the prefix length of its subnet.
    pub ip: IpNetwork,
    pub gateway: IpAddr,
}

/// What a search for a free address found.
#[derive(Clone, Copy, Debug)]
struct Choice {
    ip: IpAddr,
    /// Hardly any other was free.
    low: bool,
}

/// An address of a set that is about to be leased.
#[derive(Debug)]
struct Chosen<'a> {
    /// The number of the set.
    n: usize,
    set: &'a RangeSet,
    ip: IpAddr,
    /// The next search begins after it: it was neither asked for by name nor held before.
    in_turn: bool,
}

impl Locked<'_> {
    /// Gives `request.owner` its addresses. `true`: a range runs low.
    ///
    /// An owner that holds addresses already (its earlier call was cut off) gets the same again. If any
    /// set has none to give, none is given.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Taken`], [`Error::Unavailable`], and those of the file system.
    pub(crate) fn give(
        &self,
        request: &Request<'_>,
        around: &mut dyn Surroundings,
    ) -> Result<(Vec<Allocation>, bool)> {
        check_requested(request)?;
        let owner = request.owner;
        let noted = self.noted(owner)?.unwrap_or_default();
        let held = self.held_of(owner, noted.ips)?;
        let mut chosen = Vec::new();
        let mut low = false;
        for (n, set) in request.sets.iter().enumerate() {
            let wanted = request.ips.iter().copied().find(|ip| set.range_of(*ip).is_some());
            let again = held.iter().copied().find(|ip| set.range_of(*ip).is_some());
            let (ip, in_turn) = match (wanted, again) {
                (Some(wanted), again) if again != Some(wanted) => (self.claim(wanted, around)?, false),
                (_, Some(again)) => (again, false),
                _ => {
                    let choice = self.choose(n, set, around)?;
                    low |= choice.low;
                    (choice.ip, true)
                }
            };
            chosen.push(Chosen { n, set, ip, in_turn });
        }
        // With what it held before: until that is freed, a note must name it.
        let ips: BTreeSet<IpAddr> =
            chosen.iter().map(|chosen| chosen.ip).chain(held.iter().copied()).collect();
        let note = Note { ips: ips.into_iter().collect(), namespace: request.namespace.cloned() };
        self.note(owner, &note)?;
        let result = self.take(owner, &chosen, &held);
        if result.is_err() {
            // What was taken before the failure goes back; the first failure is the one to tell.
            drop(self.release_these(owner, &note.ips));
            drop(self.forget(owner));
        }
        Ok((result?, low))
    }

    fn take(&self, owner: &Owner, chosen: &[Chosen<'_>], held: &[IpAddr]) -> Result<Vec<Allocation>> {
        let mut allocations = Vec::new();
        for Chosen { n, set, ip, in_turn } in chosen {
            // Nobody else can have taken it: we have the lock.
            if !held.contains(ip) && !self.create(*ip, owner)? {
                return Err(Error::Taken { address: *ip, holder: self.holder(*ip) });
            }
            if *in_turn {
                self.set_last(*n, *ip)?;
            }
            let Some(range) = set.range_of(*ip) else { continue };
            let ip = IpNetwork::new(*ip, range.subnet.prefix())
                .map_err(|error| Error::config("ipam.ranges", error.to_string()))?;
            allocations.push(Allocation { ip, gateway: range.gateway });
        }
        // What the owner held beside that came from a configuration that is no more.
        for ip in held.iter().filter(|ip| !chosen.iter().any(|chosen| chosen.ip == **ip)) {
            self.free(*ip, owner)?;
        }
        Ok(allocations)
    }

    /// An address that was asked for, if it is free.
    fn claim(&self, address: IpAddr, around: &mut dyn Surroundings) -> Result<IpAddr> {
        if !self.is_free(address)? {
            return Err(Error::Taken { address, holder: self.holder(address) });
        }
        match around.usage(address)? {
            Use::None => Ok(address),
            Use::Own => {
                let reason = "it is this node's own, or the broadcast address of one of its networks";
                Err(Error::Unavailable { address, reason })
            }
            Use::Wired => {
                let holder = "nobody, but this node has a route to it alone: some interface has it".into();
                Err(Error::Taken { address, holder })
            }
        }
    }

    /// The next free address of a set.
    fn choose(&self, n: usize, set: &RangeSet, around: &mut dyn Surroundings) -> Result<Choice> {
        let last = self.last(n);
        for (ip, _) in set.after(last).take(STEPS) {
            if self.is_free(ip)? && around.usage(ip)? == Use::None {
                return Ok(Choice { ip, low: false });
            }
        }
        // Sorted, not hashed: nothing here asks the kernel for randomness.
        let mut leased = self.addresses()?;
        leased.sort_unstable();
        let taken = leased.iter().filter(|ip| set.range_of(**ip).is_some()).count() as u128;
        let low = (set.size() - taken.min(set.size())) <= set.size() / LOW;
        let mut in_use = Vec::new();
        for (ip, _) in set.after(last).filter(|(ip, _)| leased.binary_search(ip).is_err()) {
            if around.usage(ip)? == Use::None {
                return Ok(Choice { ip, low });
            }
            in_use.push(ip);
            if in_use.len() > MOST_IN_USE {
                break;
            }
        }
        Err(Error::Exhausted { ranges: set.to_string(), held: self.count(n, taken, &in_use) })
    }

    /// What of a set is taken, without reading any lease.
    fn count(&self, n: usize, taken: u128, in_use: &[IpAddr]) -> String {
        let mut text = format!("{taken} leases of set {n} in {}", self.directory());
        if let Some(first) = in_use.first() {
            let more = if in_use.len() > 1 { " and others" } else { "" };
            text.push_str(&format!("; {first}{more} not leased, but in use on this node"));
        }
        text
    }

    fn holder(&self, ip: IpAddr) -> String {
        match self.lease(ip) {
            Ok(Lease::Held(content)) => content.replace("\r\n", " "),
            _ => format!("something in {}", self.directory()),
        }
    }

    /// Takes back what `owner` holds; returns the addresses. Nothing is no error.
    ///
    /// Without a note of ours (a lease of the reference plugin) all leases are read.
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let freed = match self.noted(owner)? {
            Some(noted) => self.release_these(owner, &noted.ips)?,
            None => self.release_these(owner, &self.addresses()?)?,
        };
        // After the leases: a note without leases is harmless, a lease without a note is not.
        self.forget(owner)?;
        Ok(freed)
    }

    /// Frees what can be freed; the first failure is told after all were tried.
    fn release_these(&self, owner: &Owner, ips: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        let mut failed = Ok(());
        for ip in ips {
            match self.free(*ip, owner) {
                Ok(true) => freed.push(*ip),
                Ok(false) => {}
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed.map(|()| freed)
    }

    /// Whether every set has an address left.
    pub(crate) fn room(&self, sets: &[RangeSet], around: &mut dyn Surroundings) -> Result<()> {
        sets.iter().enumerate().try_for_each(|(n, set)| self.choose(n, set, around).map(drop))
    }

    /// Everybody who holds anything. Reads all leases. What is no lease of an interface has no owner.
    pub fn owners(&self) -> Result<BTreeSet<Owner>> {
        let mut owners = BTreeSet::new();
        for ip in self.addresses()? {
            if let Lease::Held(content) = self.lease(ip)? {
                owners.extend(owner_of(&content));
            }
        }
        Ok(owners)
    }

    /// What `owner` holds.
    pub fn held(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let ips = match self.noted(owner)? {
            Some(noted) => noted.ips,
            None => self.addresses()?,
        };
        self.held_of(owner, ips)
    }

    fn held_of(&self, owner: &Owner, ips: Vec<IpAddr>) -> Result<Vec<IpAddr>> {
        let mut held = Vec::new();
        for ip in ips {
            if self.holds(owner, ip)? {
                held.push(ip);
            }
        }
        Ok(held)
    }
}

/// Every address that is asked for must be one that can be given, and none may be in another's way.
fn check_requested(request: &Request<'_>) -> Result<()> {
    for (position, address) in request.ips.iter().enumerate() {
        let refused = |reason| Err(Error::Unavailable { address: *address, reason });
        let Some(set) = request.sets.iter().find(|set| set.range_of(*address).is_some()) else {
            let of = |what: fn(&crate::Range) -> Option<IpAddr>| {
                request.sets.iter().flat_map(RangeSet::ranges).any(|range| what(range) == Some(*address))
            };
            if of(|range| Some(range.gateway)) {
                return refused("it is the gateway");
            }
            if of(|range| Some(range.subnet.network())) {
                return refused("it is the address of the network itself");
            }
            if of(|range| range.subnet.is_ipv4().then(|| range.subnet.broadcast())) {
                return refused("it is the broadcast address");
            }
            return refused("it is in none of the ranges");
        };
        let others = request.ips.iter().take(position);
        if others.clone().any(|other| other != address && set.range_of(*other).is_some()) {
            return refused(
                "another address of the same range set is asked for, and an interface gets one of each",
            );
        }
    }
    Ok(())
}
