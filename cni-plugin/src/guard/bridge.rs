//! What a pod on a bridge may send.
//!
//! | set | what is in it |
//! |---|---|
//! | `pod_macs`, `pod_ipv4`, `pod_ipv6` | what each pod may call itself; `pod_ipv6` with the link-local address of its MAC |
//! | `pod_targets` | the addresses of `pod_ipv6`, as what neighbour discovery may be about |
//! | `any_mac` | pods whose frames may come from other Ethernet addresses (`macspoofchk: false`) |
//! | `any_ip` | pods without addresses of ours: they bring their own |
//! | `trunks` | pods whose frames have tags (`vlanTrunk`); what is in those is not looked at |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_netlink::nft::expr::{Sender, ethertype, icmp6, sender_in, sender6};
use heddle_netlink::nft::frame::{
    arp_sender, arp_sender_mac_in, destination4_begins, iifname_in, neighbour_target_in, not_iifname,
    not_next_header, protocol, tagged, udp,
};
use heddle_netlink::nft::{
    Base, Batch, Chain, Expr, Family, Hook, Nft, Rule, Ruleset, Set, SetKey, Verdict, priority,
};
use heddle_netlink::{MacAddr, Socket, link};
use heddle_spec::{Failure, code};
use ipnetwork::Ipv6Network;

use super::{CHAIN, TABLE, pods};
use crate::elements::Removal;
use crate::mark::{Bridged, Mark};
use crate::veth::PREFIX;

const MACS: &str = "pod_macs";
const IPV4: &str = "pod_ipv4";
const IPV6: &str = "pod_ipv6";
const TARGETS: &str = "pod_targets";
const ANY_MAC: &str = "any_mac";
const ANY_IP: &str = "any_ip";
const TRUNKS: &str = "trunks";
const SETS: [(&str, SetKey); 7] = [
    (MACS, SetKey::IfnameMac),
    (IPV4, SetKey::IfnameIpv4),
    (IPV6, SetKey::IfnameIpv6),
    (TARGETS, SetKey::IfnameTarget),
    (ANY_MAC, SetKey::Ifname),
    (ANY_IP, SetKey::Ifname),
    (TRUNKS, SetKey::Ifname),
];

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// A tag of IEEE 802.1Q, and the outer one of 802.1ad.
const TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;
/// RFC 4861.
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const ICMPV6: u8 = 58;

/// Makes sure of the rules for bridges, and of this pod's place in their sets. To be called before the pod can
/// send. If somebody flushed the rules, the other pods' places come back together with them.
pub fn admit(device: &str, bridged: &Bridged, ips: &[IpAddr]) -> Result<(), Failure> {
    let ruleset = ruleset()?;
    let mut nft = Nft::open()?;
    let missing = nft.missing(&ruleset)?;
    let own = places(device, bridged, ips);
    if missing.is_empty() {
        let mut batch = Batch::new();
        add(&mut batch, &own);
        match nft.commit(&batch) {
            // Flushed between the two requests.
            Err(error) if error.not_found() => {}
            other => return Ok(other?),
        }
    }
    let mut batch = Batch::new();
    let all: Vec<&Chain> = ruleset.chains.iter().collect();
    nft.mend(&mut batch, &ruleset, &all)?;
    for link in link::list(&mut Socket::open()?)? {
        let Some(mark) = link.alias.as_deref().and_then(Mark::parse) else { continue };
        if !link.name.starts_with(PREFIX) || link.name == device {
            continue;
        }
        match mark.holdings {
            Some(held) => {
                if let Some(bridged) = held.bridged {
                    add(&mut batch, &places(&link.name, &bridged, &held.ips));
                }
            }
            // There was no room to write down who it is. Better unchecked than cut off.
            None if mark.complete => {
                let bridged = Bridged { mac: [0; 6], any_mac: true, any_ip: true, trunk: true };
                add(&mut batch, &places(&link.name, &bridged, &[]));
            }
            // Its own ADD is at work.
            None => {}
        }
    }
    add(&mut batch, &own);
    Ok(nft.commit(&batch)?)
}

/// What of the rules, or of the pod's place in the sets, is not there. `None`: what the pod has is not known.
pub fn lacks(device: &str, held: Option<(&Bridged, &[IpAddr])>) -> Result<Option<String>, Failure> {
    let mut nft = Nft::open()?;
    if !nft.missing(&ruleset()?)?.is_empty() {
        return Ok(Some("the nf_tables rules against spoofed addresses are not there".into()));
    }
    for (set, key) in held.map_or(Vec::new(), |(bridged, ips)| places(device, bridged, ips)) {
        if nft.entry(Family::Bridge, TABLE, set, &key)?.is_none() {
            return Ok(Some(format!("{device} is not in the nf_tables set {set}: its frames are dropped")));
        }
    }
    Ok(None)
}

/// What DEL takes away of a pod whose mark says what it has.
pub fn held(device: &str, mark: &Mark) -> Vec<Removal> {
    let Some(held) = &mark.holdings else { return Vec::new() };
    let Some(bridged) = &held.bridged else { return Vec::new() };
    places(device, bridged, &held.ips).into_iter().map(removal).collect()
}

/// All elements, each with the name of the device that it belongs to.
pub fn all(nft: &mut Nft) -> Result<Vec<(String, Removal)>, Failure> {
    let mut found = Vec::new();
    for (set, _) in SETS {
        let Some(elements) = nft.elements(Family::Bridge, TABLE, set)? else { break };
        for (key, _) in elements {
            let device: Vec<u8> = key.iter().take(16).take_while(|byte| **byte != 0).copied().collect();
            found.push((String::from_utf8_lossy(&device).into_owned(), removal((set, key))));
        }
    }
    Ok(found)
}

