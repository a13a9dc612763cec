//! The target over the real kernel, in namespaces of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use heddle_model::store::{Slice, Store};
use heddle_model::{Created, Node};
use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::monitor::Monitor;
use heddle_netlink::{NetNs, addr};
use heddle_reconcile::fault::{Faulty, USUAL};
use heddle_reconcile::{Pace, Runner};
use tokio::sync::Notify;

use super::*;
use crate::events::Filter;
use crate::fake::{ip, name, net};

fn node(number: u8, range: u8) -> Node {
    Node {
        name: name(&format!("n{number}")),
        created: Created(i64::from(number)),
        addresses: vec![ip(&format!("192.168.77.{number}"))],
        pod_ranges: vec![net(&format!("10.244.{range}.0/24")), net(&format!("fd00:10:244:{range}::/64"))],
        ..Node::default()
    }
}

fn slice(nodes: impl IntoIterator<Item = Node>) -> Slice {
    let nodes = nodes.into_iter().map(|node| (node.name.clone(), Arc::new(node))).collect();
    Slice { nodes, ..Slice::default() }
}

fn options(root: &std::path::Path) -> Options {
    let (run_dir, cni_conf_dir) = (root.join("run"), root.join("net.d"));
    std::fs::create_dir_all(&run_dir).unwrap();
    let settings = crate::fake::settings();
    Options { settings, underlay: None, cni_conf_dir, run_dir }
}

/// A machine with the address of node 1. Its underlay leads nowhere: nothing is sent here.
fn machine() -> NetNs {
    let ns = NetNs::create().unwrap();
    ns.run(|| {
        let mut socket = Socket::open().unwrap();
        let (near, far) =
            (VethEnd { name: "eth0", ..VethEnd::default() }, VethEnd { name: "far", ..VethEnd::default() });
        link::create_veth(&mut socket, &near, &far).unwrap();
        for name in ["eth0", "far"] {
            let index = link::by_name(&mut socket, name).unwrap().unwrap().index;
            link::set_up(&mut socket, index).unwrap();
        }
        let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
        addr::add(&mut socket, &addr::Addr::new(index, net("192.168.77.1/24"))).unwrap();
    })
    .unwrap();
    ns
}

/// What is, without what other tests look at, and what should be.
fn both(options: &Options, store: &Store) -> (KernelState, KernelState) {
    let mut overlay = Overlay::new(options.clone()).unwrap();
    let (State::Known(desired), _) = overlay.desired(&store.snapshot()) else { panic!("held") };
    let State::Known(observed) = overlay.observe().unwrap() else { panic!("held") };
    (*observed, *desired)
}

/// The loop over the real kernel, of which one operation in ten fails, before or after it was done.
#[test]
fn the_loop_gets_there_although_one_operation_in_ten_fails() {
    let root = tempfile::tempdir().unwrap();
    let options = options(root.path());
    machine()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(converge(&options));
        })
        .unwrap();
}

async fn converge(options: &Options) {
    let store = Store::new();
    let source = store.source("test");
    let target = Faulty::new(Overlay::new(options.clone()).unwrap(), USUAL, 1);
    let pace = Pace {
        first_retry: Duration::from_millis(5),
        last_retry: Duration::from_millis(50),
        // Most of the nodes change at once here.
        removal_delay: Duration::ZERO,
        ..Pace::default()
    };
    let runner = Runner::new(target, pace, 1);
    let mut status = runner.status();
    let wake = Notify::new();
    let mut monitor = Monitor::open().unwrap();
    let mut filter = Filter::new("heddle.1".into(), &[]);
    let events = async {
        loop {
            if filter.concerns(&monitor.next().await.unwrap()) {
                wake.notify_one();
            }
        }
    };
    let changes = async {
        let others = |range: u8| (2..8_u8).map(move |n| node(n, n + range));
        for (round, nodes) in [
            slice([node(1, 1)].into_iter().chain(others(0))),
            slice([node(1, 1)].into_iter().chain(others(20))),
            slice([node(1, 1), node(3, 2)]),
            slice([node(1, 9), node(2, 2)]),
        ]
        .into_iter()
        .enumerate()
        {
            source.replace(nodes);
            source.synced();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            loop {
                let (observed, desired) = both(options, &store);
                if plan(&observed, &desired).is_empty() {
                    break;
                }
                let changed = tokio::time::timeout_at(deadline, status.changed()).await;
                changed
                    .unwrap_or_else(|_| panic!("round {round}: {:#?}", plan(&observed, &desired)))
                    .unwrap();
            }
        }
        let (observed, desired) = both(options, &store);
        assert_eq!(observed.routes, desired.routes);
        assert_eq!(observed.fdb.len(), 1);
        assert_eq!(observed.forwarding, BTreeSet::from([Family::V4, Family::V6]));
        assert!(observed.conflist.unwrap().contains("10.244.9.0/24"));
    };
    tokio::select! {
        _ = runner.run(store.watch(), &wake, std::future::pending::<()>()) => {}
        () = events => {}
        () = changes => {}
    }
}

