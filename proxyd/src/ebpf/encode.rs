//! Between the model's words and the maps' keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_ebpf_common::{Addr, FrontendKey, NET_LOOPBACK, Name};
use heddle_model::{FrontendAddr, NetId, PortMatch, ProtoMatch, Protocol};
use ipnetwork::IpNetwork;

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
pub fn ip(addr: Addr) -> IpAddr {
    if addr.is_v4() {
        return Ipv4Addr::from(addr.as_v4().to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (bytes, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(addr.0) {
        *bytes = word.to_ne_bytes();
    }
    Ipv6Addr::from(octets).into()
}

/// The key of a frontend in the node's own network, on one port of one protocol.
/// A loopback address is in a network of its own, in which no packet is ever looked up. `None`: the programs cannot
/// hold it.
pub fn key(at: &FrontendAddr) -> Option<FrontendKey> {
    let FrontendAddr { net: NetId(0), ip, port: PortMatch::Port(port), proto: ProtoMatch::Proto(proto) } =
        *at
    else {
        return None;
    };
    // The mapped form of an IPv4 address would be taken for that address.
    if port == 0 || matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return None;
    }
    let net = if ip.is_loopback() { NET_LOOPBACK } else { 0 };
    Some(FrontendKey { addr: addr(ip), net, port: port.to_be(), proto: proto.number(), zero: 0 })
}

/// The frontend of a key. `None`: the key is none of ours.
pub fn frontend_addr(key: &FrontendKey) -> Option<FrontendAddr> {
    let at = FrontendAddr::new(ip(key.addr), u16::from_be(key.port), Protocol::from_number(key.proto)?);
    (self::key(&at)? == *key).then_some(at)
}

/// A name as the maps hold it; longer ones are cut.
pub fn name(text: &str) -> Name {
    let mut name = Name([0; 256]);
    let len = text.len().min(name.0.len() - 1);
    name.0[..len].copy_from_slice(&text.as_bytes()[..len]);
    name
}

/// The name that the maps hold.
pub fn text(name: &Name) -> String {
    let len = name.0.iter().position(|byte| *byte == 0).unwrap_or(name.0.len());
    String::from_utf8_lossy(&name.0[..len]).into_owned()
}

/// The pod range of a key of `ranges`, whose prefix counts from the first bit of the mapped form.
pub fn range(addr: Addr, prefix: u32) -> Option<IpNetwork> {
    let prefix = if addr.is_v4() { prefix.checked_sub(96)? } else { prefix };
    IpNetwork::new(ip(addr), u8::try_from(prefix).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_survive(ip_in in any::<IpAddr>()) {
            prop_assume!(!matches!(ip_in, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()));
            prop_assert_eq!(ip(addr(ip_in)), ip_in);
        }

        #[test]
        fn keys_survive(ip in any::<IpAddr>(), port in 1u16.., udp: bool) {
            prop_assume!(!matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()));
            let at = FrontendAddr::new(ip, port, if udp { Protocol::Udp } else { Protocol::Tcp });
            prop_assert_eq!(frontend_addr(&key(&at).unwrap()), Some(at));
        }
    }

    #[test]
    fn node_ports_are_the_wildcard_keys() {
        let v4 = FrontendAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80, Protocol::Tcp);
        let v6 = FrontendAddr::new(Ipv6Addr::UNSPECIFIED.into(), 80, Protocol::Tcp);
        assert_eq!(key(&v4).unwrap().addr, Addr::ANY4);
        assert_eq!(key(&v6).unwrap().addr, Addr::ANY6);
    }

    #[test]
    fn what_the_programs_cannot_hold_has_no_key() {
        let base = FrontendAddr::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80, Protocol::Tcp);
        assert!(key(&FrontendAddr { net: NetId(1), ..base }).is_none());
        assert!(key(&FrontendAddr { port: PortMatch::Any, ..base }).is_none());
        assert!(key(&FrontendAddr { proto: ProtoMatch::Any, ..base }).is_none());
    }
}
