//! Network devices.

use std::fmt;
use std::os::fd::AsRawFd;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth,
    InfoVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};

use crate::bridge;
use crate::ipvlan;
use crate::vxlan::{self, Vxlan};
use crate::{Error, MacAddr, NetNs, Result, Socket};

/// include/uapi/linux/if_link.h and ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
/// `IFNAMSIZ` without the final zero.
pub const NAME_MAX: usize = 15;

/// A device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The driver's name (`veth`, `vxlan`, `bridge`); `None` for real hardware and loopback.
    pub kind: Option<String>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Carrier present (IFF_LOWER_UP).
    pub lower_up: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    pub operational: Operational,
    pub mtu: u32,
    /// Packets that a queue of the device holds by default (`txqueuelen`).
    pub queue: u32,
    /// Takes what is not for it (IFF_PROMISC), as somebody asked for it by this flag.
    pub promiscuous: bool,
    /// Takes all groups (IFF_ALLMULTI), likewise.
    pub all_multicast: bool,
    /// `None` for devices without Ethernet addresses.
    pub mac: Option<MacAddr>,
    /// Index of the bridge, bond or VRF that the device is enslaved to.
    pub master: Option<u32>,
    /// Index of the device this one is bound to: a veth's peer, a VLAN's parent. In another namespace
    /// if `peer_ns` is set.
    pub peer: Option<u32>,
    /// This namespace's id (not its inode) of the namespace that `peer` lives in.
    pub peer_ns: Option<i32>,
    pub alias: Option<String>,
    /// How IPv6 link-local addresses come about; `None` where the device has no IPv6.
    pub addr_gen: Option<AddrGen>,
    /// Set for VXLAN devices.
    pub vxlan: Option<Vxlan>,
    /// Set for IPVLAN devices.
    pub ipvlan: Option<ipvlan::Mode>,
    /// Set for bridges.
    pub vlans: Option<VlanAware>,
    /// Set for VLAN devices: the VLAN whose frames of `peer` it has.
    pub vlan_id: Option<u16>,
    /// Set for ports of bridges.
    pub port: Option<bridge::Port>,
}

/// What a bridge does with VLANs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VlanAware {
    /// Ports see only the VLANs that they are given.
    pub filtering: bool,
    /// The VLAN that ports are given when they come; 0: none.
    pub default_pvid: u16,
}

impl Link {
    /// A device of which nothing is known but these two: down, with nothing set.
    pub fn new(index: u32, name: &str) -> Self {
        Self {
            index,
            name: name.into(),
            kind: None,
            up: false,
            lower_up: false,
            loopback: false,
            operational: Operational::Unknown,
            mtu: 0,
            queue: 0,
            promiscuous: false,
            all_multicast: false,
            mac: None,
            master: None,
            peer: None,
            peer_ns: None,
            alias: None,
            addr_gen: None,
            vxlan: None,
            ipvlan: None,
            vlans: None,
            vlan_id: None,
            port: None,
        }
    }
}

/// RFC 2863 operational state, as far as anybody acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operational {
    Up,
    Down,
    /// Virtual devices without a notion of it.
    Unknown,
    Other,
}

/// `IFLA_INET6_ADDR_GEN_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddrGen {
    /// A link-local address from the MAC as soon as the device is up (the default).
    Eui64,
    /// None by itself.
    None,
    Other,
}

/// One end of a veth pair to be.
#[derive(Clone, Debug, Default)]
pub struct VethEnd<'a> {
    pub name: &'a str,
    /// Random if `None`.
    pub mac: Option<MacAddr>,
    /// 1500 if `None`.
    pub mtu: Option<u32>,
    /// The namespace to be born in; the socket's if `None`. Birth in place takes 0.5 ms, moving a living
    /// device 20 ms (the kernel waits for an RCU grace period).
    pub ns: Option<&'a NetNs>,
    /// Index of the bridge that it is a port of from its birth (for the end in the socket's namespace).
    pub master: Option<u32>,
}

/// What is to become of a device; `None` leaves a thing as it is.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    pub up: Option<bool>,
    pub name: Option<&'a str>,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddr>,
    pub queue: Option<u32>,
    pub promiscuous: Option<bool>,
    pub all_multicast: Option<bool>,
    /// `Some(None)` releases the device from its master.
    pub master: Option<Option<u32>>,
    pub addr_gen: Option<AddrGen>,
    /// The sysctl `net.ipv4.conf.DEVICE.accept_redirects`.
    pub accept_redirects4: Option<bool>,
    pub alias: Option<&'a str>,
}

/// All devices of the namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = socket.dump("list", format_args!("links"), &RouteNetlinkMessage::GetLink(message))?;
    Ok(answers.iter().filter_map(from_message).collect())
}

/// The device called `name`, if there is one.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    check_name("find", name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    get(socket, format_args!("link {name}"), message)
}

/// The device with this index, if there is one.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(socket, format_args!("link {index}"), message)
}

