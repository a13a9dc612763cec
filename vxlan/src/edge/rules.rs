//! The static rule set: the same whatever nodes come and go; those are members of sets.
//!
//! ```text
//! chain leaving {                       nat, postrouting
//!     to a multicast group: return
//!     into the overlay, not from this node's pods: snat to this node's address in the overlay
//!     into the overlay, marked by kube-proxy: the same
//!     from this node's pods to @pods, @others, @kept: return
//!     from this node's pods: masquerade
//! }
//! chain unwrapped {                     from other nodes' pods and nodes, to pods of this node and to itself; else: drop }
//! chain arriving {                      filter, prerouting, before defragmentation
//!     out of the overlay: goto unwrapped
//!     VXLAN packets in fragments: drop
//!     VXLAN packets to this host, not from @peers or not to @ends: drop
//!     from pods: jump of_pods (VXLAN, IPIP, GRE to a node: drop)
//! }
//! ```
//!
//! Every drop is counted; `vxland status` reads the counters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_netlink::nft::expr::{self, Expr, Side, Verdict};
use heddle_netlink::nft::{Base, Chain, Hook, Rule, port, priority, tunnel, verdict};
use ipnetwork::IpNetwork;

use super::{Group, Rules, Set};
use crate::events::POD_PREFIX;

