//! Maps in memory, written to as the kernel's are, and the tests of everything that decides what is
//! written: at every moment a program - also one that looked its frontend up long ago - finds only backends
//! that the frontend had, whatever fails and whenever the daemon is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_OVERLAY, Addr, BACKEND_ACTIVE, BACKEND_DRAINING,
    BACKEND_FREE, Backend, ChoiceKey, FRONTEND_EXTERNAL, FRONTEND_SOURCES, Frontend, FrontendKey, KnownAddr,
    NODE_SELF, NODE_UP, Node, PORTS_EXTERNAL, PORTS_LEN,
};
use heddle_model::{
    self as model, BackendState, FrontendAddr, Mac, NodeName, Outside, Protocol, Refusal, ServiceNode,
    ServiceTable, SharedMap,
};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::encode;
use super::project::Projector;
use super::state::State;
use super::write::{Dump, Limits, Maps, Write};

const LIMITS: Limits =
    Limits { frontends: 64, backends: 256, ring: 1 << 17, nodes: 16, addrs: 128, sources: 64 };

/// As if the configuration said so.
const SNAT: (u16, u16) = (500, 600);

/// The maps.
#[derive(Clone, Debug, Default)]
struct Sim {
    frontends: BTreeMap<FrontendKey, Frontend>,
    ring: Vec<u32>,
    backends: BTreeMap<u32, Backend>,
    choices: BTreeMap<ChoiceKey, u32>,
    services: BTreeMap<u32, String>,
    sources: BTreeSet<(u32, IpNetwork)>,
    ports: BTreeMap<u32, u64>,
    nodes: BTreeMap<u32, Node>,
    node_names: BTreeMap<u32, String>,
    addrs: BTreeMap<Addr, KnownAddr>,
    ranges: BTreeMap<IpNetwork, u32>,
    writes: usize,
    /// Which writes from now on fail, in turn; after the last none does.
    faults: Vec<bool>,
    /// From this write on all fail: the daemon is dead.
    killed_at: Option<usize>,
    /// Programs that copied a frontend and have not ended, and what may be found in its two lists.
    readers: BTreeSet<(FrontendKey, [(u32, u32); 2])>,
    /// Every backend that a frontend ever had, or was about to have: for clients inside, and outside.
    wanted: BTreeMap<FrontendKey, [BTreeSet<(IpAddr, u16)>; 2]>,
    /// Ranges that a frontend may ever let in.
    allowed: BTreeMap<FrontendKey, BTreeSet<IpNetwork>>,
    /// Who a slot and its generation were.
    named: BTreeMap<(u32, u32), (IpAddr, u16)>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("injected")]
struct Injected;

impl Sim {
    fn dump(&self) -> Dump {
        let last = self.backends.keys().next_back().map_or(1, |slot| slot + 1);
        let backend = |slot: u32| self.backends.get(&slot).copied().unwrap_or_default();
        Dump {
            frontends: self.frontends.iter().map(|(k, v)| (*k, *v)).collect(),
            backends: (0..last).map(backend).collect(),
            choices: self.choices.iter().map(|(k, v)| (*k, *v)).collect(),
            services: self.services.iter().map(|(k, v)| (*k, v.clone())).collect(),
            sources: self.sources.iter().copied().collect(),
            ports: (0..PORTS_LEN).map(|n| self.ports.get(&n).copied().unwrap_or_default()).collect(),
            snat_ports: SNAT,
            nodes: (0..LIMITS.nodes).map(|n| self.nodes.get(&n).copied().unwrap_or_default()).collect(),
            node_names: self.node_names.iter().map(|(k, v)| (*k, v.clone())).collect(),
            addrs: self.addrs.iter().map(|(k, v)| (*k, *v)).collect(),
            ranges: self.ranges.iter().map(|(k, v)| (*k, *v)).collect(),
        }
    }

    fn write_ring(&mut self, start: u32, slots: &[u32]) {
        let end = start as usize + slots.len();
        assert!(end <= LIMITS.ring as usize);
        self.ring.resize(self.ring.len().max(end), 0);
        self.ring[start as usize..end].copy_from_slice(slots);
    }

