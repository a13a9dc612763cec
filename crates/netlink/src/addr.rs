//! Addresses of devices.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Result, Socket};

/// How far an address or a route reaches (`rt_scope_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    #[default]
    Universe,
    Site,
    /// Valid on this link: never chosen as a source by itself for destinations beyond it.
    Link,
    Host,
    Nowhere,
}

impl Scope {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Universe => 0,
            Self::Site => 200,
            Self::Link => 253,
            Self::Host => 254,
            Self::Nowhere => 255,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            200 => Self::Site,
            253 => Self::Link,
            254 => Self::Host,
            255 => Self::Nowhere,
            // The kernel knows no others, but lets users invent some between universe and link.
            _ => Self::Universe,
        }
    }
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addr {
    /// Index of the device.
    pub link: u32,
    /// The address and the length of its prefix.
    pub ip: IpNetwork,
    /// The other end of a point-to-point address.
    pub peer: Option<IpAddr>,
    /// IPv6 scopes are the kernel's to compute: what is set here is ignored there.
    pub scope: Scope,
    /// No duplicate address detection: usable at once (IPv6; IFA_F_NODAD).
    pub nodad: bool,
    /// No route for the prefix comes with it (IFA_F_NOPREFIXROUTE).
    pub no_prefix_route: bool,
    /// Preferred lifetime 0 (IPv6): never chosen as a source while there is another (RFC 6724 section 5,
    /// rule 3), but works where it is asked for.
    pub deprecated: bool,
    /// Observed only: duplicate address detection is not through, or found a duplicate.
    pub tentative: bool,
    /// Observed only: duplicate address detection found that somebody else has it.
    pub duplicate: bool,
    /// Observed only: never expires. What was added here is permanent.
    pub permanent: bool,
    /// `label` of IPv4 (observed only).
    pub label: Option<String>,
}

impl Addr {
    /// A permanent address, nothing special about it.
    pub const fn new(link: u32, ip: IpNetwork) -> Self {
        Self {
            link,
            ip,
            peer: None,
            scope: Scope::Universe,
            nodad: false,
            no_prefix_route: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
            permanent: true,
            label: None,
        }
    }
}

/// All addresses of the namespace, or of one device.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Addr>> {
    let mut message = AddressMessage::default();
    message.header.index = link.unwrap_or(0);
    let dumped = socket.dump("list", format_args!("addresses"), &RouteNetlinkMessage::GetAddress(message));
    let answers = match dumped {
        // The device is gone, and its addresses with it.
        Err(error) if link.is_some() && error.not_found() => return Ok(Vec::new()),
        other => other?,
    };
    Ok(answers
        .iter()
        .filter_map(from_message)
        .filter(|addr| link.is_none_or(|link| addr.link == link))
        .collect())
}

/// Adds an address.
///
/// # Errors
/// `EEXIST` if the device has it already.
pub fn add(socket: &mut Socket, addr: &Addr) -> Result<()> {
    send_new(socket, "add", addr, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds an address or changes its flags. Its scope (IPv4) stays what it was: see [`delete`].
pub fn replace(socket: &mut Socket, addr: &Addr) -> Result<()> {
    send_new(socket, "set", addr, NLM_F_CREATE | NLM_F_REPLACE)
}

fn send_new(socket: &mut Socket, operation: &'static str, addr: &Addr, flags: u16) -> Result<()> {
    let message = to_message(operation, addr)?;
    socket.request(
        operation,
        format_args!("address {} dev {}", addr.ip, addr.link),
        &RouteNetlinkMessage::NewAddress(message),
        flags,
    )
}

/// Deletes an address.
pub fn delete(socket: &mut Socket, link: u32, ip: IpNetwork) -> Result<()> {
    let mut message = to_message("delete", &Addr::new(link, ip))?;
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
    socket.request(
        "delete",
        format_args!("address {ip} dev {link}"),
        &RouteNetlinkMessage::DelAddress(message),
        0,
    )
}

fn to_message(operation: &'static str, addr: &Addr) -> Result<AddressMessage> {
    if addr.peer.is_some_and(|peer| peer.is_ipv4() != addr.ip.is_ipv4()) {
        return Err(Error::invalid(
            operation,
            format_args!("address {} dev {}", addr.ip, addr.link),
            "its peer is of the other family",
        ));
    }
    let mut message = AddressMessage::default();
    message.header.index = addr.link;
    message.header.family = family(&addr.ip.ip());
    message.header.prefix_len = addr.ip.prefix();
    message.header.scope = AddressScope::from(addr.scope.number());
    message.attributes.push(AddressAttribute::Local(addr.ip.ip()));
    message.attributes.push(AddressAttribute::Address(addr.peer.unwrap_or(addr.ip.ip())));
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, addr.nodad && addr.ip.is_ipv6());
    flags.set(AddressFlags::Noprefixroute, addr.no_prefix_route);
    if !flags.is_empty() {
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    if addr.deprecated && addr.ip.is_ipv6() {
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_valid = u32::MAX; // INFINITY_LIFE_TIME
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    Ok(message)
}

pub(crate) fn family(ip: &IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(crate) fn from_message(message: &RouteNetlinkMessage) -> Option<Addr> {
    let (RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) = message
    else {
        return None;
    };
    let (mut local, mut address, mut label) = (None, None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Label(text) => label = Some(text.clone()),
            _ => {}
        }
    }
    // IPv6 names an ordinary address by IFA_ADDRESS alone; with IFA_LOCAL the former is the peer.
    let ip = local.or(address)?;
    Some(Addr {
        link: message.header.index,
        ip: IpNetwork::new(ip, message.header.prefix_len).ok()?,
        peer: address.filter(|peer| *peer != ip),
        scope: Scope::from_number(message.header.scope.into()),
        nodad: flags.contains(AddressFlags::Nodad),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        permanent: flags.contains(AddressFlags::Permanent),
        label,
    })
}
