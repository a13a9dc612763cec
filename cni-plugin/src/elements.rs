//! What pods have in nf_tables, and how it goes: the one place for DEL and GC.
//!
//! The mark of a complete pair says what there is, so that DEL deletes exactly that in one transaction, and asks for
//! nothing where there is nothing. Without a mark (the device went first, or ADD was killed) all sets are looked
//! through for the name of the pod's device.

use std::collections::BTreeSet;

use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::{Socket, link};
use heddle_spec::Failure;

use crate::guard::TABLE;
use crate::mark::Mark;
use crate::{guard, masquerade};

/// Elements of one set to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub family: Family,
    pub set: String,
    pub keys: Vec<Vec<u8>>,
}

impl Removal {
    /// Adds the deletion to a transaction.
    pub fn add_to(&self, batch: &mut Batch) {
        batch.delete_elements(self.family, TABLE, &self.set, &self.keys);
    }
}

/// Deletes what the pod with this host side has. `mark`: what was written on the device, if it was there.
///
/// Returns the socket, if one was needed, to be closed when there is nothing else to wait for: net/netfilter/nf_tables_api.c
/// lets nobody close a socket of its kind until what was deleted is freed, some 15 ms later. The deletion of a device
/// takes as long, and the two go on side by side.
pub fn withdraw(device: &str, mark: Option<&Mark>) -> Result<Option<Nft>, Failure> {
    if let Some(mark) = mark.filter(|mark| mark.holdings.is_some()) {
        let mut batch = Batch::new();
        guard::held(device, mark)
            .iter()
            .chain(&masquerade::held(mark))
            .for_each(|one| one.add_to(&mut batch));
        if batch.is_empty() {
            return Ok(None);
        }
        let mut nft = Nft::open()?;
        match nft.commit(&batch) {
            // Somebody deleted a part of it.
            Err(error) if error.not_found() => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return Ok(Some(nft)),
        }
    }
    let mut nft = Nft::open()?;
    let found = all(&mut nft)?;
    delete(&mut nft, found.into_iter().filter(|(owner, _)| owner == device))?;
    Ok(Some(nft))
}

/// Deletes what a device of this name has, whatever was written on it.
pub fn dismiss(device: &str) -> Result<(), Failure> {
    withdraw(device, None).map(drop)
}

/// Deletes what is left of pods whose devices are gone, of any network: nobody can use it any more.
pub fn collect() -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    // In this order: a device is there before its first element.
    let found = all(&mut nft)?;
    if !found.is_empty() {
        let devices: BTreeSet<String> =
            link::list(&mut Socket::open()?)?.into_iter().map(|link| link.name).collect();
        delete(&mut nft, found.into_iter().filter(|(owner, _)| !devices.contains(owner)))?;
    }
    masquerade::sweep()
}

fn all(nft: &mut Nft) -> Result<Vec<(String, Removal)>, Failure> {
    let mut found = guard::all(nft)?;
    found.extend(masquerade::all(nft)?);
    Ok(found)
}

fn delete(nft: &mut Nft, dead: impl Iterator<Item = (String, Removal)>) -> Result<(), Failure> {
    let dead: Vec<Removal> = dead.map(|(_, removal)| removal).collect();
    let mut batch = Batch::new();
    dead.iter().for_each(|removal| removal.add_to(&mut batch));
    match nft.commit(&batch) {
        // Another DEL was quicker with one of them: one by one, then.
        Err(error) if error.not_found() => {
            for removal in dead {
                let mut batch = Batch::new();
                removal.add_to(&mut batch);
                match nft.commit(&batch) {
                    Err(error) if error.not_found() => {}
                    other => other?,
                }
            }
            Ok(())
        }
        other => Ok(other?),
    }
}
