//! The pod's side of mode `bridge`: addresses and routes.

use std::net::IpAddr;
use std::time::Duration;

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link;
use heddle_netlink::route;
use heddle_netlink::{Socket, Watch};
use ipnetwork::IpNetwork;

use crate::addresses::Allocation;
use crate::conf::Bridge;
use crate::mode::{has_family, ptp};
use crate::veth::{self, Pair};
use heddle_spec::{Failure, Route as Wanted, code};

/// How long duplicate address detection may take (the reference plugin's patience).
const DETECTION: Duration = Duration::from_secs(10);

/// The pod's addresses and routes.
pub fn wire_pod(
    socket: &mut Socket,
    pair: &Pair,
    wanted: &Bridge,
    allocations: &[Allocation],
    routes: &[Wanted],
) -> Result<(), Failure> {
    if wanted.disabled {
        return Ok(());
    }
    let index = veth::find(socket, &pair.pod)?.index;
    for allocation in allocations {
        let own = Addr { nodad: !wanted.detect_duplicates, ..Addr::new(index, allocation.ip) };
        addr::add(socket, &own)?;
    }
    link::set_up(socket, index)?;
    for wanted in routes {
        let v4 = wanted.dst.is_ipv4();
        if !has_family(allocations, v4) {
            continue;
        }
        let route = ptp::from_wanted(wanted, gateway_of(allocations, v4), index);
        route::add(socket, &route::Route { onlink: false, ..route })?;
    }
    Ok(())
}

/// Waits until the kernel has found out that nobody else has the pod's IPv6 addresses.
///
/// # Errors
/// Code 101 if somebody has, or if it takes too long.
pub fn await_unique(socket: &mut Socket, watch: &mut Watch, pair: &Pair) -> Result<(), Failure> {
    let index = veth::find(socket, &pair.pod)?.index;
    let mut last = Vec::new();
    let settled = watch.until(DETECTION, || {
        last = addr::list(socket, Some(index))?;
        // Its link-local address is not what the configuration asks about.
        last.retain(|addr| matches!(addr.ip.ip(), IpAddr::V6(ip) if !ip.is_unicast_link_local()));
        Ok(last.iter().any(|addr| addr.duplicate) || last.iter().all(|addr| !addr.tentative))
    })?;
    let failed = |reason: String| Err(Failure::new(code::KERNEL, reason));
    match last.iter().find(|addr| addr.duplicate) {
        Some(taken) => failed(format!("enabledad: somebody else on the bridge has {}", taken.ip.ip())),
        None if !settled => failed(format!(
            "enabledad: duplicate address detection of {} took more than {} s",
            pair.pod,
            DETECTION.as_secs()
        )),
        None => Ok(()),
    }
}

/// The gateway of the pod's address of this family.
fn gateway_of(allocations: &[Allocation], v4: bool) -> Option<IpAddr> {
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
        let own = gateway_of(allocations, allocation.ip.is_ipv4());
        if let Some(other) = configured.iter().filter(|route| route.dst == dst).find_map(|route| route.gw)
            && Some(other) != own
        {
            return Err(Failure::new(
                code::INVALID_CONFIG,
                format!("isDefaultGateway: ipam.routes has {dst} by {other} too; one of them must go"),
            ));
        }
        // Of several addresses of a family, the first one's; and one that is configured without a gateway is it.
        if routes.iter().any(|route| route.dst == dst) {
            continue;
        }
        routes.push(Wanted {
            dst,
            gw: own,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        });
    }
    Ok(routes)
}
