//! Whether the machine's packet filter lets the other nodes' VXLAN packets in.

use std::net::IpAddr;

use heddle_netlink::nft::{Hook, ListedChain, Nft};
use heddle_netlink::{Result, Socket, link, nft};

use super::trace::{Packet, Tracer};
use super::{applies, describe};
use crate::state::KernelState;

/// The rules that are missing for VXLAN packets of other nodes to this one, in words. None where there is no other node.
pub fn missing(nft: &mut Nft, desired: &KernelState) -> Result<Vec<String>> {
    let Some(device) = &desired.device else { return Ok(Vec::new()) };
    let (Some(local), Some(peer)) = (device.local, desired.fdb.first().map(|entry| entry.dst)) else {
        return Ok(Vec::new());
    };
    let underlay = link::by_index(&mut Socket::open()?, device.underlay)?;
    let packet = Packet {
        source: peer,
        destination: local,
        input: underlay.map(|link| link.name).unwrap_or_default(),
        output: String::new(),
        udp: Some(device.port),
    };
    let mut found = Vec::new();
    for chain in nft.chains()?.into_iter().filter(is_input) {
        if !applies(chain.family, local) {
            continue;
        }
        let accepts = chain.base.as_ref().is_some_and(|base| base.policy_accept);
        let fate = Tracer::new(nft, chain.family, &chain.table).fate(&chain.name, &packet)?;
        let Some((by, first)) = describe(fate, &chain, accepts) else { continue };
        found.push(words(&chain, local, device.port, &by, first));
    }
    Ok(found)
}

fn is_input(chain: &ListedChain) -> bool {
    chain.base.as_ref().is_some_and(|base| base.hook == Hook::Input)
        && matches!(chain.family, nft::Family::Inet | nft::Family::Ip | nft::Family::Ip6)
}

fn words(chain: &ListedChain, local: IpAddr, port: u16, by: &str, first: bool) -> String {
    let name = format!("{} {} {}", chain.family, chain.table, chain.name);
    let verb = if first { "insert" } else { "add" };
    let nft = format!("nft {verb} rule {name} udp dport {port} accept");
    let of_iptables = matches!(chain.family, nft::Family::Ip | nft::Family::Ip6)
        && chain.table == "filter"
        && chain.name == "INPUT";
    let what = format!("VXLAN packets of other nodes are dropped by {by} of chain {name}");
    if !of_iptables {
        return format!("{what}; missing rule: `{nft}`");
    }
    let program = if local.is_ipv4() { "iptables" } else { "ip6tables" };
    let put = if first { "-I" } else { "-A" };
    format!("{what}; missing rule: `{program} {put} INPUT -p udp --dport {port} -j ACCEPT` (or `{nft}`)")
}

#[cfg(test)]
mod tests {
    use heddle_netlink::NetNs;
    use heddle_netlink::nft::expr::{self, Verdict};
    use heddle_netlink::nft::{Base, Batch, Family, Rule};

    use super::*;
    use crate::desired::desired;
    use crate::fake::{remote, settings, table, underlay};

    fn missing_with(policy_accept: bool, family: Family, rules: &[Rule]) -> Vec<String> {
        let state = desired(&table([("n2", remote(2, 2, 2))]), &underlay(), &settings()).unwrap().state;
        let mut batch = Batch::new();
        batch.add_table(family, "filter");
        let base = Base { policy_accept, ..Base::filter(Hook::Input, 0) };
        batch.add_chain(family, "filter", "INPUT", Some(&base));
        rules.iter().for_each(|rule| batch.add_rule(family, "filter", "INPUT", rule));
        let found = NetNs::create().unwrap().run(|| {
            let mut nft = Nft::open().unwrap();
            nft.commit(&batch).unwrap();
            missing(&mut nft, &state).unwrap()
        });
        found.unwrap()
    }

    #[test]
    fn fault_144_a_filter_that_drops_other_nodes_packets_is_told() {
        let drops = "VXLAN packets of other nodes are dropped by the policy of chain ip filter INPUT; missing rule: \
                     `iptables -A INPUT -p udp --dport 8472 -j ACCEPT` (or `nft add rule ip filter INPUT udp dport 8472 \
                     accept`)";
        assert_eq!(missing_with(false, Family::Ip, &[]), [drops]);
        let ssh = Rule::new("", [expr::destination_port(6, 22)], Verdict::Accept);
        let dns = Rule::new("", [expr::destination_port(17, 53)], Verdict::Accept);
        let known = Rule::new("", [expr::ct_state(expr::ct::ESTABLISHED)], Verdict::Accept);
        assert_eq!(missing_with(false, Family::Ip, &[ssh.clone(), dns, known]), [drops]);
        let vxlan = Rule::new("", [expr::destination_port(17, 8472)], Verdict::Accept);
        assert_eq!(missing_with(false, Family::Ip, &[ssh.clone(), vxlan.clone()]), [""; 0]);
        assert_eq!(missing_with(true, Family::Ip, &[ssh]), [""; 0]);
        assert_eq!(missing_with(false, Family::Ip6, &[]), [""; 0], "the nodes talk by IPv4");
        let last = Rule::new("", [], Verdict::Drop);
        let found = missing_with(true, Family::Inet, std::slice::from_ref(&last));
        assert!(found[0].ends_with("`nft insert rule inet filter INPUT udp dport 8472 accept`"), "{found:?}");
        assert_eq!(missing_with(true, Family::Inet, &[vxlan, last]), [""; 0]);
    }
}
