//! Ranges of addresses: where to begin, where to end, what to leave out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::{Error, Result};

/// A range as it is written in a configuration. (containerd writes the keys of the capability `ipRanges` as they are
/// called in Go; the reference plugin reads them without regard to case.)
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeConfig {
    /// `ADDRESS/LENGTH`; no bits beyond the prefix.
    #[serde(alias = "Subnet")]
    pub subnet: Option<String>,
    /// The first address to give; by default the one after the network's own.
    #[serde(alias = "RangeStart")]
    pub range_start: Option<String>,
    /// The last address to give; by default the last of the subnet (IPv4: before the broadcast address).
    #[serde(alias = "RangeEnd")]
    pub range_end: Option<String>,
    /// Never given; by default the address after the network's own.
    #[serde(alias = "Gateway")]
    pub gateway: Option<String>,
}

/// A range that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub subnet: IpNetwork,
    /// Both ends included.
    pub start: IpAddr,
    pub end: IpAddr,
    pub gateway: IpAddr,
}

impl Range {
    /// Reads a range; `key` is where it stands.
    pub(crate) fn new(config: &RangeConfig, key: &str) -> Result<Self> {
        let at = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        let text = config.subnet.as_deref().ok_or_else(|| Error::config(at("subnet"), "it is missing"))?;
        let subnet = prefix(text).map_err(|reason| Error::config(at("subnet"), reason))?;
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > bits - 2 {
            return Err(Error::config(
                at("subnet"),
                format!("{subnet} is too small: a range has at least 4 addresses"),
            ));
        }
        if subnet.prefix() == 0 {
            return Err(Error::config(at("subnet"), format!("{subnet} is everything")));
        }
        if let Some((reserved, purpose)) = reserved(subnet) {
            let reason = format!("no pod can have addresses of {subnet}: {reserved} is for {purpose}");
            return Err(Error::config(at("subnet"), reason));
        }
        let network = number(subnet.network());
        // The last address of an IPv4 subnet is its broadcast address.
        let last = number(broadcast(subnet)) - u128::from(subnet.is_ipv4());
        let inside = |name: &str, text: &Option<String>, default: u128| -> Result<IpAddr> {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
                return Ok(address(subnet.is_ipv4(), default));
            };
            let ip: IpAddr = text
                .parse()
                .map_err(|_| Error::config(at(name), format!("{text:?} is not an IP address")))?;
            if !subnet.contains(ip) {
                return Err(Error::config(at(name), format!("{ip} is not in {subnet}")));
            }
            if number(ip) == network {
                return Err(Error::config(at(name), format!("{ip} is the address of the network itself")));
            }
            if number(ip) > last {
                return Err(Error::config(at(name), format!("{ip} is the broadcast address of {subnet}")));
            }
            Ok(ip)
        };
        let start = inside("rangeStart", &config.range_start, network + 1)?;
        let end = inside("rangeEnd", &config.range_end, last)?;
        let gateway = inside("gateway", &config.gateway, network + 1)?;
        if number(start) > number(end) {
            return Err(Error::config(
                at("rangeStart"),
                format!("{start} is after the end of the range, {end}"),
            ));
        }
        if start == end && start == gateway {
            return Err(Error::config(at("gateway"), format!("{gateway} is the only address of the range")));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether `ip` is one that this range can give.
    pub fn gives(&self, ip: IpAddr) -> bool {
        self.contains(ip) && ip != self.gateway
    }

    /// Whether `ip` is between the ends.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.is_ipv4()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && (self.contains(other.start) || other.contains(self.start))
    }

    /// How many addresses it can give.
    pub fn size(&self) -> u128 {
        number(self.end) - number(self.start) + 1 - u128::from(self.contains(self.gateway))
    }
}

/// Ranges of one family that stand for one address of an interface: it comes from any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Reads a set; `key` is where it stands.
    pub(crate) fn new(configs: &[RangeConfig], key: &str) -> Result<Self> {
        if configs.is_empty() {
            return Err(Error::config(key, "the range set is empty"));
        }
        let mut ranges: Vec<Range> = Vec::new();
        for (position, config) in configs.iter().enumerate() {
            let at = format!("{key}[{position}]");
            let range = Range::new(config, &at)?;
            if let Some(first) = ranges.first()
                && first.is_ipv4() != range.is_ipv4()
            {
                return Err(Error::config(at, "the ranges of a set are of one family"));
            }
            if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
                return Err(Error::config(at, format!("it overlaps with {}", other.subnet)));
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }

    pub(crate) fn single(range: Range) -> Self {
        Self(vec![range])
    }

    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    pub fn is_ipv4(&self) -> bool {
        self.0.iter().all(Range::is_ipv4)
    }

    /// How many addresses it can give.
    pub fn size(&self) -> u128 {
        self.0.iter().map(Range::size).sum()
    }

    /// The range that can give `ip`.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.gives(ip))
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// Every address that can be given, once: first the one after `last`, then on through all ranges and
    /// round to `last` itself.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let begin = last.and_then(|last| {
            self.0.iter().position(|range| range.contains(last)).map(|position| (position, number(last)))
        });
        let (first, offset) = match begin {
            Some((position, last)) => (position, Some(last)),
            None => (0, None),
        };
        // The first range from behind `last` to its end, the others whole, the first from its start to `last`.
        let head = self.0.get(first).and_then(|range| {
            let from = offset.map_or(Some(number(range.start)), |last| last.checked_add(1))?;
            Some((range, from, number(range.end)))
        });
        let others = (1..self.0.len()).filter_map(move |step| {
            let range = self.0.get((first + step) % self.0.len())?;
            Some((range, number(range.start), number(range.end)))
        });
        let tail = offset.and_then(|last| self.0.get(first).map(|range| (range, number(range.start), last)));
        head.into_iter()
            .chain(others)
            .chain(tail)
            .flat_map(|(range, from, to)| {
                let v4 = range.is_ipv4();
                (from..=to).map(move |n| (address(v4, n), range))
            })
            .filter(|(ip, range)| *ip != range.gateway)
    }
}

