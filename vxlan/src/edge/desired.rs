//! What must be: a pure function of the overlay table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use heddle_model::OverlayTable;
use ipnetwork::IpNetwork;

use super::rules::{self, Parameters};
use super::{Group, Set, Settings, State};
use crate::desired::Settings as Overlay;

/// What must be at the edge of this node. `None` while the cluster does not know the node.
pub fn desired(table: &OverlayTable, overlay: &Overlay, settings: &Settings) -> Option<State> {
    let local = table.underlay?;
    let mut state = State::default();
    let members = &mut state.members;
    members.extend(table.local.iter().map(|range| (Set::Pods, network(*range))));
    members.extend(table.addresses.iter().chain([&local]).map(|ip| (Set::Ends, IpNetwork::from(*ip))));
    for remote in table.remotes.values() {
        members.extend(remote.ranges.iter().map(|range| (Set::Others, network(*range))));
        let tunnels = [Some(remote.underlay), remote.beside.as_ref().map(|beside| beside.underlay)];
        for ip in tunnels.into_iter().flatten() {
            members.insert((Set::Peers, ip.into()));
            members.insert((Set::Nodes, ip.into()));
        }
        if let Some(beside) = &remote.beside {
            members.insert((Set::Others, network(beside.range)));
        }
        let overlay = remote.ranges.iter().map(IpNetwork::network);
        members.extend(remote.addresses.iter().copied().chain(overlay).map(|ip| (Set::Nodes, ip.into())));
    }
    let kept = overlay.service_ranges.iter().chain(&settings.unmasqueraded).map(|range| network(*range));
    members.extend(outermost(kept.collect()).into_iter().map(|range| (Set::Kept, range)));

    let mut addresses: Vec<IpAddr> = Vec::new();
    for range in &table.local {
        if addresses.iter().all(|ip| ip.is_ipv4() != range.is_ipv4()) {
            addresses.push(range.network());
        }
    }
    let parameters = Parameters { vni: overlay.vni, port: overlay.port, overlay: addresses };
    state.rules.insert(Group::Senders, rules::senders(&parameters));
    if settings.masquerade {
        state.rules.insert(Group::Masquerade, rules::masquerade(&parameters));
    }
    Some(state)
}

fn network(range: IpNetwork) -> IpNetwork {
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

/// Without ranges that lie in others: a set of intervals has none twice.
fn outermost(ranges: BTreeSet<IpNetwork>) -> BTreeSet<IpNetwork> {
    let inside = |range: &IpNetwork, other: &IpNetwork| {
        other.prefix() < range.prefix() && other.is_ipv4() == range.is_ipv4() && other.contains(range.ip())
    };
    ranges.iter().filter(|range| !ranges.iter().any(|other| inside(range, other))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::checksums::Choice;
    use crate::edge::plan;
    use crate::fake::{net, remote, settings, table};

    fn choice(masquerade: bool) -> Settings {
        Settings {
            masquerade,
            unmasqueraded: [net("10.0.0.0/8"), net("10.7.0.0/16")].into(),
            checksums: Choice::Auto,
        }
    }

    #[test]
    fn the_sets_follow_the_nodes_and_the_rules_do_not() {
        let of = |remotes: &[(&'static str, u8)], masquerade| {
            let remotes = remotes.iter().map(|(name, n)| (*name, remote(*n, *n, *n)));
            desired(&table(remotes), &settings(), &choice(masquerade)).unwrap()
        };
        let (one, two) = (of(&[("n2", 2)], true), of(&[("n2", 2), ("n3", 3)], true));
        assert_eq!(one.rules, two.rules);
        let steps: Vec<String> = plan(&one, &two).iter().map(ToString::to_string).collect();
        assert_eq!(
            steps,
            [
                "10.244.3.0/24 in nftables set others4 is missing",
                "fd00:10:244:3::/64 in nftables set others6 is missing",
                "192.168.77.3/32 in nftables set peers4 is missing",
                "10.244.3.0/32 in nftables set nodes4 is missing",
                "192.168.77.3/32 in nftables set nodes4 is missing",
                "fd00:10:244:3::/128 in nftables set nodes6 is missing",
                "fd77::3/128 in nftables set nodes6 is missing",
            ]
        );
        assert_eq!(plan(&two, &two), []);
        let without = of(&[("n2", 2)], false);
        assert_eq!(plan(&one, &without).len(), 1);
        assert_eq!(plan(&State::default(), &one).len(), one.members.len() + 2);
        assert_eq!(one.members.iter().filter(|(set, _)| *set == Set::Kept).count(), 1, "none twice");
        assert_eq!(desired(&OverlayTable::default(), &settings(), &choice(true)), None);
    }
}
