//! What a pod gets beside its interface and its addresses: tuning, limits, host ports. Nothing is done, and nobody
//! asked, for what is not configured.

use std::net::IpAddr;

use heddle_netlink::link::Link;
use heddle_netlink::{NetNs, Socket};
use heddle_spec::Failure;

use crate::conf::{Bandwidth, Conf, Tuning};
use crate::veth::{self, Pair};
use crate::{bandwidth, hostport, tuning};

/// Tunes the pod and limits what it receives and sends. `near` is its host side.
pub fn equip(
    conf: &Conf,
    (ns, pair): (&NetNs, &Pair),
    (host, near): (&mut Socket, &Link),
    pod: &mut Socket,
) -> Result<(), Failure> {
    if conf.tuning == Tuning::default() && conf.bandwidth == Bandwidth::default() {
        return Ok(());
    }
    let far = veth::find(pod, &pair.pod)?;
    tuning::apply(&conf.tuning, ns, pod, &far)?;
    bandwidth::limit(&conf.bandwidth, (host, near), (pod, &far))
}

/// Compares a pod with what the configuration wants.
///
/// # Errors
/// Code 101 for the first difference.
pub fn check(
    conf: &Conf,
    (ns, pair): (&NetNs, &Pair),
    (host, near): (&mut Socket, &Link),
    (pod, far): (&mut Socket, &Link),
    addresses: &[IpAddr],
) -> Result<(), Failure> {
    tuning::check(&conf.tuning, ns, far)?;
    bandwidth::check(&conf.bandwidth, (host, near), (pod, far))?;
    hostport::check(&conf.run_dir, &conf.host_ports, pair, addresses)
}
