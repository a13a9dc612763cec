//! IPVLAN devices (Documentation/networking/ipvlan.rst): devices that share another one's Ethernet address and are
//! told apart by their IP addresses.

use std::fmt;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkInfo, LinkMessage,
};

use crate::{NetNs, Result, Socket, link};

/// How packets of the devices on one master travel. The kernel keeps it for the master: creating a device in
/// another mode puts every device of that master into it, without a word (`ipvlan_set_port_mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As on a switch: with ARP, neighbour discovery, broadcasts.
    L2,
    /// Routed by the tables of the master's namespace, past its netfilter on the way in; neither ARP nor broadcasts.
    L3,
    /// As L3, and netfilter sees both directions.
    L3s,
}

impl Mode {
    /// `l2`, `l3`, `l3s`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        }
    }

    pub(crate) fn of(data: &[InfoIpVlan]) -> Option<Self> {
        data.iter().find_map(|part| match part {
            InfoIpVlan::Mode(IpVlanMode::L2) => Some(Self::L2),
            InfoIpVlan::Mode(IpVlanMode::L3) => Some(Self::L3),
            InfoIpVlan::Mode(IpVlanMode::L3S) => Some(Self::L3s),
            _ => None,
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A device to be.
#[derive(Clone, Copy, Debug)]
pub struct Ipvlan<'a> {
    /// Also in the socket's namespace there must be no device of this name: up to Linux 6.14 the kernel looks
    /// there, wherever the device is to be born.
    pub name: &'a str,
    /// Index of the master, in the socket's namespace.
    pub master: u32,
    pub mode: Mode,
    /// The master's if `None`.
    pub mtu: Option<u32>,
    /// The namespace to be born in.
    pub ns: &'a NetNs,
}

/// Creates an IPVLAN device. It is down.
///
/// # Errors
/// `EOPNOTSUPP` where the kernel has no ipvlan; `EBUSY` if the master is a port of a bridge or a bond, or has macvlan
/// devices; `EINVAL` if it is no Ethernet device; `EEXIST` if the name is taken.
pub fn create(socket: &mut Socket, wanted: &Ipvlan<'_>) -> Result<()> {
    link::check_name("create", wanted.name)?;
    let mode = match wanted.mode {
        Mode::L2 => IpVlanMode::L2,
        Mode::L3 => IpVlanMode::L3,
        Mode::L3s => IpVlanMode::L3S,
    };
    let mut message = LinkMessage::default();
    message.attributes.extend([
        LinkAttribute::IfName(wanted.name.into()),
        LinkAttribute::Link(wanted.master),
        LinkAttribute::NetNsFd(wanted.ns.as_raw_fd()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::IpVlan),
            LinkInfo::Data(InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)])),
        ]),
    ]);
    message.attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    let object = format_args!("ipvlan {} on link {}", wanted.name, wanted.master);
    socket.request("create", object, &RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}
