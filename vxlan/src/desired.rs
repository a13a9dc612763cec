//! What the kernel should hold: a pure function of the overlay table and of what the underlay is like.

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_model::{NodeName, Object, OverlayTable, Problem, What};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::mtu::{self, MtuError};
use crate::state::{
    Address, Device, Family, FdbEntry, KernelState, Route, RouteKey, UNREACHABLE_METRIC, remote_metric,
};

/// What the administrator chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub node: NodeName,
    pub vni: u32,
    /// Where services have their addresses: no node has pods there.
    #[serde(default)]
    pub service_ranges: Vec<IpNetwork>,
    pub port: u16,
    /// `None`: the largest that fits.
    pub mtu: Option<u32>,
}

/// The underlay as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The device that carries the outer packets.
    pub device: String,
    pub index: u32,
    pub mtu: u32,
    /// Outer source address.
    pub local: IpAddr,
    /// The network that it is in.
    pub network: IpNetwork,
}

/// The desired state, and what had to be left out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub state: KernelState,
    pub problems: Vec<Problem>,
    /// The MTU that pods get.
    pub mtu: u32,
}

/// Computes the desired state of this node. The table is as `resolve` makes it: its underlay addresses are of
/// one family, its ranges overlap neither each other nor any node's address.
///
/// Two nodes whose VXLAN devices have one MAC cannot both be reached: the one whose name sorts first is, the
/// other is a problem.
pub fn desired(table: &OverlayTable, underlay: &Underlay, settings: &Settings) -> Result<Desired, MtuError> {
    let ipv6 = table.local.iter().any(IpNetwork::is_ipv6);
    let mtu = mtu::overlay_mtu(&underlay.device, underlay.mtu, underlay.local, ipv6, settings.mtu)?;
    let mac = heddle_model::node::vtep_mac(&settings.node, settings.vni);
    let mut state = KernelState {
        device: Some(Device {
            kind: "vxlan".to_owned(),
            vni: settings.vni,
            port: settings.port,
            local: Some(underlay.local),
            underlay: underlay.index,
            learning: false,
            checksum4: false,
            no_checksum6: (false, false),
            external: false,
            mac,
            mtu,
            up: true,
        }),
        ..KernelState::default()
    };
    // The source of this node's own packets into the overlay.
    let mut source = BTreeMap::new();
    for range in &table.local {
        let ip = range.network();
        source.entry(Family::of(ip)).or_insert(ip);
        state.forwarding.insert(Family::of(ip));
        state.addresses.insert(Address { ip, prefix: IpNetwork::from(ip).prefix(), hidden: true });
        state.routes.insert(RouteKey { range: *range, metric: UNREACHABLE_METRIC }, Route::Unreachable);
    }

    let mut problems = Vec::new();
    let mut owners = BTreeMap::from([(mac, &settings.node)]);
    for (name, remote) in &table.remotes {
        if let Some(owner) = owners.insert(remote.mac, name) {
            owners.insert(remote.mac, owner);
            let what = format!("not reached: its VXLAN device has the MAC {} of node {owner}", remote.mac);
            problems.push(Problem::new(Object::Node(name.clone()), What::Said(what)));
            continue;
        }
        if is_for_everybody(remote.underlay, underlay.network) {
            let what = format!("not reached: its address {} is everybody's in the underlay", remote.underlay);
            problems.push(Problem::new(Object::Node(name.clone()), What::Said(what)));
            continue;
        }
        state.fdb.insert(FdbEntry::new(remote.mac, remote.underlay));
        for range in &remote.ranges {
            let gateway = range.network();
            let family = Family::of(gateway);
            state.neighbours.insert(gateway, remote.mac);
            state.routes.insert(
                RouteKey { range: *range, metric: remote_metric(family) },
                Route::Via { gateway: Some(gateway), source: source.get(&family).copied(), onlink: true },
            );
        }
    }
    Ok(Desired { state, problems, mtu })
}

/// Whether packets to the address would go to every machine of the network (the all-ones address, and the
/// all-zeros one, which some take for the same).
fn is_for_everybody(ip: IpAddr, network: IpNetwork) -> bool {
    network.is_ipv4()
        && network.prefix() < 31
        && network.contains(ip)
        && (ip == network.network() || ip == network.broadcast())
}

#[cfg(test)]
mod tests {
    use heddle_model::{Mac, RemoteNode};

    use super::*;
    use crate::fake::{ip, mac, name, net, remote, settings, table, underlay};

