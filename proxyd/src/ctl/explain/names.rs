//! Between the words of people and those of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_ebpf_common::{Addr, Name};

/// A name that the maps hold.
pub fn text(name: &Name) -> String {
    let len = name.0.iter().position(|byte| *byte == 0).unwrap_or(name.0.len());
    String::from_utf8_lossy(&name.0[..len]).into_owned()
}

/// An address as the maps hold it.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            Addr(words)
        }
    }
}

/// The address that the maps hold.
pub fn ip(addr: &Addr) -> IpAddr {
    if addr.is_v4() {
        return Ipv4Addr::from(addr.as_v4().to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (bytes, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(addr.0) {
        *bytes = word.to_ne_bytes();
    }
    Ipv6Addr::from(octets).into()
}
