//! How a pod is wired.

pub mod bridge;
pub mod ipvlan;
pub mod ptp;

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::addresses::Allocation;

/// The IPv6 gateway of pods in mode ptp, on every host side: link-local, so that it is nobody's address and
/// nothing has to be reserved for it.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An address alone: /32 or /128.
pub fn alone(ip: IpAddr) -> IpNetwork {
    match ip {
        IpAddr::V4(ip) => IpNetwork::V4(ip.into()),
        IpAddr::V6(ip) => IpNetwork::V6(ip.into()),
    }
}

/// Whether there is an address of this family among the allocations.
pub fn has_family(allocations: &[Allocation], v4: bool) -> bool {
    allocations.iter().any(|allocation| allocation.ip.is_ipv4() == v4)
}

/// The addresses alone.
pub fn ips(allocations: &[Allocation]) -> Vec<IpAddr> {
    allocations.iter().map(|allocation| allocation.ip.ip()).collect()
}

/// The first IPv6 address among the allocations.
pub fn address6(allocations: &[Allocation]) -> Option<Ipv6Addr> {
    allocations.iter().find_map(|allocation| match allocation.ip.ip() {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    })
}