    #[test]
    fn a_remote_node_is_a_route_a_neighbour_and_an_fdb_entry_per_family() {
        let desired = desired(&table([("n2", remote(2, 2, 2))]), &underlay(), &settings()).unwrap();
        assert_eq!(desired.problems, []);
        assert_eq!(desired.mtu, 1450);
        let state = desired.state;
        assert_eq!(state.fdb, [FdbEntry::new(mac(2), ip("192.168.77.2"))].into());
        assert_eq!(state.neighbours, [(ip("10.244.2.0"), mac(2)), (ip("fd00:10:244:2::"), mac(2))].into());
        let via = |gateway, source| Route::Via {
            gateway: Some(ip(gateway)),
            source: Some(ip(source)),
            onlink: true,
        };
        let key = |range, metric| RouteKey { range: net(range), metric };
        assert_eq!(
            state.routes,
            [
                (key("10.244.1.0/24", u32::MAX), Route::Unreachable),
                (key("fd00:10:244:1::/64", u32::MAX), Route::Unreachable),
                (key("10.244.2.0/24", 0), via("10.244.2.0", "10.244.1.0")),
                (key("fd00:10:244:2::/64", 1024), via("fd00:10:244:2::", "fd00:10:244:1::")),
            ]
            .into()
        );
        assert_eq!(
            state.addresses,
            [
                Address { ip: ip("10.244.1.0"), prefix: 32, hidden: true },
                Address { ip: ip("fd00:10:244:1::"), prefix: 128, hidden: true },
            ]
            .into()
        );
        let device = state.device.unwrap();
        assert_eq!((device.vni, device.port, device.mtu, device.underlay), (1, 8472, 1450, 2));
        assert_eq!(device.local, Some(ip("192.168.77.1")));
        assert_eq!(device.mac, heddle_model::node::vtep_mac(&name("n1"), 1));
        assert!(device.up && !device.learning && !device.external);
    }

    #[test]
    fn the_other_node_without_ranges_is_known_but_gets_no_route() {
        let bare = RemoteNode { ranges: [].into(), ..remote(2, 2, 2) };
        let desired = desired(&table([("n2", bare)]), &underlay(), &settings()).unwrap();
        assert_eq!(desired.state.fdb.len(), 1);
        assert_eq!(desired.state.neighbours.len(), 0);
    }

    #[test]
    fn of_two_nodes_with_one_mac_the_first_is_reached_and_the_second_reported() {
        let table = table([("n2", remote(2, 2, 2)), ("n6", remote(6, 2, 6))]);
        let desired = desired(&table, &underlay(), &settings()).unwrap();
        let said: Vec<String> = desired.problems.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["node n6: not reached: its VXLAN device has the MAC 02:00:00:00:00:02 of node n2"]);
        assert_eq!(desired.state.fdb, [FdbEntry::new(mac(2), ip("192.168.77.2"))].into());
        assert_eq!(desired.state.routes.len(), 4);
    }

    #[test]
    fn a_node_that_claims_a_broadcast_address_is_refused() {
        for everybody in [0, 255] {
            let desired =
                desired(&table([("n2", remote(everybody, 2, 2))]), &underlay(), &settings()).unwrap();
            assert_eq!(desired.problems.len(), 1);
            assert!(desired.state.fdb.is_empty() && desired.state.neighbours.is_empty());
        }
    }

    #[test]
    fn a_node_with_ipv4_pods_alone_may_have_a_small_mtu() {
        let table = OverlayTable { local: [net("10.244.1.0/24")].into(), ..table([]) };
        let small = Underlay { mtu: 600, ..underlay() };
        let desired = desired(&table, &small, &settings()).unwrap();
        assert_eq!(desired.mtu, 550);
        assert_eq!(desired.state.forwarding, [Family::V4].into());
    }

    #[test]
    fn five_thousand_nodes_are_quick() {
        let mut table = table([]);
        for n in 0..5000_u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let remote = RemoteNode {
                underlay: ip(&format!("172.16.{high}.{low}")),
                mac: Mac([2, 0, 1, 0, high, low]),
                ranges: [net(&format!("10.{}.{low}.0/24", 16 + high)), net(&format!("fd00:10:{n:x}::/64"))]
                    .into(),
            };
            table.remotes.insert(name(&format!("node-{n}")), remote);
        }
        table.local = [net("10.244.1.0/24")].into();
        let begin = std::time::Instant::now();
        let desired = desired(&table, &underlay(), &settings()).unwrap();
        assert_eq!(desired.problems, []);
        assert_eq!(desired.state.routes.len(), 10_001);
        assert!(begin.elapsed() < std::time::Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}
