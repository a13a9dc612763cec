//! From what is there to what should be, in an order that never points at something that is not there.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use heddle_model::{Effect, Mac};

use crate::state::{Address, Device, Family, FdbEntry, KernelState, Neighbour, Route, RouteKey};

/// One change of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    CreateDevice(Device),
    /// Deletes the device, and all that is on it, and makes it anew.
    RecreateDevice(Device),
    /// MAC, MTU, up: what can be changed under traffic.
    ChangeDevice {
        from: Device,
        to: Device,
    },
    RemoveDevice,
    /// Removes the second device.
    RemoveBeside,
    /// Removes a device that an earlier vxland made for another VNI.
    RemoveLeftover(String),
    /// `from`: the same address with another scope, which the kernel cannot change; it goes first.
    PutAddress {
        from: Option<Address>,
        to: Address,
    },
    RemoveAddress(Address),
    /// Has the device hear router advertisements although the node forwards.
    KeepAdvertisements(String),
    /// `hearing`: the devices that must be made to hear router advertisements first.
    SwitchForwarding {
        family: Family,
        hearing: BTreeSet<String>,
    },
    /// `moved`: the MAC was known, somewhere else or aging.
    PutFdb {
        entry: FdbEntry,
        moved: bool,
    },
    RemoveFdb(FdbEntry),
    PutNeighbour {
        neighbour: Neighbour,
        mac: Mac,
        moved: bool,
    },
    RemoveNeighbour(Neighbour),
    /// A route that is not there: must not overwrite one that is not ours.
    AddRoute(RouteKey, Route),
    /// A route of ours that leads elsewhere: replaced in one step, so that there always is one.
    ReplaceRoute(RouteKey, Route),
    RemoveRoute(RouteKey, Route),
    /// Hands the node to the container runtime.
    WriteConflist {
        content: String,
        replaces: bool,
    },
    /// Nothing can be done, for this reason. It fails until something can.
    Hold(String),
}

/// What fails, backs off and is retried by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Device,
    Beside,
    Leftover(String),
    Address(IpAddr, u8),
    Advertisements(String),
    Forwarding(Family),
    Fdb(FdbEntry),
    Neighbour(Neighbour),
    Route(RouteKey),
    Conflist,
    /// All of it.
    Overlay,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Beside => f.write_str("second device"),
            Self::Leftover(name) => write!(f, "device {name}"),
            Self::Address(ip, prefix) => write!(f, "address {ip}/{prefix}"),
            Self::Advertisements(device) => write!(f, "router advertisements on {device}"),
            Self::Forwarding(family) => write!(f, "{family} forwarding"),
            Self::Fdb(entry) => write!(f, "fdb entry {} to {}", entry.mac, entry.dst),
            Self::Neighbour(neighbour) => write!(f, "neighbour {}", neighbour.ip),
            Self::Route(key) => write!(f, "route {}", key.range),
            Self::Conflist => f.write_str("cni configuration"),
            Self::Overlay => f.write_str("overlay"),
        }
    }
}

impl Step {
    pub fn part(&self) -> Part {
        match self {
            Self::CreateDevice(device)
            | Self::RecreateDevice(device)
            | Self::ChangeDevice { to: device, .. }
                if device.beside =>
            {
                Part::Beside
            }
            Self::RemoveBeside => Part::Beside,
            Self::CreateDevice(_)
            | Self::RecreateDevice(_)
            | Self::ChangeDevice { .. }
            | Self::RemoveDevice => Part::Device,
            Self::RemoveLeftover(name) => Part::Leftover(name.clone()),
            Self::PutAddress { to: address, .. } | Self::RemoveAddress(address) => {
                Part::Address(address.ip, address.prefix)
            }
            Self::KeepAdvertisements(device) => Part::Advertisements(device.clone()),
            Self::SwitchForwarding { family, .. } => Part::Forwarding(*family),
            Self::PutFdb { entry, .. } | Self::RemoveFdb(entry) => Part::Fdb(*entry),
            Self::PutNeighbour { neighbour, .. } | Self::RemoveNeighbour(neighbour) => {
                Part::Neighbour(*neighbour)
            }
            Self::AddRoute(key, _) | Self::ReplaceRoute(key, _) | Self::RemoveRoute(key, _) => {
                Part::Route(*key)
            }
            Self::WriteConflist { .. } => Part::Conflist,
            Self::Hold(_) => Part::Overlay,
        }
    }

