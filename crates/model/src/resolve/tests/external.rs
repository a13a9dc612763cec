//! Addresses outside the cluster: whose they may be, and who may use them.

use super::*;

fn ranges(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// The addresses at which the services answer, and what is wrong.
fn answers(services_: Vec<Service>, rules: &Rules) -> (Vec<String>, Vec<String>) {
    let all = snapshot(three_nodes(), services_, vec![]);
    let (table, problems) = services(&all, &name("n1"), rules);
    let line = |(at, frontend): (&FrontendAddr, &Arc<Frontend>)| {
        let service = frontend.name.split([':', '/']).nth(1).unwrap();
        format!("{service} {}{}", at.ip, if frontend.is_external() { " outside" } else { "" })
    };
    (table.frontends.iter().map(line).collect(), complaints(problems))
}

/// S5.
#[test]
fn fault_096_external_addresses_are_believed_only_where_it_is_allowed() {
    let evil = || Service {
        external_ips: ips(&["8.8.8.8", "203.0.113.7", "fd08::8"]),
        ..service("evil", 0, &["10.96.0.66"], 443, None)
    };
    let refused = |ip: &str| {
        format!("service default/evil: external address {ip} refused: no range of --external-range holds it")
    };
    let (at, problems) = answers(vec![evil()], &Rules::default());
    assert_eq!(at, ["evil 10.96.0.66"]);
    assert_eq!(problems, ["8.8.8.8", "203.0.113.7", "fd08::8"].map(refused));
    let rules = Rules { external_ranges: ranges(&["203.0.113.0/24", "fd08::/16"]), ..Rules::default() };
    let (at, problems) = answers(vec![evil()], &rules);
    assert_eq!(at, ["evil 10.96.0.66", "evil 203.0.113.7 outside", "evil fd08::8 outside"]);
    assert_eq!(problems, [refused("8.8.8.8")]);
}

#[test]
fn fault_096_external_addresses_shadow_nobody_wherever_they_are_allowed() {
    let everything = Rules {
        external_ranges: ranges(&["0.0.0.0/0", "::/0"]),
        service_ranges: ranges(&["10.96.0.0/16"]),
        ..Rules::default()
    };
    let shadows = [
        ("192.168.77.2", "it belongs to node n2"),
        ("10.244.3.9", "it belongs to node n3"),
        ("fd00:10:244:1::7", "it belongs to node n1"),
        ("127.0.0.1", "loopback (127.0.0.0/8)"),
        ("169.254.169.254", "link-local (169.254.0.0/16)"),
        ("::1", "loopback (::1)"),
        ("10.96.0.1", "it belongs to the service ranges"),
        ("172.30.0.1", "it belongs to service default/api"),
        ("198.51.100.1", "it belongs to service default/shop"),
    ];
    let victims = || {
        vec![
            // Younger than the thief, every one.
            service("api", 9, &["172.30.0.1"], 443, None),
            Service { balancer_ips: ips(&["198.51.100.1"]), ..service("shop", 9, &["10.96.0.2"], 443, None) },
        ]
    };
    let expected = ["shop 10.96.0.2", "api 172.30.0.1", "shop 198.51.100.1 outside"];
    for (balanced, count) in [(false, 9), (true, 8)] {
        let claims = ips(&shadows.map(|(ip, _)| ip)[..count]);
        let mut evil = service("evil", 0, &[], 443, None);
        match balanced {
            false => evil.external_ips = claims,
            // Two load balancers' addresses may be shared, port by port, so the last is another matter.
            true => evil.balancer_ips = claims,
        }
        let (at, problems) = answers([victims(), vec![evil]].concat(), &everything);
        assert_eq!(at, expected);
        for (ip, why) in &shadows[..count] {
            let line = format!("service default/evil: address {ip} refused: {why}");
            assert!(problems.contains(&line), "{line}: {problems:#?}");
        }
        assert_eq!(problems.len(), count);
    }
}

#[test]
fn two_services_share_a_load_balancer_s_address_port_by_port() {
    let shop = |text: &str, created: i64, port: u16| Service {
        balancer_ips: ips(&["198.51.100.1"]),
        ..service(text, created, &[], port, None)
    };
    let (at, problems) =
        answers(vec![shop("a", 3, 80), shop("b", 2, 443), shop("c", 1, 443)], &Rules::default());
    assert_eq!(at, ["a 198.51.100.1 outside", "c 198.51.100.1 outside"]);
    assert_eq!(
        problems,
        [
            "service default/b: frontend 198.51.100.1:443/tcp refused: it belongs to service default/c, which had it first"
        ]
    );
}

#[test]
fn fault_098_source_ranges_hold_for_the_load_balancer_s_address_alone() {
    let rules = Rules { external_ranges: ranges(&["0.0.0.0/0", "::/0"]), ..Rules::default() };
    let mut shop = Service {
        external_ips: ips(&["203.0.113.1", "198.51.100.1"]),
        balancer_ips: ips(&["198.51.100.1", "fd99::1"]),
        ..service("shop", 1, &["10.96.0.2"], 80, Some(30080))
    };
    let mut sources = |said: Option<&[&str]>| {
        shop.source_ranges = said.map(|said| ranges(said).into_iter().collect());
        let all = snapshot(three_nodes(), vec![shop.clone()], vec![]);
        let (table, problems) = services(&all, &name("n1"), &rules);
        for ip in ["0.0.0.0", "10.96.0.2", "203.0.113.1"] {
            let others = table.frontends.iter().filter(|(at, _)| at.ip == super::ip(ip));
            assert!(others.map(|(_, frontend)| &frontend.sources).all(Option::is_none), "{ip}");
        }
        let of = |ip: &str| {
            let frontend = &table.frontends[&FrontendAddr::new(super::ip(ip), 80, Protocol::Tcp)];
            frontend.sources.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        (of("198.51.100.1"), of("fd99::1"), complaints(problems))
    };
    let list = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(sources(None), (None, None, vec![]));
    assert_eq!(
        sources(Some(&["0.0.0.0/0", "fd00::/8", "10.0.0.0/8"])),
        (list(&["0.0.0.0/0", "10.0.0.0/8"]), list(&["fd00::/8"]), vec![])
    );
    // Nobody by IPv6, and it is said; nobody at all, if nothing of what was written is a range.
    let closed = |ip: &str, family: &str| {
        format!(
            "service default/shop: nobody is admitted at {ip}: loadBalancerSourceRanges has no range of {family}"
        )
    };
    assert_eq!(
        sources(Some(&["10.0.0.0/8"])),
        (list(&["10.0.0.0/8"]), list(&[]), vec![closed("fd99::1", "IPv6")])
    );
    let nobody = vec![closed("198.51.100.1", "IPv4"), closed("fd99::1", "IPv6")];
    assert_eq!(sources(Some(&[])), (list(&[]), list(&[]), nobody));
}

#[test]
fn an_external_address_is_no_endpoint() {
    let rules = Rules { external_ranges: ranges(&["203.0.113.0/24"]), ..Rules::default() };
    let web = service("web", 1, &["10.96.0.10"], 80, None);
    let shop = Service {
        external_ips: ips(&["203.0.113.1", "8.8.8.8"]),
        balancer_ips: ips(&["198.51.100.1"]),
        ..service("shop", 1, &[], 80, None)
    };
    let at = ["203.0.113.1", "198.51.100.1", "8.8.8.8"].map(|ip| endpoint(ip, None, "ready"));
    let all = snapshot(vec![], vec![web, shop], vec![list("web", "a", at.to_vec())]);
    let (table, problems) = services(&all, &name("n1"), &rules);
    let backends = &table.frontends[&FrontendAddr::new(ip("10.96.0.10"), 80, Protocol::Tcp)].backends;
    assert_eq!(
        backends.iter().map(|b| b.ip).collect::<Vec<_>>(),
        [ip("8.8.8.8")],
        "refused, so it is nobody's"
    );
    assert_eq!(complaints(problems).len(), 3);
}

#[test]
fn fault_s15_a_node_in_the_service_ranges_is_refused_there() {
    let rules = Rules { service_ranges: ranges(&["10.96.0.0/16", "fd96::/108"]), ..Rules::default() };
    let mut nodes = three_nodes();
    nodes.push(node("wide", 9, &["192.168.77.9"], &["10.0.0.0/9", "fd96::/64"]));
    nodes.push(node("in", 9, &["10.96.0.1", "192.168.77.8"], &["10.96.7.0/24"]));
    let all = snapshot(nodes, vec![service("api", 5, &["10.96.0.1"], 443, None)], vec![]);
    for local in ["n1", "in", "wide"] {
        let (table, problems) = services(&all, &name(local), &rules);
        assert_eq!(table.frontends.len(), 1, "the service has its address");
        let problems = complaints(problems);
        for expected in [
            "node wide: pod range 10.0.0.0/9 refused: it overlaps 10.96.0.0/16 of the service ranges",
            "node wide: pod range fd96::/64 refused: it overlaps fd96::/108 of the service ranges",
            "node in: pod range 10.96.7.0/24 refused: it overlaps 10.96.0.0/16 of the service ranges",
            "node in: address 10.96.0.1 refused: it belongs to the service ranges",
        ] {
            assert!(problems.iter().any(|problem| problem == expected), "{expected}\n{problems:#?}");
        }
    }
    let (table, _) = overlay(&all, &name("n1"), &rules);
    assert_eq!(table.remotes.keys().map(|name| &*name.0).collect::<Vec<_>>(), ["n2", "n3"]);
}

#[test]
fn node_ports_answer_where_the_configuration_says() {
    let rules = Rules { node_ports: vec!["192.168.77.0/31".parse().unwrap()], ..Rules::default() };
    let (table, problems) = services(&snapshot(three_nodes(), vec![], vec![]), &name("n2"), &rules);
    let of =
        |node: &str| table.nodes[&name(node)].node_ports.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((of("n1"), of("n2")), (vec!["192.168.77.1".to_owned()], vec![]));
    assert_eq!(
        complaints(problems),
        ["node n2: node ports answer on none of its addresses: --nodeport-addresses names none of them"]
    );
}

#[test]
fn a_node_that_is_not_ready_is_down_unless_most_are() {
    let down = |which: &[usize], of: usize| {
        let nodes = (1..=of).map(|n| Node {
            down: which.contains(&n),
            ..node(&format!("n{n}"), 1, &[&format!("192.168.77.{n}")], &[])
        });
        let (table, problems) =
            services(&snapshot(nodes.collect(), vec![], vec![]), &name("n1"), &Rules::default());
        let down = table.nodes.iter().filter(|(_, node)| node.down).map(|(name, _)| name.0.to_string());
        (down.collect::<Vec<_>>().join(" "), complaints(problems))
    };
    assert_eq!(down(&[2], 3), ("n2".into(), vec![]));
    assert_eq!(down(&[2, 3], 4), ("n2 n3".into(), vec![]));
    assert_eq!(down(&[1], 3), (String::new(), vec![]), "who says so of itself is mistaken");
    let (nobody, problems) = down(&[2, 3], 3);
    assert_eq!(
        (nobody.as_str(), &problems[..]),
        ("", &["nodes: 2 of 3 are not ready: none is taken for down".to_owned()][..])
    );
}