fn removal((set, key): (&'static str, Vec<u8>)) -> Removal {
    Removal { family: Family::Bridge, set: set.into(), keys: vec![key] }
}

fn add(batch: &mut Batch, places: &[(&'static str, Vec<u8>)]) {
    for (set, key) in places {
        batch.add_elements(Family::Bridge, TABLE, set, std::slice::from_ref(key));
    }
}

/// A pod's elements.
fn places(device: &str, bridged: &Bridged, ips: &[IpAddr]) -> Vec<(&'static str, Vec<u8>)> {
    let key = |rest: &[u8]| {
        let mut key = device.as_bytes().to_vec();
        key.resize(16, 0);
        key.extend(rest);
        key.resize(key.len().next_multiple_of(4), 0);
        key
    };
    let mut places = Vec::new();
    if bridged.any_mac {
        places.push((ANY_MAC, key(&[])));
    } else {
        places.push((MACS, key(&bridged.mac)));
    }
    if bridged.any_ip {
        places.push((ANY_IP, key(&[])));
    } else {
        let own = key(&link_local(bridged.mac).octets());
        places.extend([(IPV6, own.clone()), (TARGETS, own)]);
    }
    if bridged.trunk {
        places.push((TRUNKS, key(&[])));
    }
    for ip in ips {
        match ip {
            IpAddr::V4(ip) => places.push((IPV4, key(&ip.octets()))),
            IpAddr::V6(ip) => places.extend([IPV6, TARGETS].map(|set| (set, key(&ip.octets())))),
        }
    }
    places
}

/// The link-local address that the kernel makes of an Ethernet address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: MacAddr) -> Ipv6Addr {
    let part = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, part(a ^ 2, b), part(c, 0xff), part(0xfe, d), part(e, f))
}

/// What a pod may send over a bridge: IPv4, ARP and IPv6 in its own name, and what IPv6 needs to begin with.
fn ruleset() -> Result<Ruleset, Failure> {
    let unspecified = Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 128)
        .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
    let drop = |comment: &str, parts: Vec<Vec<Expr>>| Rule::new(comment, parts, Verdict::Drop);
    let accept = |comment: &str, parts: Vec<Vec<Expr>>| Rule::new(comment, parts, Verdict::Accept);
    let v4 = || ethertype(ETHERTYPE_IPV4);
    let v6 = || ethertype(ETHERTYPE_IPV6);
    let arp = || ethertype(ETHERTYPE_ARP);
    let rules = vec![
        accept("who is no pod is not looked at", vec![not_iifname(&pods())]),
        drop(
            "a pod has one Ethernet address",
            vec![iifname_in(ANY_MAC, true), sender_in(Sender::Mac, MACS, true)],
        ),
        accept("nothing is known of it", vec![iifname_in(ANY_MAC, false), iifname_in(ANY_IP, false)]),
        accept("what is in a trunk", vec![tagged(TAG), iifname_in(TRUNKS, false)]),
        drop("a pod is no router", vec![v6(), icmp6(ROUTER_ADVERTISEMENT)]),
        drop("a pod redirects nobody", vec![v6(), icmp6(REDIRECT)]),
        drop("a pod is no DHCP server", vec![v4(), udp(67, 68)]),
        drop("a pod is no DHCPv6 server", vec![v6(), udp(547, 546)]),
        drop("127.0.0.0/8 is nowhere else", vec![v4(), destination4_begins(127)]),
        accept("a pod with its own addresses", vec![iifname_in(ANY_IP, false)]),
        drop("a pod has no VLANs", vec![tagged(TAG)]),
        drop("nor VLANs of a provider", vec![tagged(SERVICE_TAG)]),
        accept("a pod's IPv4", vec![v4(), sender_in(Sender::Ipv4, IPV4, false)]),
        drop(
            "a pod's ARP is about its own Ethernet address",
            vec![arp(), iifname_in(ANY_MAC, true), arp_sender_mac_in(MACS, true)],
        ),
        accept("a pod's ARP", vec![arp(), sender_in(Sender::Arp, IPV4, false)]),
        accept("who has it? (RFC 5227)", vec![arp(), arp_sender(Ipv4Addr::UNSPECIFIED)]),
        drop("advertisements are not hidden", vec![v6(), icmp6(ADVERTISEMENT), not_next_header(ICMPV6)]),
        drop("nor are solicitations", vec![v6(), icmp6(SOLICITATION), not_next_header(ICMPV6)]),
        drop(
            "a pod advertises nobody else",
            vec![v6(), icmp6(ADVERTISEMENT), neighbour_target_in(TARGETS, true)],
        ),
        accept("a pod's IPv6", vec![v6(), sender_in(Sender::Ipv6, IPV6, false)]),
        drop(
            "a pod asks whether an address is taken only for its own",
            vec![v6(), sender6(unspecified), icmp6(SOLICITATION), neighbour_target_in(TARGETS, true)],
        ),
        accept("IPv6 before it has an address", vec![v6(), sender6(unspecified), protocol(ICMPV6)]),
        drop("nothing else", Vec::new()),
    ];
    // The priority of the kernel's own first look at a frame (NF_BR_PRI_NAT_DST_BRIDGED).
    let base = Some(Base::filter(Hook::Prerouting, priority::RAW));
    Ok(Ruleset {
        family: Family::Bridge,
        table: TABLE,
        sets: SETS.map(|(name, key)| Set { name, key, verdicts: false }).to_vec(),
        chains: vec![Chain { name: CHAIN.into(), base, rules }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_kernels() {
        let mac = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];
        assert_eq!(link_local(mac), "fe80::42:acff:fe11:2".parse::<Ipv6Addr>().unwrap());
    }
}
