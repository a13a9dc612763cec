//! The dataplane over real maps, in a network namespace and a BPF file system of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, process, thread};

use heddle_model::{
    Backend, BackendState, Effect, Frontend, FrontendAddr, Mac, NodeName, Outside, Part, Protocol, Refusal,
    ServiceNode, Step, diff,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::dataplane::Device;

/// A cgroup without processes.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let root =
            place::cgroup_root(None, &fs::read_to_string("/proc/self/mountinfo").unwrap(), place::is_cgroup2)
                .unwrap();
        let dir = root.join(format!("heddle-proxyd-{}-{name}", process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs `test` with options of its own; all that it makes goes with its thread.
pub(crate) fn alone(name: &'static str, test: impl FnOnce(Options) + Send + 'static) {
    assert!(heddle_bpf::is_embedded(), "built without the eBPF object; run `cargo xtask build-ebpf` first");
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpf_root = dir.path().join("bpf");
        fs::create_dir(&bpf_root).unwrap();
        mount(Some("bpf"), &bpf_root, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let cgroup = Cgroup::new(name);
        let small = MapSizes { max_frontends: 2048, max_backends: 64, max_flows: 512 };
        let cgroup_root = Some(cgroup.0.clone());
        test(Options { bpf_root: bpf_root.clone(), cgroup_root, sizes: small, ..Options::default() });
        nix::mount::umount(&bpf_root).unwrap();
    };
    if let Err(panic) = thread::spawn(work).join() {
        std::panic::resume_unwind(panic);
    }
}

fn frontend(name: &str, backends: u8, external: bool) -> Arc<Frontend> {
    let backend = |host: u8| Backend {
        ip: [10, 244, host % 2 + 1, host].into(),
        port: 8080,
        proto: Protocol::Tcp,
        node: Some(NodeName(format!("n{}", host % 2 + 1).into())),
        state: if host == 3 { BackendState::Draining } else { BackendState::Active },
    };
    Arc::new(Frontend {
        name: name.into(),
        backends: (1..=backends).map(backend).collect(),
        outside: external.then_some(Outside::Cluster),
        ..Frontend::default()
    })
}

fn table() -> ServiceTable {
    let node = |host: u8| ServiceNode {
        addresses: [[192, 168, 77, host].into()].into(),
        overlay: [[10, 244, host, 0].into()].into(),
        mac: Some(Mac([2, 0, 0, 0, 0, host])),
        ranges: [
            format!("10.244.{host}.0/24").parse().unwrap(),
            format!("fd00::{host}:0/112").parse().unwrap(),
        ]
        .into(),
        ..ServiceNode::default()
    };
    let cluster = FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
    let nodeport = FrontendAddr::new([0, 0, 0, 0].into(), 30080, Protocol::Tcp);
    ServiceTable {
        frontends: [
            (cluster, frontend("default/web:http", 5, false)),
            (nodeport, frontend("default/web:http", 5, true)),
        ]
        .into(),
        nodes: (1..=2).map(|host| (NodeName(format!("n{host}").into()), node(host))).collect(),
        local: Some(NodeName("n1".into())),
    }
}

fn reconcile(ebpf: &mut Ebpf, wanted: &ServiceTable) -> usize {
    let wanted = ebpf.project(wanted).0;
    let plan = diff(&ebpf.observe().unwrap(), &wanted);
    assert_eq!(ebpf.apply(&plan), Outcome::done());
    assert_eq!(ebpf.observe().unwrap(), wanted);
    plan.len()
}

fn loopback() -> Devices {
    let device =
        Device { index: 1, name: "lo".into(), mtu: 1500, addresses: [[192, 168, 77, 1].into()].into() };
    Devices { underlay: vec![device], overlay: None }
}

fn pinned(root: &Path) -> Vec<String> {
    Pins::new(root).pinned_links().unwrap().iter().map(|link| link.program.clone()).collect()
}

#[test]
fn a_restarted_daemon_adopts_everything_and_writes_nothing() {
    alone("adopt", |options| {
        let mut first = Ebpf::open(&options).unwrap();
        first.devices(&loopback()).unwrap();
        assert_eq!(reconcile(&mut first, &table()), 5);
        // Something was there before, so that numbers are not those of a first run.
        let mut smaller = table();
        smaller.frontends.remove(&table().frontends.keys().next().copied().unwrap());
        assert_eq!(reconcile(&mut first, &smaller), 1);
        assert_eq!(reconcile(&mut first, &table()), 1);
        let before = (first.kernel.dump().unwrap(), first.state.as_ref().unwrap().frontends.clone());
        let links = pinned(&options.bpf_root);
        assert_eq!(links.len(), 10, "8 socket hooks and 2 of the underlay: {links:?}");
        drop(first);
        assert_eq!(pinned(&options.bpf_root), links, "a daemon that ends leaves its datapath");

        let mut second = Ebpf::open(&options).unwrap();
        second.devices(&loopback()).unwrap();
        assert_eq!(reconcile(&mut second, &table()), 0);
        second.tend().unwrap();
        assert_eq!(second.kernel.dump().unwrap(), before.0);
        assert_eq!(second.state.as_ref().unwrap().frontends, before.1);
        assert_eq!(pinned(&options.bpf_root), links);
        assert_eq!(second.counters().unwrap().0["flow_new"], 0);
        drop(second);

        let view = View::read(&options.bpf_root).unwrap().unwrap();
        assert_eq!(view.table, table());
        assert_eq!(encode::ip(view.config.underlay4), std::net::IpAddr::from([192, 168, 77, 1]));
        assert!(remove(&options.bpf_root).unwrap());
        assert!(!options.bpf_root.join("heddle").exists());
        assert!(!remove(&options.bpf_root).unwrap());
        assert!(View::read(&options.bpf_root).unwrap().is_none());
    });
}

#[test]
fn fault_066_a_service_that_does_not_fit_is_refused_whole_and_others_stand() {
    alone("full", |options| {
        let mut ebpf = Ebpf::open(&options).unwrap();
        reconcile(&mut ebpf, &table());
        let (before, elements) = (ebpf.observe().unwrap(), ebpf.kernel.dump().unwrap());
        let put = |at: FrontendAddr, frontend| Step::PutFrontend { at, frontend, effect: Effect::Create };
        let at = |host: u8| FrontendAddr::new([10, 96, 0, host].into(), 80, Protocol::Tcp);
        let nodeport = FrontendAddr::new([0, 0, 0, 0].into(), 30081, Protocol::Tcp);
        // Its cluster address would fit; what leads to its node port does not.
        let plan = vec![
            put(nodeport, frontend("big/one:x", 50, true)),
            put(at(9), frontend("big/one:x", 5, false)),
            put(at(8), frontend("zoo/b:c", 1, false)),
        ];
        let outcome = ebpf.apply(&plan);
        let why = |part: FrontendAddr| outcome.failed[&Part::Frontend(part)].as_str();
        let full = "map backends is full: 55 more wanted, 53 of 64 free (raise --max-backends)";
        assert_eq!(outcome.failed.len(), 2, "{outcome:?}");
        assert!(why(at(9)).ends_with(full) && why(nodeport).ends_with(full), "{outcome:?}");
        let mut observed = ebpf.observe().unwrap();
        assert_eq!(observed.frontends.remove(&at(8)).unwrap().backends.len(), 1);
        assert_eq!(observed, before, "the others stand, and nothing of what was refused");
        assert_eq!(ebpf.apply(&vec![Step::RemoveFrontend { at: at(8) }]), Outcome::done());
        let after = ebpf.kernel.dump().unwrap();
        assert_eq!((after.ports, after.addrs.len()), (elements.ports, elements.addrs.len()));
        // Once there is room it has all that it wants.
        assert_eq!(
            ebpf.apply(&vec![Step::RemoveFrontend { at: *before.frontends.keys().next().unwrap() }]),
            Outcome::done()
        );
        assert_eq!(ebpf.apply(&plan), Outcome::done());
    });
}

/// Every field of a frontend and a node, written and read back by the next daemon.
#[test]
fn every_rule_is_held_and_read_back() {
    alone("rules", |options| {
        let mut table = table();
        let first = table.frontends.values().last().unwrap().clone();
        let mut add = |host: u8, change: &dyn Fn(&mut Frontend)| {
            let mut frontend = Frontend::clone(&first);
            change(&mut frontend);
            let at = FrontendAddr::new([10, 97, 0, host].into(), 80, Protocol::Tcp);
            table.frontends.insert(at, Arc::new(frontend));
        };
        add(1, &|f| f.refusal = Refusal::Drop);
        // An ending backend is the last resort of clients outside, and of them alone.
        let local = |refusal, backends: &[u8]| {
            let at = |host: &u8| ([10, 244, 2, *host].into(), 8080);
            Some(Outside::Local { backends: backends.iter().map(at).collect(), refusal })
        };
        add(2, &|f| f.outside = local(Refusal::Drop, &[3]));
        add(3, &|f| f.outside = local(Refusal::Reject, &[]));
        add(4, &|f| f.affinity = Some(10800));
        let ranges = ["192.0.2.0/24", "0.0.0.0/0", "198.51.100.7/32"].map(|range| range.parse().unwrap());
        add(5, &|f| (f.sources, f.outside) = (Some(ranges.into()), Some(Outside::Cluster)));
        add(6, &|f| f.sources = Some([].into()));
        let n2 = table.nodes.get_mut(&NodeName("n2".into())).unwrap();
        n2.down = true;
        n2.node_ports = n2.addresses.clone();
        let sctp = FrontendAddr::new([10, 97, 0, 9].into(), 8080, Protocol::Sctp);
        let mut over_sctp = Frontend::clone(&first);
        over_sctp.backends =
            first.backends.iter().map(|b| Backend { proto: Protocol::Sctp, ..b.clone() }).collect();
        table.frontends.insert(sctp, Arc::new(over_sctp));

        let mut daemon = Ebpf::open(&options).unwrap();
        assert_eq!(daemon.project(&table), (table.clone(), Vec::new()));
        reconcile(&mut daemon, &table);
        daemon.tend().unwrap();
        let dump = daemon.kernel.dump().unwrap();
        assert_eq!(dump.sources.len(), 3);
        let externals = |dump: &write::Dump| {
            dump.ports.get(heddle_ebpf_common::PORTS_EXTERNAL as usize).copied().unwrap_or(0)
        };
        assert_eq!(externals(&dump), 3);
        assert_eq!(dump.ports[30080 / 64], 1 << (30080 % 64));
        let held =
            dump.backends.iter().filter(|backend| backend.state == heddle_ebpf_common::BACKEND_DRAINING);
        assert_eq!(held.count(), 8, "the ending one of nine frontends, but where it is the last resort");
        drop(daemon);
        let mut next = Ebpf::open(&options).unwrap();
        assert_eq!(reconcile(&mut next, &table), 0);
        next.tend().unwrap();
        assert_eq!(next.kernel.dump().unwrap(), dump);
        next.devices(&loopback()).unwrap();
        let (low, high) = next.kernel.dump().unwrap().snat_ports;
        let ports = next.kernel.dump().unwrap().ports;
        for port in [low, high] {
            assert_ne!(
                ports[usize::from(port / 64)] & 1 << (port % 64),
                0,
                "replies to port {port} are looked at"
            );
        }
        assert_eq!(
            reconcile(&mut next, &ServiceTable { local: table.local.clone(), ..Default::default() }),
            11
        );
        next.tend().unwrap();
        let dump = next.kernel.dump().unwrap();
        assert_eq!((dump.sources.len(), dump.addrs.len(), externals(&dump)), (0, 0, 0));
    });
}

#[test]
fn what_a_killed_daemon_left_is_put_away() {
    alone("killed", |options| {
        let mut first = Ebpf::open(&options).unwrap();
        reconcile(&mut first, &table());
        // A frontend removed, and its choices, backends and name not: the daemon died in between.
        let key = encode::key(table().frontends.keys().next().unwrap()).unwrap();
        first.kernel.maps.frontends.remove(&key).unwrap();
        drop(first);
        let mut second = Ebpf::open(&options).unwrap();
        let mut wanted = table();
        let gone = wanted.frontends.keys().copied().find(|at| encode::key(at) == Some(key)).unwrap();
        wanted.frontends.remove(&gone);
        assert_eq!(second.observe().unwrap(), wanted);
        second.tend().unwrap();
        let dump = second.kernel.dump().unwrap();
        assert_eq!((dump.choices.len(), dump.services.len()), (5, 1));
        assert_eq!(dump.backends.iter().filter(|b| b.state != 0).count(), 5);
        assert_eq!(reconcile(&mut second, &table()), 1);
    });
}

#[test]
fn what_is_missing_is_named() {
    alone("lacks", |options| {
        let refused = |options: Options| match Ebpf::open(&options).unwrap_err() {
            Failure::Unsupported(why) => why.to_string(),
            other => panic!("{other:?}"),
        };
        let text = refused(Options { bpf_root: "/proc".into(), ..options.clone() });
        assert_eq!(text, "/proc is no BPF file system (mount one: mount -t bpf bpf /proc)");
        let text = refused(Options { bpf_root: "/nowhere".into(), ..options.clone() });
        assert!(text.starts_with("no BPF file system at /nowhere"), "{text}");
        let text = refused(Options { cgroup_root: Some("/proc".into()), ..options });
        assert_eq!(text, "/proc is no directory of a cgroup2 file system (name one by --cgroup-root)");
    });
}

#[test]
fn flows_that_are_over_are_collected() {
    use heddle_ebpf_common::{CT_ANSWERED, CT_REPLY, Flow, Tuple};
    alone("collect", |options| {
        let mut ebpf = Ebpf::open(&options).unwrap();
        reconcile(&mut ebpf, &table());
        let slot = ebpf.state.as_ref().unwrap().frontends.values().next().unwrap().slots[0];
        let now = collect::now();
        let mut insert = |sport: u16, age: u64, generation: u32| {
            let key = Tuple { sport, proto: 17, dport: 80, ..Tuple::default() };
            let seen = now - age * 1_000_000_000;
            let flow = Flow { backend: slot, generation, flags: CT_ANSWERED, seen, ..Flow::default() };
            let request = Flow { to: Tuple { dport: 8080, ..key }, ..flow };
            let reply = Flow { to: key.reversed(), flags: flow.flags | CT_REPLY, ..flow };
            ebpf.kernel.maps.ct.insert(key, request, 0).unwrap();
            ebpf.kernel.maps.ct.insert(request.peer(), reply, 0).unwrap();
        };
        // The machine may have started a moment ago: no flow is older than its clock.
        insert(1, 5, 1);
        insert(2, 5, 2);
        (10..200).for_each(|port| insert(port, 5, 9));
        assert_eq!(ebpf.kernel.maps.flows().unwrap().len(), 2 * 192);
        let mut maps = heddle_bpf::Maps::open(&ebpf.datapath.pins).unwrap();
        let shared = collect::Shared::default();
        collect::pass(&mut maps, &shared).unwrap();
        let left: Vec<u16> = ebpf.kernel.maps.flows().unwrap().iter().map(|(key, _)| key.sport).collect();
        assert_eq!(left.len(), 2, "only the flow of the backend's own generation lives: {left:?}");
        assert!(left.contains(&1));
    });
}
