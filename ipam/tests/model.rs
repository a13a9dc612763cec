//! Random operations of both programs against a model of who must hold what. PROPTEST_CASES makes it longer.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsRawFd;

use heddle_ipam::{Error, Namespace};
use heddle_netlink::NetNs;
use proptest::prelude::*;

use bench::{Bench, PATIENCE, World, owner};

/// 10.1.0.2 to .14; .1 is the gateway.
const RANGE: &str = r#"{"subnet":"10.1.0.0/28"}"#;
const ADDRESSES: std::ops::RangeInclusive<u8> = 2..=14;

#[derive(Clone, Debug)]
enum Op {
    /// ADD by us, in a new namespace.
    Add(u8),
    /// The same, asking for an address.
    Ask(u8, u8),
    Del(u8),
    /// By host-local.
    TheirAdd(u8),
    TheirDel(u8),
    /// The pod's namespace goes, nobody says so.
    Die(u8),
    /// host-local is killed between creating a lease and writing it.
    Empty(u8),
    /// The runtime knows of these only.
    Gc(BTreeSet<u8>),
    Reboot,
}

fn op() -> impl Strategy<Value = Op> {
    let container = 0..20u8;
    prop_oneof![
        8 => container.clone().prop_map(Op::Add),
        2 => (container.clone(), 0..18u8).prop_map(|(container, ip)| Op::Ask(container, ip)),
        4 => container.clone().prop_map(Op::Del),
        2 => container.clone().prop_map(Op::TheirAdd),
        2 => container.clone().prop_map(Op::TheirDel),
        3 => container.clone().prop_map(Op::Die),
        1 => ADDRESSES.prop_map(Op::Empty),
        1 => prop::collection::btree_set(container, 0..20).prop_map(Op::Gc),
        1 => Just(Op::Reboot),
    ]
}

#[derive(Clone, Debug)]
struct Lease {
    container: u8,
    ours: bool,
    dead: bool,
}

/// Who must hold what.
#[derive(Default)]
struct Model {
    leases: BTreeMap<u8, Lease>,
    empty: BTreeSet<u8>,
    last: Option<u8>,
    pods: BTreeMap<u8, (NetNs, Namespace)>,
    boot: u32,
}

impl Model {
    fn held(&self, container: u8) -> Option<u8> {
        self.leases.iter().find(|(_, lease)| lease.container == container).map(|(ip, _)| *ip)
    }

    /// The next free address in turn; for us, a lease of nobody is free.
    fn next(&self, ours: bool) -> Option<u8> {
        let taken = |ip: &u8| self.leases.contains_key(ip) || (!ours && self.empty.contains(ip));
        let last = self.last.unwrap_or(1);
        (last + 1..=14).chain(2..=last).filter(|ip| ADDRESSES.contains(ip)).find(|ip| !taken(ip))
    }

    fn world(&self) -> World {
        let living = self.pods.values().map(|(ns, _)| (ns.inode(), ns.cookie().ok())).collect();
        World { living: Some(living), ..World::default() }
    }

    fn is_ours(&self, container: u8) -> bool {
        self.held(container).is_some_and(|ip| self.leases[&ip].ours)
    }
}

fn name(container: u8) -> String {
    format!("c{container}")
}

fn address(ip: u8) -> String {
    format!("10.1.0.{ip}")
}

fn apply(bench: &Bench, model: &mut Model, op: &Op) {
    match op {
        Op::Add(container) => add(bench, model, *container, None),
        Op::Ask(container, ip) => add(bench, model, *container, Some(*ip)),
        Op::Del(container) => {
            bench_del(bench, model, *container);
            model.leases.retain(|_, lease| lease.container != *container);
            model.pods.remove(container);
        }
        Op::TheirAdd(container) => {
            let free = model.next(false);
            // It refuses an interface that has an address.
            if let (None, Some(ip)) = (model.held(*container), free) {
                fs::create_dir_all(bench.path("")).unwrap();
                fs::write(bench.path(&address(ip)), format!("{}\r\neth0", name(*container))).unwrap();
                fs::write(bench.path("last_reserved_ip.0"), address(ip)).unwrap();
                model.leases.insert(ip, Lease { container: *container, ours: false, dead: false });
                model.last = Some(ip);
            }
        }
        Op::TheirDel(container) => {
            if let Some(ip) = model.held(*container) {
                fs::remove_file(bench.path(&address(ip))).unwrap();
                model.leases.remove(&ip);
                model.pods.remove(container);
            }
        }
        Op::Die(container) => {
            model.pods.remove(container);
            for lease in model.leases.values_mut().filter(|lease| lease.container == *container) {
                lease.dead = lease.ours;
            }
        }
        Op::Empty(ip) => {
            if !model.leases.contains_key(ip) && bench.path("").exists() {
                fs::write(bench.path(&address(*ip)), "").unwrap();
                model.empty.insert(*ip);
            }
        }
        Op::Gc(valid) => {
            let owners = valid.iter().map(|container| owner(&name(*container))).collect();
            bench.store(&boot(model)).lock(PATIENCE).unwrap().collect(&owners).unwrap();
            model.leases.retain(|_, lease| valid.contains(&lease.container));
            model.empty.clear();
        }
        Op::Reboot => {
            model.boot += 1;
            model.pods.clear();
            bench.store(&boot(model)).lock(PATIENCE).unwrap();
            if model.leases.values().any(|lease| lease.ours) || model.boot > 0 {
                model.leases.retain(|_, lease| !lease.ours);
            }
        }
    }
}

