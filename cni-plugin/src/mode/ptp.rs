//! Mode `ptp`: the pod has its address alone (/32, /128), the host a route to it, and both know each other's
//! Ethernet address before the first packet. No ARP, no neighbour discovery, nothing shared with other pods.
//!
//! ```text
//! pod    eth0  10.244.1.5/32       default via 10.244.1.1     10.244.1.1 is at <host side>
//!              fd00:10:244:1::5    default via fe80::1        fe80::1    is at <host side>
//! host   hdl*  10.244.1.1 (link)   10.244.1.5 dev hdl*        10.244.1.5 is at <pod side>
//!              fe80::1             fd00:10:244:1::5 dev hdl*
//! ```
//!
//! The IPv4 gateway is the range's, on every host side with link scope: the pod can ping it, and nothing
//! else on the host takes it for a source address.

use std::net::IpAddr;

use heddle_ipam::{Pool, RangeSet};
use heddle_netlink::Socket;
use heddle_netlink::addr::{self, Addr, Scope};
use heddle_netlink::link::{self, Link};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, PROTOCOL_POD, Route, TABLE_MAIN};
use ipnetwork::IpNetwork;

use super::{GATEWAY6, alone};
use crate::addresses::Allocation;
use crate::veth::Pair;
use heddle_spec::{Failure, Route as Wanted, code};

/// The addresses with the gateways of this mode: fe80::1 for IPv6, but where a delegate says otherwise, who may ask
/// for what it said (CHECK).
pub fn with_gateways(mut allocations: Vec<Allocation>, delegated: bool) -> Vec<Allocation> {
    for allocation in allocations.iter_mut().filter(|allocation| !allocation.ip.is_ipv4()) {
        let said = allocation.gateway.filter(|_| delegated);
        allocation.gateway = Some(said.unwrap_or(GATEWAY6.into()));
    }
    allocations
}

