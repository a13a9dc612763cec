//! Whether the machine's packet filter lets pods through, and the tunnel.
//!
//! Docker, firewalld and many administrators have FORWARD drop what no rule accepts. No table of ours can
//! help it: in nf_tables a packet passes only if *every* base chain of the hook accepts it, and a filter
//! that is somebody else's is not ours to write. So it is read, and the rule that is missing is told.

mod input;
mod trace;

use std::fmt;
use std::net::IpAddr;

use heddle_netlink::Result;
use heddle_netlink::nft::{self, Hook, ListedChain, Nft};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::state::{KernelState, Route};
use trace::{Fate, Packet, Tracer};

/// A name as the CNI plugin gives them to the host side of pods.
const POD_INTERFACE: &str = "hdl000000000000";

/// Packets of pods are dropped here, and by this rule they would not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Missing {
    /// `ip filter FORWARD`
    pub chain: String,
    /// What drops them.
    pub by: String,
    /// The pods whose packets are dropped.
    pub range: IpNetwork,
    /// Packets from them; otherwise to them.
    pub from: bool,
    /// The rule as `nft` takes it.
    pub nft: String,
    /// The rule as `iptables` takes it, if the chain is one of its own.
    pub iptables: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.from { "from" } else { "to" };
        write!(
            f,
            "forwarded packets {side} pods of {} are dropped by {} of chain {}; ",
            self.range, self.by, self.chain
        )?;
        match &self.iptables {
            Some(iptables) => write!(f, "missing rule: `{iptables}` (or `{}`)", self.nft),
            None => write!(f, "missing rule: `{}`", self.nft),
        }
    }
}

/// The rules that are missing for the pods of this node, as the desired state describes them.
pub fn missing(nft: &mut Nft, desired: &KernelState, device: &str) -> Result<Vec<Missing>> {
    let chains: Vec<ListedChain> = nft.chains()?.into_iter().filter(is_forward).collect();
    let mut found = Vec::new();
    for chain in &chains {
        for (range, from, packet) in packets(desired, device) {
            if !applies(chain.family, packet.source) {
                continue;
            }
            let accepts = chain.base.as_ref().is_some_and(|base| base.policy_accept);
            let fate = Tracer::new(nft, chain.family, &chain.table).fate(&chain.name, &packet)?;
            if let Some((by, first)) = describe(fate, chain, accepts) {
                found.push(rule(chain, range, from, by, first));
            }
        }
    }
    Ok(found)
}

/// By what the packet is dropped, if it is, and whether the missing rule must come before that.
fn describe(fate: Fate, chain: &ListedChain, accepts: bool) -> Option<(String, bool)> {
    match fate {
        Fate::Accepted => None,
        Fate::Undecided => (!accepts).then(|| ("the policy".to_owned(), false)),
        Fate::Dropped { chain: called, handle } if called == chain.name => {
            Some((format!("rule {handle}"), true))
        }
        Fate::Dropped { chain: called, handle } => Some((format!("rule {handle} (in {called})"), true)),
    }
}

/// What the packet filter of this network namespace does to pods, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Each drops packets of pods, and names the rule that would not.
    pub missing: Vec<String>,
    /// What could not be read, and may drop them or not.
    pub unclear: Vec<String>,
}

/// Reads the packet filter. Nothing is missing where the kernel has none.
pub fn findings(desired: &KernelState, device: &str) -> Findings {
    let mut findings = Findings::default();
    let read = |nft: &mut Nft| Ok((missing(nft, desired, device)?, input::missing(nft, desired)?));
    match Nft::open().and_then(|mut nft| read(&mut nft)) {
        Ok((forwarded, arriving)) => {
            findings.missing = forwarded.iter().map(ToString::to_string).chain(arriving).collect();
        }
        Err(error) => {
            findings.unclear.push(format!("whether nf_tables drops packets of pods is not known: {error}"));
        }
    }
    for (path, program) in [(LEGACY4, "iptables"), (LEGACY6, "ip6tables")] {
        if std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter")) {
            findings.unclear.push(format!(
                "the old {program} has a filter table, which cannot be read here: if `{program}-legacy -S FORWARD` \
                 shows the policy DROP, pods need rules there that accept them"
            ));
        }
    }
    findings
}

/// Names the tables of the old iptables that are in use; nf_tables does not show them.
const LEGACY4: &str = "/proc/thread-self/net/ip_tables_names";
const LEGACY6: &str = "/proc/thread-self/net/ip6_tables_names";

