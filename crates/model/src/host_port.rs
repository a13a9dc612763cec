//! Ports of this node that its pods publish (the CNI capability `portMappings`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::addr::{FrontendAddr, Protocol};

/// Who answers at a port of this node's loopback addresses, for its own processes. For all others the CNI plugin
/// sees to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Who publishes it, for people.
    pub owner: String,
    /// The pod's address and port.
    pub address: IpAddr,
    pub port: u16,
}

/// Where a published port is met on loopback: 127.0.0.1 or ::1, by the family of the pod's address.
pub const fn loopback(address: IpAddr, host_port: u16, proto: Protocol) -> FrontendAddr {
    let ip = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    FrontendAddr::new(ip, host_port, proto)
}