/// Before the sources have told everything nothing that was there is changed, and what is new is made.
#[test]
fn before_the_sources_are_synced_nothing_is_changed_or_removed() {
    let root = tempfile::tempdir().unwrap();
    let options = options(root.path());
    let ns = machine();
    let effects = |slice: Slice, synced: bool| {
        ns.run(|| {
            let store = Store::new();
            let source = store.source("test");
            source.replace(slice);
            if synced {
                source.synced();
            }
            let (observed, desired) = both(&options, &store);
            plan(&observed, &desired).iter().map(Step::effect).collect::<Vec<_>>()
        })
        .unwrap()
    };
    // A fresh node: all is new but for the forwarding, which is switched on when everything is known.
    let fresh = effects(slice([node(1, 1), node(2, 2)]), false);
    assert_eq!(fresh.iter().filter(|effect| **effect != Effect::Create).count(), 2, "{fresh:?}");
}

#[test]
fn what_cannot_be_known_holds_everything_and_is_said() {
    let root = tempfile::tempdir().unwrap();
    let options = options(root.path());
    machine()
        .run(|| {
            let mut overlay = Overlay::new(options.clone()).unwrap();
            let store = Store::new();
            let source = store.source("test");
            let mut said = |slice: Slice| {
                source.replace(slice);
                source.synced();
                let (desired, _) = overlay.desired(&store.snapshot());
                let observed = overlay.observe().unwrap();
                let steps = overlay.diff(&observed, &desired);
                let outcome = overlay.apply(steps);
                outcome.failed.get(&Part::Overlay).cloned().unwrap_or_else(|| panic!("{desired:?}"))
            };
            assert!(said(slice([node(2, 2)])).starts_with("no source tells of node n1"));
            let bare = said(slice([Node { pod_ranges: vec![], ..node(1, 1) }]));
            assert!(bare.starts_with("node n1 has no pod range (spec.podCIDRs is empty: "), "{bare}");
            let unusable = said(slice([Node { pod_ranges: vec![net("0.0.0.0/0")], ..node(1, 1) }]));
            assert!(unusable.starts_with("node n1 has no pod range (none that can be used"), "{unusable}");
            let elsewhere = Node { addresses: vec![ip("192.168.77.200")], ..node(1, 1) };
            assert!(said(slice([elsewhere])).starts_with("no device has this node's address 192.168.77.200"));
            overlay_mtu(&options, &store);
        })
        .unwrap();
}

/// Only the device fails when it cannot be made; what is to be on it waits with it, however often the loop
/// tries without it.
#[test]
fn without_the_device_only_the_device_fails() {
    let root = tempfile::tempdir().unwrap();
    let options = options(root.path());
    machine()
        .run(|| {
            let mut socket = Socket::open().unwrap();
            let other =
                heddle_netlink::vxlan::Vxlan { port: 8472, ..heddle_netlink::vxlan::Vxlan::default() };
            heddle_netlink::vxlan::create(&mut socket, "flannel.1", &other, None, None).unwrap();
            let store = Store::new();
            let source = store.source("test");
            source.replace(slice([node(1, 1), node(2, 2)]));
            source.synced();
            let mut overlay = Overlay::new(options.clone()).unwrap();
            let (desired, _) = overlay.desired(&store.snapshot());
            let mut failed = |with_device: bool| {
                let observed = overlay.observe().unwrap();
                let mut steps = overlay.diff(&observed, &desired);
                steps.retain(|step| with_device || step.part() != Part::Device);
                overlay.apply(steps).failed.into_keys().collect::<Vec<_>>()
            };
            assert_eq!(failed(true), [Part::Device]);
            assert_eq!(failed(false), []);
            link::delete_by_name(&mut socket, "flannel.1").unwrap();
            assert_eq!(failed(true), []);
            let (observed, desired) = both(&options, &store);
            assert_eq!(plan(&observed, &desired), []);
        })
        .unwrap();
}

/// An MTU that does not fit is refused, and what stands, stands.
fn overlay_mtu(options: &Options, store: &Store) {
    let settings = Settings { mtu: Some(1451), ..options.settings.clone() };
    let mut overlay = Overlay::new(Options { settings, ..options.clone() }).unwrap();
    store.source("more").replace(slice([node(1, 1)]));
    let mut snapshot = Snapshot::clone(&store.snapshot());
    snapshot.synced = true;
    snapshot.nodes = slice([node(1, 1)]).nodes;
    let (State::Hold(why), _) = overlay.desired(&snapshot) else { panic!("not held") };
    assert!(why.starts_with("mtu 1451 is too large: eth0 carries 1500 bytes"), "{why}");
}
