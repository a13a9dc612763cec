//! What is written on the host side of a pod's pair (its alias): whose it is, and what the pod has in nf_tables.
//!
//! The kernel keeps it as long as the device lives, whatever happens to files, rules and daemons. DEL learns from it
//! what there is to take away, GC whose the device is, and an ADD that finds the rules gone puts the other pods'
//! elements back.
//!
//! ```text
//! podnet 3f5e9c eth0                                     complete, nothing in nf_tables
//! podnet 3f5e9c eth0 ip=10.244.1.5,masq=1c0ffee5         its address is masqueraded
//! podnet 3f5e9c eth0 ip=10.244.1.5,mac=02:42:0a:f4:01:05 it is on a bridge
//! ~podnet 3f5e9c eth0                                    ADD is at work, or was killed
//! ```

use std::net::IpAddr;

use heddle_netlink::{DisplayMac, MacAddr};
use heddle_spec::{Failure, Network, Owner, code};

/// The longest alias that the kernel keeps (IFALIASZ without the final zero).
const LONGEST: usize = 255;
const INCOMPLETE: char = '~';
const UNKNOWN: &str = "?";

/// An alias of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub network: String,
    pub owner: Owner,
    /// The last thing that ADD does.
    pub complete: bool,
    /// `None`: there was no room for it.
    pub holdings: Option<Holdings>,
}

/// What a pod has in nf_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its addresses, where anything below needs them.
    pub ips: Vec<IpAddr>,
    pub bridged: Option<Bridged>,
    /// The group of ranges among which its addresses are not masqueraded, if they are elsewhere.
    pub masquerade: Option<u32>,
}

/// A pod that is a port of a bridge, as the rules against spoofing know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridged {
    pub mac: MacAddr,
    /// Its frames may come from other Ethernet addresses too.
    pub any_mac: bool,
    /// It has no addresses of ours, so none of its own are questioned.
    pub any_ip: bool,
    /// Its frames may have tags, and what is in those is its own business.
    pub trunk: bool,
}

impl Mark {
    /// The alias of a pair that is being made.
    ///
    /// # Errors
    /// Code 4 if network and container have so long names that they do not fit into one.
    pub fn begin(network: &Network, owner: &Owner) -> Result<String, Failure> {
        let base = format!("{INCOMPLETE}{} {} {}", network.as_str(), owner.container(), owner.ifname());
        // With room for a detail that says that there is no room.
        if base.len() + 2 > LONGEST {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!(
                    "CNI_CONTAINERID: with the network's name and CNI_IFNAME it has {} characters; {} fit",
                    base.len() - 3,
                    LONGEST - 5
                ),
            ));
        }
        Ok(base)
    }

    /// The alias of a pair that is complete.
    pub fn finish(network: &Network, owner: &Owner, holdings: &Holdings) -> String {
        let base = format!("{} {} {}", network.as_str(), owner.container(), owner.ifname());
        match holdings.to_text() {
            text if text.is_empty() => base,
            text if base.len() + 1 + text.len() <= LONGEST => format!("{base} {text}"),
            _ => format!("{base} {UNKNOWN}"),
        }
    }

    /// Reads an alias; `None` if it is not ours.
    pub fn parse(alias: &str) -> Option<Self> {
        let (complete, text) = match alias.strip_prefix(INCOMPLETE) {
            Some(rest) => (false, rest),
            None => (true, alias),
        };
        let mut words = text.split(' ');
        let network = Network::new(words.next()?).ok()?.as_str().to_owned();
        let owner = Owner::new(words.next()?, words.next()?).ok()?;
        let holdings = match words.next() {
            None if complete => Some(Holdings::default()),
            None | Some(UNKNOWN) => None,
            Some(text) => Some(Holdings::parse(text)?),
        };
        words.next().is_none().then_some(Self { network, owner, complete, holdings })
    }

    /// Whether it is the mark of this interface of this network.
    pub fn is_of(&self, network: &Network, owner: &Owner) -> bool {
        self.network == network.as_str() && self.owner == *owner
    }
}

impl Holdings {
    fn to_text(&self) -> String {
        let mut parts: Vec<String> = self.ips.iter().map(|ip| format!("ip={ip}")).collect();
        if let Some(bridged) = self.bridged {
            parts.push(format!("mac={}", DisplayMac(bridged.mac)));
            let flags = [("any-mac", bridged.any_mac), ("any-ip", bridged.any_ip), ("trunk", bridged.trunk)];
            parts.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()));
        }
        parts.extend(self.masquerade.map(|group| format!("masq={group:08x}")));
        parts.join(",")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut holdings = Self::default();
        for part in text.split(',') {
            match (part.split_once('='), &mut holdings.bridged) {
                (Some(("ip", ip)), _) => holdings.ips.push(ip.parse().ok()?),
                (Some(("mac", mac)), bridged @ None) => {
                    let mac = parse_mac(mac)?;
                    *bridged = Some(Bridged { mac, any_mac: false, any_ip: false, trunk: false });
                }
                (Some(("masq", group)), _) => {
                    holdings.masquerade = Some(u32::from_str_radix(group, 16).ok()?);
                }
                (None, Some(bridged)) => match part {
                    "any-mac" => bridged.any_mac = true,
                    "any-ip" => bridged.any_ip = true,
                    "trunk" => bridged.trunk = true,
                    _ => return None,
                },
                _ => return None,
            }
        }
        Some(holdings)
    }
}

fn parse_mac(text: &str) -> Option<MacAddr> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(container: usize) -> (Network, Owner) {
        (Network::new("podnet").unwrap(), Owner::new(&"a".repeat(container), "eth0").unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let (network, owner) = names(64);
        let bridged = Bridged { mac: [2, 0x42, 10, 0xf4, 1, 5], any_mac: true, any_ip: false, trunk: true };
        let all = [
            Holdings::default(),
            Holdings { ips: vec!["10.244.1.5".parse().unwrap()], bridged: None, masquerade: Some(0x1c0f) },
            Holdings {
                ips: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
                bridged: Some(bridged),
                masquerade: None,
            },
        ];
        for holdings in all {
            let alias = Mark::finish(&network, &owner, &holdings);
            let mark = Mark::parse(&alias).unwrap();
            assert!(mark.complete && mark.is_of(&network, &owner), "{alias}");
            assert_eq!(mark.holdings, Some(holdings), "{alias}");
        }
        let begun = Mark::parse(&Mark::begin(&network, &owner).unwrap()).unwrap();
        assert!(!begun.complete && begun.holdings.is_none() && begun.is_of(&network, &owner));
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_unknown_and_what_is_not_ours_is_not_read() {
        let (network, owner) = names(200);
        let ips = (0..3u16).map(|n| IpAddr::from([0xfd00, n, n, n, 9999, 9999, 9999, 9999])).collect();
        let alias = Mark::finish(&network, &owner, &Holdings { ips, ..Holdings::default() });
        assert!(alias.len() <= LONGEST);
        assert_eq!(Mark::parse(&alias).unwrap().holdings, None);
        let long = Network::new(&"n".repeat(60)).unwrap();
        assert_eq!(Mark::begin(&long, &owner).unwrap_err().code, 4);
        for other in ["", "uplink", "a b eth0 x", "a b eth0 ip=1", "a b eth0 ip=::1 x", "~"] {
            assert_eq!(Mark::parse(other), None, "{other:?}");
        }
    }
}