    /// What must hold between any two writes.
    fn check(&mut self) {
        for (key, value) in &self.frontends {
            let lists = [(value.ring, value.ring_len), (value.outside, value.outside_len)];
            self.readers.insert((*key, lists));
            self.check_address(key, value);
            let allowed = self.sources.iter().filter(|(service, _)| *service == value.service);
            for (_, range) in allowed.filter(|_| value.flags & FRONTEND_SOURCES != 0) {
                assert!(self.allowed[key].contains(range), "{key:?} lets {range} in");
            }
        }
        for (slot, backend) in &self.backends {
            if backend.state != BACKEND_FREE {
                let who = (encode::ip(backend.addr), u16::from_be(backend.port));
                let known = self.named.entry((*slot, backend.generation)).or_insert(who);
                assert_eq!(*known, who, "slot {slot} has a new backend under an old generation");
            }
        }
        for (key, lists) in &self.readers {
            let nobody = Default::default();
            let wanted = self.wanted.get(key).unwrap_or(&nobody);
            for ((start, len), wanted) in lists.iter().copied().zip(wanted) {
                let extent = start as usize..(start + len) as usize;
                let mut seen = [false; LIMITS.backends as usize];
                for slot in self.ring[extent].iter().copied() {
                    if std::mem::replace(&mut seen[slot as usize], true) {
                        continue;
                    }
                    let backend = self.backends.get(&slot).copied().unwrap_or_default();
                    assert_ne!(backend.state, BACKEND_FREE, "a reader finds a free slot {slot}");
                    let who = (encode::ip(backend.addr), u16::from_be(backend.port));
                    assert!(wanted.contains(&who), "{key:?} answers with {who:?}, which it never had there");
                }
            }
        }
        for (key, slot) in &self.choices {
            assert_ne!(self.backends.get(slot).map_or(BACKEND_FREE, |b| b.state), BACKEND_FREE, "{key:?}");
        }
    }

    /// Where a frontend is, packets are looked at.
    fn check_address(&self, key: &FrontendKey, value: &Frontend) {
        if matches!(key.addr, Addr::ANY4 | Addr::ANY6) {
            let port = u32::from(u16::from_be(key.port));
            let word = self.ports.get(&(port / 64)).copied().unwrap_or_default();
            assert_ne!(word & 1 << (port % 64), 0, "port {port} is not looked at");
            return;
        }
        let known = self.addrs.get(&key.addr);
        let kind = if value.flags & FRONTEND_EXTERNAL != 0 { ADDR_EXTERNAL } else { ADDR_CLUSTER_IP };
        let kinds = kind | ADDR_NODE | ADDR_OVERLAY;
        assert!(known.is_some_and(|known| known.is(kinds)), "{key:?} is not looked at: {known:?}");
        let externals = self.addrs.values().filter(|known| known.is(ADDR_EXTERNAL)).count() as u64;
        assert!(self.ports.get(&PORTS_EXTERNAL).copied().unwrap_or_default() >= externals.min(1));
    }
}

fn set<K: Ord + Copy, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: &Option<V>) {
    match value {
        Some(value) => map.insert(*key, value.clone()),
        None => map.remove(key),
    };
}

impl Maps for Sim {
    type Error = Injected;

    fn write(&mut self, write: &Write) -> Result<(), Injected> {
        if self.killed_at.is_some_and(|at| self.writes >= at) || self.faults.pop().unwrap_or(false) {
            return Err(Injected);
        }
        self.writes += 1;
        match write {
            Write::Backend(slot, backend) => {
                self.backends.insert(*slot, *backend);
            }
            Write::Service(id, name) => set(&mut self.services, id, name),
            Write::Source(service, range, true) => drop(self.sources.insert((*service, *range))),
            Write::Source(service, range, false) => drop(self.sources.remove(&(*service, *range))),
            Write::Ports(index, word) => drop(self.ports.insert(*index, *word)),
            Write::Choice(key, slot) => set(&mut self.choices, key, slot),
            Write::Ring(start, slots) => {
                self.write_ring(*start, slots);
            }
            Write::Frontend(key, value) => set(&mut self.frontends, key, value),
            Write::Node(index, node) => {
                self.nodes.insert(*index, *node);
            }
            Write::NodeName(index, name) => set(&mut self.node_names, index, name),
            Write::KnownAddr(addr, at) => set(&mut self.addrs, addr, at),
            Write::Range(range, node) => set(&mut self.ranges, range, node),
            Write::Grace => self.readers.clear(),
            Write::Unused(_) => {}
        }
        self.check();
        Ok(())
    }

