//! GC: takes away what belongs to interfaces that the runtime no longer knows (specification 1.1.0).
//!
//! Of this network only, and going on after a failure, as DEL does.

use std::collections::BTreeSet;

use heddle_ipam::Store;
use heddle_netlink::{Socket, link};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{PATIENCE, boot_id, del};
use crate::conf::Place;
use crate::veth::{PREFIX, Pair};
use heddle_spec::{Environment, Failure, Owner, code, json};

/// An interface that the runtime knows.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// Collects what is not among the configuration's `cni.dev/valid-attachments`.
///
/// # Errors
/// Code 7 if the list is missing or cannot be read: then nothing is collected.
pub fn gc(object: &Map<String, Value>, place: &Place) -> Result<(), Failure> {
    let valid = valid(object)?;
    let mut dead: BTreeSet<Owner> =
        leased(place)?.into_iter().filter(|owner| !valid.contains(owner)).collect();
    for owner in wired(place)? {
        if !valid.contains(&owner) {
            dead.insert(owner);
        }
    }
    let collected: Vec<Result<(), Failure>> = dead
        .into_iter()
        .map(|owner| del::del(&Environment::of(owner), place))
        .chain([sweep(place)])
        .collect();
    collected.into_iter().collect()
}

/// The list of the runtime. One that cannot be read as a whole is no list: what is missing from it would be
/// taken away.
fn valid(object: &Map<String, Value>) -> Result<BTreeSet<Owner>, Failure> {
    const KEY: &str = "cni.dev/valid-attachments";
    let invalid = |reason: String| Failure::new(code::INVALID_CONFIG, format!("{KEY}: {reason}"));
    let list = object.get(KEY).ok_or_else(|| invalid("it is missing".into()))?;
    let list: Vec<Attachment> = json::typed(list.clone()).map_err(|failure| invalid(failure.msg))?;
    list.iter()
        .map(|one| Owner::new(&one.container_id, &one.ifname).map_err(|error| invalid(error.to_string())))
        .collect()
}

fn leased(place: &Place) -> Result<BTreeSet<Owner>, Failure> {
    match Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        Some(store) => Ok(store.lock(PATIENCE)?.owners()?.into_iter().collect()),
        None => Ok(BTreeSet::new()),
    }
}

/// Takes away what has no owner at all.
fn sweep(place: &Place) -> Result<(), Failure> {
    match Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        Some(store) => Ok(store.lock(PATIENCE)?.sweep()?),
        None => Ok(()),
    }
}

/// The owners of complete pairs of this network, by their marks.
fn wired(place: &Place) -> Result<Vec<Owner>, Failure> {
    let links = link::list(&mut Socket::open()?)?;
    Ok(links
        .iter()
        .filter(|link| link.name.starts_with(PREFIX))
        .filter_map(|link| Pair::owner_of(&place.network, link.alias.as_deref()?))
        .collect())
}