impl std::fmt::Display for RangeSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{} ({} to {})", range.subnet, range.start, range.end)?;
        }
        Ok(())
    }
}

/// Reads `ADDRESS/LENGTH` without bits beyond the prefix.
pub(crate) fn prefix(text: &str) -> std::result::Result<IpNetwork, String> {
    if !text.contains('/') {
        return Err(format!("{text:?} has no prefix length"));
    }
    let prefix: IpNetwork = text.parse().map_err(|_| format!("{text:?} is not ADDRESS/LENGTH"))?;
    if prefix.network() != prefix.ip() {
        return Err(format!(
            "{text} has bits beyond the prefix; is {}/{} meant?",
            prefix.network(),
            prefix.prefix()
        ));
    }
    Ok(prefix)
}

/// Addresses that a kernel takes from no interface or sends to no other host, and what they are for.
///
/// The reference plugin gives them all, but for `0.0.0.0` and `::`. 169.254.0.0/16 is not among them: Linux
/// routes it like any other, and it is in use as a range of pods. Nor is 240.0.0.0/4, for the same reason.
const RESERVED: [(IpAddr, u8, &str); 7] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8, "\"this network\" (RFC 1122)"),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, "loopback (RFC 1122)"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, "multicast (RFC 5771)"),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 127, "the unspecified address and loopback (RFC 4291)"),
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96, "IPv4 addresses in IPv6 sockets (RFC 4291)"),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10, "a single link (RFC 4291)"),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8, "multicast (RFC 4291)"),
];

/// The reserved addresses in `subnet`, or around it.
fn reserved(subnet: IpNetwork) -> Option<(String, &'static str)> {
    let bits = if subnet.is_ipv4() { 32 } else { 128 };
    RESERVED.iter().find_map(|&(base, length, purpose)| {
        // Two prefixes overlap if they are equal as far as the shorter one goes; neither is of length 0.
        let beyond = bits - u32::from(length.min(subnet.prefix()));
        let same = base.is_ipv4() == subnet.is_ipv4()
            && number(base).checked_shr(beyond) == number(subnet.network()).checked_shr(beyond);
        same.then(|| (format!("{base}/{length}"), purpose))
    })
}

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(v4: bool, number: u128) -> IpAddr {
    if v4 {
        // Numbers of IPv4 ranges come from addresses and stay between them.
        IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into())
    } else {
        IpAddr::V6(number.into())
    }
}