    fn read_list(&mut self, start: u32, len: u32) -> Result<Vec<u32>, Injected> {
        Ok((start..start + len).map(|at| self.ring.get(at as usize).copied().unwrap_or(0)).collect())
    }
}

fn read(maps: &mut Sim) -> State {
    State::read(maps.dump(), LIMITS, None, &SharedMap::default(), maps).unwrap()
}

fn project(table: &ServiceTable) -> ServiceTable {
    Projector::default().project(table).0
}

/// What programs may find from now on.
fn expect(maps: &mut Sim, wanted: &ServiceTable) {
    for (at, frontend) in &wanted.frontends {
        let key = encode::key(at).unwrap();
        let [inside, outside] = maps.wanted.entry(key).or_default();
        let active = frontend.backends.iter().filter(|b| b.state == BackendState::Active);
        let active: BTreeSet<_> = active.map(|b| (b.ip, b.port)).collect();
        inside.extend(&active);
        match &frontend.outside {
            None => {}
            Some(Outside::Cluster) => outside.extend(active),
            Some(Outside::Local { backends, .. }) => outside.extend(backends),
        }
        maps.allowed.entry(key).or_default().extend(frontend.sources.iter().flatten());
    }
}

/// Makes `state` and the maps `wanted`, as the dataplane does with a plan. The number of failures.
fn reconcile(state: &mut State, wanted: &ServiceTable, maps: &mut Sim) -> usize {
    expect(maps, wanted);
    if state.stale {
        *state = State::read(maps.dump(), LIMITS, Some(state), &wanted.frontends, maps).unwrap();
    }
    let (failed, owed) = state.apply(&model::diff(&state.table(), wanted), maps);
    failed.len() + usize::from(owed.is_some())
}

fn nodes() -> impl Strategy<Value = BTreeMap<NodeName, ServiceNode>> {
    let node = (any::<bool>(), 1u8..6, 1u8..6).prop_map(|(overlay, host, range)| ServiceNode {
        addresses: [IpAddr::from([192, 168, 77, host])].into(),
        overlay: [IpAddr::from([10, 244, range, 0])].into(),
        mac: overlay.then_some(Mac([2, 0, 0, 0, 0, host])),
        ranges: [format!("10.244.{range}.0/24").parse().unwrap()].into(),
        ..ServiceNode::default()
    });
    prop::collection::btree_map((1u8..6).prop_map(|n| NodeName(format!("n{n}").into())), node, 0..5)
}

