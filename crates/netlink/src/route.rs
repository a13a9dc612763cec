//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};

use crate::addr::{Scope, family};
use crate::{Error, Result, Socket};

/// The protocol number (`rtm_protocol`) of the routes that Heddle adds: `H`. It is in nobody's list
/// (include/uapi/linux/rtnetlink.h, iproute2's rt_protos), so a route that carries it is ours.
pub const PROTOCOL_HEDDLE: u8 = 72;
/// The same of the routes to this node's own pods, which the CNI plugin adds and nobody else touches.
pub const PROTOCOL_POD: u8 = 73;
/// Routes of the kernel itself (`RTPROT_KERNEL`).
pub const PROTOCOL_KERNEL: u8 = 2;
/// Routes added by hand without a word (`RTPROT_BOOT`).
pub const PROTOCOL_BOOT: u8 = 3;

/// The table of ordinary routes (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The table of the host's own and broadcast addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;

/// `IP6_RT_PRIO_USER` (include/uapi/linux/ipv6_route.h).
const DEFAULT_PRIORITY_V6: u32 = 1024;

/// What becomes of a packet that matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    #[default]
    Unicast,
    Local,
    Broadcast,
    Multicast,
    Anycast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
    Other,
}

/// A route with at most one next hop. (Multipath routes are listed with their first.)
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The destination; a prefix of length 0 is the default route.
    pub dst: IpNetwork,
    pub kind: Kind,
    /// The next hop's address; of either family for an IPv4 destination.
    pub gateway: Option<IpAddr>,
    /// Index of the device.
    pub link: Option<u32>,
    /// The source address for packets of this host that have none yet.
    pub src: Option<IpAddr>,
    /// IPv4 only: always `Universe` for IPv6.
    pub scope: Scope,
    pub table: u32,
    pub protocol: u8,
    /// Take the gateway to be on the link although no route says so.
    pub onlink: bool,
    /// Metric: smaller wins. `None` is the kernel's default: 0 for IPv4, 1024 for IPv6.
    pub priority: Option<u32>,
    /// The MTU of the path, where the route sets it.
    pub mtu: Option<u32>,
    /// The largest segment that TCP tells the other side to send (`RTAX_ADVMSS`), where the route sets it.
    pub advmss: Option<u32>,
}

impl Route {
    /// A route of ours in the main table.
    pub const fn new(dst: IpNetwork) -> Self {
        Self {
            dst,
            kind: Kind::Unicast,
            gateway: None,
            link: None,
            src: None,
            scope: Scope::Universe,
            table: TABLE_MAIN,
            protocol: PROTOCOL_HEDDLE,
            onlink: false,
            priority: None,
            mtu: None,
            advmss: None,
        }
    }

    /// A route to what is on the link itself.
    pub const fn on_link(dst: IpNetwork, link: u32) -> Self {
        let scope = if matches!(dst, IpNetwork::V4(_)) { Scope::Link } else { Scope::Universe };
        Self { link: Some(link), scope, ..Self::new(dst) }
    }