/// The gateways of these addresses, each once.
fn gateways(allocations: &[Allocation]) -> Vec<IpAddr> {
    let mut gateways = Vec::new();
    for gateway in allocations.iter().filter_map(|allocation| allocation.gateway) {
        if !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// What the host knows of the pod. Its side is up afterwards.
pub fn wire_host(
    socket: &mut Socket,
    pair: &Pair,
    index: u32,
    allocations: &[Allocation],
) -> Result<(), Failure> {
    for gateway in gateways(allocations) {
        let own = match gateway {
            IpAddr::V4(gateway) => {
                Addr { scope: Scope::Link, no_prefix_route: true, ..Addr::new(index, alone(gateway.into())) }
            }
            IpAddr::V6(GATEWAY6) => continue,
            IpAddr::V6(gateway) => Addr {
                deprecated: true,
                no_prefix_route: true,
                nodad: true,
                ..Addr::new(index, alone(gateway.into()))
            },
        };
        addr::replace(socket, &own)?;
    }
    if allocations.iter().any(|allocation| !allocation.ip.is_ipv4()) {
        // With the route fe80::/64, so that the pod's link-local address is known to be there.
        let prefix = IpNetwork::new(GATEWAY6.into(), 64)
            .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
        addr::replace(socket, &Addr { nodad: true, ..Addr::new(index, prefix) })?;
    }
    link::set_up(socket, index)?;
    for allocation in allocations {
        let pod = allocation.ip.ip();
        neigh::replace(socket, &Neigh::new(index, pod, pair.pod_mac))?;
        // In place of the route of a pod that had the address and was not taken down.
        let own = Route { protocol: PROTOCOL_POD, ..Route::on_link(alone(pod), index) };
        route::replace(socket, &own)?;
    }
    Ok(())
}

/// What the pod knows of the host. Its side is up afterwards. `near` is the host's side, which knows the other.
pub fn wire_pod(
    socket: &mut Socket,
    (pair, near): (&Pair, &Link),
    allocations: &[Allocation],
    routes: &[Wanted],
) -> Result<(), Failure> {
    let index = match near.peer {
        Some(index) => index,
        None => crate::veth::find(socket, &pair.pod)?.index,
    };
    for allocation in allocations {
        let own = Addr { nodad: true, no_prefix_route: true, ..Addr::new(index, alone(allocation.ip.ip())) };
        addr::add(socket, &own)?;
    }
    link::set_up(socket, index)?;
    for gateway in gateways(allocations) {
        neigh::replace(socket, &Neigh::new(index, gateway, pair.host_mac))?;
        if gateway != IpAddr::V6(GATEWAY6) {
            add_beside(socket, &pod_route(Route::on_link(alone(gateway), index)))?;
        }
    }
    for v4 in [true, false] {
        let of_family = |allocation: &&Allocation| allocation.ip.is_ipv4() == v4;
        // Of several addresses of a family, the first one's.
        let Some(gateway) = allocations.iter().filter(of_family).find_map(|own| own.gateway) else {
            continue;
        };
        let own = routes.iter().filter(|route| route.dst.is_ipv4() == v4);
        // Without a default route the pod still knows where its neighbours of the range are.
        if !own.clone().any(|route| route.dst.prefix() == 0) {
            let mut seen = Vec::new();
            for allocation in allocations.iter().filter(of_family) {
                let range = IpNetwork::new(allocation.ip.network(), allocation.ip.prefix())
                    .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
                if range != alone(allocation.ip.ip()) && !seen.contains(&range) {
                    add_beside(socket, &pod_route(Route::via(range, gateway, index)))?;
                    seen.push(range);
                }
            }
        }
        for wanted in own {
            route::add(socket, &from_wanted(wanted, Some(gateway), index))?;
        }
    }
    Ok(())
}

/// Adds a route that another interface of the pod, in the same network, may have already: then behind it.
fn add_beside(socket: &mut Socket, route: &Route) -> Result<(), Failure> {
    if route.dst.is_ipv4() {
        return Ok(route::append(socket, route)?);
    }
    // Greater than the default metric, which is 1024; and no two interfaces' the same.
    let priority = route.link.map(|link| 1024 + link);
    Ok(route::add(socket, &Route { priority, ..route.clone() })?)
}

/// A route that an administrator of the pod would recognise as an ordinary one.
fn pod_route(route: Route) -> Route {
    Route { protocol: route::PROTOCOL_BOOT, ..route }
}

/// A configured route; by `gateway` unless it names one itself, and on the link if there is none.
pub fn from_wanted(wanted: &Wanted, gateway: Option<IpAddr>, index: u32) -> Route {
    let scope = match wanted.scope {
        Some(253) => Scope::Link,
        Some(254) => Scope::Host,
        _ => Scope::Universe,
    };
    let mut route = match wanted.gw.or(gateway) {
        Some(to) => Route::via(wanted.dst, to, index),
        None => Route::on_link(wanted.dst, index),
    };
    if scope != Scope::Universe {
        // Nothing of such a scope is behind a gateway.
        route = Route { gateway: None, onlink: false, scope, ..route };
    }
    pod_route(Route {
        mtu: wanted.mtu,
        advmss: wanted.advmss,
        priority: wanted.priority,
        table: wanted.table.unwrap_or(TABLE_MAIN),
        ..route
    })
}

/// Refuses what this mode cannot mean. Behind the pod's interface there is the host and no other gateway, and the
/// host is the gateway of an IPv4 address only if somebody says which.
///
/// The gateways of a whole range or of the pod's own addresses, both with those of IPv6.
pub fn check(gateways: &[IpAddr], routes: &[Wanted]) -> Result<(), Failure> {
    for (n, route) in routes.iter().enumerate() {
        let refused =
            |reason: String| Err(Failure::new(code::INVALID_CONFIG, format!("ipam.routes[{n}]: {reason}")));
        let mut own = gateways.iter().filter(|gateway| gateway.is_ipv4() == route.dst.is_ipv4());
        match (own.clone().next(), route.gw) {
            (None, _) => {
                let family = if route.dst.is_ipv4() { "IPv4" } else { "IPv6" };
                return refused(format!(
                    "{} is an {family} route, and there is no {family} address",
                    route.dst
                ));
            }
            (Some(first), Some(gw)) if !own.any(|own| *own == gw) => {
                return refused(format!(
                    "{gw} is not the gateway of a pod in mode ptp, which is {first}; leave gw out"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same of ranges.
pub fn check_pool(pool: &Pool) -> Result<(), Failure> {
    let ranges = || pool.sets.iter().flat_map(RangeSet::ranges);
    let own = ranges().map(|range| if range.subnet.is_ipv4() { range.gateway } else { GATEWAY6.into() });
    let of_ranges = ranges().map(|range| range.gateway);
    check(&own.chain(of_ranges).collect::<Vec<_>>(), &pool.routes)
}

/// The same of addresses that somebody else gave.
pub fn check_given(allocations: &[Allocation], routes: &[Wanted]) -> Result<(), Failure> {
    if let Some(without) = allocations.iter().find(|allocation| allocation.gateway.is_none()) {
        return Err(Failure::new(
            code::INVALID_CONFIG,
            format!("ipam: {} came without a gateway, and mode ptp needs one", without.ip),
        ));
    }
    check(&gateways(allocations), routes)
}

/// The routes as this mode means them: what goes to the IPv6 gateway of the range goes to the host, which
/// is fe80::1 to its pods.
pub fn routes_of(allocations: &[Allocation], routes: &[Wanted]) -> Vec<Wanted> {
    let of_range = |gw: &IpAddr| gw.is_ipv6() && allocations.iter().any(|own| own.gateway == Some(*gw));
    let own = |route: &Wanted| Wanted { gw: route.gw.filter(|gw| !of_range(gw)), ..route.clone() };
    routes.iter().map(own).collect()
}
