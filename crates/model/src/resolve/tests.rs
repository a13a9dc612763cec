//! Examples, each the whole truth of a small cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::*;
use crate::*;

mod changes;
mod external;
mod naive;
mod near;
mod policies;
mod properties;
mod tunnels;

const VNI: u32 = 1;

fn name(text: &str) -> NodeName {
    NodeName(text.into())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(text: &str, created: i64, addresses: &[&str], ranges: &[&str]) -> Node {
    Node {
        name: name(text),
        created: Created(created),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
        ..Node::default()
    }
}

fn service(text: &str, created: i64, addresses: &[&str], port: u16, node_port: Option<u16>) -> Service {
    let addresses: BTreeSet<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    Service {
        name: ServiceName::new("default", text),
        created: Created(created),
        families: Families {
            v4: addresses.iter().any(IpAddr::is_ipv4),
            v6: addresses.iter().any(IpAddr::is_ipv6),
        },
        addresses,
        ports: vec![ServicePort { name: String::new(), port, proto: Protocol::Tcp, node_port }],
        ..Service::default()
    }
}

/// `ready`, `ending` or `deaf`.
fn endpoint(address: &str, node: Option<&str>, life: &str) -> Endpoint {
    Endpoint {
        node: node.map(name),
        serving: life != "deaf",
        terminating: life == "ending",
        ..Endpoint::new(ip(address))
    }
}

fn list(service: &str, part: &str, endpoints: Vec<Endpoint>) -> Endpoints {
    Endpoints {
        name: EndpointsName { service: ServiceName::new("default", service), part: part.into() },
        ports: vec![EndpointPort { name: String::new(), port: 80, proto: Protocol::Tcp }],
        endpoints,
    }
}

/// A host port is a frontend on loopback, with one backend, here; whatever services there are.
#[test]
fn host_ports_are_met_on_loopback_and_lead_to_this_node() {
    let mut all = snapshot(
        vec![node("n1", 1, &["192.168.77.1"], &["10.244.1.0/24"])],
        vec![service("web", 1, &["127.0.0.1"], 8080, None)],
        Vec::new(),
    );
    for (address, port) in [("10.244.1.9", 80), ("fd00::9", 81), ("127.0.0.1", 82)] {
        let published = HostPort { owner: "hdl9:net/abc".into(), address: ip(address), port };
        let at = host_port::loopback(ip(address), 8000 + port, Protocol::Udp);
        all.host_ports.insert(at, Arc::new(published));
    }
    let (table, problems) = services(&all, &name("n1"), &Rules::default());
    let found: Vec<String> = table
        .frontends
        .iter()
        .map(|(at, frontend)| {
            let [backend] = &frontend.backends.iter().collect::<Vec<_>>()[..] else { panic!("{frontend:?}") };
            assert_eq!((&backend.node, frontend.is_external()), (&Some(name("n1")), false));
            format!("{at} {} {}:{}", frontend.name, backend.ip, backend.port)
        })
        .collect();
    let wanted = [
        "127.0.0.1:8080/udp hostport/hdl9:net/abc 10.244.1.9:80",
        "[::1]:8081/udp hostport/hdl9:net/abc fd00::9:81",
    ];
    assert_eq!(found, wanted);
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let wanted = [
        "service default/web: address 127.0.0.1 refused: loopback (127.0.0.0/8)",
        "frontend 127.0.0.1:8082/udp: address 127.0.0.1 refused: loopback (127.0.0.0/8)",
    ];
    assert_eq!(problems, wanted);
}

fn snapshot(nodes: Vec<Node>, services: Vec<Service>, endpoints: Vec<Endpoints>) -> Snapshot {
    Snapshot {
        nodes: nodes.into_iter().map(|node| (node.name.clone(), Arc::new(node))).collect(),
        services: services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect(),
        endpoints: endpoints.into_iter().map(|list| (list.name.clone(), Arc::new(list))).collect(),
        ..Snapshot::default()
    }
}

fn three_nodes() -> Vec<Node> {
    (1..=3)
        .map(|n| {
            let addresses = [format!("192.168.77.{n}"), format!("fd77::{n}")];
            let ranges = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
            let refs = |list: &[String; 2]| list.clone();
            let [a4, a6] = refs(&addresses);
            let [r4, r6] = refs(&ranges);
            node(&format!("n{n}"), n, &[&a4, &a6], &[&r4, &r6])
        })
        .collect()
}

/// The table as lines: `frontend -> backend@node/state ...`.
fn lines(snapshot: &Snapshot) -> Vec<String> {
    let (table, _) = services(snapshot, &name("n1"), &Rules::default());
    let line = |(at, frontend): (&FrontendAddr, &Arc<Frontend>)| {
        let backends: Vec<String> = frontend
            .backends
            .iter()
            .map(|b| {
                let node = b.node.as_ref().map_or("-".to_owned(), ToString::to_string);
                format!(" {}:{}@{node}/{:?}", b.ip, b.port, b.state)
            })
            .collect();
        format!("{at} {} ->{}", frontend.name, backends.concat())
    };
    table.frontends.iter().map(line).collect()
}

fn complaints(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn both_families_and_the_node_port_of_each() {
    let endpoints = vec![
        list("web", "a", vec![endpoint("10.244.2.5", None, "ready")]),
        list("web", "b", vec![endpoint("fd00:10:244:3::5", Some("n3"), "ready")]),
    ];
    let services = vec![service("web", 1, &["10.96.0.10", "fd00:10:96::a"], 8080, Some(30080))];
    assert_eq!(
        lines(&snapshot(three_nodes(), services, endpoints)),
        [
            "node(ipv4):30080/tcp default/web:8080 -> 10.244.2.5:80@n2/Active",
            "10.96.0.10:8080/tcp default/web:8080 -> 10.244.2.5:80@n2/Active",
            "node(ipv6):30080/tcp default/web:8080 -> fd00:10:244:3::5:80@n3/Active",
            "[fd00:10:96::a]:8080/tcp default/web:8080 -> fd00:10:244:3::5:80@n3/Active",
        ]
    );
}

#[test]
fn readiness_and_termination() {
    let web = || vec![service("web", 1, &["10.96.0.10"], 80, None)];
    let backends = |endpoints: Vec<Endpoint>, udp: bool| {
        let mut lists = vec![list("web", "a", endpoints)];
        let mut services = web();
        if udp {
            services[0].ports[0].proto = Protocol::Udp;
            lists[0].ports[0].proto = Protocol::Udp;
        }
        lines(&snapshot(Vec::new(), services, lists))[0].split("->").nth(1).unwrap().trim().to_owned()
    };
    let all = || {
        vec![
            endpoint("10.0.0.1", None, "ready"),
            endpoint("10.0.0.2", None, "ending"),
            endpoint("10.0.0.3", None, "deaf"),
        ]
    };
    assert_eq!(backends(all(), false), "10.0.0.1:80@-/Active 10.0.0.2:80@-/Draining 10.0.0.3:80@-/Draining");
    assert_eq!(backends(all(), true), "10.0.0.1:80@-/Active 10.0.0.2:80@-/Draining 10.0.0.3:80@-/Down");
    assert_eq!(backends(all().split_off(1), false), "10.0.0.2:80@-/Active 10.0.0.3:80@-/Draining");
    let twice = vec![endpoint("10.0.0.1", None, "deaf"), endpoint("10.0.0.1", None, "ready")];
    assert_eq!(backends(twice, false), "10.0.0.1:80@-/Active", "the more alive counts, once");
}

#[test]
fn a_service_without_endpoints_has_its_frontends() {
    let services = vec![service("web", 1, &["10.96.0.10"], 80, Some(30080))];
    let lines = lines(&snapshot(Vec::new(), services, Vec::new()));
    assert_eq!(lines, ["node(ipv4):30080/tcp default/web:80 ->", "10.96.0.10:80/tcp default/web:80 ->"]);
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut web = service("web", 1, &["10.96.0.10"], 80, None);
    web.ports[0].name = "http".into();
    web.ports.push(ServicePort { name: "dns".into(), port: 53, proto: Protocol::Udp, node_port: None });
    let mut ends = list("web", "a", vec![endpoint("10.0.0.1", None, "ready")]);
    ends.ports = vec![
        EndpointPort { name: "dns".into(), port: 5353, proto: Protocol::Udp },
        EndpointPort { name: "http".into(), port: 8080, proto: Protocol::Tcp },
        EndpointPort { name: "http".into(), port: 0, proto: Protocol::Tcp },
        EndpointPort { name: "other".into(), port: 1, proto: Protocol::Tcp },
    ];
    assert_eq!(
        lines(&snapshot(Vec::new(), vec![web], vec![ends])),
        [
            "10.96.0.10:53/udp default/web:dns -> 10.0.0.1:5353@-/Active",
            "10.96.0.10:80/tcp default/web:http -> 10.0.0.1:8080@-/Active"
        ]
    );
}

#[test]
fn local_policy_keeps_to_this_node() {
    let mut web = service("web", 1, &["10.96.0.10"], 80, Some(30080));
    web.internal_policy = TrafficPolicy::Local;
    let ends =
        list("web", "a", vec![endpoint("10.244.1.5", None, "ending"), endpoint("10.244.2.5", None, "ready")]);
    assert_eq!(
        lines(&snapshot(three_nodes(), vec![web], vec![ends])),
        [
            "node(ipv4):30080/tcp default/web:80 -> 10.244.1.5:80@n1/Draining 10.244.2.5:80@n2/Active",
            "10.96.0.10:80/tcp default/web:80 -> 10.244.1.5:80@n1/Active",
        ]
    );
}

#[test]
fn the_address_decides_where_an_endpoint_is() {
    let web = service("web", 1, &["10.96.0.10"], 80, None);
    let ends = list(
        "web",
        "a",
        vec![
            endpoint("10.244.2.5", Some("n3"), "ready"),
            endpoint("192.168.77.3", None, "ready"),
            endpoint("192.168.77.2", Some("n2"), "ready"),
            endpoint("172.16.0.2", Some("nobody"), "ready"),
        ],
    );
    let all = snapshot(three_nodes(), vec![web], vec![ends]);
    let expected = "-> 10.244.2.5:80@n2/Active 172.16.0.2:80@-/Active 192.168.77.2:80@n2/Active 192.168.77.3:80@n3/Active";
    assert!(lines(&all)[0].ends_with(expected), "{:?}", lines(&all));
    assert_eq!(services(&all, &name("n1"), &Rules::default()).1, []);
}

#[test]
fn an_endpoint_at_an_address_that_its_node_does_not_have_is_not_sent_to_that_node() {
    let mut web = service("web", 1, &["10.96.0.10"], 80, Some(30080));
    web.internal_policy = TrafficPolicy::Local;
    let ends = vec![
        endpoint("172.16.0.1", Some("n1"), "ready"),
        endpoint("10.244.9.5", Some("n2"), "ready"),
        endpoint("10.244.1.5", Some("n1"), "ready"),
        endpoint("192.168.77.1", Some("n1"), "ready"),
    ];
    let all = snapshot(three_nodes(), vec![web], vec![list("web", "a", ends)]);
    assert_eq!(
        lines(&all),
        [
            "node(ipv4):30080/tcp default/web:80 -> 10.244.1.5:80@n1/Active 10.244.9.5:80@-/Active \
             172.16.0.1:80@-/Active 192.168.77.1:80@n1/Active",
            "10.96.0.10:80/tcp default/web:80 -> 10.244.1.5:80@n1/Active 192.168.77.1:80@n1/Active",
        ]
    );
    assert_eq!(
        complaints(services(&all, &name("n1"), &Rules::default()).1),
        [
            "endpoints default/a: address 10.244.9.5 counts as no node's: node n2 has it neither as its own nor in \
             its pod ranges",
            "endpoints default/a: address 172.16.0.1 counts as no node's: node n1 has it neither as its own nor in \
             its pod ranges",
        ]
    );
}

#[test]
fn the_older_service_wins_and_then_the_name() {
    let services_of = |created: [i64; 3]| {
        vec![
            service("a", created[0], &["10.96.0.1"], 80, Some(30080)),
            service("b", created[1], &["10.96.0.1"], 80, Some(30081)),
            service("c", created[2], &["10.96.0.3"], 80, Some(30080)),
        ]
    };
    let all = snapshot(Vec::new(), services_of([5, 1, 5]), Vec::new());
    assert_eq!(
        lines(&all),
        [
            "node(ipv4):30080/tcp default/a:80 ->",
            "node(ipv4):30081/tcp default/b:80 ->",
            "10.96.0.1:80/tcp default/b:80 ->",
            "10.96.0.3:80/tcp default/c:80 ->",
        ]
    );
    let (_, problems) = services(&all, &name("n1"), &Rules::default());
    assert_eq!(
        complaints(problems),
        [
            "service default/a: frontend 10.96.0.1:80/tcp refused: it belongs to service default/b, which had it first",
            "service default/c: frontend node(ipv4):30080/tcp refused: it belongs to service default/a, which had it first",
        ]
    );
}

#[test]
fn fault_s7_hostile_endpoints_never_become_backends() {
    let web = service("web", 1, &["10.96.0.10"], 80, None);
    let hostile = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"];
    let mut ends: Vec<Endpoint> = hostile.iter().map(|ip| endpoint(ip, None, "ready")).collect();
    ends.push(endpoint("10.0.0.1", None, "ready"));
    ends.push(endpoint("10.96.0.10", None, "ready"));
    let all = snapshot(Vec::new(), vec![web], vec![list("web", "a", ends)]);
    assert_eq!(lines(&all), ["10.96.0.10:80/tcp default/web:80 -> 10.0.0.1:80@-/Active"]);
    let problems = complaints(services(&all, &name("n1"), &Rules::default()).1);
    assert_eq!(problems.len(), hostile.len() + 1);
    let own = "endpoints default/a: address 10.96.0.10 refused: it belongs to service default/web";
    assert!(problems.iter().any(|problem| problem == own), "{problems:?}");
    assert_eq!(problems[1], "endpoints default/a: address 127.0.0.1 refused: loopback (127.0.0.0/8)");
}

#[test]
fn a_service_takes_no_address_from_a_node() {
    let web = service("web", 1, &["192.168.77.2", "10.96.0.10", "169.254.0.1"], 80, None);
    let all = snapshot(three_nodes(), vec![web], Vec::new());
    assert_eq!(lines(&all), ["10.96.0.10:80/tcp default/web:80 ->"]);
    assert_eq!(
        complaints(services(&all, &name("n1"), &Rules::default()).1),
        [
            "service default/web: address 169.254.0.1 refused: link-local (169.254.0.0/16)",
            "service default/web: address 192.168.77.2 refused: it belongs to node n2",
        ]
    );
}

#[test]
fn a_service_in_a_pod_range_does_not_cut_the_node_off() {
    // Older than all nodes; at the address of a pod, at that of the overlay, and in a range of IPv6.
    let evil = service("evil", 0, &["10.244.2.7", "10.244.3.0", "fd00:10:244:1::5", "10.96.0.11"], 80, None);
    let all = snapshot(three_nodes(), vec![evil], Vec::new());
    assert_eq!(
        overlay(&all, &name("n1"), &Rules::default()),
        overlay(&snapshot(three_nodes(), vec![], vec![]), &name("n1"), &Rules::default())
    );
    let (table, problems) = services(&all, &name("n1"), &Rules::default());
    assert!(table.nodes.values().all(|node| node.ranges.len() == 2 && node.mac.is_some()), "{table:?}");
    assert_eq!(lines(&all), ["10.96.0.11:80/tcp default/evil:80 ->"]);
    assert_eq!(
        complaints(problems),
        [
            "service default/evil: address 10.244.2.7 refused: it belongs to node n2",
            "service default/evil: address 10.244.3.0 refused: it belongs to node n3",
            "service default/evil: address fd00:10:244:1::5 refused: it belongs to node n1",
        ]
    );
}

#[test]
fn a_service_with_the_address_of_a_pod_or_node_does_not_take_it_from_other_services() {
    let evil = service("evil", 0, &["10.244.2.5", "192.168.77.3"], 80, None);
    let web = service("web", 1, &["10.96.0.10"], 80, None);
    let ends = list(
        "web",
        "a",
        vec![endpoint("10.244.2.5", None, "ready"), endpoint("192.168.77.3", None, "ready")],
    );
    assert_eq!(
        lines(&snapshot(three_nodes(), vec![evil, web], vec![ends])),
        ["10.96.0.10:80/tcp default/web:80 -> 10.244.2.5:80@n2/Active 192.168.77.3:80@n3/Active"]
    );
}

#[test]
fn the_overlay_of_three_nodes() {
    let (table, problems) =
        overlay(&snapshot(three_nodes(), Vec::new(), Vec::new()), &name("n2"), &Rules::default());
    assert_eq!(problems, []);
    assert_eq!(table.underlay, Some(ip("192.168.77.2")));
    let ranges =
        |texts: [&str; 2]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpNetwork>>();
    assert_eq!(table.local, ranges(["10.244.2.0/24", "fd00:10:244:2::/64"]));
    assert_eq!(table.remotes.keys().map(|name| &*name.0).collect::<Vec<_>>(), ["n1", "n3"]);
    let n3 = &table.remotes[&name("n3")];
    assert_eq!(n3.underlay, ip("192.168.77.3"));
    assert_eq!(n3.mac, node::vtep_mac(&name("n3"), VNI));
    let unknown = overlay(&snapshot(three_nodes(), Vec::new(), Vec::new()), &name("n9"), &Rules::default()).0;
    assert_eq!(unknown, OverlayTable::default());
}

#[test]
fn fault_s15_hostile_node_objects() {
    let mut nodes = three_nodes();
    let bad = [
        "0.0.0.0/0",
        "10.0.0.0/7",
        "::/0",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/8",
        "10.244.1.128/25",
        "10.244.0.0/16",
        "192.168.77.0/24",
        "10.9.9.0/31",
    ];
    for (n, range) in (10..).zip(bad) {
        // Written as the youngest of all.
        nodes.push(node(&format!("evil{n}"), n, &[&format!("192.168.77.{n}")], &[range]));
    }
    nodes.push(node(
        "thief",
        99,
        &["192.168.77.1", "10.244.2.7", "127.0.0.1"],
        &["10.99.0.0/24", "10.98.0.0/24"],
    ));
    let all = snapshot(nodes, Vec::new(), Vec::new());
    let (table, problems) = overlay(&all, &name("n1"), &Rules::default());
    let remotes: Vec<_> = table.remotes.keys().map(|name| &*name.0).collect();
    assert_eq!(remotes, ["n2", "n3"], "{problems:?}");
    let problems = complaints(problems);
    for expected in [
        "node evil16: pod range 10.244.1.128/25 refused: it overlaps 10.244.1.0/24 of node n1",
        "node evil18: pod range 192.168.77.0/24 refused: it overlaps 192.168.77.1/32 of node n1",
        "node thief: address 192.168.77.1 refused: it belongs to node n1",
        "node thief: address 10.244.2.7 refused: it belongs to node n2",
        "node thief: pod range 10.98.0.0/24 ignored: the node has one of this family already",
        "node thief: not reached by the overlay: the node has no IPv4 address, and the overlay runs over IPv4",
    ] {
        assert!(problems.iter().any(|problem| problem == expected), "{expected}\n{problems:#?}");
    }
    assert!(bad.iter().all(|range| problems.iter().any(|p| p.contains(range))), "{problems:#?}");
}

/// Older than the node whose addresses and ranges it claims.
fn with_an_older_thief() -> Snapshot {
    let mut nodes = three_nodes();
    nodes.push(node("thief", 0, &["192.168.77.9", "192.168.77.2"], &["10.244.2.0/24", "fd00:10:244::/48"]));
    snapshot(nodes, Vec::new(), Vec::new())
}

#[test]
fn this_node_loses_neither_range_nor_address_to_an_older_node_object() {
    let all = with_an_older_thief();
    let ranges = three_nodes()[1].pod_ranges.iter().copied().collect::<BTreeSet<IpNetwork>>();
    let (table, problems) = overlay(&all, &name("n2"), &Rules::default());
    assert_eq!((table.underlay, &table.local), (Some(ip("192.168.77.2")), &ranges));
    let expected = [
        "node thief: pod range 10.244.2.0/24 refused: it overlaps 10.244.2.0/24 of node n2",
        "node thief: pod range fd00:10:244::/48 refused: it overlaps fd00:10:244:2::/64 of node n2",
        "node thief: address 192.168.77.2 refused: it belongs to node n2",
    ];
    assert_eq!(
        complaints(problems).iter().collect::<BTreeSet<_>>(),
        expected.map(str::to_owned).iter().collect()
    );
    let (table, _) = services(&all, &name("n2"), &Rules::default());
    assert_eq!(table.nodes[&name("n2")].ranges, ranges);
    assert!(table.nodes[&name("n2")].addresses.contains(&ip("192.168.77.2")));
}

#[test]
fn between_two_other_nodes_the_older_object_wins() {
    let (table, _) = overlay(&with_an_older_thief(), &name("n1"), &Rules::default());
    assert!(table.remotes[&name("thief")].ranges.contains(&"10.244.2.0/24".parse().unwrap()));
    assert!(!table.remotes.contains_key(&name("n2")), "{table:?}");
}

#[test]
fn a_dispute_over_addresses_gives_no_node_another_family() {
    // Whoever is asked: the disputed address counts for the thief, so both families have two nodes each, and the
    // oldest, which is the thief, speaks IPv4.
    let nodes = vec![
        node("thief", 0, &["10.0.0.1"], &["10.244.9.0/24"]),
        node("n1", 1, &["fd77::1", "10.0.0.1"], &["10.244.1.0/24"]),
        node("n2", 2, &["10.0.0.2", "fd77::2"], &["10.244.2.0/24"]),
    ];
    let all = snapshot(nodes, Vec::new(), Vec::new());
    let underlay = |local: &str| overlay(&all, &name(local), &Rules::default()).0.underlay;
    assert_eq!(["n1", "n2"].map(underlay), [Some(ip("10.0.0.1")), Some(ip("10.0.0.2"))]);
}

#[test]
fn the_overlay_runs_over_the_family_of_most_nodes() {
    let underlay = |nodes: Vec<Node>| {
        overlay(&snapshot(nodes, vec![], vec![]), &name("n1"), &Rules::default()).0.underlay
    };
    let n1 = |addresses: &[&str]| node("n1", 1, addresses, &["10.244.1.0/24"]);
    let six = |n: u8| node(&format!("n{n}"), 2, &[&format!("fd77::{n}")], &[&format!("10.244.{n}.0/24")]);
    assert_eq!(underlay(vec![n1(&["10.0.0.1", "fd77::1"]), six(2)]), Some(ip("fd77::1")));
    assert_eq!(underlay(vec![n1(&["10.0.0.1"]), six(2)]), Some(ip("10.0.0.1")), "a tie: the oldest decides");
    assert_eq!(underlay(vec![n1(&["fd77::1", "10.0.0.1"])]), Some(ip("fd77::1")));
    assert_eq!(underlay(vec![n1(&["10.0.0.1"]), six(2), six(3)]), None);
}