    pub const fn effect(&self) -> Effect {
        match self {
            Self::CreateDevice(_)
            | Self::AddRoute(..)
            | Self::PutAddress { from: None, .. }
            | Self::PutFdb { moved: false, .. }
            | Self::PutNeighbour { moved: false, .. }
            | Self::Hold(_)
            | Self::WriteConflist { replaces: false, .. } => Effect::Create,
            Self::RecreateDevice(_)
            | Self::ChangeDevice { .. }
            | Self::PutAddress { .. }
            | Self::KeepAdvertisements(_)
            | Self::SwitchForwarding { .. }
            | Self::PutFdb { .. }
            | Self::PutNeighbour { .. }
            | Self::ReplaceRoute(..)
            | Self::WriteConflist { .. } => Effect::Change,
            Self::RemoveDevice
            | Self::RemoveBeside
            | Self::RemoveLeftover(_)
            | Self::RemoveAddress(_)
            | Self::RemoveFdb(_)
            | Self::RemoveNeighbour(_)
            | Self::RemoveRoute(..) => Effect::Remove,
        }
    }
}

/// The steps that turn `observed` into `desired`, in the order in which they must be taken: device,
/// addresses, forwarding, then FDB before neighbours before routes, then the hand-off; what goes, goes in
/// reverse and last, the second device last of all, so that a route that changes hands is never without an owner.
/// Empty: nothing to do.
pub fn plan(observed: &KernelState, desired: &KernelState) -> Vec<Step> {
    let mut steps: Vec<Step> =
        device(observed.device.as_ref(), desired.device.as_ref()).into_iter().collect();
    if desired.beside.is_some() {
        steps.extend(device(observed.beside.as_ref(), desired.beside.as_ref()));
    }
    let survivors = survivors(observed, &steps);
    let observed = survivors.as_ref().unwrap_or(observed);

    // Before anything is made: of two devices with one VNI and port, or two routes to one range, there can be
    // but one.
    steps.splice(0..0, observed.leftovers.iter().cloned().map(Step::RemoveLeftover));
    for to in desired.addresses.difference(&observed.addresses) {
        let from = observed.addresses.iter().find(|old| old.ip == to.ip && old.prefix == to.prefix);
        steps.push(Step::PutAddress { from: from.copied(), to: *to });
    }
    for family in desired.forwarding.difference(&observed.forwarding) {
        let hearing = if *family == Family::V6 { desired.advertisements.clone() } else { BTreeSet::new() };
        steps.push(Step::SwitchForwarding { family: *family, hearing });
    }
    if observed.forwarding.contains(&Family::V6) {
        let deaf = desired.advertisements.difference(&observed.advertisements);
        steps.extend(deaf.cloned().map(Step::KeepAdvertisements));
    }
    let place = |entry: &FdbEntry| (entry.mac, entry.beside);
    let known: BTreeSet<(Mac, bool)> = observed.fdb.iter().map(place).collect();
    for entry in desired.fdb.difference(&observed.fdb) {
        steps.push(Step::PutFdb { entry: *entry, moved: known.contains(&place(entry)) });
    }
    for (neighbour, mac) in &desired.neighbours {
        let old = observed.neighbours.get(neighbour);
        if old != Some(mac) {
            steps.push(Step::PutNeighbour { neighbour: *neighbour, mac: *mac, moved: old.is_some() });
        }
    }
    for (key, route) in &desired.routes {
        match observed.routes.get(key) {
            Some(old) if old == route => {}
            Some(_) => steps.push(Step::ReplaceRoute(*key, *route)),
            None => steps.push(Step::AddRoute(*key, *route)),
        }
    }
    if let Some(content) = desired.conflist.as_ref().filter(|_| desired.conflist != observed.conflist) {
        let replaces = observed.conflist.is_some();
        steps.push(Step::WriteConflist { content: content.clone(), replaces });
    }

    let gone = observed.routes.iter().filter(|(key, _)| !desired.routes.contains_key(key));
    steps.extend(gone.map(|(key, route)| Step::RemoveRoute(*key, *route)));
    // What is on the second device goes with it.
    let alone = |beside: bool| !beside || desired.beside.is_some();
    let gone = observed.neighbours.keys().filter(|neighbour| !desired.neighbours.contains_key(neighbour));
    steps.extend(gone.filter(|neighbour| alone(neighbour.beside)).copied().map(Step::RemoveNeighbour));
    // A MAC with a new destination was moved above.
    let kept: BTreeSet<(Mac, bool)> = desired.fdb.iter().map(place).collect();
    let gone = observed.fdb.iter().filter(|entry| !kept.contains(&place(entry)) && alone(entry.beside));
    steps.extend(gone.copied().map(Step::RemoveFdb));
    let kept =
        |old: &&Address| desired.addresses.iter().any(|new| new.ip == old.ip && new.prefix == old.prefix);
    steps.extend(observed.addresses.iter().filter(|old| !kept(old)).copied().map(Step::RemoveAddress));
    if observed.beside.is_some() && desired.beside.is_none() {
        steps.push(Step::RemoveBeside);
    }
    steps
}