fn outside() -> impl Strategy<Value = Option<Outside>> {
    let local = prop::collection::btree_set((1u8..12).prop_map(|host| ([10, 244, 1, host].into(), 80)), 0..4);
    prop_oneof![
        2 => Just(None),
        2 => Just(Some(Outside::Cluster)),
        3 => (local, refusal()).prop_map(|(backends, refusal)| Some(Outside::Local { backends, refusal })),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![Just(Refusal::Reject), Just(Refusal::Drop)]
}

fn sources() -> impl Strategy<Value = Option<BTreeSet<IpNetwork>>> {
    let range = (0u8..4, prop_oneof![Just(0), Just(8), Just(24)])
        .prop_map(|(net, prefix)| IpNetwork::new([net, 0, 0, 0].into(), prefix).unwrap());
    prop::option::weighted(0.3, prop::collection::btree_set(range, 0..4))
}

fn backends() -> impl Strategy<Value = BTreeSet<model::Backend>> {
    let state = prop_oneof![
        6 => Just(BackendState::Active),
        2 => Just(BackendState::Draining),
        1 => Just(BackendState::Down),
    ];
    let backend = (1u8..12, 0usize..4, state).prop_map(|(host, node, state)| model::Backend {
        ip: [10, 244, 1, host].into(),
        port: 80,
        proto: Protocol::Tcp,
        node: ["n1", "n2", "n3"].get(node).map(|name| NodeName((*name).into())),
        state,
    });
    prop::collection::btree_set(backend, 0..6)
}

fn frontend() -> impl Strategy<Value = (FrontendAddr, Arc<model::Frontend>)> {
    let at = (
        prop_oneof![
            (1u8..6).prop_map(|host| IpAddr::from([10, 96, 0, host])),
            Just(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        ],
        prop_oneof![Just(80), Just(443)],
    );
    let affinity = prop_oneof![Just(None), Just(Some(60)), Just(Some(0))];
    (at, backends(), outside(), 0..3, refusal(), affinity, sources()).prop_map(
        |((ip, port), backends, outside, n, refusal, affinity, sources)| {
            let name = format!("default/web{n}:http");
            let frontend = model::Frontend { name, backends, refusal, outside, affinity, sources };
            (FrontendAddr::new(ip, port, Protocol::Tcp), Arc::new(frontend))
        },
    )
}

fn table() -> impl Strategy<Value = ServiceTable> {
    (nodes(), prop::collection::btree_map(0..8, frontend(), 0..8)).prop_map(|(nodes, frontends)| {
        let frontends = frontends.into_values().collect();
        let nodes = nodes.into_iter().collect();
        project(&ServiceTable { frontends, nodes, local: Some(NodeName("n1".into())) })
    })
}

/// The maps are what `wanted` says, whoever reads them, nothing is left over, and nothing more is written.
fn assert_converged(state: &mut State, wanted: &ServiceTable, maps: &mut Sim) {
    let mut tries = 0;
    while reconcile(state, wanted, maps) > 0 || state.settle(maps).is_err() {
        tries += 1;
        assert!(tries < 200, "never converges");
    }
    assert!(!state.has_remains());
    let writes = maps.writes;
    assert_eq!(reconcile(state, wanted, maps), 0);
    state.settle(maps).unwrap();
    assert_eq!(maps.writes, writes, "a second reconciliation writes");
    assert_eq!(state.table(), *wanted);
    for before in [None, Some(&*state)] {
        let mut again = State::read(maps.dump(), LIMITS, before, &wanted.frontends, maps).unwrap();
        assert_eq!(again.owed, []);
        assert!(!again.ledger.is_dirty());
        assert_eq!(again.table(), *wanted);
        assert_eq!(reconcile(&mut again, wanted, maps), 0);
        assert_eq!(maps.writes, writes, "a restarted daemon writes");
        assert_eq!(again.frontends, state.frontends);
        assert_eq!(again.nodes, state.nodes);
        assert_eq!((&again.indices, again.sources), (&state.indices, state.sources));
    }
    let slots: BTreeSet<u32> = state.frontends.values().flat_map(|e| e.slots.iter().copied()).collect();
    for (slot, backend) in &maps.backends {
        assert_eq!(backend.state != BACKEND_FREE, slots.contains(slot), "slot {slot}");
    }
    for entry in state.frontends.values() {
        for (backend, slot) in entry.backends() {
            let lists = [entry.ring(), entry.outside()].into_iter().flatten();
            let mut named = lists.flat_map(|e| &maps.ring[e.start as usize..(e.start + e.len) as usize]);
            let state = if named.any(|other| *other == slot) { BACKEND_ACTIVE } else { BACKEND_DRAINING };
            assert_eq!(maps.backends[&slot].state, state, "{backend:?} of {}", entry.shown.name);
        }
    }
    assert_eq!(maps.services.len(), wanted.frontends.len());
    let sources: usize = wanted.frontends.values().flat_map(|f| &f.sources).map(BTreeSet::len).sum();
    assert_eq!((maps.sources.len(), state.sources), (sources, sources));
    let node_ports: BTreeSet<u32> = maps
        .frontends
        .keys()
        .filter(|key| key.addr == Addr::ANY4)
        .map(|key| u16::from_be(key.port).into())
        .collect();
    for port in 0..1024 {
        let set = maps.ports.get(&(port / 64)).is_some_and(|word| word & 1 << (port % 64) != 0);
        let snat = (u32::from(SNAT.0)..=SNAT.1.into()).contains(&port);
        assert_eq!(set, node_ports.contains(&port) || snat, "port {port}");
    }
    let externals = maps.addrs.values().filter(|known| known.is(ADDR_EXTERNAL)).count() as u64;
    assert_eq!(maps.ports.get(&PORTS_EXTERNAL).copied().unwrap_or_default(), externals);
    let ips: BTreeSet<Addr> =
        maps.frontends.keys().map(|key| key.addr).filter(|a| *a != Addr::ANY4).collect();
    let known: BTreeSet<Addr> =
        maps.addrs.iter().filter(|(_, k)| k.node == 0).map(|(addr, _)| *addr).collect();
    assert_eq!(known, ips);
    assert_eq!(maps.node_names.get(&NODE_SELF).map(String::as_str), Some("n1"));
    let up = maps.nodes.values().filter(|node| node.state == NODE_UP).count();
    assert_eq!(up, wanted.nodes.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_tables_converges(
        tables in prop::collection::vec(table(), 1..6),
        faults in prop::collection::vec(prop::bool::weighted(0.1), 0..400),
    ) {
        let mut maps = Sim { faults, ..Sim::default() };
        let mut state = read(&mut maps);
        for wanted in &tables {
            reconcile(&mut state, wanted, &mut maps);
        }
        assert_converged(&mut state, &tables[tables.len() - 1], &mut maps);
    }

    /// Whatever somebody else wrote there, a daemon starts, and makes it right.
    #[test]
    fn what_others_wrote_is_repaired(
        first in table(),
        hits in prop::collection::vec((0..10, any::<prop::sample::Index>(), 0u32..300), 1..6),
    ) {
        let mut maps = Sim::default();
        let mut state = read(&mut maps);
        prop_assert_eq!(reconcile(&mut state, &first, &mut maps), 0);
        for (what, pick, value) in hits {
            match what {
                0 if !maps.backends.is_empty() => {
                    let slot = *maps.backends.keys().nth(pick.index(maps.backends.len())).unwrap();
                    maps.backends.get_mut(&slot).unwrap().state = value as u8 % 5;
                }
                1 if !maps.ring.is_empty() => {
                    let at = pick.index(maps.ring.len().min(100));
                    maps.ring[at] = value;
                }
                2 if !maps.frontends.is_empty() => {
                    let key = *maps.frontends.keys().nth(pick.index(maps.frontends.len())).unwrap();
                    let hit = maps.frontends.get_mut(&key).unwrap();
                    match value % 7 {
                        6 => hit.affinity = value,
                        0 => hit.ring = value,
                        1 => hit.ring_len = value,
                        2 => hit.outside = u32::MAX - value,
                        3 => hit.outside_len = value,
                        4 => hit.service = value % 8,
                        _ => hit.flags = value,
                    }
                    *hit = hit.sealed(&key);
                }
                3 if !maps.choices.is_empty() => {
                    let key = *maps.choices.keys().nth(pick.index(maps.choices.len())).unwrap();
                    maps.choices.insert(key, value);
                }
                4 => { maps.services.remove(&(value % 8)); }
                5 => { maps.sources.insert((value % 8, "7.0.0.0/8".parse().unwrap())); }
                6 => { maps.ports.insert(value, 3); }
                7 => { maps.addrs.pop_first(); }
                8 => { maps.addrs.insert(Addr::v4(value), KnownAddr { node: value % 3, kind: value % 32 }); }
                _ => { maps.choices.insert(ChoiceKey { service: value, hash: value }, value); }
            }
        }
        maps.readers.clear();
        maps.named.clear();
        // The checks between two writes assume maps that only we write: they start when all is right.
        let mut next = read(&mut maps);
        let mut unchecked = Unchecked(maps);
        for _ in 0..3 {
            unchecked.reconcile(&mut next, &first);
        }
        let Unchecked(mut maps) = unchecked;
        let mut next = read(&mut maps);
        assert_converged(&mut next, &first, &mut maps);
    }
}

proptest! {
    // Each case is as many as it writes.
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn a_daemon_killed_at_any_write_is_repaired_by_the_next(first in table(), second in table(), third in table()) {
        let mut before = Sim::default();
        let mut state = read(&mut before);
        prop_assert_eq!(reconcile(&mut state, &first, &mut before), 0);
        let mut whole = before.clone();
        prop_assert_eq!(reconcile(&mut state.clone(), &second, &mut whole), 0);
        for kill in before.writes..=whole.writes {
            let mut maps = Sim { killed_at: Some(kill), ..before.clone() };
            reconcile(&mut state.clone(), &second, &mut maps);
            maps.killed_at = None;
            let mut next = read(&mut maps);
            // It may be told the same, or something new.
            let wanted = if kill % 2 == 0 { &second } else { &third };
            assert_converged(&mut next, wanted, &mut maps);
        }
    }
}

/// Reconciles without the checks between writes.
struct Unchecked(Sim);

impl Unchecked {
    fn reconcile(&mut self, state: &mut State, wanted: &ServiceTable) {
        state.apply(&model::diff(&state.table(), wanted), self);
        state.settle(self).unwrap();
    }
}

impl Maps for Unchecked {
    type Error = Injected;

    fn write(&mut self, write: &Write) -> Result<(), Injected> {
        match write {
            Write::Backend(slot, backend) => {
                self.0.backends.insert(*slot, *backend);
            }
            Write::Service(id, name) => set(&mut self.0.services, id, name),
            Write::Source(service, range, true) => drop(self.0.sources.insert((*service, *range))),
            Write::Source(service, range, false) => drop(self.0.sources.remove(&(*service, *range))),
            Write::Ports(index, word) => drop(self.0.ports.insert(*index, *word)),
            Write::KnownAddr(addr, at) => set(&mut self.0.addrs, addr, at),
            Write::Choice(key, slot) => set(&mut self.0.choices, key, slot),
            Write::Ring(start, slots) => self.0.write_ring(*start, slots),
            Write::Frontend(key, value) => set(&mut self.0.frontends, key, value),
            Write::Node(index, node) => drop(self.0.nodes.insert(*index, *node)),
            Write::NodeName(index, name) => set(&mut self.0.node_names, index, name),
            Write::Range(range, node) => set(&mut self.0.ranges, range, node),
            Write::Grace | Write::Unused(_) => {}
        }
        Ok(())
    }

    fn read_list(&mut self, start: u32, len: u32) -> Result<Vec<u32>, Injected> {
        self.0.read_list(start, len)
    }
}

fn frontend_with(backends: usize, external: bool) -> Arc<model::Frontend> {
    let backend = |n: usize| model::Backend {
        ip: [10, 244, (n >> 8) as u8, n as u8].into(),
        port: 80,
        proto: Protocol::Tcp,
        node: None,
        state: BackendState::Active,
    };
    Arc::new(model::Frontend {
        name: "a/b:c".into(),
        backends: (1..=backends).map(backend).collect(),
        outside: external.then_some(Outside::Cluster),
        ..model::Frontend::default()
    })
}

#[test]
fn a_frontend_that_does_not_fit_is_refused_whole() {
    let mut maps = Sim::default();
    let mut state = read(&mut maps);
    let at = |host: u8| FrontendAddr::new([10, 96, 0, host].into(), 80, Protocol::Tcp);
    let fits = ServiceTable { frontends: [(at(1), frontend_with(3, true))].into(), ..Default::default() };
    assert_eq!(reconcile(&mut state, &fits, &mut maps), 0);
    let writes = maps.writes;
    let refused = state.put(vec![(&at(2), &frontend_with(256, false))], &mut maps);
    assert_eq!(
        refused[0].1.to_string(),
        "map backends is full: 256 more wanted, 252 of 256 free (raise --max-backends)"
    );
    assert_eq!(maps.writes, writes);
    assert_eq!(state.table().frontends, fits.frontends);
    assert_eq!(read(&mut maps).table().frontends, fits.frontends);
}

#[test]
fn slots_come_back_after_their_grace() {
    let mut maps = Sim::default();
    let mut state = read(&mut maps);
    let at = FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
    for round in 0..50 {
        // A table of its own is long, and all of it is looked at between any two writes.
        let external = round % 10 == 0;
        for backends in [if external { 20 } else { 120 }, 0] {
            let frontends = [(at, frontend_with(backends, external))].into();
            let wanted = ServiceTable { frontends, ..Default::default() };
            assert_eq!(reconcile(&mut state, &wanted, &mut maps), 0, "round {round}");
        }
    }
}
