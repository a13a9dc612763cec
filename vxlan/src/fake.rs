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
use crate::state::{KernelState, Route};

/// Takes one step, or says which rule it breaks.
pub fn take(state: &mut KernelState, step: &Step) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{step:?}: {why}"));
    let anywhere = matches!(
        step.part(),
        Part::Device | Part::Leftover(_) | Part::Route(_) | Part::Conflist | Part::Forwarding(_)
    );
    if !anywhere && state.device.is_none() {
        return refuse("no device");
    }
    match step {
        Step::RemoveDevice => clear(state),
        Step::RecreateDevice(device) => {
            clear(state);
            state.device = Some(device.clone());
        }
        Step::CreateDevice(device) => {
            if state.device.replace(device.clone()).is_some() {
                return refuse("file exists");
            }
        }
        Step::ChangeDevice { from, to } => {
            if from.mac != to.mac {
                state.neighbours.clear();
            }
            if state.device.replace(to.clone()).as_ref() != Some(from) || !from.can_become(to) {
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
            if *moved != state.fdb.iter().any(|old| old.mac == entry.mac) {
                return refuse("moved from nowhere, or not from somewhere");
            }
            state.fdb.retain(|old| old.mac != entry.mac);
            state.fdb.insert(*entry);
        }
        Step::RemoveFdb(entry) => {
            if state.neighbours.values().any(|mac| *mac == entry.mac) {
                return refuse("a neighbour still uses it");
            }
            state.fdb.remove(entry);
        }
        Step::PutNeighbour { ip, mac, .. } => {
            if !state.fdb.iter().any(|entry| entry.mac == *mac) {
                return refuse("nothing in the FDB for it");
            }
            state.neighbours.insert(*ip, *mac);
        }
        Step::RemoveNeighbour(ip) => {
            let used =
                |route: &Route| matches!(route, Route::Via { gateway: Some(gateway), .. } if gateway == ip);
            if state.routes.values().any(used) {
                return refuse("a route still uses it");
            }
            state.neighbours.remove(ip);
        }
        Step::AddRoute(key, route) | Step::ReplaceRoute(key, route) => {
            if let Route::Via { gateway, source, .. } = route {
                if source.is_some_and(|source| !state.addresses.iter().any(|address| address.ip == source)) {
                    return refuse("its source is no address of this node");
                }
                if gateway.is_none_or(|gateway| !state.neighbours.contains_key(&gateway)) {
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

/// What is gone with the device.
fn clear(state: &mut KernelState) {
    state.device = None;
    state.addresses.clear();
    state.neighbours.clear();
    state.fdb.clear();
    state.routes.retain(|_, route| !matches!(route, Route::Via { .. }));
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
