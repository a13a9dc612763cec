//! Reading the kernel. Only what is vxland's is seen: the device by its name with all that is on it, and
//! the routes by protocol number and device (or kind).

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_model::Mac;
use heddle_model::subnet::canonical;
use heddle_netlink::addr::{self, Scope};
use heddle_netlink::link::{self, Link};
use heddle_netlink::route::{self, Filter, Kind};
use heddle_netlink::{Error, Result, Socket, fdb, neigh};
use ipnetwork::IpNetwork;

use super::beside_name;
use crate::desired::Underlay;
use crate::events::POD_PREFIX;
use crate::state::{
    Address, Device, Family, FdbEntry, KernelState, Neighbour, Route, RouteKey, UNREACHABLE_METRIC,
    remote_metric,
};

/// Reads the state of the device called `name` and of the routes that go with it.
pub fn observe(socket: &mut Socket, name: &str) -> Result<KernelState> {
    let mut state = KernelState::default();
    let device = link::by_name(socket, name)?;
    let beside_name = beside_name(name);
    let beside = link::by_name(socket, &beside_name)?;
    let filter =
        Filter { protocol: Some(route::PROTOCOL_HEDDLE), table: Some(route::TABLE_MAIN), link: None };
    for found in route::list(socket, &filter)? {
        let metric = found.priority.unwrap_or(remote_metric(Family::of(found.dst.ip())));
        let route = match found.kind {
            Kind::Unicast if is(&device, found.link) || is(&beside, found.link) => {
                let (gateway, source, onlink) = (found.gateway, found.src, found.onlink);
                Route::Via { gateway, source, onlink, beside: is(&beside, found.link) }
            }
            Kind::Unreachable if metric == UNREACHABLE_METRIC => Route::Unreachable,
            Kind::Unicast => match found.link {
                Some(link) => Route::Direct { gateway: found.gateway, source: found.src, link },
                None => continue,
            },
            _ => continue,
        };
        state.routes.insert(RouteKey { range: found.dst, metric }, route);
    }
    let is_leftover = |link: &Link| {
        link.name != name && link.name != beside_name && link.vxlan.is_some() && is_device_name(&link.name)
    };
    state.leftovers = link::list(socket)?.into_iter().filter(is_leftover).map(|link| link.name).collect();
    for (link, is_beside) in [(&device, false), (&beside, true)] {
        let Some(link) = link else { continue };
        // What the kernel found out by itself is not permanent, and none of ours is not.
        let neighbours = neigh::list(socket, Some(link.index))?.into_iter().filter(|neigh| neigh.permanent);
        state.neighbours.extend(
            neighbours
                .filter_map(|neigh| Some((Neighbour { ip: neigh.ip, beside: is_beside }, Mac(neigh.mac?)))),
        );
        state.fdb.extend(fdb::list(socket, link.index)?.into_iter().filter_map(|entry| {
            let (mac, permanent) = (Mac(entry.mac), entry.permanent);
            Some(FdbEntry { mac, dst: entry.dst?, permanent, beside: is_beside })
        }));
    }
    state.beside = beside.as_ref().map(|beside| describe(beside, true));
    let Some(device) = device else { return Ok(state) };

    state.addresses = addr::list(socket, Some(device.index))?
        .into_iter()
        .filter(|addr| !is_link_local(addr.ip.ip()))
        .map(|addr| Address {
            ip: addr.ip.ip(),
            prefix: addr.ip.prefix(),
            hidden: if addr.ip.is_ipv4() { addr.scope == Scope::Link } else { addr.deprecated },
        })
        .collect();
    state.device = Some(describe(&device, false));
    Ok(state)
}

/// Whether the device is there, and this is its index.
fn is(device: &Option<Link>, index: Option<u32>) -> bool {
    device.as_ref().is_some_and(|device| index == Some(device.index))
}

fn describe(link: &Link, beside: bool) -> Device {
    let vxlan = link.vxlan.clone().unwrap_or_default();
    Device {
        kind: link.kind.clone().unwrap_or_default(),
        vni: vxlan.vni,
        port: vxlan.port,
        local: vxlan.local,
        underlay: vxlan.underlay.unwrap_or(0),
        learning: vxlan.learning,
        checksum4: vxlan.udp_csum,
        no_checksum6: (vxlan.udp6_zero_csum_tx, vxlan.udp6_zero_csum_rx),
        external: vxlan.external,
        mac: Mac(link.mac.unwrap_or_default()),
        mtu: link.mtu,
        up: link.up,
        beside,
    }
}

/// Whether vxland gives this name to a device, for some VNI.
fn is_device_name(name: &str) -> bool {
    let vni = name.strip_prefix("heddle").and_then(|rest| rest.strip_prefix(['.', '-']));
    vni.is_some_and(|vni| vni.parse::<u32>().is_ok())
}

/// The kernel gives such addresses by itself, and nothing depends on them.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error("no device has this node's address {0} (is it up? name the device with --underlay)")]
    NoDevice(IpAddr),
    #[error(
        "this node's address {0} is on the loopback device {1}: name the device that carries the packets with --underlay"
    )]
    Loopback(IpAddr, String),
    #[error("there is no device {0} (--underlay)")]
    Missing(String),
}

/// The underlay, for the first of these addresses of this node's that a device has: the device called `named`, or that
/// one. An address of the named device comes before all others.
pub fn underlay(
    socket: &mut Socket,
    candidates: &[IpAddr],
    named: Option<&str>,
) -> std::result::Result<Underlay, UnderlayError> {
    let all = addr::list(socket, None)?;
    let named_index =
        named.map(|name| link::by_name(socket, name)).transpose()?.flatten().map(|link| link.index);
    let holding = |on: Option<u32>| {
        let holder = |ip: &IpAddr| {
            all.iter().find(|addr| addr.ip.ip() == *ip && on.is_none_or(|index| addr.link == index))
        };
        candidates.iter().find_map(holder)
    };
    let local = candidates.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let holder = named_index.and_then(|index| holding(Some(index))).or_else(|| holding(None));
    // Packets with a source that the node does not have would be sent, but never answered.
    let holder = holder.ok_or(UnderlayError::NoDevice(local))?;
    let local = holder.ip.ip();
    let device = match named {
        Some(name) => link::by_name(socket, name)?.ok_or_else(|| UnderlayError::Missing(name.to_owned()))?,
        None => link::by_index(socket, holder.link)?.ok_or(UnderlayError::NoDevice(local))?,
    };
    if device.loopback {
        return Err(UnderlayError::Loopback(local, device.name));
    }
    let network = holder.ip;
    let networks = all.iter().filter(|addr| addr.link == device.index && !is_link_local(addr.ip.ip()));
    let networks = networks.map(|addr| addr.ip).collect();
    let names: BTreeMap<u32, String> = link::list(socket)?
        .into_iter()
        .filter(|link| !link.loopback && !is_device_name(&link.name) && !link.name.starts_with(POD_PREFIX))
        .map(|link| (link.index, link.name))
        .collect();
    let connected = all
        .iter()
        .filter(|addr| {
            !is_link_local(addr.ip.ip()) && addr.ip.prefix() < IpNetwork::from(addr.ip.ip()).prefix()
        })
        .filter_map(|addr| Some((canonical(addr.ip), names.get(&addr.link)?.clone())))
        .collect();
    Ok(Underlay {
        device: device.name,
        index: device.index,
        mtu: device.mtu,
        local,
        network,
        networks,
        connected,
    })
}