fn broadcast(subnet: IpNetwork) -> IpAddr {
    match subnet {
        IpNetwork::V4(subnet) => subnet.broadcast().into(),
        IpNetwork::V6(subnet) => subnet.broadcast().into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeConfig {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        RangeConfig {
            subnet: some(subnet),
            range_start: some(start),
            range_end: some(end),
            gateway: some(gateway),
        }
    }

    fn set(ranges: &[RangeConfig]) -> Result<RangeSet> {
        RangeSet::new(ranges, "ipam.ranges[0]")
    }

    #[test]
    fn defaults_are_those_of_host_local() {
        let range = Range::new(&config("10.244.1.0/24", "", "", ""), "").unwrap();
        assert_eq!(range.start.to_string(), "10.244.1.1");
        assert_eq!(range.end.to_string(), "10.244.1.254");
        assert_eq!(range.gateway.to_string(), "10.244.1.1");
        assert_eq!(range.size(), 253);
        let range = Range::new(&config("fd00:10:244:1::/64", "", "", ""), "").unwrap();
        assert_eq!(range.start.to_string(), "fd00:10:244:1::1");
        assert_eq!(range.end.to_string(), "fd00:10:244:1:ffff:ffff:ffff:ffff");
    }

    #[test]
    fn fault_031_ranges_that_cannot_be_meant_are_refused_by_key() {
        let cases = [
            (config("", "", "", ""), "subnet: it is missing"),
            (config("10.1.0.0", "", "", ""), "no prefix length"),
            (config("10.1.0.5/24", "", "", ""), "is 10.1.0.0/24 meant?"),
            (config("10.1.0.0/31", "", "", ""), "too small"),
            (config("10.1.0.0/32", "", "", ""), "too small"),
            (config("fd00::/127", "", "", ""), "too small"),
            (config("0.0.0.0/0", "", "", ""), "is everything"),
            (config("010.1.0.0/24", "", "", ""), "is not ADDRESS/LENGTH"),
            (config("10.1.0.0/24", "10.2.0.1", "", ""), "rangeStart: 10.2.0.1 is not in"),
            (config("10.1.0.0/24", "10.1.0.9", "10.1.0.8", ""), "after the end"),
            (config("10.1.0.0/24", "", "fd00::1", ""), "rangeEnd: fd00::1 is not in"),
            (config("10.1.0.0/24", "", "", "10.1.1.1"), "gateway: 10.1.1.1 is not in"),
            (config("10.1.0.0/24", "", "", "10.1.0.0"), "address of the network itself"),
            (config("10.1.0.0/24", "", "", "10.1.0.255"), "broadcast"),
            (config("10.1.0.0/24", "", "", "x"), "not an IP address"),
            (config("10.1.0.0/24", "10.1.0.1", "10.1.0.1", ""), "only address of the range"),
        ];
        for (case, wanted) in cases {
            let error = set(std::slice::from_ref(&case)).unwrap_err().to_string();
            assert!(error.starts_with("ipam.ranges[0][0]") && error.contains(wanted), "{case:?}: {error}");
        }
        let mixed = [config("10.1.0.0/24", "", "", ""), config("fd00::/64", "", "", "")];
        assert!(set(&mixed).unwrap_err().to_string().contains("one family"));
        let twice = [config("10.1.0.0/24", "", "", ""), config("10.1.0.0/16", "", "", "")];
        assert!(set(&twice).unwrap_err().to_string().contains("overlaps with 10.1.0.0/24"));
    }

    #[test]
    fn a_subnet_that_no_pod_can_have_is_refused_by_key() {
        let cases = [
            ("127.0.0.0/24", "127.0.0.0/8 is for loopback"),
            ("126.0.0.0/7", "127.0.0.0/8 is for loopback"),
            ("0.0.0.0/8", "0.0.0.0/8 is for \"this network\""),
            ("224.0.0.0/24", "224.0.0.0/4 is for multicast"),
            ("239.1.0.0/16", "224.0.0.0/4 is for multicast"),
            ("::/64", "::/127 is for the unspecified address and loopback"),
            ("::ffff:10.1.0.0/120", "::ffff:0.0.0.0/96 is for IPv4 addresses"),
            ("fe80::/64", "fe80::/10 is for a single link"),
            ("febf:1::/64", "fe80::/10 is for a single link"),
            ("ff00::/8", "ff00::/8 is for multicast"),
            ("ff02::/64", "ff00::/8 is for multicast"),
        ];
        for (subnet, wanted) in cases {
            let error = set(&[config(subnet, "", "", "")]).unwrap_err().to_string();
            assert!(error.starts_with("ipam.ranges[0][0].subnet: ") && error.contains(wanted), "{error}");
        }
        // The reference plugin gives link-local IPv4 addresses, and Linux routes them like others. So do we.
        for subnet in
            ["169.254.7.0/24", "126.0.0.0/8", "128.0.0.0/8", "223.255.255.0/24", "fec0::/64", "1::/64"]
        {
            assert!(set(&[config(subnet, "", "", "")]).is_ok(), "{subnet}");
        }
    }

    #[test]
    fn a_round_begins_after_the_last_and_ends_with_it() {
        let set =
            set(&[config("10.1.0.0/29", "10.1.0.2", "10.1.0.4", ""), config("10.2.0.0/30", "", "", "")])
                .unwrap();
        let round = |last: Option<&str>| {
            let last = last.map(|ip| ip.parse().unwrap());
            set.after(last).map(|(ip, _)| ip.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(round(None), "10.1.0.2 10.1.0.3 10.1.0.4 10.2.0.2");
        assert_eq!(round(Some("10.1.0.3")), "10.1.0.4 10.2.0.2 10.1.0.2 10.1.0.3");
        assert_eq!(round(Some("10.2.0.2")), "10.1.0.2 10.1.0.3 10.1.0.4 10.2.0.2");
        assert_eq!(round(Some("192.168.0.1")), round(None), "one that is in no range");
        assert_eq!(round(Some("fd00::1")), round(None));
    }

    proptest! {
        #[test]
        fn every_address_comes_once_in_a_round(start in 1u8..250, length in 0u8..5, last in 0u8..=255) {
            let end = start.saturating_add(length).min(254);
            let set = set(&[config("10.1.0.0/24", &format!("10.1.0.{start}"), &format!("10.1.0.{end}"), "10.1.0.200")]);
            prop_assume!(set.is_ok());
            let set = set.unwrap();
            let round: Vec<_> = set.after(Some(IpAddr::from([10, 1, 0, last]))).map(|(ip, _)| ip).collect();
            let mut sorted = round.clone();
            sorted.sort();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), round.len());
            prop_assert_eq!(round.len() as u128, set.ranges()[0].size());
            prop_assert!(round.iter().all(|ip| set.range_of(*ip).is_some()));
        }
    }
}