fn is_forward(chain: &ListedChain) -> bool {
    chain.base.as_ref().is_some_and(|base| base.hook == Hook::Forward)
        && matches!(chain.family, nft::Family::Inet | nft::Family::Ip | nft::Family::Ip6)
}

fn applies(family: nft::Family, ip: IpAddr) -> bool {
    match family {
        nft::Family::Ip => ip.is_ipv4(),
        nft::Family::Ip6 => ip.is_ipv6(),
        _ => true,
    }
}

/// For each range of this node a packet from a pod of it to another node, and one back.
fn packets(desired: &KernelState, device: &str) -> Vec<(IpNetwork, bool, Packet)> {
    let mut packets = Vec::new();
    for (key, route) in &desired.routes {
        if *route != Route::Unreachable {
            continue;
        }
        let v4 = key.range.is_ipv4();
        let remote = desired
            .routes
            .iter()
            .find(|(other, route)| **route != Route::Unreachable && other.range.is_ipv4() == v4);
        // Alone in the cluster: its pods talk to each other.
        let other = remote.map_or(key.range, |(other, _)| other.range);
        let (pod, peer) = (pod(key.range), pod(other));
        let beyond = if remote.is_some() { device } else { POD_INTERFACE };
        let packet = |source, destination, input: &str, output: &str| Packet {
            source,
            destination,
            input: input.to_owned(),
            output: output.to_owned(),
            udp: None,
        };
        packets.push((key.range, true, packet(pod, peer, POD_INTERFACE, beyond)));
        packets.push((key.range, false, packet(peer, pod, beyond, POD_INTERFACE)));
    }
    packets
}

/// An address that a pod of the range may have.
fn pod(range: IpNetwork) -> IpAddr {
    match range.network() {
        IpAddr::V4(ip) => (u32::from(ip) | 2).to_be_bytes().into(),
        IpAddr::V6(ip) => (u128::from(ip) | 2).to_be_bytes().into(),
    }
}

fn rule(chain: &ListedChain, range: IpNetwork, from: bool, by: String, first: bool) -> Missing {
    let name = format!("{} {} {}", chain.family, chain.table, chain.name);
    let family = if range.is_ipv4() { "ip" } else { "ip6" };
    let (side, flag) = if from { ("saddr", "-s") } else { ("daddr", "-d") };
    let verb = if first { "insert" } else { "add" };
    let is_iptables = matches!(chain.family, nft::Family::Ip | nft::Family::Ip6)
        && chain.table == "filter"
        && chain.name == "FORWARD";
    let iptables = is_iptables.then(|| {
        let program = if range.is_ipv4() { "iptables" } else { "ip6tables" };
        let put = if first { "-I" } else { "-A" };
        format!("{program} {put} FORWARD {flag} {range} -j ACCEPT")
    });
    Missing {
        nft: format!("nft {verb} rule {name} {family} {side} {range} accept"),
        chain: name,
        by,
        range,
        from,
        iptables,
    }
}

#[cfg(test)]
mod tests {
    use heddle_netlink::NetNs;
    use heddle_netlink::nft::expr::{self, Side, Verdict};
    use heddle_netlink::nft::{Base, Batch, Family, Rule};

    use super::*;
    use crate::desired::desired;
    use crate::fake::{net, remote, settings, table, underlay};

    /// Fills the filter of a namespace of its own, and reads what is missing for the usual node.
    fn missing_with(fill: impl FnOnce(&mut Batch)) -> Vec<String> {
        let state = desired(&table([("n2", remote(2, 2, 2))]), &underlay(), &settings()).unwrap().state;
        let mut batch = Batch::new();
        fill(&mut batch);
        let ns = NetNs::create().unwrap();
        let mut nft = Nft::open_in(&ns).unwrap();
        nft.commit(&batch).unwrap();
        missing(&mut nft, &state, "heddle.1").unwrap().iter().map(ToString::to_string).collect()
    }

    fn forward(batch: &mut Batch, family: Family, table: &str, chain: &str, policy_accept: bool) {
        batch.add_table(family, table);
        let base = Base { policy_accept, ..Base::filter(Hook::Forward, 0) };
        batch.add_chain(family, table, chain, Some(&base));
    }

    fn accept(side: Side, range: &str) -> Rule {
        Rule::new("", [expr::address(side, net(range))], Verdict::Accept)
    }

