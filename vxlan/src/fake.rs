//! For tests: a kernel of the mind, which takes plans as the real one does and refuses what the real one
//! refuses or what would lose packets on the way; and waiting for the real one.

use std::net::IpAddr;
use std::time::Duration;

use heddle_model::{Mac, NodeName, OverlayTable, RemoteNode};
use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link::{self, Operational};
use heddle_netlink::monitor::Monitor;
use heddle_netlink::{NetNs, Socket};
use ipnetwork::IpNetwork;

use crate::desired::{Settings, Underlay};
use crate::plan::{Part, Step};
use crate::state::{Device, FdbEntry, KernelState, Neighbour, Route};

/// Takes one step, or says which rule it breaks.
pub fn take(state: &mut KernelState, step: &Step) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{step:?}: {why}"));
    let anywhere = matches!(
        step.part(),
        Part::Device
            | Part::Beside
            | Part::Leftover(_)
            | Part::Route(_)
            | Part::Conflist
            | Part::Forwarding(_)
    );
    if !anywhere && state.device.is_none() {
        return refuse("no device");
    }
    match step {
        Step::RemoveDevice => clear(state, false),
        Step::RemoveBeside => {
            if state.routes.values().any(|route| matches!(route, Route::Via { beside: true, .. })) {
                return refuse("a route still leads there");
            }
            clear(state, true);
        }
        Step::RecreateDevice(device) => {
            clear(state, device.beside);
            *place(state, device.beside) = Some(device.clone());
        }
        Step::CreateDevice(device) => {
            if place(state, device.beside).replace(device.clone()).is_some() {
                return refuse("file exists");
            }
        }
        Step::ChangeDevice { from, to } => {
            if from.mac != to.mac {
                state.neighbours.retain(|neighbour, _| neighbour.beside != to.beside);
            }
            let old = place(state, to.beside).replace(to.clone());
            if old.as_ref() != Some(from) || !from.can_become(to) {
                return refuse("this device is another");
            }
        }
        Step::RemoveLeftover(name) => {
            state.leftovers.remove(name);
        }
        Step::PutAddress { from, to } => {
            if from.is_some_and(|from| !state.addresses.remove(&from)) {
                return refuse("not there");
            }
            if state.addresses.iter().any(|old| old.ip == to.ip && old.prefix == to.prefix) {
                return refuse("file exists");
            }
            state.addresses.insert(*to);
        }
        Step::RemoveAddress(address) => {
            if !state.addresses.remove(address) {
                return refuse("not there");
            }
        }
        Step::KeepAdvertisements(device) => {
            state.advertisements.insert(device.clone());
        }
        Step::SwitchForwarding { family, hearing } => {
            state.advertisements.extend(hearing.iter().cloned());
            state.forwarding.insert(*family);
        }
        Step::PutFdb { entry, moved } => {
            let same = |old: &FdbEntry| (old.mac, old.beside) == (entry.mac, entry.beside);
            if *moved != state.fdb.iter().any(same) {
                return refuse("moved from nowhere, or not from somewhere");
            }
            if place(state, entry.beside).is_none() {
                return refuse("there is no such device");
            }
            state.fdb.retain(|old| !same(old));
            state.fdb.insert(*entry);
        }
        Step::RemoveFdb(entry) => {
            let uses = |(old, mac): (&Neighbour, &Mac)| old.beside == entry.beside && *mac == entry.mac;
            if state.neighbours.iter().any(uses) {
                return refuse("a neighbour still uses it");
            }
            state.fdb.remove(entry);
        }
        Step::PutNeighbour { neighbour, mac, .. } => {
            if !state.fdb.iter().any(|entry| entry.mac == *mac && entry.beside == neighbour.beside) {
                return refuse("nothing in the FDB for it");
            }
            state.neighbours.insert(*neighbour, *mac);
        }
        Step::RemoveNeighbour(old) => {
            let used = |route: &Route| {
                matches!(route, Route::Via { gateway: Some(gateway), beside, .. }
                    if *gateway == old.ip && *beside == old.beside)
            };
            if state.routes.values().any(used) {
                return refuse("a route still uses it");
            }
            state.neighbours.remove(old);
        }
        Step::AddRoute(key, route) | Step::ReplaceRoute(key, route) => {
            if let Route::Via { gateway, source, beside, .. } = route {
                if source.is_some_and(|source| !state.addresses.iter().any(|address| address.ip == source)) {
                    return refuse("its source is no address of this node");
                }
                let known = |ip| state.neighbours.contains_key(&Neighbour { ip, beside: *beside });
                if gateway.is_none_or(|gateway| !known(gateway)) {
                    return refuse("its gateway is no neighbour");
                }
            }
            let replaced = state.routes.insert(*key, *route).is_some();
            if replaced != matches!(step, Step::ReplaceRoute(..)) {
                return refuse("added over another, or replaced nothing");
            }
        }
        Step::RemoveRoute(key, _) => {
            if state.routes.remove(key).is_none() {
                return refuse("not there");
            }
        }
        Step::WriteConflist { content, .. } => state.conflist = Some(content.clone()),
        Step::Hold(why) => return refuse(why),
    }
    Ok(())
}

