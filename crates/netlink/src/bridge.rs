//! Ports of a bridge: what they are, and which VLANs pass through them.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridgePort, InfoPortData,
    LinkAttribute, LinkExtentMask, LinkMessage, LinkProtoInfoBridge,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Result, Socket};

/// `IFLA_BRPORT_MODE` and `IFLA_BRPORT_ISOLATED` (include/uapi/linux/if_link.h).
const BRPORT_MODE: u16 = 4;
const BRPORT_ISOLATED: u16 = 33;

/// What a port is like beyond its VLANs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Frames may leave by the port that they came in by.
    pub hairpin: bool,
    /// No frames from and to other isolated ports.
    pub isolated: bool,
}

/// A VLAN of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan {
    /// 1 to 4094.
    pub id: u16,
    /// Frames without a tag belong to it.
    pub pvid: bool,
    /// Its frames leave without a tag.
    pub untagged: bool,
}

impl Vlan {
    /// A VLAN whose frames have tags.
    pub const fn tagged(id: u16) -> Self {
        Self { id, pvid: false, untagged: false }
    }

    /// The VLAN of a port that knows nothing of VLANs.
    pub const fn native(id: u16) -> Self {
        Self { id, pvid: true, untagged: true }
    }
}

/// Which VLANs [`configure`] changes: those of a port, or those that the bridge device itself is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Port,
    Bridge,
}

/// Makes a port what `port` says and adds VLANs to it, in one request.
///
/// # Errors
/// `EOPNOTSUPP` for VLANs on a kernel whose bridge does not know them (CONFIG_BRIDGE_VLAN_FILTERING).
pub fn configure(socket: &mut Socket, of: Of, index: u32, port: Option<Port>, vlans: &[Vlan]) -> Result<()> {
    let mut message = message(index);
    if let Some(port) = port {
        let flag = |kind, value: bool| LinkProtoInfoBridge::Other(DefaultNla::new(kind, vec![value.into()]));
        message.attributes.push(LinkAttribute::ProtoInfoBridge(vec![
            flag(BRPORT_MODE, port.hairpin),
            flag(BRPORT_ISOLATED, port.isolated),
        ]));
    }
    if !vlans.is_empty() {
        message.attributes.push(specification(of, vlans));
    }
    socket.request(
        "configure",
        format_args!("bridge port {index}"),
        &RouteNetlinkMessage::SetLink(message),
        0,
    )
}

/// Takes VLANs away from a port, or from the bridge device itself. One that is not there is no error.
pub fn delete_vlans(socket: &mut Socket, of: Of, index: u32, ids: &[u16]) -> Result<()> {
    let vlans: Vec<Vlan> = ids.iter().map(|id| Vlan::tagged(*id)).collect();
    let mut message = message(index);
    message.attributes.push(specification(of, &vlans));
    socket.request(
        "delete",
        format_args!("VLANs {ids:?} of bridge port {index}"),
        &RouteNetlinkMessage::DelLink(message),
        0,
    )
}

/// The VLANs of a port or, for a bridge's index, those that the bridge device itself is in.
pub fn vlans(socket: &mut Socket, index: u32) -> Result<Vec<Vlan>> {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
    let answers =
        socket.dump("list", format_args!("bridge VLANs"), &RouteNetlinkMessage::GetLink(message))?;
    let mut found = Vec::new();
    for answer in &answers {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        if message.header.index != index {
            continue;
        }
        for attribute in &message.attributes {
            let LinkAttribute::AfSpecBridge(parts) = attribute else { continue };
            found.extend(parts.iter().filter_map(|part| match part {
                AfSpecBridge::VlanInfo(info) => Some(Vlan {
                    id: info.vid,
                    pvid: info.flags.contains(BridgeVlanInfoFlags::Pvid),
                    untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged),
                }),
                _ => None,
            }));
        }
    }
    Ok(found)
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message
}

/// Neighbouring VLANs that are alike go as a range: 4094 of them would be 32 KiB.
fn specification(of: Of, vlans: &[Vlan]) -> LinkAttribute {
    // Without flags the request is for the master of the device (`br_setlink` in net/bridge/br_netlink.c).
    let flag = match of {
        Of::Port => BridgeFlag::Controller,
        Of::Bridge => BridgeFlag::LowerDev,
    };
    let mut parts = vec![AfSpecBridge::Flags(flag)];
    let mut rest = vlans;
    while let Some(first) = rest.first() {
        let follows = |n: usize, next: &Vlan| {
            usize::from(next.id) == usize::from(first.id) + n
                && !first.pvid
                && next.untagged == first.untagged
                && !next.pvid
        };
        let length = rest.iter().enumerate().take_while(|(n, next)| *n == 0 || follows(*n, next)).count();
        let last = rest.get(length - 1).unwrap_or(first);
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, first.pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, first.untagged);
        let info = |id, more| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: flags | more, vid: id });
        if length == 1 {
            parts.push(info(first.id, BridgeVlanInfoFlags::empty()));
        } else {
            parts.push(info(first.id, BridgeVlanInfoFlags::RangeBegin));
            parts.push(info(last.id, BridgeVlanInfoFlags::RangeEnd));
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    LinkAttribute::AfSpecBridge(parts)
}

/// What a link message says of the device as a port of a bridge.
pub(crate) fn port_from(data: &InfoPortData) -> Option<Port> {
    let InfoPortData::BridgePort(parts) = data else { return None };
    let mut port = Port::default();
    for part in parts {
        match part {
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            _ => {}
        }
    }
    Some(port)
}

/// Whether a request failed because the kernel's bridge knows no VLANs.
pub fn lacks_vlans(error: &Error) -> bool {
    error.errno() == Some(nix::errno::Errno::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_vlans_go_as_a_range() {
        let LinkAttribute::AfSpecBridge(parts) =
            specification(Of::Port, &[1, 2, 3, 7, 9, 10].map(Vlan::tagged))
        else {
            panic!("another attribute")
        };
        let ids: Vec<u16> = parts
            .iter()
            .filter_map(|part| match part {
                AfSpecBridge::VlanInfo(info) => Some(info.vid),
                _ => None,
            })
            .collect();
        assert_eq!(ids, [1, 3, 7, 9, 10]);
    }
}
