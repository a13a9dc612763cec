//! DEL: takes away what ADD made. What is not there is no error, and no failure keeps the rest from being tried,
//! but for the lease.
//!
//! A lease that cannot be deleted (a data directory that became read-only) is a failure, though nothing of the pod is
//! left in the kernel. The specification wants success where something is *missing*; with success here, nobody
//! would come back for the address. The runtime calls DEL again, and when the disk is well it succeeds.

use heddle_netlink::{NetNs, Socket, link};

use crate::addresses;
use crate::conf::Place;
use crate::guard;
use crate::veth::Pair;
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure};

/// Unwires the pod. Reports the first failure, after having tried everything.
///
/// With `call`, a delegate is told too; GC tells it once for all.
pub fn del(environment: &Environment, place: &Place, call: Option<&Call>) -> Result<(), Failure> {
    let pair = Pair::new(&place.network, &environment.owner, place.mac.or(environment.mac));
    let steps: [Result<(), Failure>; 3] = [
        heddle_bpf::detach_pod(&place.bpf_root, &pair.host).map_err(Failure::kernel),
        delete_pair(environment, &pair),
        guard::dismiss(&pair),
    ];
    steps.into_iter().collect::<Result<(), Failure>>()?;
    // The address last, and only if all else is gone: it must not be another's while packets can still reach
    // this pod, and GC knows by it that there is something left.
    addresses::give_back(environment, place, call)
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
