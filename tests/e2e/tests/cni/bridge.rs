//! Mode bridge, with the configuration that the project's owner uses.

use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use heddle_netlink::link;
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{NetNs, addr};
use serde_json::json;

use super::bench::{Host, Pod};

fn connect(from: &NetNs, at: &NetNs, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let listener = at.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    })
    .unwrap();
    server.join().unwrap();
}

#[test]
fn the_owners_configuration_works_word_for_word() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let conf = host.bridge_conf();
    let answer = host.add(&one, &conf);
    assert_eq!(
        answer.json,
        json!({
            "cniVersion": "0.2.0",
            "ip4": {
                "ip": "10.244.1.2/24",
                "gateway": "10.244.1.1",
                "routes": [{"dst": "1.1.1.1/32", "gw": "10.244.1.254"}]
            },
            "dns": {}
        })
    );
    host.add(&two, &conf);
    connect(&one.ns, &two.ns, "10.244.1.3");
    connect(&one.ns, &host.ns, "10.244.1.1");
    connect(&host.ns, &one.ns, "10.244.1.2");
    let routes = route::list(&mut one.socket(), &Filter::default()).unwrap();
    let special = routes.iter().find(|route| route.dst.to_string() == "1.1.1.1/32").unwrap();
    assert_eq!(special.gateway, Some("10.244.1.254".parse().unwrap()));
    assert!(!routes.iter().any(|route| route.dst.prefix() == 0), "no default route was asked for");

    host.del(&one, &conf);
    host.del(&two, &conf);
    assert!(host.leases().is_empty());
    let mut socket = host.socket();
    let names: Vec<_> = link::list(&mut socket).unwrap().into_iter().map(|link| link.name).collect();
    assert!(names.contains(&"br0".to_owned()), "the bridge stays, as with the reference plugin");
    assert!(!names.iter().any(|name| name.starts_with("hdl")));
}

/// A packet that the node passes on, or sends from an address of another device, leads to a question from the bridge's
/// link-local address.
#[test]
fn the_first_packet_from_elsewhere_reaches_the_first_pod_of_a_bridge_at_once() {
    let mut best = Duration::MAX;
    for n in 0..3 {
        let (host, pod) = (Host::new(), Pod::new(&format!("pod-{n}")));
        let mut socket = host.socket();
        let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
        let elsewhere = addr::Addr { nodad: true, ..addr::Addr::new(lo, "fd77::77/128".parse().unwrap()) };
        addr::add(&mut socket, &elsewhere).unwrap();
        let conf = json!({
            "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "bridge": "br0",
            "isDefaultGateway": true,
            "ipam": { "type": "host-local", "dataDir": host.data_dir(), "ranges": [[{"subnet": "fd09::/64"}]] }
        });
        host.add(&pod, &conf);
        let server = pod.ns.run(|| UdpSocket::bind("[fd09::2]:0")).unwrap().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to = server.local_addr().unwrap();
        let start = Instant::now();
        host.ns.run(|| UdpSocket::bind("[fd77::77]:0").unwrap().send_to(b"first", to).unwrap()).unwrap();
        server.recv(&mut [0; 16]).unwrap();
        best = best.min(start.elapsed());
    }
    // Duplicate address detection takes a second at the least.
    assert!(best < heddle_lab::patient(Duration::from_millis(500)), "{best:?}");
}

#[test]
fn both_families_and_a_default_gateway() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "bridge": "br0",
        "isDefaultGateway": true, "mtu": 1400,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    });
    let answer = host.add(&one, &conf);
    assert_eq!(answer.json["interfaces"][0]["name"], "br0");
    assert_eq!(answer.json["ips"][1], json!({"interface": 2, "address": "fd09::2/64", "gateway": "fd09::1"}));
    assert_eq!(answer.json["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.9.0.1"}));
    host.add(&two, &conf);
    for (pod, gateway) in [("10.9.0.3", "10.9.0.1"), ("fd09::3", "fd09::1")] {
        connect(&one.ns, &two.ns, pod);
        connect(&one.ns, &host.ns, gateway);
    }
    let mut socket = host.socket();
    let bridge = link::by_name(&mut socket, "br0").unwrap().unwrap();
    assert_eq!(bridge.mtu, 1400);
    let before = bridge.mac;
    host.del(&two, &conf);
    assert_eq!(
        link::by_name(&mut socket, "br0").unwrap().unwrap().mac,
        before,
        "it does not follow its ports"
    );
}

