//! DEL: takes away what ADD made. What is not there is no error, and no failure keeps the rest from being tried,
//! but for the lease.
//!
//! A lease that cannot be deleted (a data directory that became read-only) is a failure, though nothing of the pod is
//! left in the kernel. The specification wants success where something is *missing*; with success here, nobody
//! would come back for the address. The runtime calls DEL again, and when the disk is well it succeeds.

use heddle_netlink::{NetNs, Socket, link};

use crate::addresses;
use crate::conf::{Deletion, Place};
use crate::mark::Mark;
use crate::mode::ipvlan;
use crate::veth::{Deleted, Pair};
use crate::{elements, hostport};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure};

/// Unwires the pod. Reports the first failure, after having tried everything.
///
/// With `call`, a delegate is told too; GC tells it once for all.
pub fn del(environment: &Environment, place: &Place, call: Option<&Call>) -> Result<(), Failure> {
    let pair = Pair::new(&place.network, &environment.owner, place.mac.or(environment.mac));
    let withdrawn = hostport::withdraw(&place.run_dir, &pair);
    let detached = heddle_bpf::detach_pod(&place.bpf_root, &pair.host).map_err(Failure::kernel);
    // GC is for pods of which the runtime knows nothing any more, so nothing more will happen to them.
    let leave = place.deletion == Deletion::WithNamespace && call.is_some();
    let mut dismissed = Ok(None);
    let deleted = delete_pair(environment, &pair, leave, |mark| {
        // Before the pair, whose mark says what to look for. Closed at the end.
        dismissed = elements::withdraw(&pair.host, mark);
    });
    if matches!(deleted, Ok(Deleted::Nothing) | Err(_)) {
        // Without the mark everything is looked through.
        dismissed = dismissed.and_then(|_| elements::withdraw(&pair.host, None));
    }
    let unshared = match &deleted {
        // It is of another mode, then.
        Ok(Deleted::Pair) => Ok(()),
        _ => ipvlan::del(environment, place),
    };
    let _socket = withdrawn
        .and(detached)
        .and(deleted.map(drop))
        .and(dismissed)
        .and_then(|nft| unshared.map(|()| nft))?;
    // The address last, and only if all else is gone: it must not be another's while packets can still reach
    // this pod, and GC knows by it that there is something left.
    addresses::give_back(environment, place, call)
}

fn delete_pair(
    environment: &Environment,
    pair: &Pair,
    leave: bool,
    before: impl FnOnce(Option<&Mark>),
) -> Result<Deleted, Failure> {
    let mut host = Socket::open()?;
    let near = if leave { pair.leave(&mut host, before)? } else { pair.delete(&mut host, before)? };
    if matches!(near, Deleted::Pair) {
        return Ok(near);
    }
    // Somebody renamed or moved the host side: the pod's side is still where it was.
    let Some(ns) = environment.netns.as_ref().and_then(|path| NetNs::open(path).ok()) else {
        return Ok(near);
    };
    if ns == NetNs::current()? {
        return Ok(near);
    }
    let mut pod = Socket::open_in(&ns)?;
    match link::by_name(&mut pod, &pair.pod)? {
        Some(far) if far.kind.as_deref() == Some("veth") && far.mac == Some(pair.pod_mac) => {
            match link::delete(&mut pod, far.index) {
                Err(error) if !error.not_found() => Err(error.into()),
                _ => Ok(near),
            }
        }
        _ => Ok(near),
    }
}