    /// A route through `gateway`, which is taken to be on the link.
    pub const fn via(dst: IpNetwork, gateway: IpAddr, link: u32) -> Self {
        Self { gateway: Some(gateway), link: Some(link), onlink: true, ..Self::new(dst) }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " dev {link}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Which routes to list; `None` matches all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub table: Option<u32>,
    pub link: Option<u32>,
    pub protocol: Option<u8>,
}

/// The routes of both families that `filter` lets through, without the cache.
pub fn list(socket: &mut Socket, filter: &Filter) -> Result<Vec<Route>> {
    let mut found = list_family(socket, Ipv4Addr::UNSPECIFIED.into(), filter)?;
    found.extend(list_family(socket, Ipv6Addr::UNSPECIFIED.into(), filter)?);
    Ok(found)
}

fn list_family(socket: &mut Socket, any: IpAddr, filter: &Filter) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&any);
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    if let Some(table) = filter.table {
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(link) = filter.link {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    let dumped = socket.dump("list", format_args!("routes"), &RouteNetlinkMessage::GetRoute(message));
    let answers = match dumped {
        // The table that was asked for was never used, or the device is gone.
        Err(error) if error.not_found() && (filter.table.is_some() || filter.link.is_some()) => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    Ok(answers
        .iter()
        .filter(|answer| !is_cached(answer))
        .filter_map(from_message)
        .filter(|route| {
            filter.table.is_none_or(|table| route.table == table)
                && filter.link.is_none_or(|link| route.link == Some(link))
                && filter.protocol.is_none_or(|protocol| route.protocol == protocol)
        })
        .collect())
}

/// Adds a route.
///
/// # Errors
/// `EEXIST` if there is one for this destination, priority and table; `ENETUNREACH` if the gateway is
/// not reachable or the device down.
pub fn add(socket: &mut Socket, route: &Route) -> Result<()> {
    send_new(socket, "add", route, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds an IPv4 route behind those for the same prefix, which stay as they are. For IPv6 the kernel would make one
/// route of all, and send by turns: another metric is what is meant there.
pub fn append(socket: &mut Socket, route: &Route) -> Result<()> {
    send_new(socket, "add", route, NLM_F_CREATE | NLM_F_APPEND)
}

/// Adds a route, in place of the one with the same destination, priority and table if there is one.
/// There is no moment without a route.
pub fn replace(socket: &mut Socket, route: &Route) -> Result<()> {
    send_new(socket, "set", route, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Deletes the route that agrees with `route` in all that it sets.
pub fn delete(socket: &mut Socket, route: &Route) -> Result<()> {
    let message = to_message("delete", route)?;
    socket.request("delete", format_args!("route {route}"), &RouteNetlinkMessage::DelRoute(message), 0)
}

/// How this host would route a packet to `dst` now: device, gateway, source.
pub fn lookup(socket: &mut Socket, dst: IpAddr) -> Result<Route> {
    look_up(socket, dst, RouteFlags::empty())
}

/// The route that this host would take to `dst` now, with its own destination: the whole prefix
/// (`RTM_F_FIB_MATCH`, since Linux 4.13 for IPv4, 5.3 for IPv6).
pub fn matching(socket: &mut Socket, dst: IpAddr) -> Result<Route> {
    look_up(socket, dst, RouteFlags::FibMatch)
}

fn look_up(socket: &mut Socket, dst: IpAddr, flags: RouteFlags) -> Result<Route> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&dst);
    message.header.destination_prefix_length = if dst.is_ipv4() { 32 } else { 128 };
    message.header.flags = flags;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst)));
    let object = format_args!("route to {dst}");
    let answer = socket.get("look up", object, &RouteNetlinkMessage::GetRoute(message))?;
    from_message(&answer).ok_or_else(|| Error::answer("look up", object, "no route in it"))
}

fn send_new(socket: &mut Socket, operation: &'static str, route: &Route, flags: u16) -> Result<()> {
    let message = to_message(operation, route)?;
    socket.request(operation, format_args!("route {route}"), &RouteNetlinkMessage::NewRoute(message), flags)
}

fn to_message(operation: &'static str, route: &Route) -> Result<RouteMessage> {
    if route.src.is_some_and(|src| src.is_ipv4() != route.dst.is_ipv4()) {
        return Err(Error::invalid(
            operation,
            format_args!("route {route}"),
            "its source is of the other family",
        ));
    }
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.dst.ip());
    header.destination_prefix_length = route.dst.prefix();
    // Tables above 255 do not fit the header: the attribute counts, and it counts always.
    header.table = u8::try_from(route.table).unwrap_or(0);
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = RouteScope::from(if route.dst.is_ipv4() { route.scope.number() } else { 0 });
    header.kind = match route.kind {
        Kind::Unicast | Kind::Other => RouteType::Unicast,
        Kind::Local => RouteType::Local,
        Kind::Broadcast => RouteType::Broadcast,
        Kind::Multicast => RouteType::Multicast,
        Kind::Anycast => RouteType::Anycast,
        Kind::Blackhole => RouteType::BlackHole,
        Kind::Unreachable => RouteType::Unreachable,
        Kind::Prohibit => RouteType::Prohibit,
        Kind::Throw => RouteType::Throw,
    };
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.dst.prefix() != 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.dst.network())));
    }
    match (route.dst, route.gateway) {
        (IpNetwork::V4(_), Some(IpAddr::V6(gateway))) => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        (IpNetwork::V6(_), Some(IpAddr::V4(_))) => {
            return Err(Error::invalid(
                operation,
                format_args!("route {route}"),
                "an IPv6 destination has no IPv4 gateway",
            ));
        }
        (_, Some(gateway)) => attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
        (_, None) => {}
    }
    if let Some(link) = route.link {
        attributes.push(RouteAttribute::Oif(link));
    }
    if let Some(src) = route.src {
        attributes.push(RouteAttribute::PrefSource(RouteAddress::from(src)));
    }
    if let Some(priority) = route.priority {
        attributes.push(RouteAttribute::Priority(priority));
    }
    let metrics: Vec<RouteMetric> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    Ok(message)
}

fn is_cached(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(m) if m.header.flags.contains(RouteFlags::Cloned))
}

pub(crate) fn from_message(message: &RouteNetlinkMessage) -> Option<Route> {
    let (RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) = message else {
        return None;
    };
    let header = &message.header;
    let any: IpAddr = match u8::from(header.address_family) {
        2 => Ipv4Addr::UNSPECIFIED.into(),
        10 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut dst = any;
    let mut route = Route {
        kind: match header.kind {
            RouteType::Unicast => Kind::Unicast,
            RouteType::Local => Kind::Local,
            RouteType::Broadcast => Kind::Broadcast,
            RouteType::Multicast => Kind::Multicast,
            RouteType::Anycast => Kind::Anycast,
            RouteType::BlackHole => Kind::Blackhole,
            RouteType::Unreachable => Kind::Unreachable,
            RouteType::Prohibit => Kind::Prohibit,
            RouteType::Throw => Kind::Throw,
            _ => Kind::Other,
        },
        scope: Scope::from_number(header.scope.into()),
        table: u32::from(header.table),
        protocol: header.protocol.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::new(IpNetwork::new(any, 0).ok()?)
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => dst = address(ip)?,
            RouteAttribute::Gateway(ip) => route.gateway = address(ip),
            RouteAttribute::Via(RouteVia::Inet(ip)) => route.gateway = Some((*ip).into()),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => route.gateway = Some((*ip).into()),
            RouteAttribute::Oif(link) => route.link = Some(*link),
            RouteAttribute::PrefSource(ip) => route.src = address(ip),
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.advmss = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Advmss(advmss) => Some(*advmss),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                if let Some(hop) = hops.first() {
                    route.link = Some(hop.interface_index);
                    route.gateway = hop.attributes.iter().find_map(|part| match part {
                        RouteAttribute::Gateway(ip) => address(ip),
                        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
                        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
                        _ => None,
                    });
                }
            }
            _ => {}
        }
    }
    route.dst = IpNetwork::new(dst, header.destination_prefix_length).ok()?;
    let default = if dst.is_ipv4() { 0 } else { DEFAULT_PRIORITY_V6 };
    route.priority = route.priority.filter(|priority| *priority != default);
    Some(route)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
