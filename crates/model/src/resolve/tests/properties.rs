//! Properties over hostile clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::super::*;
use super::{ip, naive, name};
use crate::*;

/// A universe small enough that everything collides.
fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..3, 1u8..4).prop_map(|(range, host)| IpAddr::from([10, 244, range, host])),
        (0u8..4).prop_map(|host| IpAddr::from([192, 168, 77, host])),
        (0u8..4).prop_map(|host| IpAddr::from([10, 96, 0, host])),
        (1u16..4).prop_map(|host| IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, host])),
        prop::sample::select(vec![
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "0.0.0.0"
        ])
        .prop_map(ip),
    ]
}

fn any_zone() -> impl Strategy<Value = Option<Arc<str>>> {
    prop::option::weighted(0.8, prop::sample::select(vec![Arc::from("east"), Arc::from("west")]))
}

prop_compose! {
    fn any_node()(n in 0u8..5, created in 0i64..3, addresses in prop::collection::vec(any_ip(), 0..3),
        ranges in prop::collection::vec((any_ip(), 6u8..=32), 0..3), zone in any_zone(), down: bool) -> Node
    {
        let range = |(ip, prefix): (IpAddr, u8)| IpNetwork::new(ip, if ip.is_ipv6() { prefix * 4 } else { prefix });
        let pod_ranges = ranges.into_iter().map(|range_| range(range_).unwrap()).collect();
        Node { name: name(&format!("n{n}")), created: Created(created), addresses, pod_ranges, zone, down, ..Node::default() }
    }
}

/// What of a service is not its ports and ClusterIPs.
fn any_policies() -> impl Strategy<Value = Service> {
    let ips = || prop::collection::btree_set(any_ip(), 0..2);
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let ranges = prop::collection::btree_set(prop::sample::select(vec!["10.0.0.0/8", "fd00::/8"]), 0..2)
        .prop_map(|ranges| ranges.iter().map(|range| range.parse().unwrap()).collect());
    let wish = prop::option::of(prop::sample::select(vec![Distribution::SameZone, Distribution::SameNode]));
    (ips(), ips(), policy(), policy(), prop::option::of(ranges), wish, prop::option::of(1u32..9), any::<u8>())
        .prop_map(
            |(
                external_ips,
                balancer_ips,
                internal_policy,
                external_policy,
                source_ranges,
                distribution,
                affinity,
                odds,
            )| {
                Service {
                    external_ips,
                    balancer_ips,
                    internal_policy,
                    external_policy,
                    source_ranges,
                    distribution,
                    affinity,
                    publish_not_ready: odds < 30,
                    ..Service::default()
                }
            },
        )
}

pub fn any_rules() -> impl Strategy<Value = Rules> {
    let ranges = |all: &[&str]| {
        let all: Vec<IpNetwork> = all.iter().map(|range| range.parse().unwrap()).collect();
        prop::collection::vec(prop::sample::select(all), 0..2)
    };
    (ranges(&["10.96.0.0/31", "fd77::/126"]), ranges(&["10.96.0.0/30", "0.0.0.0/0"])).prop_map(
        |(service_ranges, external_ranges)| Rules { service_ranges, external_ranges, ..Rules::default() },
    )
}

fn any_proto() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp])
}

prop_compose! {
    fn any_service()(n in 0u8..4, created in 0i64..3, addresses in prop::collection::btree_set(any_ip(), 0..3),
        ports in prop::collection::vec((1u16..3, any_proto(), prop::option::of(30000u16..30003)), 0..3),
        v4: bool, v6: bool, policies in any_policies()) -> Service
    {
        Service {
            name: ServiceName::new("default", format!("s{n}")),
            created: Created(created),
            addresses,
            families: Families { v4, v6 },
            ports: ports.into_iter()
                .map(|(port, proto, node_port)| ServicePort { name: port.to_string(), port, proto, node_port })
                .collect(),
            ..policies
        }
    }
}

