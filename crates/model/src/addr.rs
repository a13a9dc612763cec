//! What a packet is matched by: network, address, port, protocol.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The network that an address belongs to. 0 is the node's own; an overlay network whose addresses
/// may occur twice on a machine (Docker Swarm) has a number of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetId(pub u32);

/// A transport protocol that a service can be published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The IP protocol number (IANA "Assigned Internet Protocol Numbers").
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this IP protocol number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Which ports a frontend answers on. A Swarm VIP balances all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    Any,
    Port(u16),
}

/// Which protocols a frontend answers on. A Swarm VIP balances all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProtoMatch {
    Any,
    Proto(Protocol),
}

/// The address that a client uses: a ClusterIP and its port, a node port, an external address.
///
/// An unspecified `ip` (`0.0.0.0` or `::`) stands for every address of every node of that family: a
/// node port is one frontend, however many nodes and addresses there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FrontendAddr {
    pub net: NetId,
    pub ip: IpAddr,
    pub port: PortMatch,
    pub proto: ProtoMatch,
}

impl FrontendAddr {
    /// A frontend in the node's own network, on one port of one protocol.
    pub const fn new(ip: IpAddr, port: u16, proto: Protocol) -> Self {
        Self { net: NetId(0), ip, port: PortMatch::Port(port), proto: ProtoMatch::Proto(proto) }
    }

    /// Whether this is a port of every node rather than an address of its own.
    pub const fn is_node_port(&self) -> bool {
        self.ip.is_unspecified()
    }
}

impl fmt::Display for FrontendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_node_port(), self.ip) {
            (true, IpAddr::V4(_)) => f.write_str("node(ipv4)")?,
            (true, IpAddr::V6(_)) => f.write_str("node(ipv6)")?,
            (false, IpAddr::V4(ip)) => write!(f, "{ip}")?,
            (false, IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
        }
        match self.port {
            PortMatch::Any => f.write_str(":*")?,
            PortMatch::Port(port) => write!(f, ":{port}")?,
        }
        match self.proto {
            ProtoMatch::Any => f.write_str("/any"),
            ProtoMatch::Proto(proto) => write!(f, "/{proto}"),
        }
    }
}