fn boot(model: &Model) -> String {
    format!("boot-{}", model.boot)
}

fn bench_del(bench: &Bench, model: &Model, container: u8) {
    let store = bench.store(&boot(model));
    store.lock(PATIENCE).unwrap().release(&owner(&name(container))).unwrap();
}

fn add(bench: &Bench, model: &mut Model, container: u8, asked: Option<u8>) {
    // A runtime does not add with us what it added with host-local; that is refused by host-local and not by us.
    if model.held(container).is_some() && !model.is_ours(container) {
        return;
    }
    let ns = NetNs::create().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd());
    let namespace = Namespace::at(path.as_ref()).unwrap();
    let asked_text = asked.map(address);
    let asked_list: Vec<&str> = asked_text.iter().map(String::as_str).collect();
    let held = model.held(container);
    let expected = held.or_else(|| model.next(true));
    let dead = |model: &Model| model.leases.values().filter(|lease| lease.dead).count();
    let dead_before = dead(model);
    let answer =
        bench.request(&mut model.world(), &boot(model), &name(container), &asked_list, Some(&namespace));
    // What was dead may have been cleared away, and leases of nobody too.
    model.leases.retain(|ip, lease| !lease.dead || bench.path(&address(*ip)).exists());
    model.empty.retain(|ip| bench.path(&address(*ip)).metadata().is_ok_and(|file| file.len() == 0));
    match (answer, asked) {
        (Ok(given), asked) => {
            let ip: u8 = given[0].trim_end_matches("/28").rsplit('.').next().unwrap().parse().unwrap();
            match asked {
                Some(asked) => assert_eq!(ip, asked),
                None => match expected {
                    Some(expected) => assert_eq!(ip, expected, "in turn"),
                    None => assert!(dead_before > 0, "given although all lived"),
                },
            }
            if asked.is_none() && held.is_none() {
                model.last = Some(ip);
            }
            model.leases.retain(|_, lease| lease.container != container);
            let other = model.leases.insert(ip, Lease { container, ours: true, dead: false });
            assert!(other.as_ref().is_none_or(|other| other.dead), "{ip} was a living pod's: {other:?}");
            model.pods.insert(container, (ns, namespace));
        }
        (Err(Error::Exhausted { .. }), None) => {
            assert!(expected.is_none(), "{expected:?} is free");
            assert_eq!(dead(model), 0, "what is dead is freed before anything fails");
        }
        (Err(Error::Taken { .. }), Some(asked)) => {
            assert!(model.leases.get(&asked).is_some_and(|lease| lease.container != container));
        }
        (Err(Error::Unavailable { .. }), Some(asked)) => assert!(!ADDRESSES.contains(&asked)),
        (Err(error), _) => panic!("{error}"),
    }
}

/// The files say what the model says.
fn compare(bench: &Bench, model: &Model) {
    let files: BTreeMap<String, String> = bench
        .dir
        .path()
        .join("net")
        .read_dir()
        .map(|entries| {
            let paths = entries.map(|entry| entry.unwrap().path());
            let names = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
            let leases = names.filter(|(name, _)| name.parse::<std::net::IpAddr>().is_ok());
            leases.map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
        })
        .unwrap_or_default();
    let leases =
        model.leases.iter().map(|(ip, lease)| (address(*ip), format!("c{}\r\neth0", lease.container)));
    let empty = model.empty.iter().map(|ip| (address(*ip), String::new()));
    assert_eq!(files, leases.chain(empty).collect::<BTreeMap<_, _>>());
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn random_operations_of_both_programs_leave_what_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        let bench = Bench::new(RANGE);
        let mut model = Model::default();
        // A machine that has been used: what is there before the first boot that we see is not ours to sweep.
        bench.store(&boot(&model)).lock(PATIENCE).unwrap();
        for op in &ops {
            apply(&bench, &mut model, op);
            compare(&bench, &model);
        }
        // In the end every DEL finds its own, and nothing is left.
        for container in 0..20 {
            bench_del(&bench, &model, container);
        }
        model.leases.clear();
        compare(&bench, &model);
    }
}
