//! VXLAN devices (RFC 7348).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoVxlan;
use rtnetlink::{LinkMessageBuilder, LinkVxlan};

use crate::{MacAddr, Result, Socket, link};

/// What makes a VXLAN device the one that it is. The kernel lets none of it but `local`, `underlay`,
/// `ttl` and `learning` be changed later: a device that differs is deleted and made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packets; it decides the family of the underlay.
    pub local: Option<IpAddr>,
    /// Index of the device that outer packets leave by; `None`: the routing table decides.
    pub underlay: Option<u32>,
    /// Learn the senders' addresses from packets. Off in an overlay that knows its nodes: whoever can
    /// send a packet could move a node.
    pub learning: bool,
    /// Hop limit of the outer packets; 0: the kernel's default, 64 (`vxlan_xmit_one`).
    pub ttl: u8,
    /// Checksum in the outer UDP header over IPv4.
    pub udp_csum: bool,
    /// Send outer IPv6 packets without UDP checksum (RFC 6935).
    pub udp6_zero_csum_tx: bool,
    /// Accept outer IPv6 packets without UDP checksum.
    pub udp6_zero_csum_rx: bool,
    /// Addressed by routes and BPF instead of the FDB (`external`, COLLECT_METADATA).
    pub external: bool,
}

impl Default for Vxlan {
    /// VNI 1 on the IANA port, FDB only from us, no hop limit of its own. Checksums as the kernel's
    /// defaults are: none over IPv4 (the inner packet has its own), one over IPv6.
    fn default() -> Self {
        Self {
            vni: 1,
            port: 4789,
            local: None,
            underlay: None,
            learning: false,
            ttl: 0,
            udp_csum: false,
            udp6_zero_csum_tx: false,
            udp6_zero_csum_rx: false,
            external: false,
        }
    }
}

/// Creates a VXLAN device. It is down.
///
/// # Errors
/// `EEXIST` if the name is taken, or VNI and port by another device; `EADDRINUSE` if the UDP port is
/// taken by a process (that comes when the device is set up).
pub fn create(
    socket: &mut Socket,
    name: &str,
    vxlan: &Vxlan,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
) -> Result<()> {
    link::check_name("create", name)?;
    let mut device = described(name, vxlan);
    if let Some(mac) = mac {
        device = device.address(mac.to_vec());
    }
    if let Some(mtu) = mtu {
        device = device.mtu(mtu);
    }
    let message = RouteNetlinkMessage::NewLink(device.build());
    socket.request("create", format_args!("vxlan {name}"), &message, NLM_F_CREATE | NLM_F_EXCL)
}

fn described(name: &str, vxlan: &Vxlan) -> LinkMessageBuilder<LinkVxlan> {
    let mut device = LinkMessageBuilder::<LinkVxlan>::new(name)
        .port(vxlan.port)
        .learning(vxlan.learning)
        .ttl(vxlan.ttl)
        .udp_csum(vxlan.udp_csum)
        .udp_zero_csum6_tx(vxlan.udp6_zero_csum_tx)
        .udp_zero_csum6_rx(vxlan.udp6_zero_csum_rx);
    device = match vxlan.external {
        true => device.collect_metadata(true),
        false => device.id(vxlan.vni),
    };
    device = match vxlan.local {
        Some(IpAddr::V4(ip)) => device.local(ip),
        Some(IpAddr::V6(ip)) => device.local6(ip),
        None => device,
    };
    match vxlan.underlay {
        Some(index) => device.dev(index),
        None => device,
    }
}

/// Reads what the kernel says of a VXLAN device.
pub(crate) fn from_attributes(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan { vni: 0, port: 0, udp_csum: false, ..Vxlan::default() };
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(ip) => {
                vxlan.local = Some((*ip).into()).filter(|ip: &IpAddr| !ip.is_unspecified())
            }
            InfoVxlan::Local6(ip) => {
                vxlan.local = Some((*ip).into()).filter(|ip: &IpAddr| !ip.is_unspecified())
            }
            InfoVxlan::Link(index) => vxlan.underlay = Some(*index).filter(|index| *index != 0),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
            InfoVxlan::UDPCsum(on) => vxlan.udp_csum = *on,
            InfoVxlan::UDPZeroCsumTX(on) => vxlan.udp6_zero_csum_tx = *on,
            InfoVxlan::UDPZeroCsumRX(on) => vxlan.udp6_zero_csum_rx = *on,
            InfoVxlan::CollectMetadata(on) => vxlan.external = *on,
            _ => {}
        }
    }
    vxlan
}
