//! The daemon's loop without a kernel: over the fake dataplane and the poor one, with faults.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_model::{
    Created, Endpoint, EndpointPort, Endpoints, EndpointsName, Families, Node, NodeName, Protocol, Service,
    ServiceName, ServicePort, ServiceTable, Slice, Store,
    resolve::{self, Rules},
    store,
};
use heddle_reconcile::fault::{Faulty, USUAL};
use heddle_reconcile::{Pace, Runner, Status};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::sleep;

use crate::dataplane::{Dataplane, Device, Devices};
use crate::devices::Found;
use crate::ebpf::live::alone;
use crate::ebpf::{self, Ebpf, MapSizes, View};
use crate::fake::{Fake, Kernel};
use crate::target::Services;

const NODE: &str = "n0";

/// The devices of the node; tests change them.
type World = Arc<Mutex<Found>>;

fn devices(overlay: bool) -> Found {
    let device = |index, name: &str| Device { index, name: name.into(), mtu: 1500, addresses: [].into() };
    Ok(Devices { underlay: vec![device(2, "eth0")], overlay: overlay.then(|| device(9, "heddle.1")) })
}

struct Rig {
    world: World,
    source: store::Source,
    events: Arc<Notify>,
    status: watch::Receiver<Arc<Status>>,
    // Ends the loop when dropped.
    _stop: oneshot::Sender<()>,
}

fn rig(kernel: &Kernel, poor: bool, faults: u64, seed: u64) -> Rig {
    rig_over(Fake { kernel: kernel.clone(), poor }, faults, seed)
}

fn rig_over(dataplane: impl Dataplane + 'static, faults: u64, seed: u64) -> Rig {
    let world: World = Arc::new(Mutex::new(devices(true)));
    let found = Arc::clone(&world);
    let find = Box::new(move |_: &[IpAddr]| found.lock().unwrap().clone());
    let services = Services::new(dataplane, find, NodeName(NODE.into()), Rules::default());
    let store = Store::new();
    let source = store.source("test");
    let events = Arc::new(Notify::new());
    let runner = Runner::new(Faulty::new(services, faults, seed), Pace::default(), seed);
    let status = runner.status();
    let (stop, stopped) = oneshot::channel();
    let (watch, heard) = (store.watch(), Arc::clone(&events));
    tokio::spawn(async move {
        runner.run(watch, &heard, stopped).await;
    });
    Rig { world, source, events, status, _stop: stop }
}

impl Rig {
    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    async fn settle(&self) {
        sleep(Duration::from_millis(50)).await;
    }
}

fn node(n: u8) -> Node {
    Node {
        name: NodeName(format!("n{n}").into()),
        created: Created(0),
        addresses: vec![[192, 168, 77, n].into()],
        pod_ranges: vec![format!("10.244.{n}.0/24").parse().unwrap()],
        ..Node::default()
    }
}

fn service(n: u8, udp: bool, v6: bool) -> Service {
    let v4: IpAddr = [10, 96, 0, n].into();
    Service {
        name: ServiceName::new("default", format!("s{n}")),
        created: Created(0),
        addresses: if v6 { [v4, format!("fd00:10:96::{n}").parse().unwrap()].into() } else { [v4].into() },
        families: Families { v4: true, v6 },
        ports: vec![ServicePort {
            name: String::new(),
            port: 80,
            proto: if udp { Protocol::Udp } else { Protocol::Tcp },
            node_port: Some(30000 + u16::from(n)),
        }],
        ..Service::default()
    }
}

fn endpoints(n: u8, udp: bool, ends: &[(u8, u8, bool)]) -> Endpoints {
    let end = |(node, host, serving): &(u8, u8, bool)| Endpoint {
        serving: *serving,
        ..Endpoint::new([10, 244, *node, *host].into())
    };
    Endpoints {
        name: EndpointsName { service: ServiceName::new("default", format!("s{n}")), part: "e".into() },
        ports: vec![EndpointPort {
            name: String::new(),
            port: 8080,
            proto: if udp { Protocol::Udp } else { Protocol::Tcp },
        }],
        endpoints: ends.iter().map(end).collect(),
    }
}

type Ends = Vec<(u8, u8, bool)>;

fn slices() -> impl Strategy<Value = Slice> {
    let ends = prop::collection::vec((0u8..4, 1u8..5, any::<bool>()), 0..5);
    let services = prop::collection::btree_map(0u8..5, (any::<bool>(), any::<bool>(), ends), 0..5);
    (prop::collection::btree_set(0u8..4, 0..4), services).prop_map(|(nodes, services)| {
        let mut slice = Slice::default();
        for n in nodes {
            slice.nodes.insert(node(n).name, Arc::new(node(n)));
        }
        for (n, (udp, v6, ends)) in services {
            let (service, list) = (service(n, udp, v6), endpoints(n, udp, &Ends::from(ends)));
            slice.services.insert(service.name.clone(), Arc::new(service));
            slice.endpoints.insert(list.name.clone(), Arc::new(list));
        }
        slice
    })
}

