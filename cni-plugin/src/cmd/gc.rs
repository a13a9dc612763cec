//! GC: takes away what belongs to interfaces that the runtime no longer knows (specification 1.1.0).
//!
//! Of this network only, and going on after a failure, as DEL does.

use std::collections::BTreeSet;
use std::time::Duration;

use heddle_ipam::Store;
use heddle_netlink::{Socket, Watch, link};

use super::{PATIENCE, boot_id, del};
use crate::addresses;
use crate::conf::Place;
use crate::mark::Mark;
use crate::mode::ipvlan;
use crate::veth::PREFIX;
use crate::{elements, hostport};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure, Owner, valid_attachments};

/// Collects what is not among the configuration's `cni.dev/valid-attachments`.
///
/// # Errors
/// Code 7 if the list is missing or cannot be read: then nothing is collected.
pub fn gc(place: &Place, call: &Call) -> Result<(), Failure> {
    let valid = valid_attachments(&call.object)?;
    let mut dead: BTreeSet<Owner> =
        leased(place)?.into_iter().filter(|owner| !valid.contains(owner)).collect();
    for owner in wired(place)?.into_iter().chain(ipvlan::owners(place)?) {
        if !valid.contains(&owner) {
            dead.insert(owner);
        }
    }
    let mut kept = valid.clone();
    let mut results: Vec<Result<(), Failure>> = Vec::new();
    for owner in dead {
        let turn = addresses::turn(place, &owner, false);
        let result = turn.and_then(|_turn| del::del(&Environment::of(owner.clone()), place, None));
        if result.is_err() {
            kept.insert(owner);
        }
        results.push(result);
    }
    // Only now, and not of those of which something is left: a lease goes after what it was for.
    results.extend([
        sweep(place, &kept),
        nameless(),
        elements::collect(),
        hostport::collect(&place.run_dir, &place.network, &valid),
        addresses::pass_on(place.delegate.as_deref(), call),
    ]);
    let failures = results.into_iter().filter_map(Result::err).collect();
    told(failures)
}

/// All failures in one: the first one's code, and what else there was.
fn told(failures: Vec<Failure>) -> Result<(), Failure> {
    let mut failures = failures.into_iter();
    let Some(mut first) = failures.next() else { return Ok(()) };
    for other in failures {
        if !first.details.is_empty() {
            first.details.push_str("; ");
        }
        first.details.push_str(&other.msg);
    }
    Err(first)
}

fn leased(place: &Place) -> Result<BTreeSet<Owner>, Failure> {
    match Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        Some(store) => Ok(store.lock(PATIENCE)?.owners()?.into_iter().collect()),
        None => Ok(BTreeSet::new()),
    }
}

/// Takes away the leases that nobody knows any more, and what has no owner at all.
fn sweep(place: &Place, valid: &BTreeSet<Owner>) -> Result<(), Failure> {
    match Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        Some(store) => Ok(store.lock(PATIENCE)?.collect(valid)?),
        None => Ok(()),
    }
}

/// Deletes the pairs on which ADD could not write whose they are, because it was killed right after it made them. Those
/// of an ADD that is at work get their mark while we look.
fn nameless() -> Result<(), Failure> {
    /// A thousand times what ADD needs.
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut host = Socket::open()?;
    let without_mark = |host: &mut Socket| -> heddle_netlink::Result<BTreeSet<u32>> {
        let links = link::list(host)?;
        let ours = links.iter().filter(|link| link.name.starts_with(PREFIX) && link.alias.is_none());
        Ok(ours.map(|link| link.index).collect())
    };
    let mut left = without_mark(&mut host)?;
    if left.is_empty() {
        return Ok(());
    }
    Watch::open()?.until(PATIENCE, || {
        let now = without_mark(&mut host)?;
        left.retain(|index| now.contains(index));
        Ok(left.is_empty())
    })?;
    for index in left {
        match link::delete(&mut host, index) {
            Err(error) if !error.not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The owners of pairs of this network, by their marks, whether or not ADD came to its end.
fn wired(place: &Place) -> Result<Vec<Owner>, Failure> {
    let links = link::list(&mut Socket::open()?)?;
    Ok(links
        .iter()
        .filter(|link| link.name.starts_with(PREFIX))
        .filter_map(|link| Mark::parse(link.alias.as_deref()?))
        .filter(|mark| mark.network == place.network.as_str())
        .map(|mark| mark.owner)
        .collect())
}
