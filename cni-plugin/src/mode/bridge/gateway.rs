//! The pods' gateway: the bridge itself, or a device of their VLAN on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::bridge::{self as port, Of, Vlan};
use heddle_netlink::link::{self, Link};
use heddle_netlink::{Error, Socket};
use ipnetwork::IpNetwork;

use super::{harden, no_vlans};
use crate::addresses::Allocation;
use crate::conf::{Bridge, Vlans};
use crate::veth;
use heddle_spec::{Failure, code};

/// The addresses with a gateway each, where the bridge is to be one: the first address of the subnet, if who gave
/// the address did not say (the reference plugin's choice).
pub fn with_gateways(bridge: &Bridge, mut allocations: Vec<Allocation>) -> Result<Vec<Allocation>, Failure> {
    if !bridge.is_gateway {
        return Ok(allocations);
    }
    for allocation in &mut allocations {
        let first = match allocation.ip.network() {
            IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits().saturating_add(1)).into(),
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().saturating_add(1)).into(),
        };
        let gateway = *allocation.gateway.get_or_insert(first);
        if gateway == allocation.ip.ip() {
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("isGateway: the pod has {}, and the bridge would have it too", allocation.ip),
            ));
        }
    }
    Ok(allocations)
}

/// Makes sure of the gateway: the device, up, with the addresses. `None`: there is none.
pub fn ensure(
    socket: &mut Socket,
    wanted: &Bridge,
    bridge: &Link,
    ipv6: bool,
    allocations: &[Allocation],
) -> Result<Option<Link>, Failure> {
    if !wanted.is_gateway {
        return Ok(None);
    }
    let device = match (wanted.gateway_device(), &wanted.vlans) {
        (Some(name), Vlans::Access(id)) => ensure_device(socket, bridge, &name, *id, ipv6)?,
        _ => bridge.clone(),
    };
    give(socket, &device, wanted.force_address, allocations)?;
    Ok(Some(device))
}

/// A device for the frames of one VLAN of the bridge. The reference plugin makes a veth with its other end on the
/// bridge; one that is there already serves.
fn ensure_device(
    socket: &mut Socket,
    bridge: &Link,
    name: &str,
    id: u16,
    ipv6: bool,
) -> Result<Link, Failure> {
    let found = match link::by_name(socket, name)? {
        Some(found) => found,
        None => {
            match link::create_vlan(socket, name, bridge.index, id) {
                Ok(()) => {}
                // Another pod's ADD was quicker.
                Err(error) if error.already_exists() => {}
                Err(error) if port::lacks_vlans(&error) => {
                    return Err(Failure::from(error)
                        .with_details("vlan with isGateway needs a kernel with CONFIG_VLAN_8021Q"));
                }
                Err(error) => return Err(error.into()),
            }
            veth::find(socket, name)?
        }
    };
    if found.vlan_id.is_some() {
        if !is_of(&found, bridge, id) {
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("vlan: {name} exists and is not for VLAN {id} of bridge {}", bridge.name),
            ));
        }
        if !found.up {
            harden(name, ipv6)?;
            // The bridge device itself must be in the VLAN to get its frames.
            port::configure(socket, Of::Bridge, bridge.index, None, &[Vlan::tagged(id)]).map_err(no_vlans)?;
        }
    } else if !leads_to(socket, &found, bridge)? {
        return Err(Failure::new(
            code::INVALID_CONFIG,
            format!("vlan: {name} exists and does not belong to bridge {}", bridge.name),
        ));
    }
    if !found.up {
        link::set_up(socket, found.index)?;
    }
    Ok(found)
}

/// Whether a VLAN device is the one of this VLAN of this bridge.
pub fn is_of(device: &Link, bridge: &Link, id: u16) -> bool {
    device.vlan_id == Some(id) && device.peer == Some(bridge.index)
}

/// Whether the other end of a veth is a port of the bridge.
fn leads_to(socket: &mut Socket, device: &Link, bridge: &Link) -> Result<bool, Failure> {
    let (Some("veth"), Some(peer), None) = (device.kind.as_deref(), device.peer, device.peer_ns) else {
        return Ok(false);
    };
    Ok(link::by_index(socket, peer)?.is_some_and(|peer| peer.master == Some(bridge.index)))
}

/// Gives the device the gateway addresses that it lacks.
fn give(socket: &mut Socket, device: &Link, force: bool, allocations: &[Allocation]) -> Result<(), Failure> {
    let mut wanted = Vec::new();
    for allocation in allocations {
        let Some(gateway) = allocation.gateway else { continue };
        let gateway = IpNetwork::new(gateway, allocation.ip.prefix())
            .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
        if !wanted.contains(&gateway) {
            wanted.push(gateway);
        }
    }
    let present = addr::list(socket, Some(device.index))?;
    for gateway in wanted.iter().copied() {
        if present.iter().any(|addr| addr.ip == gateway) {
            continue;
        }
        for other in present.iter().filter(|other| !wanted.contains(&other.ip)) {
            if force && in_the_way(other.ip, gateway) {
                gone(addr::delete(socket, device.index, other.ip))?;
            } else if overlap(other.ip, gateway) {
                return Err(Failure::new(
                    code::INVALID_CONFIG,
                    format!(
                        "ipam.gateway: {} has {} already, so it cannot have {gateway} (without forceAddress)",
                        device.name, other.ip
                    ),
                ));
            }
        }
        match addr::add(socket, &Addr { nodad: true, ..Addr::new(device.index, gateway) }) {
            Err(error) if error.already_exists() => {}
            other => other?,
        }
    }
    Ok(())
}

/// What `forceAddress` replaces, as in the reference plugin: every other IPv4 address, and IPv6 addresses of
/// overlapping subnets.
fn in_the_way(other: IpNetwork, gateway: IpNetwork) -> bool {
    (gateway.is_ipv4() && other.is_ipv4()) || overlap(other, gateway)
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one.contains(other.ip()) || other.contains(one.ip()))
}

/// Another ADD may have deleted it first.
fn gone(deleted: Result<(), Error>) -> Result<(), Failure> {
    match deleted {
        Err(error) if !error.not_found() => Err(error.into()),
        _ => Ok(()),
    }
}
