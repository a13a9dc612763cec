//! Neighbours: which Ethernet address an IP address on a link has.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::addr::family;
use crate::{DisplayMac, MacAddr, Result, Socket};

/// A neighbour of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neigh {
    /// Index of the device.
    pub link: u32,
    pub ip: IpAddr,
    /// Unknown while the kernel is asking for it.
    pub mac: Option<MacAddr>,
    /// Never asked for, never forgotten (NUD_PERMANENT). What is added here is permanent.
    pub permanent: bool,
}

impl Neigh {
    /// A permanent neighbour.
    pub const fn new(link: u32, ip: IpAddr, mac: MacAddr) -> Self {
        Self { link, ip, mac: Some(mac), permanent: true }
    }
}

/// The neighbours of both families, of all devices or of one; also those that the kernel learned.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Neigh>> {
    let mut message = NeighbourMessage::default();
    if let Some(link) = link {
        message.attributes.push(NeighbourAttribute::IfIndex(link));
    }
    let dumped = socket.dump("list", format_args!("neighbours"), &RouteNetlinkMessage::GetNeighbour(message));
    let answers = match dumped {
        Err(error) if link.is_some() && error.not_found() => return Ok(Vec::new()),
        other => other?,
    };
    Ok(answers
        .iter()
        .filter_map(from_message)
        .filter(|neigh| link.is_none_or(|link| neigh.link == link))
        .collect())
}

/// Adds a neighbour.
///
/// # Errors
/// `EEXIST` if the device has an entry for this address, learned ones included.
pub fn add(socket: &mut Socket, neigh: &Neigh) -> Result<()> {
    send_new(socket, "add", neigh, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds a neighbour, in place of what the device knew of this address.
pub fn replace(socket: &mut Socket, neigh: &Neigh) -> Result<()> {
    send_new(socket, "set", neigh, NLM_F_CREATE | NLM_F_REPLACE)
}

fn send_new(socket: &mut Socket, operation: &'static str, neigh: &Neigh, flags: u16) -> Result<()> {
    let mac = neigh.mac.unwrap_or_default();
    let mut message = to_message(neigh.link, neigh.ip);
    message.header.state =
        if neigh.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    socket.request(
        operation,
        format_args!("neighbour {} lladdr {} dev {}", neigh.ip, DisplayMac(mac), neigh.link),
        &RouteNetlinkMessage::NewNeighbour(message),
        flags,
    )
}

/// Deletes a neighbour.
pub fn delete(socket: &mut Socket, link: u32, ip: IpAddr) -> Result<()> {
    let message = to_message(link, ip);
    socket.request(
        "delete",
        format_args!("neighbour {ip} dev {link}"),
        &RouteNetlinkMessage::DelNeighbour(message),
        0,
    )
}

fn to_message(link: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&ip);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
    message
}

/// The neighbour that a message describes; `None` for FDB and proxy entries.
pub(crate) fn from_message(message: &RouteNetlinkMessage) -> Option<Neigh> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) = message
    else {
        return None;
    };
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neigh {
        link: message.header.ifindex,
        ip: ip?,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