/// Most have hints, or no rule that needs all of them would ever be met.
fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let zones = || {
        prop::collection::btree_set(prop::sample::select(vec![Arc::from("east"), Arc::from("west")]), 0..3)
    };
    let nodes = prop::collection::btree_set((0u8..3).prop_map(|n| name(&format!("n{n}"))), 0..3);
    (
        any_ip(),
        prop::option::of(0u8..6),
        prop::sample::select(vec!["ready", "ready", "ending", "deaf"]),
        any_zone(),
        zones(),
        nodes,
        0u8..3,
    )
        .prop_map(|(ip, node, life, zone, zones, nodes, hinted)| Endpoint {
            node: node.map(|n| name(&format!("n{n}"))),
            zone,
            hints: (hinted > 0)
                .then(|| Box::new(Hints { zones, nodes: if hinted > 1 { nodes } else { BTreeSet::new() } })),
            ..super::endpoint(&ip.to_string(), None, life)
        })
}

prop_compose! {
    fn any_endpoints()(n in 0u8..4, part in 0u8..3, ports in prop::collection::vec((0u16..3, any_proto(), 1u16..3), 0..4),
        endpoints in prop::collection::vec(any_endpoint(), 0..6)) -> Endpoints
    {
        Endpoints {
            name: EndpointsName { service: ServiceName::new("default", format!("s{n}")), part: part.to_string().into() },
            ports: ports.into_iter()
                .map(|(port, proto, name)| EndpointPort { name: name.to_string(), port, proto })
                .collect(),
            endpoints,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Thing {
    Node(Node),
    Service(Service),
    Endpoints(Endpoints),
}

pub fn any_things() -> impl Strategy<Value = Vec<Thing>> {
    prop::collection::vec(
        prop_oneof![
            any_node().prop_map(Thing::Node),
            any_service().prop_map(Thing::Service),
            any_endpoints().prop_map(Thing::Endpoints),
        ],
        0..16,
    )
    // One object of a name: which of two counts is the source's business.
    .prop_map(|things| {
        let mut seen = BTreeSet::new();
        things.into_iter().filter(|thing| seen.insert(key(thing))).collect()
    })
}

fn key(thing: &Thing) -> Object {
    match thing {
        Thing::Node(node) => Object::Node(node.name.clone()),
        Thing::Service(service) => Object::Service(service.name.clone()),
        Thing::Endpoints(list) => Object::Endpoints(list.name.clone()),
    }
}

/// Tells the store one thing after the other.
pub fn arrive(things: &[Thing]) -> Arc<Snapshot> {
    let store = Store::new();
    let source = store.source("test");
    let mut slice = Slice::default();
    for thing in things {
        match thing.clone() {
            Thing::Node(node) => drop(slice.nodes.insert(node.name.clone(), Arc::new(node))),
            Thing::Service(service) => drop(slice.services.insert(service.name.clone(), Arc::new(service))),
            Thing::Endpoints(list) => drop(slice.endpoints.insert(list.name.clone(), Arc::new(list))),
        }
        source.replace(slice.clone());
    }
    store.snapshot()
}

fn shuffled() -> impl Strategy<Value = (Vec<Thing>, Vec<Thing>)> {
    any_things().prop_flat_map(|things| (Just(things.clone()), Just(things).prop_shuffle())).prop_map(
        |(things, mut other)| {
            for thing in &mut other {
                match thing {
                    Thing::Endpoints(list) => {
                        list.endpoints.reverse();
                        list.ports.reverse();
                    }
                    Thing::Service(service) => service.ports.reverse(),
                    Thing::Node(_) => {}
                }
            }
            (things, other)
        },
    )
}

proptest! {
    #[test]
    fn fault_088_the_order_of_arrival_does_not_matter((one, other) in shuffled(), rules in any_rules()) {
        let (one, other) = (arrive(&one), arrive(&other));
        let local = name("n1");
        prop_assert_eq!(services(&one, &local, &rules), services(&other, &local, &rules));
        prop_assert_eq!(overlay(&one, &local, &rules), overlay(&other, &local, &rules));
        prop_assert_eq!(health(&one, &local, &rules), health(&other, &local, &rules));
    }

    #[test]
    fn a_table_is_what_the_rules_say_in_plain_words(things in any_things(), rules in any_rules()) {
        let snapshot = arrive(&things);
        let (table, _) = services(&snapshot, &name("n1"), &rules);
        let read: BTreeMap<_, _> = table.frontends.iter().map(|(at, frontend)| (*at, naive::read(frontend))).collect();
        prop_assert_eq!(read, naive::meanings(&snapshot, &name("n1"), &rules));
    }

    #[test]
    fn a_table_holds_nothing_hostile(things in any_things(), rules in any_rules()) {
        let snapshot = arrive(&things);
        let (table, _) = services(&snapshot, &name("n1"), &rules);
        let owned: BTreeSet<IpAddr> = table.nodes.values().flat_map(|node| node.addresses.clone()).collect();
        let ranges: BTreeSet<IpNetwork> = table.nodes.values().flat_map(|node| node.ranges.clone()).collect();
        for (range, of_services) in ranges.iter().flat_map(|range| rules.service_ranges.iter().map(move |of| (range, of))) {
            prop_assert!(!subnet::overlap(*range, *of_services));
        }
        for (at, frontend) in &table.frontends {
            prop_assert!(at.is_node_port() || subnet::hostile(at.ip).is_none());
            prop_assert!(!owned.contains(&at.ip));
            prop_assert!(!ranges.iter().any(|range| range.contains(at.ip)));
            // S5: what is reached from outside is nobody's ClusterIP, and in no range of them.
            let external = frontend.is_external() && !at.is_node_port();
            let cluster = snapshot.services.values().any(|service| service.addresses.contains(&at.ip));
            prop_assert!(!external || !cluster && rules.service_range(at.ip).is_none());
            let mut seen = BTreeSet::new();
            for backend in &frontend.backends {
                prop_assert!(subnet::hostile(backend.ip).is_none());
                prop_assert!(!table.frontends.keys().any(|at| at.ip == backend.ip));
                prop_assert_eq!(backend.ip.is_ipv4(), at.ip.is_ipv4());
                prop_assert!(backend.port != 0 && seen.insert((backend.ip, backend.port)));
                let has = |node: &ServiceNode| {
                    node.addresses.contains(&backend.ip) || node.ranges.iter().any(|range| range.contains(backend.ip))
                };
                prop_assert!(backend.node.as_ref().is_none_or(|node| table.nodes.get(node).is_some_and(has)));
            }
            if let Some(Outside::Local { backends, .. }) = &frontend.outside {
                for at in backends {
                    let known = frontend.backends.iter().find(|backend| (backend.ip, backend.port) == *at).unwrap();
                    prop_assert_eq!(&known.node, &Some(name("n1")));
                    prop_assert!(known.state != BackendState::Down);
                }
            }
            prop_assert!(frontend.sources.iter().flatten().all(|range| range.is_ipv4() == at.ip.is_ipv4()));
        }
    }

    /// Each step shows a node another world; what it says of it must not depend on the worlds before, and what did
    /// not change must be the very same.
    #[test]
    fn a_memory_changes_nothing(
        worlds in prop::collection::vec((any_things(), any_rules(), 0u8..9), 1..5), steps in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut resolver = Resolver::default();
        let (mut things, mut rules) = (Vec::new(), Rules::default());
        let mut local = name("n1");
        let mut before = ServiceTable::default();
        for (number, step) in steps.iter().enumerate() {
            let (world, other_rules, odds) = step.get(&worlds);
            if *odds == 0 {
                rules = other_rules.clone();
            }
            if *odds == 1 {
                local = name("n2");
            }
            // One object changes, comes or goes, or everything does.
            let object = world.get(number % world.len().max(1));
            match object {
                Some(thing) if *odds < 8 => {
                    let had = things.len();
                    things.retain(|known| known != thing && key(known) != key(thing));
                    if had == things.len() || number % 2 == 0 {
                        things.push(thing.clone());
                    }
                }
                _ => things.clone_from(world),
            }
            let snapshot = arrive(&things);
            let answer = resolver.services(&snapshot, &local, &rules);
            prop_assert_eq!(&answer, &services(&snapshot, &local, &rules));
            for (at, frontend) in &answer.0.frontends {
                let same = before.frontends.get(at).filter(|old| *old == frontend);
                prop_assert!(same.is_none_or(|old| Arc::ptr_eq(old, frontend)), "{at} was made anew");
            }
            before = answer.0;
        }
    }

    #[test]
    fn what_nodes_have_is_disjoint(things in any_things()) {
        let snapshot = arrive(&things);
        let nodes = Nodes::seen_from(&snapshot, &name("n1"), &Rules::default());
        let ranges: Vec<IpNetwork> = nodes.accepted.values().flat_map(|node| node.ranges.clone()).collect();
        let mut addresses: Vec<IpAddr> = nodes.accepted.values().flat_map(|node| node.addresses.clone()).collect();
        for (i, one) in ranges.iter().enumerate() {
            for other in &ranges[i + 1..] {
                let (first, last) = subnet::ends(*one);
                let (low, high) = subnet::ends(*other);
                prop_assert!(last < low || high < first, "{one} {other}");
            }
            prop_assert!(!addresses.iter().any(|ip| one.contains(*ip)));
        }
        addresses.sort();
        prop_assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
        // Whatever is refused is said.
        let asked: usize = snapshot.nodes.values().map(|node| {
            node.addresses.iter().collect::<BTreeSet<_>>().len()
                + node.pod_ranges.iter().map(|r| subnet::canonical(*r)).collect::<BTreeSet<_>>().len()
        }).sum();
        prop_assert_eq!(asked, ranges.len() + addresses.len() + nodes.problems.len());
    }

    #[test]
    fn other_nodes_take_nothing_from_this_one(things in any_things()) {
        let all = arrive(&things);
        let mut alone = Snapshot::clone(&all);
        alone.nodes.retain(|other, _| *other == name("n1"));
        let own = |snapshot| Nodes::seen_from(snapshot, &name("n1"), &Rules::default()).accepted.remove(&name("n1"));
        prop_assert_eq!(own(&all), own(&alone));
    }

    #[test]
    fn a_plan_does_what_it_says((one, other) in (any_things(), any_things())) {
        let table = |things: &[Thing], local: &str| services(&arrive(things), &name(local), &Rules::default()).0;
        let (from, to) = (table(&one, "n1"), table(&other, "n2"));
        prop_assert_eq!(diff(&from, &from), []);
        let plan = diff(&from, &to);
        let mut parts: Vec<Part> = plan.iter().map(Step::part).collect();
        let mut now = from.clone();
        let mut removing = false;
        for step in &plan {
            match step {
                Step::PutFrontend { at, frontend, effect } => {
                    prop_assert_eq!(*effect == Effect::Create, !now.frontends.contains_key(at));
                    // Backends' nodes are there before the frontend that leads to them.
                    prop_assert!(frontend.backends.iter().filter_map(|b| b.node.as_ref()).all(|n| now.nodes.contains_key(n)));
                }
                Step::RemoveNode { name } => prop_assert!(
                    !now.frontends.values().flat_map(|f| &f.backends).any(|b| b.node.as_ref() == Some(name))
                ),
                _ => {}
            }
            // Make before break.
            prop_assert!(!removing || step.effect() == Effect::Remove);
            removing |= step.effect() == Effect::Remove && step.part() != Part::Local;
            step.apply(&mut now);
        }
        prop_assert_eq!(&now, &to);
        parts.sort();
        prop_assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "one step for a part");
        let mut again = now.clone();
        plan.iter().for_each(|step| step.apply(&mut again));
        prop_assert_eq!(again, now, "a plan can be done twice");
    }

    #[test]
    fn tables_survive_json(things in any_things()) {
        let (table, _) = services(&arrive(&things), &name("n1"), &Rules::default());
        let text = serde_json::to_string(&table).unwrap();
        prop_assert_eq!(serde_json::from_str::<ServiceTable>(&text).unwrap(), table);
    }
}
