//! What the kernel should hold: a pure function of the overlay table and of what the underlay is like.

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_model::subnet::{canonical, overlap};
use heddle_model::{Beside, NodeName, Object, OverlayTable, Problem, RemoteNode, What};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::mtu::{self, MtuError};
use crate::state::{
    Address, Device, Family, FdbEntry, KernelState, Neighbour, Route, RouteKey, UNREACHABLE_METRIC,
    remote_metric,
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
    /// Packets to nodes on the underlay's link go there without a tunnel.
    #[serde(default)]
    pub direct_routing: bool,
    /// What the network of the pods is called: under this name their leases are kept.
    #[serde(default = "usual_network")]
    pub network: String,
    /// Flannel's device makes room for ours.
    #[serde(default)]
    pub replace_flannel: bool,
}

fn usual_network() -> String {
    "heddle".into()
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
    /// The addresses of the device, with their networks.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
    /// Networks that this node is part of, and by which device; not the overlay's, nor those of single pods.
    #[serde(default)]
    pub connected: Vec<(IpNetwork, String)>,
}

impl Underlay {
    /// The network of this range of addresses that a device of this node is in.
    fn occupied(&self, range: IpNetwork) -> Option<&(IpNetwork, String)> {
        self.connected.iter().find(|(network, _)| overlap(*network, range))
    }

    /// The first of these addresses of a node, of a family, that is on the link.
    fn neighbour(&self, addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
        let mut of_family = addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4);
        of_family.find(|ip| {
            let on_link = |network: &IpNetwork| {
                network.contains(*ip) && network.ip() != *ip && !is_for_everybody(*ip, *network)
            };
            self.networks.iter().any(on_link)
        })
    }
}

/// The desired state, and what had to be left out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub state: KernelState,
    pub problems: Vec<Problem>,
    /// The MTU that pods get.
    pub mtu: u32,
}

/// Why nothing can be desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    #[error(transparent)]
    Mtu(#[from] MtuError),
    #[error(
        "this node's pod range {range} overlaps {network}, the network of {device} itself: no pod can be there (give \
         the nodes another range for pods)"
    )]
    RangeInUnderlay { range: IpNetwork, network: IpNetwork, device: String },
}

/// Computes the desired state of this node. The table is as `resolve` makes it: its underlay addresses are of
/// one family, its ranges overlap neither each other nor any node's address.
///
/// Two nodes whose VXLAN devices have one MAC cannot both be reached: the one whose name sorts first is, the
/// other is a problem.
pub fn desired(
    table: &OverlayTable,
    underlay: &Underlay,
    settings: &Settings,
) -> Result<Desired, DesiredError> {
    let ipv6 = table.local.iter().any(IpNetwork::is_ipv6);
    for range in &table.local {
        if let Some(network) = underlay.networks.iter().find(|network| overlap(**network, *range)) {
            let (range, network, device) = (*range, canonical(*network), underlay.device.clone());
            return Err(DesiredError::RangeInUnderlay { range, network, device });
        }
    }
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
            beside: false,
        }),
        ..KernelState::default()
    };
    // Where tunnels of the other family begin.
    let v4 = underlay.local.is_ipv4();
    let other = table
        .addresses
        .iter()
        .copied()
        .find(|ip| ip.is_ipv4() != v4 && underlay.networks.iter().any(|network| network.ip() == *ip));
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
    let mut beside_owners = owners.clone();
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
            if let Some((network, device)) = underlay.occupied(*range) {
                let what =
                    format!("pod range {range} refused: it overlaps {network} on {device} of this node");
                problems.push(Problem::new(Object::Node(name.clone()), What::Said(what)));
                continue;
            }
            let gateway = range.network();
            let family = Family::of(gateway);
            // The tunnel stays, whichever way plain packets go: services use it.
            state.neighbours.insert(Neighbour::new(gateway), remote.mac);
            let source = source.get(&family).copied();
            let tunnel = Route::Via { gateway: Some(gateway), source, onlink: true, beside: false };
            let route = straight(remote, *range, source, underlay, settings).unwrap_or(tunnel);
            state.routes.insert(RouteKey { range: *range, metric: remote_metric(family) }, route);
        }
        let Some(Beside { underlay: to, mac: at, range }) = remote.beside.clone() else { continue };
        let mut refuse = |what: String| {
            let what = What::Said(format!("pod range {range} not reached: {what}"));
            problems.push(Problem::new(Object::Node(name.clone()), what));
        };
        let Some(from) = other else {
            refuse(format!("{} of this node has no address of that family", underlay.device));
            continue;
        };
        if let Some(owner) = beside_owners.insert(at, name) {
            beside_owners.insert(at, owner);
            refuse(format!("its VXLAN device has the MAC {at} of node {owner}"));
            continue;
        }
        if let Some((network, device)) = underlay.occupied(range) {
            refuse(format!("it overlaps {network} on {device} of this node"));
            continue;
        }
        let device = || beside(state.device.as_ref(), from, underlay);
        state.beside = state.beside.take().or_else(device);
        let gateway = range.network();
        let family = Family::of(gateway);
        state.fdb.insert(FdbEntry { beside: true, ..FdbEntry::new(at, to) });
        state.neighbours.insert(Neighbour { ip: gateway, beside: true }, at);
        let source = source.get(&family).copied();
        let tunnel = Route::Via { gateway: Some(gateway), source, onlink: true, beside: true };
        let route = straight(remote, range, source, underlay, settings).unwrap_or(tunnel);
        state.routes.insert(RouteKey { range, metric: remote_metric(family) }, route);
    }
    Ok(Desired { state, problems, mtu })
}

