//! Nodes, and what this node must know of the others to reach their pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::cluster::Created;

/// A node's name, as the cluster spells it. Cheap to copy: a cluster names its nodes in every endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub Arc<str>);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = &'static str;

    /// Six bytes in hexadecimal, with colons between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or("not six bytes")?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| "not hexadecimal")?;
        }
        if parts.next().is_some() { Err("not six bytes") } else { Ok(Self(bytes)) }
    }
}

impl Mac {
    /// Whether a device can have it: not a group's, and not zero.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
            && u64::from_be_bytes([0, 0, self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5]])
                != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A node as the cluster describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub created: Created,
    /// The node's own addresses (`InternalIP`), in the order in which the cluster lists them.
    pub addresses: Vec<IpAddr>,
    /// The ranges that its pods take their addresses from, at most one a family.
    pub pod_ranges: Vec<IpNetwork>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// The cluster says that it is not ready.
    pub down: bool,
    /// The cluster is about to remove it: load balancers are to send it nothing new.
    pub leaving: bool,
    /// What it announces of its end of the tunnels, where it announces anything.
    pub announced: Option<Box<Announced>>,
}

/// What a node announces of its end of the tunnels to it. A node that announces nothing has what follows from its
/// name and its addresses ([`vtep_mac`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// For pods with IPv4 and with IPv6 addresses.
    pub v4: Option<Vtep>,
    pub v6: Option<Vtep>,
    /// It does not have VXLAN but this.
    pub other: Option<Arc<str>>,
    /// What it says and nothing can be made of, in words for people.
    pub refused: Vec<String>,
}

impl Announced {
    /// For pods of one family.
    pub const fn of(&self, v4: bool) -> Option<&Vtep> {
        if v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// A node's end of the tunnels for pods of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vtep {
    pub vni: u32,
    pub mac: Mac,
    /// Where VXLAN packets for it are to be sent, if it says so; of the family of the pods.
    pub underlay: Option<IpAddr>,
}

impl Node {
    /// The first of the node's addresses of the family of `like`.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == v4)
    }

    /// The address of the node inside the overlay, one a range: the first of the range. `vxland` gives
    /// it to the VXLAN device, and host-local never hands it out.
    pub fn overlay_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.pod_ranges.iter().map(IpNetwork::network)
    }
}

/// The Ethernet address of a node's VXLAN device: locally administered, unicast, the same after every
/// reboot and computed alike by every node, so that nobody has to be told it. Bytes 1 to 5 are the
/// FNV-1a hash of the name and the VNI, folded.
pub fn vtep_mac(node: &NodeName, vni: u32) -> Mac {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node.0.bytes().chain(vni.to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [h0, h1, h2, h3, h4, h5, h6, h7] = hash.to_be_bytes();
    // 0x02: locally administered, unicast. `VTEP_MAC_FIRST` in the eBPF programs relies on the exact byte.
    Mac([0x02, h0 ^ h5, h1 ^ h6, h2 ^ h7, h3, h4])
}

/// What this node must know of another to reach its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteNode {
    /// Where VXLAN packets for it are sent: its address in the underlay.
    pub underlay: IpAddr,
    /// The Ethernet address of its VXLAN device.
    pub mac: Mac,
    /// Its pod ranges; each is a route, and the first address of each is its address in the overlay.
    pub ranges: BTreeSet<IpNetwork>,
    /// Its pod range of the other family, where that has tunnels of its own.
    #[serde(default)]
    pub beside: Option<Beside>,
    /// All addresses of its own.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// A pod range that has tunnels of its own, whose outer packets are of its own family: flannel's way for the second
/// family of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    pub underlay: IpAddr,
    pub mac: Mac,
    pub range: IpNetwork,
}

/// What the overlay of this node must be: a pure function of the nodes and this node's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayTable {
    /// This node's own address in the underlay, of the family that the overlay runs over: the source of
    /// its VXLAN packets and what the other nodes send theirs to. `None`: the cluster does not know this
    /// node (yet), and nothing may be done.
    pub underlay: Option<IpAddr>,
    /// All addresses of this node.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// This node's own pod ranges.
    pub local: BTreeSet<IpNetwork>,
    pub remotes: BTreeMap<NodeName, RemoteNode>,
}
