//! Giving addresses and taking them back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use heddle_spec::Owner;
use ipnetwork::IpNetwork;

use crate::note::{Note, file_name};
use crate::store::{Lease, names, owner_of};
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

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Given {
    Whole(Vec<Allocation>),
    /// The same, and hardly any other address was free.
    Low(Vec<Allocation>),
    /// Nothing.
    Full(Full),
}

/// A set without a free address.
#[derive(Debug)]
pub(crate) struct Full {
    /// The number of the set.
    pub n: usize,
    /// What is leased, of all sets, in order.
    pub leased: Vec<IpAddr>,
    /// What is not leased, but in use on the host; not all of it if there is much.
    pub in_use: Vec<IpAddr>,
}

/// What a search for a free address found.
#[derive(Debug)]
enum Search {
    Found(IpAddr),
    /// One, and hardly any other.
    Low(IpAddr),
    Full(Full),
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
    /// Gives `request.owner` its addresses.
    ///
    /// An owner that holds addresses already (its earlier call was cut off) gets the same again. If any
    /// set has none to give, none is given.
    ///
    /// # Errors
    /// [`Error::Taken`], [`Error::Unavailable`], and those of the file system.
    pub(crate) fn give(&self, request: &Request<'_>, around: &mut dyn Surroundings) -> Result<Given> {
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
                _ => match self.choose(n, set, around)? {
                    Search::Found(ip) => (ip, true),
                    Search::Low(ip) => {
                        low = true;
                        (ip, true)
                    }
                    Search::Full(full) => return Ok(Given::Full(full)),
                },
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
            // Its note stays with what could not be given back.
            self.release_these(owner, &note.ips).and_then(|_| self.forget(owner)).ok();
        }
        let given = result?;
        Ok(if low { Given::Low(given) } else { Given::Whole(given) })
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
    fn choose(&self, n: usize, set: &RangeSet, around: &mut dyn Surroundings) -> Result<Search> {
        let last = self.last(n);
        for (ip, _) in set.after(last).take(STEPS) {
            if self.is_free(ip)? && around.usage(ip)? == Use::None {
                return Ok(Search::Found(ip));
            }
        }
        // Sorted, not hashed: nothing here asks the kernel for randomness.
        let mut leased = self.addresses()?;
        leased.sort_unstable();
        let taken = leased.iter().filter(|ip| set.range_of(**ip).is_some()).count() as u128;
        let low = (set.size() - taken.min(set.size())) <= set.size() / LOW;
        let mut in_use = Vec::new();
        if taken < set.size() {
            for (ip, _) in set.after(last).filter(|(ip, _)| leased.binary_search(ip).is_err()) {
                if around.usage(ip)? == Use::None {
                    return Ok(if low { Search::Low(ip) } else { Search::Found(ip) });
                }
                in_use.push(ip);
                if in_use.len() > MOST_IN_USE {
                    break;
                }
            }
        }
        Ok(Search::Full(Full { n, leased, in_use }))
    }

    fn holder(&self, ip: IpAddr) -> String {
        match self.lease(ip) {
            Ok(Lease::Held(content)) => content.replace("\r\n", " "),
            _ => format!("something in {}", self.directory()),
        }
    }

    /// Takes back what `owner` holds; returns the addresses. Nothing is no error.
    ///
    /// All leases are read only where there are some without a note (the reference plugin's), and a note of ours does
    /// not lead to any.
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let noted = self.noted(owner)?;
        let mut freed = match &noted {
            Some(noted) => self.release_these(owner, &noted.ips)?,
            None => Vec::new(),
        };
        if freed.is_empty() && !self.all_noted() {
            freed = self.release_by_reading(owner)?;
        }
        // After the leases: a note without leases is harmless, a lease without a note is not.
        if noted.is_some() {
            self.forget(owner)?;
        }
        Ok(freed)
    }

    fn release_by_reading(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let mut notes = self.notes()?;
        notes.sort_unstable();
        let is_noted = |content: &str| {
            owner_of(content).is_some_and(|owner| notes.binary_search(&file_name(&owner)).is_ok())
        };
        let mut freed = Vec::new();
        let mut all_noted = true;
        let mut failed = Ok(());
        for ip in self.addresses()? {
            match self.lease(ip) {
                Ok(Lease::Held(content)) if names(&content, owner) => match self.reclaim(ip) {
                    Ok(()) => freed.push(ip),
                    Err(error) => failed = failed.and(Err(error)),
                },
                Ok(Lease::Held(content)) => {
                    all_noted = all_noted && is_noted(&content) && self.is_ours(ip)?
                }
                Ok(Lease::Free) => {}
                Ok(Lease::Empty | Lease::Strange) => all_noted = false,
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed?;
        if all_noted {
            self.found_all_noted();
        }
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

    /// The first set that has no address left.
    pub(crate) fn full(&self, sets: &[RangeSet], around: &mut dyn Surroundings) -> Result<Option<Full>> {
        for (n, set) in sets.iter().enumerate() {
            if let Search::Full(full) = self.choose(n, set, around)? {
                return Ok(Some(full));
            }
        }
        Ok(None)
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
        let noted = self.noted(owner)?.unwrap_or_default();
        let held = self.held_of(owner, noted.ips)?;
        if held.is_empty() && !self.all_noted() {
            return self.held_of(owner, self.addresses()?);
        }
        Ok(held)
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