/// Our VXLAN devices, as rules name them.
const DEVICES: &str = "heddle*";
/// The bit by which kube-proxy marks packets whose source it is going to translate (`--iptables-masquerade-bit`).
const KUBE_PROXY_MARK: u32 = 1 << 14;
/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`: fragments are still to be seen.
const BEFORE_DEFRAGMENTATION: i32 = -450;
/// Before the other chains of source translation: what another masquerades with has a say only where this has none.
const BEFORE_SRCNAT: i32 = priority::SRCNAT - 5;

const LEAVING: &str = "leaving";
const ARRIVING: &str = "arriving";
const UNWRAPPED: &str = "unwrapped";
const OF_PODS: &str = "of_pods";
const TO_NODES: &str = "to_nodes";

const TCP: u8 = 6;
/// Protocols that carry packets in packets: IPIP, IPv6 in IPv4 or IPv6, GRE.
const TUNNELS: [(&str, u8); 3] = [("IPIP", 4), ("IPv6 in IP", 41), ("GRE", 47)];

/// The chains of a group, by name.
pub const fn chains_of(group: Group) -> &'static [&'static str] {
    match group {
        Group::Masquerade => &[LEAVING],
        Group::Senders => &[TO_NODES, OF_PODS, UNWRAPPED, ARRIVING],
    }
}

/// What the rules are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub vni: u32,
    pub port: u16,
    /// This node's addresses in the overlay, at most one of a family.
    pub overlay: Vec<IpAddr>,
}

fn rule(comment: &str, parts: impl IntoIterator<Item = Vec<Expr>>) -> Rule {
    Rule { exprs: parts.into_iter().flatten().collect(), comment: comment.into() }
}

/// Counts and drops.
fn drop(comment: &str, parts: impl IntoIterator<Item = Vec<Expr>>) -> Rule {
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.push(vec![Expr::Counter]);
    Rule::new(comment, parts, Verdict::Drop)
}

fn from(v4: bool, set: Set) -> Vec<Expr> {
    expr::address_in(Side::Source, v4, set.name(v4), false)
}

fn not_from(v4: bool, set: Set) -> Vec<Expr> {
    expr::address_in(Side::Source, v4, set.name(v4), true)
}

fn to(v4: bool, set: Set) -> Vec<Expr> {
    expr::address_in(Side::Destination, v4, set.name(v4), false)
}

fn not_to(v4: bool, set: Set) -> Vec<Expr> {
    expr::address_in(Side::Destination, v4, set.name(v4), true)
}

/// `224.0.0.0/4` and `ff00::/8`.
fn multicast() -> [IpNetwork; 2] {
    [
        IpNetwork::new([224, 0, 0, 0].into(), 4).unwrap_or_else(|_| IpAddr::from([224, 0, 0, 0]).into()),
        IpNetwork::new([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)
            .unwrap_or_else(|_| IpAddr::from([0xff00u16, 0, 0, 0, 0, 0, 0, 0]).into()),
    ]
}

fn group(chains: Vec<Chain>) -> Rules {
    let tags: BTreeMap<_, _> = chains
        .iter()
        .map(|chain| (chain.name.clone(), chain.rules.iter().map(Rule::tag).collect()))
        .collect();
    Rules { tags, chains }
}

/// In whose name packets leave.
pub fn masquerade(parameters: &Parameters) -> Rules {
    let mut rules: Vec<Rule> = multicast()
        .map(|range| Rule::new("to a group", [expr::address(Side::Destination, range)], Verdict::Return))
        .into();
    for ip in &parameters.overlay {
        let v4 = ip.is_ipv4();
        rules.push(rule(
            "into the overlay in its own name",
            [expr::oifname(DEVICES), not_from(v4, Set::Pods), tunnel::source_becomes(*ip)],
        ));
        rules.push(rule(
            "into the overlay, marked by kube-proxy",
            [
                expr::oifname(DEVICES),
                expr::nfproto(v4),
                tunnel::marked(KUBE_PROXY_MARK),
                tunnel::source_becomes(*ip),
            ],
        ));
    }
    for v4 in [true, false] {
        for (comment, set) in [
            ("between pods of this node", Set::Pods),
            ("to pods of other nodes", Set::Others),
            ("to who sees pods", Set::Kept),
        ] {
            rules.push(Rule::new(comment, [from(v4, Set::Pods), to(v4, set)], Verdict::Return));
        }
        rules.push(rule("out of the cluster", [from(v4, Set::Pods), verdict::masquerade_random()]));
    }
    group(vec![Chain {
        name: LEAVING.into(),
        base: Some(Base::nat(Hook::Postrouting, BEFORE_SRCNAT)),
        rules,
    }])
}

/// Who may send VXLAN packets, and what may be inside.
pub fn senders(parameters: &Parameters) -> Rules {
    let Parameters { vni, port: number, .. } = *parameters;
    let vxlan = || [tunnel::udp_to(number), tunnel::vni(vni)].concat();
    let chain = |name: &str, rules| Chain { name: name.into(), base: None, rules };
    let pods = format!("{POD_PREFIX}*");

    let mut to_nodes = vec![drop("of a pod to this node", [port::to_this_host()])];
    let mut unwrapped = vec![drop("a VXLAN packet in another", [vxlan(), port::to_this_host()])];
    for v4 in [true, false] {
        to_nodes.push(drop("of a pod to a node", [to(v4, Set::Nodes)]));
        unwrapped
            .push(drop("from nobody of the cluster", [not_from(v4, Set::Others), not_from(v4, Set::Nodes)]));
        unwrapped.push(Rule::new("to pods", [to(v4, Set::Pods)], Verdict::Return));
    }
    unwrapped.push(Rule::new("to this node", [port::to_this_host()], Verdict::Return));
    unwrapped.push(drop("to nobody here", []));

    let mut of_pods = vec![Rule::new("VXLAN", [tunnel::udp_to(number)], Verdict::Jump(TO_NODES.into()))];
    for (name, protocol) in TUNNELS {
        of_pods.push(Rule::new(name, [tunnel::protocol(protocol)], Verdict::Jump(TO_NODES.into())));
    }

    let mut arriving = vec![
        Rule::new("out of the overlay", [expr::iifname(DEVICES)], Verdict::Goto(UNWRAPPED.into())),
        // Nearly everything there is, and none of it concerns what follows.
        Rule::new("TCP", [tunnel::protocol(TCP)], Verdict::Return),
    ];
    for v4 in [true, false] {
        let fragment = if v4 { tunnel::is_fragment4() } else { tunnel::is_fragment6() };
        // Without its first fragment nothing becomes of a datagram.
        arriving
            .push(drop("a VXLAN packet in fragments", [expr::nfproto(v4), tunnel::udp_to(number), fragment]));
    }
    for v4 in [true, false] {
        arriving.push(drop(
            "a VXLAN packet of no node",
            [not_from(v4, Set::Peers), vxlan(), port::to_this_host()],
        ));
        arriving.push(drop(
            "a VXLAN packet to another address",
            [not_to(v4, Set::Ends), vxlan(), port::to_this_host()],
        ));
    }
    arriving.push(Rule::new("from a pod", [expr::iifname(&pods)], Verdict::Goto(OF_PODS.into())));
    for v4 in [true, false] {
        arriving.push(Rule::new(
            "from a pod's address",
            [from(v4, Set::Pods)],
            Verdict::Goto(OF_PODS.into()),
        ));
    }
    group(vec![
        chain(TO_NODES, to_nodes),
        chain(OF_PODS, of_pods),
        chain(UNWRAPPED, unwrapped),
        Chain {
            name: ARRIVING.into(),
            base: Some(Base::filter(Hook::Prerouting, BEFORE_DEFRAGMENTATION)),
            rules: arriving,
        },
    ])
}
