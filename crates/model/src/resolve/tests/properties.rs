//! Properties over hostile clusters.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::super::backends::{self, Life};
use super::super::*;
use super::{VNI, ip, name};
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

prop_compose! {
    fn any_node()(n in 0u8..5, created in 0i64..3, addresses in prop::collection::vec(any_ip(), 0..3),
        ranges in prop::collection::vec((any_ip(), 6u8..=32), 0..3)) -> Node
    {
        let range = |(ip, prefix): (IpAddr, u8)| IpNetwork::new(ip, if ip.is_ipv6() { prefix * 4 } else { prefix });
        let pod_ranges = ranges.into_iter().map(|range_| range(range_).unwrap()).collect();
        Node { name: name(&format!("n{n}")), created: Created(created), addresses, pod_ranges, ..Node::default() }
    }
}

fn any_proto() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp])
}

prop_compose! {
    fn any_service()(n in 0u8..4, created in 0i64..3, addresses in prop::collection::btree_set(any_ip(), 0..3),
        ports in prop::collection::vec((1u16..3, any_proto(), prop::option::of(30000u16..30003)), 0..3),
        v4: bool, v6: bool, local: bool) -> Service
    {
        Service {
            name: ServiceName::new("default", format!("s{n}")),
            created: Created(created),
            addresses,
            families: Families { v4, v6 },
            ports: ports.into_iter()
                .map(|(port, proto, node_port)| ServicePort { name: port.to_string(), port, proto, node_port })
                .collect(),
            internal_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            ..Service::default()
        }
    }
}

prop_compose! {
    fn any_endpoints()(n in 0u8..4, part in 0u8..3, ports in prop::collection::vec((0u16..3, any_proto(), 1u16..3), 0..4),
        endpoints in prop::collection::vec((any_ip(), prop::option::of(0u8..6), any::<bool>(), any::<bool>()), 0..6))
        -> Endpoints
    {
        Endpoints {
            name: EndpointsName { service: ServiceName::new("default", format!("s{n}")), part: part.to_string() },
            ports: ports.into_iter()
                .map(|(port, proto, name)| EndpointPort { name: name.to_string(), port, proto })
                .collect(),
            endpoints: endpoints.into_iter()
                .map(|(ip, node, serving, terminating)| Endpoint {
                    serving, terminating, node: node.map(|n| name(&format!("n{n}"))), ..Endpoint::new(ip)
                })
                .collect(),
        }
    }
}

#[derive(Clone, Debug)]
enum Thing {
    Node(Node),
    Service(Service),
    Endpoints(Endpoints),
}

fn any_things() -> impl Strategy<Value = Vec<Thing>> {
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
        let key = |thing: &Thing| match thing {
            Thing::Node(node) => Object::Node(node.name.clone()),
            Thing::Service(service) => Object::Service(service.name.clone()),
            Thing::Endpoints(list) => Object::Endpoints(list.name.clone()),
        };
        things.into_iter().filter(|thing| seen.insert(key(thing))).collect()
    })
}

/// Tells the store one thing after the other.
fn arrive(things: &[Thing]) -> Arc<Snapshot> {
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
    fn fault_088_the_order_of_arrival_does_not_matter((one, other) in shuffled()) {
        let (one, other) = (arrive(&one), arrive(&other));
        let local = name("n1");
        prop_assert_eq!(services(&one, &local, VNI), services(&other, &local, VNI));
        prop_assert_eq!(overlay(&one, &local, VNI), overlay(&other, &local, VNI));
    }

    #[test]
    fn a_table_holds_nothing_hostile(things in any_things()) {
        let snapshot = arrive(&things);
        let (table, _) = services(&snapshot, &name("n1"), VNI);
        let owned: BTreeSet<IpAddr> = table.nodes.values().flat_map(|node| node.addresses.clone()).collect();
        let ranges: BTreeSet<IpNetwork> = table.nodes.values().flat_map(|node| node.ranges.clone()).collect();
        let service_at = |ip: IpAddr| {
            let of_a_node = owned.contains(&ip) || ranges.iter().any(|range| range.contains(ip));
            !of_a_node && snapshot.services.values().any(|service| service.addresses.contains(&ip))
        };
        for (at, frontend) in &table.frontends {
            prop_assert!(at.is_node_port() || subnet::hostile(at.ip).is_none());
            prop_assert!(!owned.contains(&at.ip));
            prop_assert!(!ranges.iter().any(|range| range.contains(at.ip)));
            let mut seen = BTreeSet::new();
            for backend in &frontend.backends {
                prop_assert!(subnet::hostile(backend.ip).is_none());
                prop_assert!(!service_at(backend.ip));
                prop_assert!(!table.frontends.keys().any(|at| at.ip == backend.ip));
                prop_assert_eq!(backend.ip.is_ipv4(), at.ip.is_ipv4());
                prop_assert!(backend.port != 0 && seen.insert((backend.ip, backend.port)));
                let has = |node: &ServiceNode| {
                    node.addresses.contains(&backend.ip) || node.ranges.iter().any(|range| range.contains(backend.ip))
                };
                prop_assert!(backend.node.as_ref().is_none_or(|node| table.nodes.get(node).is_some_and(has)));
            }
        }
    }

    #[test]
    fn new_flows_are_refused_only_if_nobody_serves(
        lives in prop::collection::vec(prop::sample::select(vec![Life::Ready, Life::Ending, Life::Deaf]), 0..6),
        proto in any_proto(),
    ) {
        let candidates = (1u16..).zip(lives.clone()).map(|(port, life)| ((ip("10.0.0.1"), port), (life, None)));
        let backends = backends::states(proto, candidates.collect());
        let active = backends.iter().filter(|b| b.state == BackendState::Active);
        let best = lives.iter().min().filter(|life| **life != Life::Deaf);
        prop_assert_eq!(active.count(), lives.iter().filter(|life| Some(*life) == best).count());
        prop_assert_eq!(backends.len(), lives.len());
    }

    #[test]
    fn what_nodes_have_is_disjoint(things in any_things()) {
        let snapshot = arrive(&things);
        let nodes = Nodes::seen_from(&snapshot, &name("n1"));
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
        let own = |snapshot| Nodes::seen_from(snapshot, &name("n1")).accepted.remove(&name("n1"));
        prop_assert_eq!(own(&all), own(&alone));
    }

    #[test]
    fn a_plan_does_what_it_says((one, other) in (any_things(), any_things())) {
        let table = |things: &[Thing], local: &str| services(&arrive(things), &name(local), VNI).0;
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
        let (table, _) = services(&arrive(&things), &name("n1"), VNI);
        let text = serde_json::to_string(&table).unwrap();
        prop_assert_eq!(serde_json::from_str::<ServiceTable>(&text).unwrap(), table);
    }
}