fn place(state: &mut KernelState, beside: bool) -> &mut Option<Device> {
    if beside { &mut state.beside } else { &mut state.device }
}

/// What is gone with a device.
fn clear(state: &mut KernelState, beside: bool) {
    *place(state, beside) = None;
    if !beside {
        state.addresses.clear();
    }
    state.neighbours.retain(|neighbour, _| neighbour.beside != beside);
    state.fdb.retain(|entry| entry.beside != beside);
    state.routes.retain(|_, route| !matches!(route, Route::Via { beside: on, .. } if *on == beside));
}

/// Waits until the namespace is as `done` wants it, from event to event.
pub fn settle(ns: &NetNs, mut done: impl FnMut(&mut Socket) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let waiting = async {
        let mut monitor = Monitor::open_in(ns).expect("events");
        let mut socket = Socket::open_in(ns).expect("a socket");
        while !done(&mut socket) {
            monitor.next().await.expect("an event");
        }
    };
    let deadline = Duration::from_secs(10);
    runtime
        .block_on(async { tokio::time::timeout(deadline, waiting).await })
        .expect("it settles within 10 s");
}

/// Waits until the device carries packets and its IPv6 address can be used.
pub fn settle_link(ns: &NetNs, name: &str) {
    settle(ns, |socket| {
        let link = link::by_name(socket, name).expect("links").expect("the device");
        let usable = |addr: &Addr| addr.ip.is_ipv6() && !addr.tentative;
        link.operational == Operational::Up
            && addr::list(socket, Some(link.index)).expect("addresses").iter().any(usable)
    });
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn net(text: &str) -> IpNetwork {
    text.parse().expect("a range")
}

pub fn name(text: &str) -> NodeName {
    NodeName(text.into())
}

pub fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

pub fn settings() -> Settings {
    Settings {
        node: name("n1"),
        vni: 1,
        service_ranges: Vec::new(),
        port: 8472,
        mtu: None,
        direct_routing: false,
        network: "heddle".into(),
        replace_flannel: false,
    }
}

pub fn underlay() -> Underlay {
    Underlay {
        device: "eth0".into(),
        index: 2,
        mtu: 1500,
        local: ip("192.168.77.1"),
        network: net("192.168.77.1/24"),
        networks: vec![net("192.168.77.1/24"), net("fd77::1/64")],
        connected: vec![(net("192.168.77.0/24"), "eth0".into()), (net("fd77::/64"), "eth0".into())],
    }
}

/// A node of the usual plan of addresses: number `range` of the pod ranges at underlay address `host`.
pub fn remote(host: u8, last: u8, range: u8) -> RemoteNode {
    RemoteNode {
        underlay: ip(&format!("192.168.77.{host}")),
        mac: mac(last),
        ranges: [net(&format!("10.244.{range}.0/24")), net(&format!("fd00:10:244:{range}::/64"))].into(),
        beside: None,
        addresses: vec![ip(&format!("192.168.77.{host}")), ip(&format!("fd77::{host}"))],
    }
}

pub fn table(remotes: impl IntoIterator<Item = (&'static str, RemoteNode)>) -> OverlayTable {
    OverlayTable {
        underlay: Some(ip("192.168.77.1")),
        addresses: vec![ip("192.168.77.1"), ip("fd77::1")],
        local: [net("10.244.1.0/24"), net("fd00:10:244:1::/64")].into(),
        remotes: remotes.into_iter().map(|(node, remote)| (name(node), remote)).collect(),
    }
}