fn device(observed: Option<&Device>, desired: Option<&Device>) -> Option<Step> {
    match (observed, desired) {
        (None, None) => None,
        (Some(_), None) => Some(Step::RemoveDevice),
        (None, Some(to)) => Some(Step::CreateDevice(to.clone())),
        (Some(from), Some(to)) if from == to => None,
        (Some(from), Some(to)) if from.can_become(to) => {
            Some(Step::ChangeDevice { from: from.clone(), to: to.clone() })
        }
        (Some(_), Some(to)) => Some(Step::RecreateDevice(to.clone())),
    }
}

/// What is left of `observed` once the devices' steps are done, where that is not all of it.
fn survivors(observed: &KernelState, steps: &[Step]) -> Option<KernelState> {
    let mut left = None;
    for step in steps {
        match step {
            Step::RemoveDevice | Step::RecreateDevice(_) => {
                let beside = matches!(step, Step::RecreateDevice(device) if device.beside);
                let state = left.get_or_insert_with(|| observed.clone());
                if beside {
                    state.beside = None;
                } else {
                    state.device = None;
                    state.addresses.clear();
                }
                state.neighbours.retain(|neighbour, _| neighbour.beside != beside);
                state.fdb.retain(|entry| entry.beside != beside);
                // Routes to nowhere, and those past the overlay, are not on the device.
                let on_it = |route: &Route| matches!(route, Route::Via { beside: on, .. } if *on == beside);
                state.routes.retain(|_, route| !on_it(route));
            }
            // The kernel forgets a device's neighbours, permanent ones too, when its MAC changes
            // (neigh_changeaddr in net/core/neighbour.c).
            Step::ChangeDevice { from, to } if from.mac != to.mac => {
                let state = left.get_or_insert_with(|| observed.clone());
                state.neighbours.retain(|neighbour, _| neighbour.beside != to.beside);
            }
            _ => {}
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use heddle_model::{NodeName, OverlayTable, RemoteNode};
    use proptest::prelude::*;

    use super::*;
    use crate::desired::desired;
    use crate::fake::{ip, mac, name, net, remote, settings, table, take, underlay};

    fn state_of(table: &OverlayTable) -> KernelState {
        let desired = desired(table, &underlay(), &settings()).expect("the mtu fits");
        KernelState { conflist: Some(format!("{:?}", table.local)), ..desired.state }
    }

    /// Takes the plan in the fake kernel, which refuses a wrong order, and expects what was desired.
    fn carry_out(observed: &KernelState, desired: &KernelState) -> Vec<Step> {
        let steps = plan(observed, desired);
        let mut state = observed.clone();
        for step in &steps {
            take(&mut state, step).unwrap_or_else(|why| panic!("{why}\n{steps:#?}"));
        }
        assert_eq!(state, *desired, "{steps:#?}");
        assert_eq!(plan(&state, desired), [], "a second reconcile writes nothing");
        let parts: BTreeSet<Part> = steps.iter().map(Step::part).collect();
        assert_eq!(parts.len(), steps.len(), "one step for a part: {steps:#?}");
        steps
    }

    #[test]
    fn from_nothing_to_everything_and_back() {
        let full = state_of(&table([("n2", remote(2, 2, 2)), ("n3", remote(3, 3, 3))]));
        let steps = carry_out(&KernelState::default(), &full);
        assert_eq!(steps.len(), 1 + 2 + 2 + 2 + 4 + 4 + 2 + 1);
        assert!(matches!(steps[0], Step::CreateDevice(_)));
        let alone = state_of(&table([]));
        let steps = carry_out(&full, &alone);
        assert_eq!(steps.len(), 4 + 4 + 2);
        assert!(matches!(steps[0], Step::RemoveRoute(..)));
        assert!(matches!(steps[9], Step::RemoveFdb(_)));
    }

    #[test]
    fn a_node_that_rejoins_with_another_mac_address_and_range_changes_in_one_plan() {
        let before = state_of(&table([("n2", remote(2, 2, 2))]));
        carry_out(&before, &state_of(&table([("n2", remote(9, 9, 9))])));
        // Same range at another node: the routes stay, the neighbours turn around.
        let steps = carry_out(&before, &state_of(&table([("n3", remote(3, 3, 2))])));
        assert_eq!(
            steps,
            [
                Step::PutFdb { entry: FdbEntry::new(mac(3), ip("192.168.77.3")), moved: false },
                Step::PutNeighbour { neighbour: Neighbour::new(ip("10.244.2.0")), mac: mac(3), moved: true },
                Step::PutNeighbour {
                    neighbour: Neighbour::new(ip("fd00:10:244:2::")),
                    mac: mac(3),
                    moved: true
                },
                Step::RemoveFdb(FdbEntry::new(mac(2), ip("192.168.77.2"))),
            ]
        );
        // Another underlay address: the FDB entry alone.
        let steps = carry_out(&before, &state_of(&table([("n2", remote(5, 2, 2))])));
        let entry = FdbEntry::new(mac(2), ip("192.168.77.5"));
        assert_eq!(steps, [Step::PutFdb { entry, moved: true }]);
    }

    #[test]
    fn two_nodes_that_exchange_their_addresses_change_in_place() {
        let before = state_of(&table([("n2", remote(2, 2, 2)), ("n3", remote(3, 3, 3))]));
        let after = state_of(&table([("n2", remote(3, 2, 2)), ("n3", remote(2, 3, 3))]));
        assert_eq!(carry_out(&before, &after).len(), 2);
    }

    #[test]
    fn attributes_that_cannot_change_recreate_the_device_and_all_that_was_on_it() {
        let full = state_of(&table([("n2", remote(2, 2, 2))]));
        for spoil in [
            |device: &mut Device| device.vni = 2,
            |device: &mut Device| device.port = 4789,
            |device: &mut Device| device.learning = true,
            |device: &mut Device| device.local = None,
            |device: &mut Device| device.underlay = 0,
            |device: &mut Device| device.external = true,
            |device: &mut Device| device.checksum4 = true,
            |device: &mut Device| device.no_checksum6 = (true, false),
            |device: &mut Device| device.kind = "dummy".into(),
        ] {
            let mut observed = full.clone();
            spoil(observed.device.as_mut().unwrap());
            let steps = carry_out(&observed, &full);
            assert_eq!(steps[0], Step::RecreateDevice(full.device.clone().unwrap()));
        }
        for spoil in [
            |device: &mut Device| device.mtu = 1400,
            |device: &mut Device| device.up = false,
            |device: &mut Device| device.mac = mac(77),
        ] {
            let mut observed = full.clone();
            spoil(observed.device.as_mut().unwrap());
            let steps = carry_out(&observed, &full);
            assert!(matches!(steps[0], Step::ChangeDevice { .. }));
        }
    }

    #[test]
    fn what_somebody_planted_is_removed() {
        let full = state_of(&table([("n2", remote(2, 2, 2))]));
        let mut observed = full.clone();
        observed.fdb.insert(FdbEntry::new(Mac([0; 6]), ip("192.168.77.66")));
        observed.fdb.insert(FdbEntry::new(Mac([0; 6]), ip("192.168.77.67")));
        observed.neighbours.insert(Neighbour::new(ip("10.244.9.0")), mac(9));
        let key = RouteKey { range: net("10.244.9.0/24"), metric: 0 };
        let to_it = Route::Via { gateway: Some(ip("10.244.9.0")), source: None, onlink: true, beside: false };
        observed.routes.insert(key, to_it);
        observed.addresses.insert(Address { ip: ip("10.244.7.0"), prefix: 32, hidden: false });
        assert_eq!(carry_out(&observed, &full).len(), 5);
        // An address of ours with the wrong scope is taken off and put back.
        let mut observed = full.clone();
        observed.addresses.remove(&Address { ip: ip("10.244.1.0"), prefix: 32, hidden: true });
        observed.addresses.insert(Address { ip: ip("10.244.1.0"), prefix: 32, hidden: false });
        assert_eq!(carry_out(&observed, &full).len(), 1);
    }

    /// A node of flannel's with pods of both families, and the same node moved to us.
    #[test]
    fn the_second_device_comes_and_goes_with_the_nodes_that_need_it() {
        let range = net("fd00:10:244:2::/64");
        let flannel = RemoteNode {
            ranges: [net("10.244.2.0/24")].into(),
            beside: Some(heddle_model::Beside { underlay: ip("fd77::2"), mac: mac(12), range }),
            ..remote(2, 11, 2)
        };
        let (none, one, moved) = (
            state_of(&table([])),
            state_of(&table([("n2", flannel)])),
            state_of(&table([("n2", remote(2, 2, 2))])),
        );
        let beside = one.beside.clone().unwrap();
        assert_eq!((beside.local, beside.mtu, beside.beside), (Some(ip("fd77::1")), 1430, true));
        let steps = carry_out(&none, &one);
        assert_eq!(steps.len(), 1 + 2 + 2 + 2);
        let steps = carry_out(&one, &moved);
        let replaced = |step: &Step| matches!(step, Step::ReplaceRoute(key, _) if key.range == range);
        assert!(steps.iter().any(replaced) && steps.last() == Some(&Step::RemoveBeside), "{steps:#?}");
        carry_out(&moved, &one);
        assert!(carry_out(&one, &none).contains(&Step::RemoveBeside));
        carry_out(&KernelState::default(), &one);
        // Of one whose attributes cannot change all that is on it is made anew, and nothing else.
        let mut observed = one.clone();
        observed.beside.as_mut().unwrap().port = 4789;
        let steps = carry_out(&observed, &one);
        assert_eq!((steps.len(), &steps[0]), (1 + 1 + 1 + 1, &Step::RecreateDevice(beside)));
    }

    fn any_table() -> impl Strategy<Value = OverlayTable> {
        let node = (0..6_u8, 2..6_u8, 2..6_u8, 3..9_u8, any::<bool>());
        (proptest::collection::vec(node, 0..5), 1..3_u8).prop_map(|(nodes, own)| {
            let mut taken = BTreeSet::new();
            let remotes: BTreeMap<NodeName, RemoteNode> = nodes
                .into_iter()
                .filter(|(.., range, _)| taken.insert(*range))
                .map(|(number, host, last, range, flannel)| {
                    let mut remote = remote(host, last, range);
                    if flannel {
                        let range = remote.ranges.pop_last().expect("two");
                        let underlay = ip(&format!("fd77::{host}"));
                        remote.beside = Some(heddle_model::Beside { underlay, mac: mac(last), range });
                    }
                    (name(&format!("r{number}")), remote)
                })
                .collect();
            OverlayTable {
                underlay: Some(ip("192.168.77.1")),
                addresses: vec![ip("192.168.77.1"), ip("fd77::1")],
                local: [net(&format!("10.244.{own}.0/24")), net(&format!("fd00:10:244:{own}::/64"))].into(),
                remotes,
            }
        })
    }

    proptest! {
        /// Whatever the cluster was and becomes, and whatever is lost from the kernel in between: one plan
        /// leads there, in an order that the fake kernel accepts.
        #[test]
        fn any_state_leads_to_any_other(
            from in any_table(), to in any_table(), lost in any::<[prop::sample::Index; 4]>(), spoil in any::<bool>()
        ) {
            let mut observed = state_of(&from);
            let desired = state_of(&to);
            if spoil {
                let [fdb, neighbour, route, address] = lost;
                let drop_fdb = (!observed.fdb.is_empty())
                    .then(|| *observed.fdb.iter().nth(fdb.index(observed.fdb.len())).expect("in range"));
                drop_fdb.map(|entry| observed.fdb.remove(&entry));
                let drop_neighbour = (!observed.neighbours.is_empty()).then(|| {
                    *observed.neighbours.keys().nth(neighbour.index(observed.neighbours.len())).expect("in range")
                });
                drop_neighbour.map(|ip| observed.neighbours.remove(&ip));
                let key = *observed.routes.keys().nth(route.index(observed.routes.len())).expect("in range");
                observed.routes.remove(&key);
                let gone = *observed.addresses.iter().nth(address.index(observed.addresses.len())).expect("in range");
                observed.addresses.remove(&gone);
            }
            carry_out(&observed, &desired);
        }
    }
}