/// The pure function of the inputs that the kernel must equal.
fn expected(slice: &Slice, dataplane: &mut impl Dataplane) -> ServiceTable {
    let store = Store::new();
    store.source("expected").replace(slice.clone());
    let (table, _) = resolve::services(&store.snapshot(), &NodeName(NODE.into()), &Rules::default());
    dataplane.project(&table).0
}

fn expected_of_fake(slice: &Slice, poor: bool) -> ServiceTable {
    expected(slice, &mut Fake { kernel: Kernel::default(), poor })
}

fn full_slice() -> Slice {
    let (service, list) = (service(1, true, true), endpoints(1, true, &[(0, 1, true), (1, 2, false)]));
    Slice {
        nodes: [0, 1].map(|n| (node(n).name, Arc::new(node(n)))).into(),
        services: [(service.name.clone(), Arc::new(service))].into(),
        endpoints: [(list.name.clone(), Arc::new(list))].into(),
        ..Slice::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_vxlan_device_that_comes_later_is_worked_on_when_it_comes() {
    let kernel = Kernel::default();
    let rig = rig(&kernel, false, 0, 1);
    *rig.world.lock().unwrap() = devices(false);
    rig.source.replace(full_slice());
    rig.source.synced();
    rig.settle().await;
    assert!(rig.status().ready, "{:?}", rig.status());
    assert_eq!(kernel.held().devices.as_ref(), devices(false).as_ref().ok());
    *rig.world.lock().unwrap() = devices(true);
    rig.events.notify_one();
    rig.settle().await;
    assert_eq!(kernel.held().devices.as_ref(), devices(true).as_ref().ok());
}

#[tokio::test(start_paused = true)]
async fn devices_that_cannot_be_told_are_a_trouble_and_what_there_is_stays() {
    let kernel = Kernel::default();
    kernel.held().devices = devices(true).ok();
    let rig = rig(&kernel, false, 0, 1);
    *rig.world.lock().unwrap() = Err("no device has this node's address".into());
    rig.source.replace(full_slice());
    rig.source.synced();
    rig.settle().await;
    assert!(!rig.status().ready, "nobody is served yet");
    assert_eq!(rig.status().troubles["devices"].what, "no device has this node's address");
    assert_eq!(kernel.held().devices, devices(true).ok(), "a restarted daemon detaches nothing");
    assert_eq!(kernel.held().table, expected_of_fake(&full_slice(), false), "the table is not held up");
    *rig.world.lock().unwrap() = devices(false);
    rig.events.notify_one();
    sleep(Duration::from_secs(2)).await;
    assert!(rig.status().ready && rig.status().troubles.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_dataplane_cannot_do_is_said() {
    let kernel = Kernel::default();
    let rig = rig(&kernel, true, 0, 1);
    rig.source.replace(full_slice());
    rig.source.synced();
    rig.settle().await;
    let status = rig.status();
    assert!(status.ready);
    let said: Vec<_> =
        status.troubles.iter().map(|(object, trouble)| format!("{object}: {}", trouble.what)).collect();
    assert!(said.contains(&"frontend 10.96.0.1:80/udp: only TCP over IPv4".to_owned()), "{said:?}");
    assert_eq!(kernel.held().table, expected_of_fake(&full_slice(), true));
}

/// So many services, each with an endpoint (or none).
fn many(services: std::ops::Range<u8>, with_endpoints: bool) -> Slice {
    let mut slice = Slice::default();
    slice.nodes.insert(node(0).name, Arc::new(node(0)));
    for n in services {
        let (service, mut list) = (service(n, false, false), endpoints(n, false, &[(0, n, true)]));
        if !with_endpoints {
            list.endpoints.clear();
        }
        slice.services.insert(service.name.clone(), Arc::new(service));
        slice.endpoints.insert(list.name.clone(), Arc::new(list));
    }
    slice
}

/// A list that comes back empty (etcd wiped, rights taken away), when it starts or later, costs nobody anything until
/// it has been empty for a minute; what is new is made meanwhile.
#[tokio::test(start_paused = true)]
async fn fault_112_an_empty_list_is_no_mass_deletion() {
    let kernel = Kernel::default();
    let all = many(1..21, true);
    let held = |slice: &Slice| kernel.held().table == expected_of_fake(slice, false);
    let first = rig(&kernel, false, 0, 1);
    first.source.replace(all.clone());
    first.source.synced();
    first.settle().await;
    assert!(held(&all) && first.status().ready);
    drop(first);
    // It starts with an empty list.
    let rig = rig(&kernel, false, 0, 2);
    rig.source.replace(many(1..1, true));
    rig.source.synced();
    sleep(Duration::from_secs(59)).await;
    assert!(held(&all));
    assert_eq!(
        rig.status().troubles["sources"].what,
        "40 of 40 would go at once: kept until they have been gone for 60 s"
    );
    rig.source.replace(all.clone());
    sleep(Duration::from_secs(120)).await;
    assert!(held(&all) && rig.status().troubles.is_empty() && rig.status().ready);
    // Most of it goes, while one is new.
    rig.source.replace(many(15..22, true));
    rig.settle().await;
    assert!(held(&many(1..22, true)), "{:?}", rig.status());
    // All are there, and nobody answers any more: as bad.
    rig.source.replace(all.clone());
    rig.settle().await;
    rig.source.replace(many(1..21, false));
    sleep(Duration::from_secs(59)).await;
    assert!(held(&all));
    // Half of it is believed at once, and with patience everything.
    rig.source.replace(many(1..11, true));
    rig.settle().await;
    assert!(held(&many(1..11, true)), "{:?}", rig.status());
    rig.source.replace(many(1..1, true));
    sleep(Duration::from_secs(59)).await;
    assert!(held(&many(1..11, true)));
    sleep(Duration::from_secs(2)).await;
    assert!(held(&many(1..1, true)) && rig.status().troubles.is_empty() && rig.status().ready);
}

#[derive(Clone, Debug)]
enum Happening {
    Say(Slice),
    /// The process is killed and started again.
    Restart,
    Wait(u16),
    /// `vxland` makes its device, or somebody deletes it.
    Overlay(bool),
    /// Somebody empties the kernel's tables.
    Flush,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        4 => slices().prop_map(Happening::Say),
        1 => Just(Happening::Restart),
        2 => (0u16..1000).prop_map(Happening::Wait),
        1 => any::<bool>().prop_map(Happening::Overlay),
        1 => Just(Happening::Flush),
    ];
    prop::collection::vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn it_converges_under_faults(happenings in happenings(), poor: bool, seed: u64) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let kernel = Kernel::default();
            let mut rig = rig(&kernel, poor, USUAL, seed);
            let mut said = Slice::default();
            rig.source.synced();
            for (n, happening) in (1..).zip(happenings) {
                match happening {
                    Happening::Say(slice) => {
                        said = slice;
                        rig.source.replace(said.clone());
                    }
                    Happening::Restart => {
                        let world = rig.world.lock().unwrap().clone();
                        rig = self::rig(&kernel, poor, USUAL, seed.wrapping_add(n));
                        *rig.world.lock().unwrap() = world;
                        rig.source.replace(said.clone());
                        rig.source.synced();
                    }
                    Happening::Wait(millis) => sleep(Duration::from_millis(millis.into())).await,
                    Happening::Overlay(there) => {
                        *rig.world.lock().unwrap() = devices(there);
                        rig.events.notify_one();
                    }
                    Happening::Flush => kernel.held().table = ServiceTable::default(),
                }
            }
            sleep(Duration::from_secs(600)).await;
            prop_assert_eq!(&kernel.held().table, &expected_of_fake(&said, poor));
            let devices = rig.world.lock().unwrap().clone().ok();
            prop_assert_eq!(&kernel.held().devices, &devices);
            prop_assert!(rig.status().ready, "{:?}", rig.status());
            prop_assert!(kernel.held().broken.is_empty(), "{:?}", kernel.held().broken);
            let writes = kernel.held().writes;
            sleep(Duration::from_secs(300)).await;
            prop_assert_eq!(kernel.held().writes, writes, "a pass over what is right writes nothing");
            Ok(())
        })?;
    }
}

