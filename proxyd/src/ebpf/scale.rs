//! What many services cost: FAULT 90, and the figures of `docs/performance.md` without a daemon around them.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_model::{
    Backend, BackendState, Frontend, FrontendAddr, NodeName, Outside, Protocol, ServiceNode, ServiceTable,
    SharedMap, Step, diff,
};

use nix::time::{ClockId, clock_gettime};

use super::live::alone;
use super::*;

const BACKENDS: u32 = 10;

fn above(base: [u8; 4], n: u32) -> IpAddr {
    IpAddr::from((u32::from_be_bytes(base) + n).to_be_bytes())
}

fn backends(service: u32, first: u32) -> BTreeSet<Backend> {
    let backend = |i| Backend {
        ip: above([10, 128, 0, 1], service * (BACKENDS + 1) + i),
        port: 8080,
        proto: Protocol::Tcp,
        node: Some(NodeName(format!("node-{}", (service + i) % 100).into())),
        state: BackendState::Active,
    };
    (first..first + BACKENDS).map(backend).collect()
}

/// So many services, one in five of which has a node port.
fn table(services: u32) -> ServiceTable {
    let node = |n: u32| {
        let addresses = [above([192, 168, 0, 1], n)].into();
        (NodeName(format!("node-{n}").into()), ServiceNode { addresses, ..ServiceNode::default() })
    };
    let mut frontends = SharedMap::default();
    for n in 0..services {
        let name = format!("default/service-{n}:http");
        let frontend = Frontend { name, backends: backends(n, 0), ..Frontend::default() };
        if n % 5 == 0 {
            let at = FrontendAddr::new([0, 0, 0, 0].into(), 30_000 + (n / 5) as u16, Protocol::Tcp);
            let outside = Some(Outside::Cluster);
            frontends.insert(at, Arc::new(Frontend { outside, ..frontend.clone() }));
        }
        let at = FrontendAddr::new(above([10, 96, 0, 1], n), 80, Protocol::Tcp);
        frontends.insert(at, Arc::new(frontend));
    }
    ServiceTable { frontends, nodes: (0..100).map(node).collect(), local: Some(NodeName("node-0".into())) }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The processor time that this thread has used: what others take of the processor is not in it.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// By the processor's time.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    let (start, before) = (Instant::now(), used());
    let done = work();
    let took = used() - before;
    println!(
        "{what}: {:.3} ms of processor time in {:.3} ms",
        took.as_secs_f64() * 1e3,
        start.elapsed().as_secs_f64() * 1e3
    );
    (done, took)
}

/// Counts the elements that are written.
fn elements(ebpf: &Ebpf) -> usize {
    let dump = ebpf.kernel.dump().unwrap();
    dump.frontends.len() + dump.backends.len() + dump.choices.len() + dump.services.len()
}

/// HEDDLE_SERVICES services (1,000), 10 backends each, are there from empty, adopted by the next daemon without a
/// write, and one endpoint changed costs what one endpoint costs.
#[test]
fn fault_090_many_services_cold() {
    let services = std::env::var("HEDDLE_SERVICES").map_or(1_000, |n| n.parse().unwrap());
    alone("scale", move |options| {
        let big = MapSizes { max_frontends: 1 << 16, max_backends: 1 << 17, max_flows: 1 << 10 };
        let options = Options { sizes: big, first: big, ..options };
        let empty = resident();
        let mut ebpf = Ebpf::open(&options).unwrap();
        let desired = table(services);
        let before = resident();
        let observed = ebpf.observe().unwrap();
        let ((wanted, lacks), _) = timed("project", || ebpf.project(&desired));
        assert_eq!(lacks, []);
        let (plan, _) = timed("diff", || diff(&observed, &wanted));
        let (outcome, programmed) = timed("apply", || ebpf.apply(&plan));
        assert_eq!(outcome, Outcome::done());
        drop(plan);
        ebpf.settled(&wanted);
        println!("resident: {empty} KiB empty, {before} with the table, {} programmed", resident());
        let mut worst = Duration::ZERO;
        let mut now = wanted;
        for round in 0..20u32 {
            let n = round * 97 % services;
            let mut next = ServiceTable { frontends: desired.frontends.clone(), ..now.clone() };
            let at = FrontendAddr::new(above([10, 96, 0, 1], n), 80, Protocol::Tcp);
            let frontend = Frontend::clone(&next.frontends[&at]);
            next.frontends.insert(at, Arc::new(Frontend { backends: backends(n, 1), ..frontend }));
            let start = used();
            let (next, _) = ebpf.project(&next);
            let projected = used() - start;
            let plan = diff(&now, &next);
            let differs = used() - start;
            assert!(plan.len() <= 2 && plan.iter().all(|step| matches!(step, Step::PutFrontend { .. })));
            assert_eq!(ebpf.apply(&plan), Outcome::done());
            let done = used() - start;
            worst = worst.max((done - differs) / plan.len() as u32);
            if round % 5 == 0 {
                println!(
                    "change: project {projected:?}, diff {:?}, apply {:?} ({})",
                    differs - projected,
                    done - differs,
                    plan.len()
                );
            }
            now = next;
        }
        println!("one endpoint: at most {worst:?}");
        ebpf.tend().unwrap();
        let (again, _) = timed("observe", || ebpf.observe().unwrap());
        let (plan, _) = timed("diff", || diff(&again, &now));
        assert!(plan.is_empty());
        println!("resident: {} KiB after an observation", resident());
        let there = elements(&ebpf);
        drop((ebpf, again));
        let (mut next, _) = timed("open", || Ebpf::open(&options).unwrap());
        let (again, _) = timed("observe", || next.observe().unwrap());
        assert!(timed("diff", || diff(&again, &now)).0.is_empty());
        assert_eq!(elements(&next), there);
        if services >= 10_000 && !cfg!(debug_assertions) {
            assert!(programmed < Duration::from_secs(1) && worst < Duration::from_millis(1));
        }
    });
}
