//! Addresses and ranges: what may be used, and who has it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Why nothing may be sent to this address on behalf of a service, and nobody may claim it. `None`: it
/// is an ordinary unicast address.
pub fn hostile(ip: IpAddr) -> Option<&'static str> {
    HOSTILE.iter().find(|(first, last, _)| (*first..=*last).contains(&ip)).map(|(.., kind)| *kind)
}

/// The first part of the range that is hostile.
pub fn hostile_part(range: IpNetwork) -> Option<&'static str> {
    let (low, high) = ends(range);
    HOSTILE.iter().find(|(first, last, _)| *first <= high && low <= *last).map(|(.., kind)| *kind)
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(bits: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(bits))
}

/// First, last, kind: of the IANA special-purpose address registries what is never a service's, a pod's or
/// a node's own address. CVE-2021-25737 and CVE-2021-25740 show what it is used for.
const HOSTILE: &[(IpAddr, IpAddr, &str)] = &[
    (v4(0, 0, 0, 0), v4(0, 255, 255, 255), "\"this network\" (0.0.0.0/8)"),
    (v4(127, 0, 0, 0), v4(127, 255, 255, 255), "loopback (127.0.0.0/8)"),
    (v4(169, 254, 0, 0), v4(169, 254, 255, 255), "link-local (169.254.0.0/16)"),
    (v4(224, 0, 0, 0), v4(239, 255, 255, 255), "multicast (224.0.0.0/4)"),
    (v4(255, 255, 255, 255), v4(255, 255, 255, 255), "broadcast"),
    (v6(0), v6(0), "unspecified (::)"),
    (v6(1), v6(1), "loopback (::1)"),
    (v6(0xffff << 32), v6(0xffff_ffff_ffff), "IPv4-mapped (::ffff:0:0/96)"),
    (v6(0xfe80 << 112), v6((0xfec0 << 112) - 1), "link-local (fe80::/10)"),
    (v6(0xff00 << 112), v6(u128::MAX), "multicast (ff00::/8)"),
];

/// The range with its host bits cleared.
pub fn canonical(range: IpNetwork) -> IpNetwork {
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

/// The first and the last address of a range.
pub fn ends(range: IpNetwork) -> (IpAddr, IpAddr) {
    match range {
        IpNetwork::V4(range) => (range.network().into(), range.broadcast().into()),
        IpNetwork::V6(range) => (range.network().into(), range.broadcast().into()),
    }
}

/// Whether two ranges have an address in common.
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    let ((first, last), (low, high)) = (ends(one), ends(other));
    // IPv4 addresses come before IPv6 ones, so ranges of two families never meet.
    first <= high && low <= last
}

/// Ranges that do not overlap, each with an owner.
#[derive(Clone, Debug)]
pub struct Ranges<T> {
    /// By first address.
    ranges: BTreeMap<IpAddr, (IpNetwork, T)>,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<T> Ranges<T> {
    /// The range that holds this address.
    pub fn holding(&self, ip: IpAddr) -> Option<&(IpNetwork, T)> {
        let (_, entry) = self.ranges.range(..=ip).next_back()?;
        entry.0.contains(ip).then_some(entry)
    }

    /// A range that overlaps this one.
    pub fn overlapping(&self, range: IpNetwork) -> Option<&(IpNetwork, T)> {
        let (first, last) = ends(range);
        let within = || self.ranges.range(first..=last).next().map(|(_, entry)| entry);
        self.holding(first).or_else(within)
    }

    /// Adds a range. The caller has made sure that it overlaps none.
    pub fn insert(&mut self, range: IpNetwork, owner: T) {
        self.ranges.insert(range.network(), (canonical(range), owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_addresses() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ];
        for ip in refused {
            assert!(hostile(ip.parse().unwrap()).is_some(), "{ip}");
        }
        for ip in
            ["1.0.0.0", "10.0.0.1", "169.253.1.1", "240.0.0.1", "::2", "fec0::1", "fd00::1", "2001:db8::1"]
        {
            assert_eq!(hostile(ip.parse().unwrap()), None, "{ip}");
        }
        for range in ["169.0.0.0/8", "127.0.0.0/8", "fe80::/64", "::/96", "ff00::/16"] {
            assert!(hostile_part(range.parse().unwrap()).is_some(), "{range}");
        }
        assert_eq!(hostile_part("10.244.0.0/16".parse().unwrap()), None);
    }

    #[test]
    fn ranges_find_whom_they_hold_and_overlap() {
        let mut ranges = Ranges::default();
        for (range, owner) in [("10.0.1.0/24", 1), ("10.0.3.0/24", 3), ("fd00:1::/64", 6)] {
            ranges.insert(range.parse().unwrap(), owner);
        }
        let holding = |ip: &str| ranges.holding(ip.parse().unwrap()).map(|(_, owner)| *owner);
        assert_eq!(
            [holding("10.0.1.255"), holding("10.0.2.0"), holding("10.0.3.0")],
            [Some(1), None, Some(3)]
        );
        assert_eq!(
            [holding("fd00:1::ffff"), holding("fd00:2::"), holding("10.0.0.255")],
            [Some(6), None, None]
        );
        let overlapping = |range: &str| ranges.overlapping(range.parse().unwrap()).map(|(_, owner)| *owner);
        assert_eq!(overlapping("10.0.2.0/23"), Some(3));
        assert_eq!(overlapping("10.0.1.128/25"), Some(1));
        assert_eq!(overlapping("10.0.0.0/8"), Some(1));
        assert_eq!([overlapping("10.0.2.0/24"), overlapping("fd00:1:0:1::/64")], [None, None]);
    }
}
