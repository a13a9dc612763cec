//! What vxland owns in the kernel, as plain data: one type for what is there and for what should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use heddle_model::Mac;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// The metric of a route to another node's range: what the kernel gives where none is asked for.
pub const fn remote_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// The metric of the route that answers for addresses of this node's range which no pod has: worse than
/// any other route, so that a bridge's connected route to the same range wins.
pub const UNREACHABLE_METRIC: u32 = u32::MAX;

/// The VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `vxlan`; whatever else has the name is in the way and is replaced.
    pub kind: String,
    pub vni: u32,
    /// The UDP port that VXLAN packets are sent to.
    pub port: u16,
    /// Outer source address: the address that the other nodes know this node by.
    pub local: Option<IpAddr>,
    /// Index of the device that carries the outer packets. 0: whichever the route says.
    pub underlay: u32,
    /// The kernel must not learn from packets where a MAC is: any sender could then attract traffic.
    pub learning: bool,
    /// UDP checksums on an IPv4 underlay. Off, as flannel has it: the inner packets carry their own.
    pub checksum4: bool,
    /// Whether UDP checksums are left out on an IPv6 underlay, sending and receiving.
    pub no_checksum6: (bool, bool),
    /// Addressed by routes with `encap` instead of the FDB (`external`, also "collect metadata").
    pub external: bool,
    pub mac: Mac,
    /// Bytes of an inner IP packet.
    pub mtu: u32,
    pub up: bool,
    /// The second device, for the tunnels of flannel's whose outer packets are of the other family.
    pub beside: bool,
}

impl Device {
    /// Whether this device can be made into `other` without deleting it: what is left (MAC, MTU, up) can
    /// be changed under traffic.
    pub fn can_become(&self, other: &Self) -> bool {
        Self { mac: other.mac, mtu: other.mtu, up: other.up, ..self.clone() } == *other
    }
}

/// An address of the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    /// Not for source address selection: IPv4 link scope, IPv6 deprecated (preferred lifetime 0). Only
    /// the routes into the overlay name it, so that nothing else leaves the node with it.
    pub hidden: bool,
}

/// Destination and metric: what the kernel tells routes of one table apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteKey {
    pub range: IpNetwork,
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// Through the VXLAN device to another node's address in the overlay.
    /// `beside`: through the second one.
    Via { gateway: Option<IpAddr>, source: Option<IpAddr>, onlink: bool, beside: bool },
    /// Straight to another node on the underlay's link, by the device with this index.
    Direct { gateway: Option<IpAddr>, source: Option<IpAddr>, link: u32 },
    /// Nowhere: refused with ICMP instead of leaking into the underlay by the default route.
    Unreachable,
}

/// Whom a MAC belongs to: a VXLAN packet for it goes to this underlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FdbEntry {
    pub mac: Mac,
    pub dst: IpAddr,
    /// Does not age. Every entry of ours.
    pub permanent: bool,
    /// On the second device.
    pub beside: bool,
}

impl Neighbour {
    pub const fn new(ip: IpAddr) -> Self {
        Self { ip, beside: false }
    }
}

impl FdbEntry {
    pub const fn new(mac: Mac, dst: IpAddr) -> Self {
        Self { mac, dst, permanent: true, beside: false }
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// Another node's address in the overlay, as a neighbour on one of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub ip: IpAddr,
    /// On the second device.
    pub beside: bool,
}

/// The whole of it. Where there is no device there are no addresses, neighbours and FDB entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    pub device: Option<Device>,
    /// The second device, while there are nodes that need it.
    pub beside: Option<Device>,
    pub addresses: BTreeSet<Address>,
    pub routes: BTreeMap<RouteKey, Route>,
    /// Overlay address of another node to the MAC of its VXLAN device, permanent.
    pub neighbours: BTreeMap<Neighbour, Mac>,
    /// A unicast MAC has one destination; the all-zero MAC (flooding) may have many and is never wanted.
    pub fdb: BTreeSet<FdbEntry>,
    /// Devices of another VNI that an earlier vxland left. Never desired: their routes are in the way.
    pub leftovers: BTreeSet<String>,
    /// Families that the node forwards packets of. Desired: at least these.
    pub forwarding: BTreeSet<Family>,
    /// Devices that take router advertisements even while the node forwards. Desired: at least these.
    pub advertisements: BTreeSet<String>,
    /// Content of the CNI configuration file. Desired `None`: left as it is.
    pub conflist: Option<String>,
}

impl KernelState {
    /// Whether the node can take pods: the device stands with its addresses, and packets are forwarded.
    /// That some other node cannot be reached is no reason to have none.
    pub fn carries(&self, desired: &Self) -> bool {
        self.device == desired.device
            && (desired.beside.is_none() || self.beside == desired.beside)
            && self.addresses.is_superset(&desired.addresses)
            && self.forwarding.is_superset(&desired.forwarding)
    }
}