/// The route to a pod range past the tunnels, where that is wanted and the node is on the link. This node's own packets
/// have the source that they have in the tunnel: connections live on when the way changes, and a firewall that knows
/// pods' addresses lets them through.
fn straight(
    remote: &RemoteNode,
    range: IpNetwork,
    source: Option<IpAddr>,
    underlay: &Underlay,
    settings: &Settings,
) -> Option<Route> {
    let wanted = || underlay.neighbour(&remote.addresses, range.is_ipv4());
    let gateway = settings.direct_routing.then(wanted).flatten();
    gateway.map(|gateway| Route::Direct { gateway: Some(gateway), source, link: underlay.index })
}

/// The second device: like the first, but for its outer packets.
fn beside(first: Option<&Device>, from: IpAddr, underlay: &Underlay) -> Option<Device> {
    let first = first?;
    let most = mtu::overlay_mtu(&underlay.device, underlay.mtu, from, false, None).ok()?;
    Some(Device { local: Some(from), mtu: first.mtu.min(most), beside: true, ..first.clone() })
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
    use heddle_model::Mac;

    use super::*;
    use crate::fake::{ip, mac, name, net, remote, settings, table, underlay};

    #[test]
    fn a_remote_node_is_a_route_a_neighbour_and_an_fdb_entry_per_family() {
        let desired = desired(&table([("n2", remote(2, 2, 2))]), &underlay(), &settings()).unwrap();
        assert_eq!(desired.problems, []);
        assert_eq!(desired.mtu, 1450);
        let state = desired.state;
        assert_eq!(state.fdb, [FdbEntry::new(mac(2), ip("192.168.77.2"))].into());
        let neighbour = |text| (Neighbour::new(ip(text)), mac(2));
        assert_eq!(state.neighbours, [neighbour("10.244.2.0"), neighbour("fd00:10:244:2::")].into());
        let via = |gateway, source| Route::Via {
            gateway: Some(ip(gateway)),
            source: Some(ip(source)),
            onlink: true,
            beside: false,
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
    fn nodes_on_the_link_are_reached_straight_if_that_is_wanted() {
        let direct = Settings { direct_routing: true, ..settings() };
        let far = RemoteNode { addresses: vec![ip("10.9.9.3"), ip("fd77::3")], ..remote(3, 3, 3) };
        let table = table([("n2", remote(2, 2, 2)), ("n3", far)]);
        let tunnelled = desired(&table, &underlay(), &settings()).unwrap().state;
        let state = desired(&table, &underlay(), &direct).unwrap().state;
        let straight = |gateway, source| Route::Direct {
            gateway: Some(ip(gateway)),
            source: Some(ip(source)),
            link: underlay().index,
        };
        let route = |range, metric| state.routes[&RouteKey { range: net(range), metric }];
        assert_eq!(route("10.244.2.0/24", 0), straight("192.168.77.2", "10.244.1.0"));
        assert_eq!(route("fd00:10:244:2::/64", 1024), straight("fd77::2", "fd00:10:244:1::"));
        assert!(matches!(route("10.244.3.0/24", 0), Route::Via { .. }), "behind a router");
        assert_eq!(
            route("fd00:10:244:3::/64", 1024),
            straight("fd77::3", "fd00:10:244:1::"),
            "each family by itself"
        );
        assert_eq!((&state.fdb, &state.neighbours), (&tunnelled.fdb, &tunnelled.neighbours), "for services");
    }

    #[test]
    fn fault_138_a_pod_range_in_a_network_of_this_node_is_refused() {
        let evil = RemoteNode {
            ranges: [net("192.168.77.128/25"), net("fd00:10:244:2::/64")].into(),
            ..remote(2, 2, 2)
        };
        let wide = RemoteNode { ranges: [net("172.16.0.0/12")].into(), ..remote(3, 3, 3) };
        let mut place = underlay();
        place.connected.push((net("172.17.0.0/16"), "docker0".into()));
        let found = desired(&table([("n2", evil), ("n3", wide)]), &place, &settings()).unwrap();
        let said: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "node n2: pod range 192.168.77.128/25 refused: it overlaps 192.168.77.0/24 on eth0 of this node",
                "node n3: pod range 172.16.0.0/12 refused: it overlaps 172.17.0.0/16 on docker0 of this node",
            ]
        );
        assert_eq!(found.state.routes.len(), 2 + 1, "this node's, and what is left of n2");
        // This node's own.
        let own = OverlayTable { local: [net("192.168.0.0/16")].into(), ..table([]) };
        let error = desired(&own, &underlay(), &settings()).unwrap_err().to_string();
        assert!(
            error.starts_with("this node's pod range 192.168.0.0/16 overlaps 192.168.77.0/24, "),
            "{error}"
        );
        // A bridge of this node's own pods is no hindrance.
        place.connected.push((net("10.244.1.0/24"), "cni0".into()));
        assert_eq!(desired(&table([]), &place, &settings()).unwrap().problems, []);
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
                beside: None,
                addresses: Vec::new(),
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
