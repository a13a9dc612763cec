//! Mode `bridge`: pods of a network share a bridge on their node (the reference plugin's mode).
//!
//! The bridge is made when the first pod comes, and stays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link::{self, Change, Link};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route;
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{DisplayMac, MacAddr, Socket};
use ipnetwork::IpNetwork;

use super::ptp;
use crate::addresses::Allocation;
use crate::conf::Bridge;
use crate::mode;
use crate::veth::{self, Pair};
use heddle_spec::{Failure, Interface, Route as Wanted, code};

/// Finds or makes the bridge, gives it the gateway addresses if it is to have them, sets it up.
pub fn ensure(
    socket: &mut Socket,
    bridge: &Bridge,
    mtu: Option<u32>,
    allocations: &[Allocation],
) -> Result<Link, Failure> {
    let found = match link::by_name(socket, &bridge.name)? {
        Some(found) => found,
        None => create(socket, bridge, mtu)?,
    };
    if found.kind.as_deref() != Some("bridge") {
        return Err(Failure::new(
            code::INVALID_CONFIG,
            format!("bridge: {} exists and is no bridge", bridge.name),
        ));
    }
    if bridge.is_gateway {
        for allocation in allocations {
            give_gateway(socket, &found, allocation)?;
        }
    }
    if !found.up {
        link::set_up(socket, found.index)?;
    }
    Ok(found)
}

fn create(socket: &mut Socket, bridge: &Bridge, mtu: Option<u32>) -> Result<Link, Failure> {
    let wanted =
        link::Bridge { name: &bridge.name, mac: Some(mac(&bridge.name)), mtu, ..link::Bridge::default() };
    match link::create_bridge(socket, &wanted) {
        Ok(()) => {}
        // Another pod's ADD was quicker.
        Err(error) if error.already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    let made = veth::find(socket, &bridge.name)?;
    // Before it is up, as on a host side: pods configure nothing here.
    for name in ["accept_ra", "autoconf", "accept_redirects"] {
        match sysctl::write(&Key::ipv6_conf(&bridge.name, name), "0") {
            Err(error) if sysctl::is_missing(&error) => {}
            other => other?,
        }
    }
    sysctl::write(&Key::ipv4_conf(&bridge.name, "accept_redirects"), "0")?;
    Ok(made)
}

/// A bridge without an address of its own takes the smallest of its ports', which changes as pods come and
/// go, under the neighbours' feet.
fn mac(name: &str) -> MacAddr {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    [0x0a, a, b, c, d, e]
}

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

fn give_gateway(socket: &mut Socket, bridge: &Link, allocation: &Allocation) -> Result<(), Failure> {
    let Some(gateway) = allocation.gateway else { return Ok(()) };
    let wanted = IpNetwork::new(gateway, allocation.ip.prefix())
        .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
    let present = addr::list(socket, Some(bridge.index))?;
    if present.iter().any(|addr| addr.ip == wanted) {
        return Ok(());
    }
    let overlaps = |ip: IpNetwork| {
        ip.is_ipv4() == wanted.is_ipv4() && (ip.contains(wanted.ip()) || wanted.contains(ip.ip()))
    };
    if let Some(other) = present.iter().find(|addr| overlaps(addr.ip)) {
        return Err(Failure::new(
            code::INVALID_CONFIG,
            format!(
                "ipam.gateway: bridge {} has {} already, so it cannot have {wanted}",
                bridge.name, other.ip
            ),
        ));
    }
    match addr::add(socket, &Addr { nodad: true, ..Addr::new(bridge.index, wanted) }) {
        Err(error) if error.already_exists() => Ok(()),
        other => Ok(other?),
    }
}

/// The host side becomes a port of the bridge, and comes up.
pub fn wire_host(socket: &mut Socket, index: u32, bridge: &Link) -> Result<(), Failure> {
    let change = Change { master: Some(Some(bridge.index)), ..Change::default() };
    link::change(socket, index, &change)?;
    Ok(link::set_up(socket, index)?)
}

/// The pod's addresses and routes.
pub fn wire_pod(
    socket: &mut Socket,
    pair: &Pair,
    bridge: (&Bridge, &Link),
    allocations: &[Allocation],
    routes: &[Wanted],
) -> Result<(), Failure> {
    let index = veth::find(socket, &pair.pod)?.index;
    for allocation in allocations {
        addr::add(socket, &Addr { nodad: true, ..Addr::new(index, allocation.ip) })?;
    }
    link::set_up(socket, index)?;
    let (conf, device) = bridge;
    if let (true, Some(mac)) = (conf.is_gateway, device.mac) {
        for gateway in allocations.iter().filter_map(|allocation| allocation.gateway) {
            neigh::replace(socket, &Neigh::new(index, gateway, mac))?;
        }
    }
    for wanted in routes {
        let v4 = wanted.dst.is_ipv4();
        if !mode::has_family(allocations, v4) {
            continue;
        }
        let route = ptp::from_wanted(wanted, gateway_of(allocations, v4), index);
        route::add(socket, &route::Route { onlink: false, ..route })?;
    }
    Ok(())
}

/// The gateway of the pod's address of this family.
pub fn gateway_of(allocations: &[Allocation], v4: bool) -> Option<IpAddr> {
    allocations
        .iter()
        .filter(|allocation| allocation.ip.is_ipv4() == v4)
        .find_map(|allocation| allocation.gateway)
}

/// The configured routes, and default routes where the bridge is to be the default gateway.
pub fn routes(
    bridge: &Bridge,
    allocations: &[Allocation],
    configured: &[Wanted],
) -> Result<Vec<Wanted>, Failure> {
    let mut routes = configured.to_vec();
    if !bridge.is_default_gateway {
        return Ok(routes);
    }
    for allocation in allocations {
        let any = if allocation.ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let dst: IpNetwork = any.parse().map_err(|_| Failure::new(code::INTERNAL, "a default route"))?;
        if configured.iter().any(|route| route.dst == dst) {
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("isDefaultGateway: ipam.routes has {dst} too; one of them must go"),
            ));
        }
        // Of several addresses of a family, the first one's.
        if routes.iter().any(|route| route.dst == dst) {
            continue;
        }
        routes.push(Wanted {
            dst,
            gw: allocation.gateway,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        });
    }
    Ok(routes)
}

/// What ADD answers of the bridge.
pub fn interface(bridge: &Link) -> Interface {
    Interface {
        name: bridge.name.clone(),
        mac: bridge.mac.map(|mac| DisplayMac(mac).to_string()).unwrap_or_default(),
        mtu: Some(bridge.mtu),
        ..Interface::default()
    }
}