/// The same over the kernel: the maps are what the inputs say, whatever failed on the way, and hooks that
/// were there stay.
#[test]
fn the_ebpf_dataplane_converges_under_faults() {
    alone("loop", |mut options| {
        options.sizes = MapSizes { max_frontends: 2048, max_backends: 1024, ..options.sizes };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(converges_in_the_kernel(options));
    });
}

async fn converges_in_the_kernel(options: ebpf::Options) {
    let lo = Device { index: 1, name: "lo".into(), mtu: 1500, addresses: [[192, 168, 77, 0].into()].into() };
    let world: Found = Ok(Devices { underlay: vec![lo], overlay: None });
    let open = |seed: u64| {
        let rig = rig_over(Ebpf::open(&options).unwrap(), USUAL, seed);
        *rig.world.lock().unwrap() = world.clone();
        rig
    };
    let view = || View::read(&options.bpf_root).unwrap().unwrap();
    let mut judge = Ebpf::open(&options).unwrap();
    let mut random = TestRunner::deterministic();
    let mut rig = open(0);
    rig.source.synced();
    let mut links = None;
    for round in 1..=12 {
        let said = slices().new_tree(&mut random).unwrap().current();
        rig.source.replace(said.clone());
        if round % 5 == 0 {
            // In the middle of it the process ends, and another one goes on.
            sleep(Duration::from_millis(30)).await;
            drop(rig);
            tokio::task::yield_now().await;
            rig = open(round);
            rig.source.replace(said.clone());
            rig.source.synced();
        }
        // Longer than a great loss is doubted.
        sleep(Duration::from_secs(150)).await;
        let found = view();
        let status = rig.status();
        assert!(
            status.ready && status.troubles.values().all(|trouble| !trouble.what.contains("injected")),
            "{status:?}"
        );
        assert_eq!(found.table, expected(&said, &mut judge), "round {round}");
        let now: Vec<_> = found.links.iter().map(|link| (link.program.clone(), link.place.clone())).collect();
        assert_eq!(*links.get_or_insert(now.clone()), now, "round {round}");
    }
}