#[test]
fn a_pod_on_a_bridge_that_lies_about_itself_is_not_heard() {
    let (host, liar, victim) = (Host::new(), Pod::new("liar"), Pod::new("victim"));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    });
    let first = Pod::new("first");
    host.add(&first, &conf);
    host.del(&first, &conf);
    let before = host.state();
    let honest = host.add(&liar, &conf).ips();
    let target = host.add(&victim, &conf).ips();
    let mut socket = liar.socket();
    let eth0 = link::by_name(&mut socket, "eth0").unwrap().unwrap();
    // So that nobody has to ask for the victim's Ethernet address with a lie for an answer.
    let mac = link::by_name(&mut victim.socket(), "eth0").unwrap().unwrap().mac.unwrap();
    for (family, lie) in ["10.9.0.77", "fd09::77"].into_iter().enumerate() {
        let address: IpAddr = target[family].parse().unwrap();
        neigh::replace(&mut socket, &Neigh::new(eth0.index, address, mac)).unwrap();
        let receiver = victim.ns.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to = receiver.local_addr().unwrap();
        let send = |from: &str| {
            let from: IpAddr = from.parse().unwrap();
            let sent = liar.ns.run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to)));
            sent.unwrap().unwrap();
        };
        // Another address, then another Ethernet address, then the truth: only that arrives.
        let bits = if family == 0 { 32 } else { 128 };
        let other = ipnetwork::IpNetwork::new(lie.parse().unwrap(), bits).unwrap();
        addr::add(&mut socket, &addr::Addr { nodad: true, ..addr::Addr::new(eth0.index, other) }).unwrap();
        send(lie);
        addr::delete(&mut socket, eth0.index, other).unwrap();
        let disguise = |mac| link::Change { mac: Some(mac), ..link::Change::default() };
        link::change(&mut socket, eth0.index, &disguise([2, 0, 0, 0, 0, 9])).unwrap();
        // With its own address a device forgets those of others.
        neigh::replace(&mut socket, &Neigh::new(eth0.index, address, mac)).unwrap();
        send(&honest[family]);
        link::change(&mut socket, eth0.index, &disguise(eth0.mac.unwrap())).unwrap();
        let witness =
            liar.ns.run(|| UdpSocket::bind((honest[family].parse::<IpAddr>().unwrap(), 0))).unwrap().unwrap();
        neigh::replace(&mut socket, &Neigh::new(eth0.index, address, mac)).unwrap();
        witness.send_to(b"truth", to).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = receiver.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{lie}: {error}"));
        assert_eq!((&buffer[..length], from), (&b"truth"[..], witness.local_addr().unwrap()));
    }
    host.del(&liar, &conf);
    host.del(&victim, &conf);
    assert_eq!(host.state(), before);
}

#[test]
fn a_bridge_that_belongs_to_others_is_not_bent() {
    let (host, pod) = (Host::new(), Pod::new("one"));
    let mut socket = host.socket();
    let end = |name| link::VethEnd { name, ..link::VethEnd::default() };
    link::create_veth(&mut socket, &end("br0"), &end("far")).unwrap();
    let answer = host.call(&pod, "ADD", &host.bridge_conf());
    assert_eq!(answer.code(), 7);
    assert!(answer.msg().contains("br0 exists and is no bridge"), "{answer:?}");
    link::delete_by_name(&mut socket, "br0").unwrap();

    link::create_bridge(&mut socket, &link::Bridge { name: "br0", ..link::Bridge::default() }).unwrap();
    let index = link::by_name(&mut socket, "br0").unwrap().unwrap().index;
    addr::add(&mut socket, &addr::Addr::new(index, "10.244.1.9/24".parse().unwrap())).unwrap();
    let answer = host.call(&pod, "ADD", &host.bridge_conf());
    assert_eq!(answer.code(), 7);
    assert!(answer.msg().contains("has 10.244.1.9/24 already"), "{answer:?}");
    assert!(host.leases().is_empty());
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}
