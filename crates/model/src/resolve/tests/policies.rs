//! Who takes new flows under which policy, met where.

use super::*;

/// `default/web` at 10.96.0.10:80, node port 30080 and the load balancer's address 1.2.3.4, with these policies.
fn web(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        internal_policy: internal,
        external_policy: external,
        balancer_ips: [ip("1.2.3.4")].into(),
        ..service("web", 1, &["10.96.0.10"], 80, Some(30080))
    }
}

/// For the ClusterIP, the node port and the load balancer's address: who takes new flows of clients in the cluster,
/// and of clients from outside. Addresses by their last byte; nobody: what the client gets.
fn takers(service: Service, endpoints: Vec<Endpoint>) -> [String; 3] {
    let lists = vec![list("web", "a", endpoints)];
    let (table, _) = services(&snapshot(three_nodes(), vec![service], lists), &name("n1"), &Rules::default());
    let last = |ip: IpAddr| ip.to_string().rsplit('.').next().unwrap().to_owned();
    let said = |active: Vec<String>, refusal: Refusal| match active.is_empty() {
        true => format!("{refusal:?}"),
        false => active.join(" "),
    };
    [("10.96.0.10", 80), ("0.0.0.0", 30080), ("1.2.3.4", 80)].map(|(at, port)| {
        let frontend = &table.frontends[&FrontendAddr::new(ip(at), port, Protocol::Tcp)];
        let active = frontend.backends.iter().filter(|b| b.state == BackendState::Active);
        let inside = said(active.map(|b| last(b.ip)).collect(), frontend.refusal);
        match &frontend.outside {
            None => inside,
            Some(Outside::Cluster) => format!("{inside} / same"),
            Some(Outside::Local { backends, refusal }) => {
                format!("{inside} / {}", said(backends.iter().map(|(ip, _)| last(*ip)).collect(), *refusal))
            }
        }
    })
}

/// Under internal and external policy Cluster/Cluster, Local/Cluster, Cluster/Local, Local/Local.
fn under_all(endpoints: &[Endpoint]) -> [[String; 3]; 4] {
    use TrafficPolicy::{Cluster, Local};
    [(Cluster, Cluster), (Local, Cluster), (Cluster, Local), (Local, Local)]
        .map(|(internal, external)| takers(web(internal, external), endpoints.to_vec()))
}

/// n1 is this node: 10.244.1.x are here.
#[test]
fn fault_078_those_that_end_take_new_flows_where_nobody_is_ready() {
    let here_ends = endpoint("10.244.1.1", None, "ending");
    let there_ends = endpoint("10.244.2.2", None, "ending");
    let there_is_ready = endpoint("10.244.2.3", None, "ready");
    let here_is_deaf = endpoint("10.244.1.4", None, "deaf");
    // Nobody is ready anywhere: those that end, here and there.
    assert_eq!(
        under_all(&[here_ends.clone(), there_ends.clone(), here_is_deaf.clone()]),
        [
            ["1 2", "1 2 / same", "1 2 / same"],
            ["1", "1 2 / same", "1 2 / same"],
            ["1 2", "1 2 / 1", "1 2 / 1"],
            ["1", "1 2 / 1", "1 2 / 1"],
        ]
    );
    // Somebody is, elsewhere: cluster and local decide apart.
    assert_eq!(
        under_all(&[here_ends.clone(), there_ends.clone(), there_is_ready.clone()]),
        [
            ["3", "3 / same", "3 / same"],
            ["1", "3 / same", "3 / same"],
            ["3", "3 / 1", "3 / 1"],
            ["1", "3 / 1", "3 / 1"],
        ]
    );
    // Only elsewhere, and they end: here there is nobody, but there is somebody.
    assert_eq!(
        under_all(std::slice::from_ref(&there_ends)),
        [
            ["2", "2 / same", "2 / same"],
            ["Drop", "2 / same", "2 / same"],
            ["2", "2 / Drop", "2 / Drop"],
            ["Drop", "2 / Drop", "2 / Drop"],
        ]
    );
    // The load balancer is told 0 although somebody who ends still serves.
    let mut asked = web(TrafficPolicy::Cluster, TrafficPolicy::Local);
    asked.health_check_port = Some(32000);
    for (ends, local) in [
        (vec![here_ends.clone(), there_is_ready.clone()], 0),
        (vec![endpoint("10.244.1.9", None, "ready"), here_ends, here_is_deaf], 1),
        (vec![there_is_ready], 0),
    ] {
        let snapshot = snapshot(three_nodes(), vec![asked.clone()], vec![list("web", "a", ends)]);
        let checks = health(&snapshot, &name("n1"), &Rules::default());
        assert_eq!(checks.keys().collect::<Vec<_>>(), [&32000]);
        assert_eq!((checks[&32000].local, &*checks[&32000].service.name), (local, "web"));
    }
}

