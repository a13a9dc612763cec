//! What comes from a pod must come from that pod's addresses.
//!
//! In mode ptp that is one static rule for all pods, checked against the routing table. Frames on a bridge do
//! not meet the routing table: there a static rule set looks into three sets of what each pod may call
//! itself.

use std::net::IpAddr;

use heddle_netlink::nft::expr::{Sender, ethertype, icmp6, iifname, sender_in, sender6, source_is_spoofed};
use heddle_netlink::nft::{Base, Batch, Expr, Family, Hook, Nft, Rule, SetKey, Verdict, priority};
use ipnetwork::Ipv6Network;

use crate::addresses::Allocation;
use crate::conf::Mode;
use crate::veth::{PREFIX, Pair};
use heddle_spec::Failure;

const TABLE: &str = "heddle";
const CHAIN: &str = "spoofing";
const MACS: &str = "pod_macs";
const IPV4: &str = "pod_ipv4";
const IPV6: &str = "pod_ipv6";
const SETS: [(&str, SetKey); 3] =
    [(MACS, SetKey::IfnameMac), (IPV4, SetKey::IfnameIpv4), (IPV6, SetKey::IfnameIpv6)];

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// RFC 4861.
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// Makes sure of the rule for mode ptp: `iifname "hdl*" fib saddr . iif oif missing drop`, before connection
/// tracking.
///
/// It stays when the last pod goes: it costs nothing, and an ADD that runs beside that DEL relies on it.
pub fn ensure() -> Result<(), Failure> {
    let base = Base::filter(Hook::Prerouting, priority::RAW);
    Nft::open()?.ensure_chain(Family::Inet, TABLE, CHAIN, &base, &[routed_rule()])?;
    Ok(())
}

fn routed_rule() -> Rule {
    Rule::new("a pod sends from its own addresses", [iifname(&pods()), source_is_spoofed()], Verdict::Drop)
}

/// Whether the rules of a mode are there.
pub fn is_there(mode: &Mode) -> Result<bool, Failure> {
    let mut nft = Nft::open()?;
    Ok(match mode {
        Mode::Ptp => nft.holds(Family::Inet, TABLE, CHAIN, &[routed_rule()])?,
        Mode::Bridge(_) => nft.holds(Family::Bridge, TABLE, CHAIN, &bridge_rules()?)?,
    })
}

/// Makes sure of the rules for bridges, and of this pod's place in their sets. To be called before the pod can
/// send.
pub fn admit(pair: &Pair, allocations: &[Allocation]) -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    batch.add_table(Family::Bridge, TABLE);
    for (set, key) in SETS {
        batch.add_set(Family::Bridge, TABLE, set, key);
    }
    let element = |rest: &[u8]| {
        let mut key = name(&pair.host);
        key.extend(rest);
        key.resize(key.len().next_multiple_of(4), 0);
        key
    };
    batch.add_elements(Family::Bridge, TABLE, MACS, &[element(&pair.pod_mac)]);
    for allocation in allocations {
        match allocation.ip.ip() {
            IpAddr::V4(ip) => batch.add_elements(Family::Bridge, TABLE, IPV4, &[element(&ip.octets())]),
            IpAddr::V6(ip) => batch.add_elements(Family::Bridge, TABLE, IPV6, &[element(&ip.octets())]),
        }
    }
    nft.commit(&batch)?;
    // The priority of the kernel's own first look at a frame (NF_BR_PRI_NAT_DST_BRIDGED).
    let base = Base::filter(Hook::Prerouting, priority::RAW);
    nft.ensure_chain(Family::Bridge, TABLE, CHAIN, &base, &bridge_rules()?)?;
    Ok(())
}

/// Takes a pod out of the sets.
pub fn dismiss(pair: &Pair) -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    let own = name(&pair.host);
    for (set, _) in SETS {
        let Some(elements) = nft.elements(Family::Bridge, TABLE, set)? else { return Ok(()) };
        let keys: Vec<_> =
            elements.into_iter().map(|(key, _)| key).filter(|key| key.starts_with(&own)).collect();
        batch.delete_elements(Family::Bridge, TABLE, set, &keys);
    }
    match nft.commit(&batch) {
        // Another DEL for the same pod was quicker.
        Err(error) if error.not_found() => Ok(()),
        other => Ok(other?),
    }
}

/// What a pod may send over a bridge: IPv4, ARP and IPv6 in its own name, and what IPv6 needs to begin with.
fn bridge_rules() -> Result<Vec<Rule>, Failure> {
    let internal =
        |error: ipnetwork::IpNetworkError| Failure::new(heddle_spec::code::INTERNAL, error.to_string());
    let unspecified = Ipv6Network::new(std::net::Ipv6Addr::UNSPECIFIED, 128).map_err(internal)?;
    let link_local = Ipv6Network::new([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10).map_err(internal)?;
    let from_pod = |comment: &str, parts: Vec<Vec<Expr>>, verdict: Verdict| {
        let mut all = vec![iifname(&pods())];
        all.extend(parts);
        Rule::new(comment, all, verdict)
    };
    let v6 = |part: Vec<Expr>| vec![ethertype(ETHERTYPE_IPV6), part];
    Ok(vec![
        from_pod("a pod has one Ethernet address", vec![sender_in(Sender::Mac, MACS, true)], Verdict::Drop),
        from_pod("a pod is no router", v6(icmp6(ROUTER_ADVERTISEMENT)), Verdict::Drop),
        from_pod("a pod redirects nobody", v6(icmp6(REDIRECT)), Verdict::Drop),
        from_pod(
            "a pod's IPv4",
            vec![ethertype(ETHERTYPE_IPV4), sender_in(Sender::Ipv4, IPV4, false)],
            Verdict::Accept,
        ),
        from_pod(
            "a pod's ARP",
            vec![ethertype(ETHERTYPE_ARP), sender_in(Sender::Arp, IPV4, false)],
            Verdict::Accept,
        ),
        from_pod("a pod's IPv6", v6(sender_in(Sender::Ipv6, IPV6, false)), Verdict::Accept),
        from_pod("IPv6 before it has an address", v6(sender6(unspecified)), Verdict::Accept),
        from_pod("IPv6 on the link", v6(sender6(link_local)), Verdict::Accept),
        from_pod("nothing else", Vec::new(), Verdict::Drop),
    ])
}

fn pods() -> String {
    format!("{PREFIX}*")
}

/// A device name as nf_tables compares it.
fn name(device: &str) -> Vec<u8> {
    let mut name = device.as_bytes().to_vec();
    name.resize(16, 0);
    name
}
