//! One thing becomes another: at no step does anything of the first answer for the second.

use super::*;

type Step<'a> = (&'a str, Vec<Service>, Vec<Endpoints>, &'a [&'a str]);

/// Shows one node all these worlds, one after the other, and compares lines of its table.
fn follow(steps: Vec<Step<'_>>) {
    let mut resolver = Resolver::default();
    for (what, services_, lists, expected) in steps {
        let all = snapshot(three_nodes(), services_, lists);
        let answer = resolver.services(&all, &name("n1"), &Rules::default());
        assert_eq!(answer, services(&all, &name("n1"), &Rules::default()), "{what}");
        assert_eq!(lines(&all), expected, "{what}");
    }
}

fn ends(service: &str, address: &str) -> Endpoints {
    list(service, &format!("{service}-1"), vec![endpoint(address, None, "ready")])
}

#[test]
fn fault_089_a_service_changes_its_type_and_its_addresses_change_hands() {
    let a = |node_port| service("a", 1, &["10.96.0.1"], 80, node_port);
    let b = |address: &str, node_port| service("b", 2, &[address], 80, node_port);
    let both = || vec![ends("a", "10.244.1.1"), ends("b", "10.244.2.2")];
    let (of_a, of_b) = ("10.244.1.1:80@n1/Active", "10.244.2.2:80@n2/Active");
    let at = |at: &str, of: &str, to: &str| format!("{at}/tcp default/{of}:80 -> {to}");
    let a1 = at("10.96.0.1:80", "a", of_a);
    let an = at("node(ipv4):30080", "a", of_a);
    let b1 = at("10.96.0.1:80", "b", of_b);
    let b2 = at("10.96.0.2:80", "b", of_b);
    let bn = at("node(ipv4):30080", "b", of_b);
    follow(vec![
        ("ClusterIP", vec![a(None)], both(), &[&a1]),
        ("NodePort", vec![a(Some(30080))], both(), &[&an, &a1]),
        (
            "and back, the port to another",
            vec![a(None), b("10.96.0.2", Some(30080))],
            both(),
            &[&bn, &a1, &b2],
        ),
        ("headless or ExternalName: not ours", vec![b("10.96.0.2", None)], both(), &[&b2]),
        ("the ClusterIP is used again at once", vec![b("10.96.0.1", None)], both(), &[&b1]),
        ("the older one comes back for it", vec![a(None), b("10.96.0.1", None)], both(), &[&a1]),
        ("and goes", vec![b("10.96.0.1", None)], both(), &[&b1]),
        ("nobody", vec![], both(), &[]),
    ]);
}

#[test]
fn fault_089_ports_are_renamed_and_protocols_changed() {
    let with = |port: &str, proto: Protocol| {
        let mut a = service("a", 1, &["10.96.0.1"], 80, None);
        a.ports[0].name = port.into();
        a.ports[0].proto = proto;
        vec![a]
    };
    let listening = |port: &str, number: u16, proto: Protocol| {
        let mut list = ends("a", "10.244.1.1");
        list.ports = vec![EndpointPort { name: port.into(), port: number, proto }];
        vec![list]
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    follow(vec![
        (
            "",
            with("web", tcp),
            listening("web", 80, tcp),
            &["10.96.0.1:80/tcp default/a:web -> 10.244.1.1:80@n1/Active"],
        ),
        (
            "renamed, not yet by its endpoints",
            with("www", tcp),
            listening("web", 80, tcp),
            &["10.96.0.1:80/tcp default/a:www ->"],
        ),
        (
            "and now",
            with("www", tcp),
            listening("www", 80, tcp),
            &["10.96.0.1:80/tcp default/a:www -> 10.244.1.1:80@n1/Active"],
        ),
        (
            "another protocol",
            with("www", udp),
            listening("www", 80, tcp),
            &["10.96.0.1:80/udp default/a:www ->"],
        ),
        (
            "and now",
            with("www", udp),
            listening("www", 80, udp),
            &["10.96.0.1:80/udp default/a:www -> 10.244.1.1:80@n1/Active"],
        ),
        (
            "another target",
            with("www", udp),
            listening("www", 81, udp),
            &["10.96.0.1:80/udp default/a:www -> 10.244.1.1:81@n1/Active"],
        ),
    ]);
}

#[test]
fn fault_088_lists_of_every_kind_in_any_order() {
    let web = || vec![service("web", 1, &["10.96.0.1"], 80, None)];
    let to = |to: &str| format!("10.96.0.1:80/tcp default/web:80 ->{to}");
    let one = |life: &str| endpoint("10.244.1.1", None, life);
    let at_port = |part: &str, number: u16, life: &str| {
        let mut list = list("web", part, vec![one(life)]);
        list.ports[0].port = number;
        list
    };
    let no_ports = Endpoints { ports: vec![], ..list("web", "p", vec![one("ready")]) };
    let ready = to(" 10.244.1.1:80@n1/Active");
    let two = to(" 10.244.1.1:80@n1/Active 10.244.1.1:81@n1/Active");
    let half = to(" 10.244.1.1:80@n1/Draining 10.244.1.1:81@n1/Active");
    let v6 = list("web", "s", vec![endpoint("fd00:10:244:1::1", None, "ready")]);
    let thousand: Vec<Endpoint> =
        (0..1000u16).map(|n| endpoint(&format!("172.16.{}.{}", n / 250, n % 250), None, "ready")).collect();
    follow(vec![
        ("a list before its service", vec![], vec![at_port("a", 80, "ready")], &[]),
        ("the service", web(), vec![at_port("a", 80, "ready")], &[&ready]),
        (
            "moving, in both lists",
            web(),
            vec![at_port("a", 80, "deaf"), at_port("b", 80, "ready")],
            &[&ready],
        ),
        ("the other way", web(), vec![at_port("a", 80, "ready"), at_port("b", 80, "deaf")], &[&ready]),
        ("moved", web(), vec![at_port("b", 80, "ready")], &[&ready]),
        (
            "one address, two ports",
            web(),
            vec![at_port("a", 80, "ready"), at_port("b", 81, "ready")],
            &[&two],
        ),
        ("in two states", web(), vec![at_port("a", 80, "ending"), at_port("b", 81, "ready")], &[&half]),
        ("without ports", web(), vec![no_ports], &[&to("")]),
        ("of the other family", web(), vec![v6], &[&to("")]),
        ("the label names another service", web(), vec![list("other", "a", vec![one("ready")])], &[&to("")]),
        ("back", web(), vec![at_port("a", 80, "ready")], &[&ready]),
        ("deleted, the list stays", vec![], vec![at_port("a", 80, "ready")], &[]),
    ]);
    let all = snapshot(vec![], web(), vec![list("web", "a", thousand)]);
    let (table, problems) = services(&all, &name("n1"), &Rules::default());
    assert_eq!((table.frontends.values().next().unwrap().backends.len(), problems.len()), (1000, 0));
}