#[test]
fn fault_079_without_endpoints_here_clients_are_dropped_and_without_any_refused() {
    let elsewhere = [endpoint("10.244.2.3", None, "ready")];
    assert_eq!(
        under_all(&elsewhere),
        [
            ["3", "3 / same", "3 / same"],
            ["Drop", "3 / same", "3 / same"],
            ["3", "3 / Drop", "3 / Drop"],
            ["Drop", "3 / Drop", "3 / Drop"],
        ]
    );
    let nobody = ["Reject", "Reject / same", "Reject / same"];
    let local = ["Reject", "Reject / Reject", "Reject / Reject"];
    assert_eq!(under_all(&[]), [nobody, nobody, local, local]);
    // Those that do not serve are nobody.
    assert_eq!(under_all(&[endpoint("10.244.1.4", None, "deaf")]), [nobody, nobody, local, local]);
}

#[test]
fn everybody_is_ready_where_the_service_says_so() {
    let mut all = web(TrafficPolicy::Cluster, TrafficPolicy::Local);
    all.publish_not_ready = true;
    all.health_check_port = Some(32000);
    let ends = vec![endpoint("10.244.1.1", None, "deaf"), endpoint("10.244.2.2", None, "ending")];
    assert_eq!(takers(all.clone(), ends.clone()), ["1 2", "1 2 / 1", "1 2 / 1"]);
    let checks = health(
        &snapshot(three_nodes(), vec![all], vec![list("web", "a", ends)]),
        &name("n1"),
        &Rules::default(),
    );
    assert_eq!(checks[&32000].local, 1);
}

#[test]
fn health_checks_count_addresses_once_and_the_older_service_has_the_port() {
    let asked = |text: &str, created: i64| Service {
        health_check_port: Some(32000),
        ..service(text, created, &["10.96.0.10"], 80, None)
    };
    let mut two_ports = list("web", "a", vec![endpoint("10.244.1.1", None, "ready")]);
    two_ports.ports.push(EndpointPort { name: "b".into(), port: 81, proto: Protocol::Tcp });
    let lists = vec![
        two_ports,
        list("web", "b", vec![endpoint("10.244.1.1", None, "ready"), endpoint("10.244.1.2", None, "ready")]),
        list("web", "c", vec![endpoint("fd00:10:244:1::1", None, "ready")]),
        list("old", "d", vec![]),
    ];
    let count = |services: Vec<Service>| {
        let all = snapshot(three_nodes(), services, lists.clone());
        let checks = health(&all, &name("n1"), &Rules::default());
        checks.into_iter().map(|(port, check)| (port, check.service.name, check.local)).collect::<Vec<_>>()
    };
    assert_eq!(count(vec![asked("web", 2)]), [(32000, "web".into(), 2)]);
    assert_eq!(count(vec![asked("web", 2), asked("old", 1)]), [(32000, "old".into(), 0)]);
    assert_eq!(count(vec![service("web", 1, &[], 80, None)]), []);
}

/// The part of it that is decided here: the time stands in every frontend of the service, and in none if it is unset.
#[test]
fn fault_080_affinity_is_set_and_unset_on_every_frontend() {
    let ends = || vec![list("web", "a", vec![endpoint("10.244.1.1", None, "ready")])];
    let mut resolver = Resolver::default();
    let mut affinities = |seconds: Option<u32>| {
        let mut web = web(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
        web.affinity = seconds;
        let all = snapshot(three_nodes(), vec![web], ends());
        let (table, _) = resolver.services(&all, &name("n1"), &Rules::default());
        table.frontends.values().map(|frontend| frontend.affinity).collect::<Vec<_>>()
    };
    for seconds in [None, Some(10_800), Some(5), None] {
        assert_eq!(affinities(seconds), [seconds; 3]);
    }
}

/// Maglev tables are made of the active backends: every node must have the same, in the same order.
#[test]
fn fault_093_all_nodes_choose_among_the_same_for_clients_from_outside() {
    let ends = (1..=3).flat_map(|node| (1..=9).map(move |host| (node, host)));
    let ends: Vec<Endpoint> = ends
        .map(|(node, host)| {
            endpoint(&format!("10.244.{node}.{host}"), None, if host % 4 == 0 { "ending" } else { "ready" })
        })
        .collect();
    let mut turned = ends.clone();
    turned.reverse();
    let table = |local: &str, ends: &[Endpoint]| {
        let web = vec![web(TrafficPolicy::Cluster, TrafficPolicy::Cluster)];
        let lists = vec![list("web", "a", ends.to_vec())];
        services(&snapshot(three_nodes(), web, lists), &name(local), &Rules::default()).0.frontends
    };
    let first = table("n1", &ends);
    assert!(first.values().any(|frontend| frontend.outside == Some(Outside::Cluster)));
    assert!(["n2", "n3", "stranger"].iter().all(|local| table(local, &turned) == first));
}
