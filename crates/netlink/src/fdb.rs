//! Forwarding database of VXLAN devices: behind which node an Ethernet address is.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{DisplayMac, MacAddr, Result, Socket};

/// An entry of a device's own table (NTF_SELF).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fdb {
    /// Index of the VXLAN device.
    pub link: u32,
    pub mac: MacAddr,
    /// Underlay address of the node; `None` for entries without one (bridges have such).
    pub dst: Option<IpAddr>,
    /// Never ages (NUD_PERMANENT). What is added here is permanent.
    pub permanent: bool,
}

impl Fdb {
    /// A permanent entry.
    pub const fn new(link: u32, mac: MacAddr, dst: IpAddr) -> Self {
        Self { link, mac, dst: Some(dst), permanent: true }
    }
}

/// The entries of one device.
pub fn list(socket: &mut Socket, link: u32) -> Result<Vec<Fdb>> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    let dumped = socket.dump(
        "list",
        format_args!("fdb entries of {link}"),
        &RouteNetlinkMessage::GetNeighbour(message),
    );
    let answers = match dumped {
        Err(error) if error.not_found() => return Ok(Vec::new()),
        other => other?,
    };
    Ok(answers.iter().filter_map(from_message).filter(|entry| entry.link == link).collect())
}

/// Adds an entry.
///
/// # Errors
/// `EEXIST` if the device has this Ethernet address, be it with the same destination or another.
pub fn add(socket: &mut Socket, entry: &Fdb) -> Result<()> {
    send_new(socket, "add", entry, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds an entry, or moves the Ethernet address to another destination in one step.
pub fn replace(socket: &mut Socket, entry: &Fdb) -> Result<()> {
    send_new(socket, "set", entry, NLM_F_CREATE | NLM_F_REPLACE)
}

fn send_new(socket: &mut Socket, operation: &'static str, entry: &Fdb, flags: u16) -> Result<()> {
    let mut message = to_message(entry);
    message.header.state =
        if entry.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
    socket.request(
        operation,
        format_args!("fdb entry {} dev {}", DisplayMac(entry.mac), entry.link),
        &RouteNetlinkMessage::NewNeighbour(message),
        flags,
    )
}

/// Deletes an entry. With `dst` set, only if it has that destination.
pub fn delete(socket: &mut Socket, entry: &Fdb) -> Result<()> {
    socket.request(
        "delete",
        format_args!("fdb entry {} dev {}", DisplayMac(entry.mac), entry.link),
        &RouteNetlinkMessage::DelNeighbour(to_message(entry)),
        0,
    )
}

fn to_message(entry: &Fdb) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.link;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    if let Some(dst) = entry.dst {
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(dst)));
    }
    message
}

/// The entry that a message describes; `None` for neighbours of IP.
pub(crate) fn from_message(message: &RouteNetlinkMessage) -> Option<Fdb> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) = message
    else {
        return None;
    };
    if message.header.family != AddressFamily::Bridge {
        return None;
    }
    let (mut mac, mut dst) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => dst = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => dst = Some(IpAddr::V6(*v6)),
            // Of a family that is no address family, the crate gives the bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                dst = <[u8; 4]>::try_from(bytes.as_slice())
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                    .ok();
            }
            _ => {}
        }
    }
    Some(Fdb {
        link: message.header.ifindex,
        mac: mac?,
        dst,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