    #[test]
    fn no_filter_and_an_accepting_filter_miss_nothing() {
        assert_eq!(missing_with(|_| {}), [""; 0]);
        let open = |batch: &mut Batch| forward(batch, Family::Inet, "firewall", "forward", true);
        assert_eq!(missing_with(open), [""; 0]);
    }

    #[test]
    fn a_policy_of_drop_misses_a_rule_for_each_direction() {
        assert_eq!(
            missing_with(|batch| forward(batch, Family::Ip, "filter", "FORWARD", false)),
            [
                "forwarded packets from pods of 10.244.1.0/24 are dropped by the policy of chain ip filter FORWARD; \
                 missing rule: `iptables -A FORWARD -s 10.244.1.0/24 -j ACCEPT` \
                 (or `nft add rule ip filter FORWARD ip saddr 10.244.1.0/24 accept`)",
                "forwarded packets to pods of 10.244.1.0/24 are dropped by the policy of chain ip filter FORWARD; \
                 missing rule: `iptables -A FORWARD -d 10.244.1.0/24 -j ACCEPT` \
                 (or `nft add rule ip filter FORWARD ip daddr 10.244.1.0/24 accept`)",
            ]
        );
        // One chain for both families.
        let both = missing_with(|batch| forward(batch, Family::Inet, "firewall", "forward", false));
        assert_eq!(both.len(), 4);
        assert!(both[2].ends_with(
            "missing rule: `nft add rule inet firewall forward ip6 saddr fd00:10:244:1::/64 accept`"
        ));
    }

    #[test]
    fn rules_that_accept_pods_are_seen_directly_in_called_chains_and_through_sets() {
        let wide = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", false);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &accept(Side::Source, "10.244.0.0/16"));
        };
        assert_eq!(missing_with(wide), [""; 0], "packets in either direction have such a source");
        let other = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", false);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &accept(Side::Source, "10.99.0.0/16"));
        };
        assert_eq!(missing_with(other).len(), 2);
        let called = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", false);
            batch.add_chain(Family::Ip, "filter", "PODS", None);
            let from = Rule::new("", [expr::iifname("hdl*")], Verdict::Accept);
            let to = Rule::new("", [expr::iifname("heddle.1"), expr::oifname("hdl*")], Verdict::Accept);
            batch.add_rule(Family::Ip, "filter", "PODS", &from);
            batch.add_rule(Family::Ip, "filter", "PODS", &to);
            let jump = Rule::new("", [], Verdict::Jump("PODS".into()));
            batch.add_rule(Family::Ip, "filter", "FORWARD", &jump);
        };
        assert_eq!(missing_with(called), [""; 0]);
        let by_set = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", false);
            batch.add_set(Family::Ip, "filter", "pods", nft::SetKey::Prefix4);
            batch.add_prefixes(Family::Ip, "filter", "pods", &[net("10.244.0.0/16")]);
            let rule = Rule::new("", [expr::address_in(Side::Source, true, "pods", false)], Verdict::Accept);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &rule);
        };
        assert_eq!(missing_with(by_set), [""; 0]);
    }

    #[test]
    fn conditions_that_are_not_always_met_do_not_count_as_acceptance() {
        let replies = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", false);
            let rule = Rule::new("", [expr::ct_state(expr::ct::ESTABLISHED)], Verdict::Accept);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &rule);
            let rule = Rule::new("", [expr::destination_port(6, 80)], Verdict::Accept);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &rule);
        };
        assert_eq!(missing_with(replies).len(), 2);
        let invalid = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", true);
            let rule = Rule::new("", [expr::ct_state(expr::ct::INVALID)], Verdict::Drop);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &rule);
        };
        assert_eq!(missing_with(invalid), [""; 0], "pods' packets are not invalid");
    }

    #[test]
    fn a_rule_that_drops_is_named_and_the_missing_one_goes_before_it() {
        let last = |batch: &mut Batch| {
            forward(batch, Family::Ip, "filter", "FORWARD", true);
            batch.add_rule(Family::Ip, "filter", "FORWARD", &accept(Side::Source, "10.244.1.0/24"));
            batch.add_rule(Family::Ip, "filter", "FORWARD", &Rule::new("", [], Verdict::Drop));
        };
        let missing = missing_with(last);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(
            missing[0].starts_with("forwarded packets to pods of 10.244.1.0/24 are dropped by rule "),
            "{missing:?}"
        );
        assert!(missing[0].contains("`iptables -I FORWARD -d 10.244.1.0/24 -j ACCEPT`"), "{missing:?}");
    }
}
