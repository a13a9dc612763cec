//! Addresses in the form of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_ebpf_common::Addr;

pub fn addr(ip: IpAddr) -> Addr {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let (words, _) = bytes.as_chunks::<4>();
    Addr([0, 1, 2, 3].map(|word| u32::from_ne_bytes(words[word])))
}

/// The address `n` above.
pub fn above(ip: IpAddr, n: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() + n).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + u128::from(n)).into(),
    }
}