fn get(socket: &mut Socket, object: fmt::Arguments<'_>, mut message: LinkMessage) -> Result<Option<Link>> {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match socket.get("find", object, &RouteNetlinkMessage::GetLink(message)) {
        Ok(answer) => Ok(from_message(&answer)),
        Err(error) if error.not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a veth pair, each end where it belongs. Both ends are down.
///
/// # Errors
/// `EEXIST` if either name is taken in its namespace; then nothing was created.
pub fn create_veth(socket: &mut Socket, near: &VethEnd<'_>, far: &VethEnd<'_>) -> Result<()> {
    let object = format_args!("veth {} with peer {}", near.name, far.name);
    let peer = veth_end("create", far)?;
    let mut message = veth_end("create", near)?;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    socket.request("create", object, &RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn veth_end(operation: &'static str, end: &VethEnd<'_>) -> Result<LinkMessage> {
    check_name(operation, end.name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(end.name.into()));
    if let Some(mac) = end.mac {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    if let Some(mtu) = end.mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    if let Some(ns) = end.ns {
        message.attributes.push(LinkAttribute::NetNsFd(ns.as_raw_fd()));
    }
    if let Some(master) = end.master {
        message.attributes.push(LinkAttribute::Controller(master));
    }
    Ok(message)
}

/// A bridge to be.
#[derive(Clone, Debug, Default)]
pub struct Bridge<'a> {
    pub name: &'a str,
    /// Random if `None`, and then changing with the ports; give one for a bridge with addresses.
    pub mac: Option<MacAddr>,
    pub mtu: Option<u32>,
    /// Let ports see only the VLANs that they are given.
    pub vlan_filtering: bool,
    /// Drop multicast snooping: frames to groups go to all ports.
    pub no_multicast_snooping: bool,
}

/// Creates a bridge. It is down.
pub fn create_bridge(socket: &mut Socket, bridge: &Bridge<'_>) -> Result<()> {
    check_name("create", bridge.name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(bridge.name.into()));
    if let Some(mac) = bridge.mac {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    if let Some(mtu) = bridge.mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    let mut data = Vec::new();
    if bridge.vlan_filtering {
        data.push(InfoBridge::VlanFiltering(true));
    }
    if bridge.no_multicast_snooping {
        data.push(InfoBridge::MulticastSnooping(false));
    }
    let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
    if !data.is_empty() {
        info.push(LinkInfo::Data(InfoData::Bridge(data)));
    }
    message.attributes.push(LinkAttribute::LinkInfo(info));
    socket.request(
        "create",
        format_args!("bridge {}", bridge.name),
        &RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Creates a device for the frames of one VLAN of `parent`. It is down, with the parent's Ethernet address.
///
/// # Errors
/// `EOPNOTSUPP` on a kernel that knows no VLAN devices (CONFIG_VLAN_8021Q).
pub fn create_vlan(socket: &mut Socket, name: &str, parent: u32, id: u16) -> Result<()> {
    check_name("create", name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::Link(parent));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vlan),
        LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
    ]));
    let object = format_args!("VLAN device {name}");
    socket.request("create", object, &RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Lets a bridge's ports see only the VLANs that they are given.
///
/// # Errors
/// `EOPNOTSUPP` on a kernel whose bridge does not know them (CONFIG_BRIDGE_VLAN_FILTERING).
pub fn filter_vlans(socket: &mut Socket, bridge: u32) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = bridge;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
    ]));
    let object = format_args!("VLAN filter of bridge {bridge}");
    socket.request("set", object, &RouteNetlinkMessage::NewLink(message), 0)
}

/// Changes a device.
pub fn change(socket: &mut Socket, index: u32, change: &Change<'_>) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let flags = [
        (change.up, LinkFlags::Up),
        (change.promiscuous, LinkFlags::Promisc),
        (change.all_multicast, LinkFlags::Allmulti),
    ];
    for (wanted, flag) in flags {
        if let Some(wanted) = wanted {
            message.header.change_mask |= flag;
            message.header.flags.set(flag, wanted);
        }
    }
    if let Some(queue) = change.queue {
        message.attributes.push(LinkAttribute::TxQueueLen(queue));
    }
    if let Some(name) = change.name {
        check_name("rename", name)?;
        message.attributes.push(LinkAttribute::IfName(name.into()));
    }
    if let Some(mtu) = change.mtu {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    }
    if let Some(mac) = change.mac {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    if let Some(master) = change.master {
        message.attributes.push(LinkAttribute::Controller(master.unwrap_or(0)));
    }
    if let Some(alias) = change.alias {
        message.attributes.push(LinkAttribute::IfAlias(alias.into()));
    }
    let mut families = Vec::new();
    if let Some(wanted) = change.accept_redirects4 {
        // A list of numbers by number (inet_set_link_af in net/ipv4/devinet.c), unlike what the kernel answers.
        let mut setting = Vec::with_capacity(8);
        setting.extend(8u16.to_ne_bytes());
        setting.extend(IPV4_DEVCONF_ACCEPT_REDIRECTS.to_ne_bytes());
        setting.extend(u32::from(wanted).to_ne_bytes());
        let settings = DefaultNla::new(IFLA_INET_CONF, setting);
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(settings)]));
    }
    if let Some(addr_gen) = change.addr_gen {
        let mode = match addr_gen {
            AddrGen::None => In6AddrGenMode::None,
            AddrGen::Eui64 | AddrGen::Other => In6AddrGenMode::Eui64,
        };
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]));
    }
    if !families.is_empty() {
        message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    socket.request("change", format_args!("link {index}"), &RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets a device up.
pub fn set_up(socket: &mut Socket, index: u32) -> Result<()> {
    change(socket, index, &Change { up: Some(true), ..Change::default() })
}

/// Sets a device down.
pub fn set_down(socket: &mut Socket, index: u32) -> Result<()> {
    change(socket, index, &Change { up: Some(false), ..Change::default() })
}

/// Moves a device to another namespace. Slow: the kernel waits for an RCU grace period.
pub fn move_to(socket: &mut Socket, index: u32, ns: &NetNs) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::NetNsFd(ns.as_raw_fd()));
    socket.request(
        "move",
        format_args!("link {index} to namespace {}", ns.inode()),
        &RouteNetlinkMessage::SetLink(message),
        0,
    )
}

