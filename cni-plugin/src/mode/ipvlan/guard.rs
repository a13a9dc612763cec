//! What leaves a pod's device must come from that pod's addresses.
//!
//! There is no host side to filter on, so the filter stands at the exit of the device, in the pod's own namespace: what
//! no rule accepts is dropped. A pod that may change its own network (CAP_NET_ADMIN) can take it away, and a raw
//! socket can go round it (`PACKET_QDISC_BYPASS`, CAP_NET_RAW); docs/ipvlan.md says so.

use std::net::{IpAddr, Ipv6Addr};

use heddle_netlink::nft::egress::{arp_not_from, neighbour_target, not_from, sender4};
use heddle_netlink::nft::expr::{ethertype, icmp6, sender6};
use heddle_netlink::nft::frame::arp_sender;
use heddle_netlink::nft::{Batch, Expr, Family, Nft, Rule, Verdict};
use heddle_netlink::{MacAddr, NetNs};
use heddle_spec::{Failure, code};
use ipnetwork::Ipv6Network;

const CHAIN: &str = "spoofing";
const ADVERTISEMENTS: &str = "advertisements";

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// RFC 4861.
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// A table of its own for each interface: a pod may have several.
fn table(ifname: &str) -> String {
    format!("heddle-{ifname}")
}

/// Puts the filter in place, instead of one that an ADD left that was killed.
pub fn put(ns: &NetNs, ifname: &str, mac: MacAddr, ips: &[IpAddr]) -> Result<(), Failure> {
    let (filter, advertisements) = rules(mac, ips)?;
    let table = table(ifname);
    let mut batch = Batch::new();
    batch.delete_table(Family::Netdev, &table);
    batch.add_table(Family::Netdev, &table);
    batch.add_chain(Family::Netdev, &table, ADVERTISEMENTS, None);
    batch.add_egress_chain(&table, CHAIN, ifname);
    for rule in &advertisements {
        batch.add_rule(Family::Netdev, &table, ADVERTISEMENTS, rule);
    }
    for rule in &filter {
        batch.add_rule(Family::Netdev, &table, CHAIN, rule);
    }
    Ok(Nft::open_in(ns)?.commit(&batch)?)
}

/// Whether the filter is there.
pub fn is_there(ns: &NetNs, ifname: &str, mac: MacAddr, ips: &[IpAddr]) -> Result<bool, Failure> {
    let (filter, advertisements) = rules(mac, ips)?;
    let (mut nft, table) = (Nft::open_in(ns)?, table(ifname));
    Ok(nft.holds(Family::Netdev, &table, CHAIN, &filter)?
        && nft.holds(Family::Netdev, &table, ADVERTISEMENTS, &advertisements)?)
}

/// Takes the filter away, if it is there.
pub fn remove(ns: &NetNs, ifname: &str) -> Result<(), Failure> {
    let mut batch = Batch::new();
    batch.delete_table(Family::Netdev, &table(ifname));
    Ok(Nft::open_in(ns)?.commit(&batch)?)
}

/// The filter, and what it asks of neighbour advertisements. Its policy is to drop.
fn rules(mac: MacAddr, ips: &[IpAddr]) -> Result<(Vec<Rule>, Vec<Rule>), Failure> {
    let v4 = |part: Vec<Expr>| [ethertype(ETHERTYPE_IPV4), part];
    let arp = |part: Vec<Expr>| [ethertype(ETHERTYPE_ARP), part];
    let v6 = |part: Vec<Expr>| [ethertype(ETHERTYPE_IPV6), part];
    let alone = |ip: Ipv6Addr| {
        Ipv6Network::new(ip, 128).map_err(|error| Failure::new(code::INTERNAL, error.to_string()))
    };
    let mut filter = vec![
        Rule::new("a pod has one Ethernet address", [not_from(mac)], Verdict::Drop),
        Rule::new("also in ARP", arp(arp_not_from(mac)), Verdict::Drop),
        Rule::new("a pod is no router", v6(icmp6(ROUTER_ADVERTISEMENT)), Verdict::Drop),
        Rule::new("a pod redirects nobody", v6(icmp6(REDIRECT)), Verdict::Drop),
        Rule::new(
            "a pod is its own neighbour",
            v6(icmp6(NEIGHBOUR_ADVERTISEMENT)),
            Verdict::Jump(ADVERTISEMENTS.into()),
        ),
    ];
    let mut advertisements = Vec::new();
    for ip in ips {
        match ip {
            IpAddr::V4(ip) => {
                filter.push(Rule::new("a pod's IPv4", v4(sender4(*ip)), Verdict::Accept));
                filter.push(Rule::new("a pod's ARP", arp(arp_sender(*ip)), Verdict::Accept));
            }
            IpAddr::V6(ip) => {
                filter.push(Rule::new("a pod's IPv6", v6(sender6(alone(*ip)?)), Verdict::Accept));
                advertisements.push(Rule::new("its own", [neighbour_target(*ip)], Verdict::Return));
            }
        }
    }
    if !advertisements.is_empty() {
        let unspecified = v6(sender6(alone(Ipv6Addr::UNSPECIFIED)?));
        filter.push(Rule::new("IPv6 before it has an address", unspecified, Verdict::Accept));
    }
    advertisements.push(Rule::new("nobody else's", Vec::new(), Verdict::Drop));
    Ok((filter, advertisements))
}
