//! CHECK in mode `bridge`: what somebody changed behind us, by the key that wants it otherwise.

use heddle_netlink::bridge as port;
use heddle_netlink::link::{self, Link};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::{Socket, addr};

use super::vlans;
use crate::conf::{Bridge, Vlans};
use crate::guard;
use crate::mark::{Bridged, Mark};
use crate::veth::Pair;
use heddle_spec::{Failure, Ip, code};

/// Compares the bridge and the pod's port on it with the configuration.
pub fn check(
    host: &mut Socket,
    pod: &mut Socket,
    wanted: &Bridge,
    (mark, near, far): (&Mark, &Link, &Link),
    own: &[&Ip],
) -> Result<(), Failure> {
    let bridge = link::by_name(host, &wanted.name)?
        .filter(|bridge| bridge.kind.as_deref() == Some("bridge"))
        .ok_or_else(|| different(format!("there is no bridge {}", wanted.name)))?;
    if !bridge.up {
        return Err(different(format!("the bridge {} is down", wanted.name)));
    }
    if near.master != Some(bridge.index) {
        return Err(different(format!("{} is no port of the bridge {}", near.name, wanted.name)));
    }
    if wanted.promiscuous && !bridge.promiscuous {
        return Err(different(format!("promiscMode: the bridge {} is not promiscuous", wanted.name)));
    }
    let actual = near.port.unwrap_or_default();
    for (key, actual, wanted) in [
        ("hairpinMode", actual.hairpin, wanted.port.hairpin),
        ("portIsolation", actual.isolated, wanted.port.isolated),
    ] {
        if actual != wanted {
            return Err(different(format!("{key}: on {} it is {actual}, not {wanted}", near.name)));
        }
    }
    check_vlans(host, wanted, &bridge, near)?;
    check_gateway(host, pod, wanted, &bridge, far, own)?;
    // What ADD wrote down: other plugins may have added addresses since.
    let held = mark.holdings.as_ref();
    match guard::lacks(&near.name, held.and_then(|held| Some((held.bridged.as_ref()?, held.ips.as_slice()))))?
    {
        Some(what) => Err(different(what)),
        None => Ok(()),
    }
}

/// What the rules against spoofing are to know of a pod.
pub fn bridged(wanted: &Bridge, pair: &Pair, without_addresses: bool) -> Bridged {
    Bridged {
        mac: pair.pod_mac,
        any_mac: wanted.any_mac,
        any_ip: without_addresses || wanted.any_ip,
        trunk: matches!(&wanted.vlans, Vlans::Trunk(ids) if !ids.is_empty()),
    }
}

fn check_vlans(host: &mut Socket, wanted: &Bridge, bridge: &Link, near: &Link) -> Result<(), Failure> {
    if wanted.vlans == Vlans::None {
        return Ok(());
    }
    let aware = bridge.vlans.unwrap_or_default();
    if !aware.filtering {
        return Err(different(format!("vlan: the bridge {} does not filter VLANs", wanted.name)));
    }
    let actual = port::vlans(host, near.index)?;
    let own = vlans(wanted);
    if let Some(missing) = own.iter().find(|vlan| !actual.contains(vlan)) {
        return Err(different(format!("vlan: {} is not in VLAN {} as it was", near.name, missing.id)));
    }
    let default = |id: u16| wanted.preserve_default_vlan && id == aware.default_pvid;
    let other = actual.iter().find(|vlan| !own.contains(vlan) && !default(vlan.id));
    match other.filter(|_| !own.is_empty()) {
        Some(other) => Err(different(format!("vlan: {} is in VLAN {} too", near.name, other.id))),
        None => Ok(()),
    }
}

fn check_gateway(
    host: &mut Socket,
    pod: &mut Socket,
    wanted: &Bridge,
    bridge: &Link,
    far: &Link,
    own: &[&Ip],
) -> Result<(), Failure> {
    if !wanted.is_gateway {
        return Ok(());
    }
    let device = match wanted.gateway_device() {
        Some(name) => link::by_name(host, &name)?
            .ok_or_else(|| different(format!("vlan: there is no interface {name} for the gateway")))?,
        None => bridge.clone(),
    };
    if !device.up {
        return Err(different(format!("{} is down, the pods' gateway", device.name)));
    }
    let present = addr::list(host, Some(device.index))?;
    let known = neigh::list(pod, Some(far.index))?;
    for gateway in own.iter().filter_map(|ip| ip.gateway) {
        if !present.iter().any(|addr| addr.ip.ip() == gateway) {
            return Err(different(format!("isGateway: {} has not the address {gateway}", device.name)));
        }
        let neigh = device.mac.map(|mac| Neigh::new(far.index, gateway, mac));
        if neigh.is_some_and(|neigh| !known.contains(&neigh)) {
            return Err(different(format!(
                "the pod does not know the Ethernet address of its gateway {gateway}"
            )));
        }
    }
    Ok(())
}

fn different(what: String) -> Failure {
    Failure::new(code::KERNEL, what)
}
