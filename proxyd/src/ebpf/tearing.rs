//! A writer as fast as it can be beside programs that run: no flow may have a backend that its service never had.
//!
//! Slots, generations, extents and elements of hashes are few, so that each is somebody else's a moment later.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heddle_bpf::TcHook;
use heddle_ebpf_common::Addr;
use heddle_model::{
    Backend, BackendState, Frontend, FrontendAddr, NodeName, Outside, Protocol, ServiceNode, SharedMap, diff,
};

use super::live::alone;
use super::*;
use crate::dataplane::Device;

const SERVICES: u8 = 8;
/// Backends that a service may have, a few of them at a time.
const OWN: u8 = 12;
const FIRST: u16 = 30_000;
const NODE: [u8; 4] = [192, 168, 77, 1];

/// How long: `HEDDLE_TEARING` seconds.
fn duration() -> Duration {
    let told = std::env::var("HEDDLE_TEARING").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(3))
}

/// Numbers that look random.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Any table: some of the services, each with some of its own backends (10.244.1.SERVICE * 16 + n).
fn table(seed: &mut u64) -> ServiceTable {
    let node = ServiceNode {
        addresses: [NODE.into()].into(),
        node_ports: [NODE.into()].into(),
        ranges: ["10.244.1.0/24".parse().expect("a range")].into(),
        ..ServiceNode::default()
    };
    let local = NodeName("n1".into());
    let mut frontends = SharedMap::default();
    for service in 0..SERVICES {
        if next(seed).is_multiple_of(5) {
            continue;
        }
        let bits = next(seed);
        let backend = |n: u8| Backend {
            ip: [10, 244, 1, service * 16 + n].into(),
            port: 8080,
            proto: Protocol::Tcp,
            node: Some(local.clone()),
            state: if bits >> (n + 32) & 3 == 0 { BackendState::Draining } else { BackendState::Active },
        };
        let frontend = Frontend {
            name: format!("default/s{service}:http"),
            backends: (0..OWN).filter(|n| bits >> n & 3 == 0).map(backend).collect(),
            outside: Some(Outside::Cluster),
            ..Frontend::default()
        };
        let at = FrontendAddr::new([0, 0, 0, 0].into(), FIRST + u16::from(service), Protocol::Tcp);
        frontends.insert(at, Arc::new(frontend));
    }
    ServiceTable { frontends, nodes: [(local.clone(), node)].into(), local: Some(local) }
}

/// A SYN of a client to a service, as an Ethernet frame. Nobody looks at its check sums.
fn syn(client: u32, sport: u16, service: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend((u32::from_be_bytes([10, 0, 0, 0]) + client).to_be_bytes());
    frame.extend(NODE);
    frame.extend(sport.to_be_bytes());
    frame.extend((FIRST + u16::from(service)).to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x40, 0, 0, 0, 0, 0]);
    frame
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_flow_has_a_backend_that_its_service_never_had() {
    alone("tearing", |options| {
        let mut ebpf = Ebpf::open(&options).expect("it opens");
        let device = Device { index: 1, name: "lo".into(), mtu: 1500, addresses: [NODE.into()].into() };
        ebpf.devices(&Devices { underlay: vec![device], overlay: None }).expect("devices");
        let stop = AtomicBool::new(false);
        let sent = AtomicU64::new(0);
        let program = ebpf.datapath.tc_program(TcHook::UnderlayIn).expect("a program");
        let program = program.try_clone_to_owned().expect("another descriptor");
        let pins = ebpf.datapath.pins.clone();
        let mut rounds = 0u64;
        let mut checked = 0u64;
        let mut observed = ebpf.observe().expect("it is read");
        std::thread::scope(|scope| {
            // Also when this thread fails: the others run until they are told.
            let stopping = Stopping(&stop);
            for thread in 0..2u32 {
                let (stop, sent, program) = (&stop, &sent, &program);
                scope.spawn(move || {
                    let mut number = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        let frame = syn(
                            thread << 16 | number >> 12,
                            (number % 4096) as u16 + 1024,
                            (number % 8) as u8,
                        );
                        heddle_bpf::sys::test_run(program.as_fd(), &frame, &[], 1).expect("it runs");
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let end = Instant::now() + duration();
            let mut seed = 0x9e37_79b9_7f4a_7c15;
            while Instant::now() < end {
                let wanted = table(&mut seed);
                let wanted = ebpf.project(&wanted).0;
                let plan = diff(&observed, &wanted);
                assert_eq!(ebpf.apply(&plan), Outcome::done());
                observed = wanted;
                rounds += 1;
                if rounds.is_multiple_of(64) {
                    checked += check(&pins);
                }
            }
            drop(stopping);
        });
        checked += check(&pins);
        let sent = sent.into_inner();
        println!("{rounds} tables beside {sent} packets; {checked} flows");
        assert!(rounds > 20 && checked > 1000, "{rounds} tables beside {sent} packets; {checked} flows");
        assert_eq!(ebpf.observe().expect("it is read"), observed, "what is there is what was written");
    });
}

/// Looks at all flows that there are; returns how many.
fn check(pins: &Pins) -> u64 {
    let maps = heddle_bpf::Maps::open(pins).expect("maps");
    let mut count = 0;
    for (key, flow) in maps.new_flows().expect("flows") {
        let service = u16::from_be(key.dport).wrapping_sub(FIRST);
        // A reply's entry; or one that was read while the kernel gave it to another flow.
        if service >= u16::from(SERVICES) || flow.check != flow.sum(&key) {
            continue;
        }
        count += 1;
        let [.., last] = flow.to.dst.as_v4().to_ne_bytes();
        let name = Addr::v4(u32::from_ne_bytes([10, 244, 1, last]));
        assert_eq!(flow.to.dst, name, "{key:?} goes to nobody's address: {flow:?}");
        assert_eq!(u16::from(last / 16), service, "{key:?} goes to another service's backend: {flow:?}");
    }
    count
}
