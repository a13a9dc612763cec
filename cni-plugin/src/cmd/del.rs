//! DEL: takes away what ADD made. What is not there is no error, and nothing that fails keeps the rest from
//! being done.

use heddle_ipam::Store;
use heddle_netlink::{NetNs, Socket, link};

use super::{PATIENCE, boot_id};
use crate::conf::Place;
use crate::guard;
use crate::veth::Pair;
use heddle_spec::{Environment, Failure};

/// Unwires the pod. Reports the first failure, after having tried everything.
pub fn del(environment: &Environment, place: &Place) -> Result<(), Failure> {
    let pair = Pair::new(&place.network, &environment.owner);
    let steps: [Result<(), Failure>; 4] = [
        heddle_bpf::detach_pod(&place.bpf_root, &pair.host).map_err(Failure::kernel),
        delete_pair(environment, &pair),
        guard::dismiss(&pair),
        // The address last: it must not be another's while packets can still reach this pod.
        release(environment, place),
    ];
    steps.into_iter().collect()
}

fn delete_pair(environment: &Environment, pair: &Pair) -> Result<(), Failure> {
    if pair.delete(&mut Socket::open()?)? {
        return Ok(());
    }
    // Somebody renamed or moved the host side: the pod's side is still where it was.
    let Some(ns) = environment.netns.as_ref().and_then(|path| NetNs::open(path).ok()) else { return Ok(()) };
    if ns == NetNs::current()? {
        return Ok(());
    }
    let mut pod = Socket::open_in(&ns)?;
    match link::by_name(&mut pod, &pair.pod)? {
        Some(far) if far.kind.as_deref() == Some("veth") && far.mac == Some(pair.pod_mac) => {
            match link::delete(&mut pod, far.index) {
                Err(error) if !error.not_found() => Err(error.into()),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn release(environment: &Environment, place: &Place) -> Result<(), Failure> {
    if let Some(store) = Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        store.lock(PATIENCE)?.release(&environment.owner)?;
    }
    Ok(())
}