/// Deletes a device; a veth's peer goes with it.
pub fn delete(socket: &mut Socket, index: u32) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    socket.request("delete", format_args!("link {index}"), &RouteNetlinkMessage::DelLink(message), 0)
}

/// Deletes the device called `name`, in one step: no other device can have taken its index meanwhile.
pub fn delete_by_name(socket: &mut Socket, name: &str) -> Result<()> {
    check_name("delete", name)?;
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    socket.request("delete", format_args!("link {name}"), &RouteNetlinkMessage::DelLink(message), 0)
}

/// Whether the kernel takes `name` for a device name as it is (`dev_valid_name`, and no `%`, which it
/// would replace by a number).
pub fn name_is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
}

/// A device name that somebody typed.
///
/// # Errors
/// What a name has to be, if the kernel would not take it ([`name_is_valid`]).
pub fn parse_name(name: &str) -> std::result::Result<String, &'static str> {
    match name_is_valid(name) {
        true => Ok(name.to_owned()),
        false => Err("no name of a device (1 to 15 characters without `/`, `:`, `%`)"),
    }
}

pub(crate) fn check_name(operation: &'static str, name: &str) -> Result<()> {
    if name_is_valid(name) {
        Ok(())
    } else {
        Err(Error::invalid(
            operation,
            format_args!("link {name:?}"),
            format_args!(
                "a device name has 1 to {NAME_MAX} printable ASCII characters without `/`, `:`, `%`"
            ),
        ))
    }
}

/// The device that a message of the kernel describes.
pub(crate) fn from_message(message: &RouteNetlinkMessage) -> Option<Link> {
    let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut link = Link {
        up: flags.contains(LinkFlags::Up),
        lower_up: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        ..Link::new(message.header.index, "")
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::TxQueueLen(queue) => link.queue = *queue,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.peer = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(id) => link.peer_ns = Some(*id),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::OperState(state) => {
                link.operational = match state {
                    State::Up => Operational::Up,
                    State::Down | State::LowerLayerDown | State::NotPresent => Operational::Down,
                    State::Unknown => Operational::Unknown,
                    _ => Operational::Other,
                }
            }
            LinkAttribute::LinkInfo(info) => {
                for part in info {
                    match part {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => {
                            link.vxlan = Some(vxlan::from_attributes(data));
                        }
                        LinkInfo::Data(InfoData::IpVlan(data)) => link.ipvlan = ipvlan::Mode::of(data),
                        LinkInfo::Data(InfoData::Bridge(data)) => link.vlans = Some(vlan_aware(data)),
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            link.vlan_id = data.iter().find_map(|part| match part {
                                InfoVlan::Id(id) => Some(*id),
                                _ => None,
                            });
                        }
                        LinkInfo::PortData(data) => link.port = bridge::port_from(data),
                        _ => {}
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => {
                for family in families {
                    if let AfSpecUnspec::Inet6(parts) = family {
                        link.addr_gen = parts.iter().find_map(addr_gen).or(link.addr_gen);
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn vlan_aware(data: &[InfoBridge]) -> VlanAware {
    let mut vlans = VlanAware::default();
    for part in data {
        match part {
            InfoBridge::VlanFiltering(on) => vlans.filtering = *on,
            InfoBridge::VlanDefaultPvid(id) => vlans.default_pvid = *id,
            _ => {}
        }
    }
    vlans
}

fn addr_gen(part: &AfSpecInet6) -> Option<AddrGen> {
    match part {
        AfSpecInet6::AddrGenMode(In6AddrGenMode::Eui64) => Some(AddrGen::Eui64),
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None) => Some(AddrGen::None),
        AfSpecInet6::AddrGenMode(_) => Some(AddrGen::Other),
        _ => None,
    }
}
