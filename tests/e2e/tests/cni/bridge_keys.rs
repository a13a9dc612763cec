//! Mode bridge: what each key of the reference plugin does, by what pods can do, and whether CHECK sees it undone.

use std::net::IpAddr;

use heddle_netlink::bridge::{self, Of, Port};
use heddle_netlink::link::{self, Change, Link, VethEnd};
use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{NetNs, Socket, addr, neigh};
use serde_json::{Value, json};

use super::around::{Server, tcp, udp};
use super::bench::{Host, Pod};
use super::raw::{BROADCAST, Ear, Mouth, udp as datagram};

fn conf(host: &Host) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "lan", "type": "heddle", "mode": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    })
}

fn with(host: &Host, key: &str, value: Value) -> Value {
    let mut conf = conf(host);
    conf[key] = value;
    conf
}

fn checked(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

fn device(ns: &NetNs, name: &str) -> Link {
    link::by_name(&mut Socket::open_in(ns).unwrap(), name).unwrap().unwrap()
}

/// The pods' host sides.
fn near(host: &Host) -> Vec<Link> {
    let mut links = link::list(&mut host.socket()).unwrap();
    links.retain(|link| link.name.starts_with("hdl"));
    links
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The next pod with an address has another Ethernet address, and who talked to the one before knows at once.
#[test]
fn an_address_that_is_anothers_now_is_found_at_its_new_place_at_once() {
    let (host, old, new, peer) = (Host::new(), Pod::new("old"), Pod::new("new"), Pod::new("peer"));
    let mut wanted = conf(&host);
    wanted["runtimeConfig"] = json!({"ips": ["10.9.0.50", "fd09::50"]});
    host.add(&peer, &conf(&host));
    host.add(&old, &wanted);
    for at in ["10.9.0.50", "fd09::50"] {
        let _server = Server::start(&old.ns, "old", (at, 7000));
        assert!(tcp(&peer.ns, (at, 7000)).unwrap().starts_with("old "));
    }
    host.del(&old, &wanted);
    host.add(&new, &wanted);
    let mac = device(&new.ns, "eth0").mac;
    let index = device(&peer.ns, "eth0").index;
    let known = neigh::list(&mut peer.socket(), Some(index)).unwrap();
    for at in ["10.9.0.50", "fd09::50"] {
        let there = known.iter().find(|one| one.ip == ip(at)).unwrap();
        assert_eq!(there.mac, mac, "{at}");
        let _server = Server::start(&new.ns, "new", (at, 7000));
        assert!(tcp(&peer.ns, (at, 7000)).unwrap().starts_with("new "));
    }
}

#[test]
fn isolated_pods_reach_the_gateway_and_not_each_other() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let conf = with(&host, "portIsolation", json!(true));
    let own = host.add(&one, &conf).ips();
    let other = host.add(&two, &conf).ips();
    assert!(near(&host).iter().all(|link| link.port == Some(Port { hairpin: false, isolated: true })));
    for (own, (other, gateway)) in own.iter().zip(other.iter().zip(["10.9.0.1", "fd09::1"])) {
        let _server = Server::start(&host.ns, "host", (gateway, 7000));
        assert_eq!(tcp(&one.ns, (gateway, 7000)).unwrap(), format!("host {own}"));
        // What one says to two does not arrive; what the host says after it does.
        let (mouth, ear) = (Mouth::of(&one.ns, "eth0"), Ear::at(&two.ns, "eth0"));
        let to = device(&two.ns, "eth0").mac.unwrap();
        let ips = (ip(own), ip(other));
        mouth.say(&datagram(to, mouth.mac, ips, (1, 1), b"from one"));
        mouth.say(&datagram(BROADCAST, mouth.mac, ips, (1, 1), b"from one to all"));
        let bridge = Mouth::of(&host.ns, "br0");
        bridge.say(&datagram(to, bridge.mac, (ip(gateway), ip(other)), (1, 1), b"from the host"));
        let heard = ear.until(b"from the host");
        assert!(!heard.iter().any(|frame| frame.windows(8).any(|part| part == b"from one")));
    }
}

#[test]
fn with_hairpin_a_port_says_back_what_it_heard() {
    for hairpin in [false, true] {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let conf = with(&host, "hairpinMode", json!(hairpin));
        let own = host.add(&pod, &conf).ips();
        let (mouth, ear) = (Mouth::of(&pod.ns, "eth0"), Ear::at(&pod.ns, "eth0"));
        let ips = (ip(&own[0]), ip("255.255.255.255"));
        mouth.say(&datagram(BROADCAST, mouth.mac, ips, (1, 1), b"to myself"));
        let bridge = Mouth::of(&host.ns, "br0");
        bridge.say(&datagram(
            BROADCAST,
            bridge.mac,
            (ip("10.9.0.1"), ip("255.255.255.255")),
            (1, 1),
            b"the end",
        ));
        let heard = ear.until(b"the end");
        assert_eq!(heard.iter().any(|frame| frame.ends_with(b"to myself")), hairpin);
    }
}

#[test]
fn a_promiscuous_bridge_hears_what_is_not_for_it() {
    for promiscuous in [false, true] {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let conf = with(&host, "promiscMode", json!(promiscuous));
        let own = host.add(&pod, &conf).ips();
        assert_eq!(device(&host.ns, "br0").promiscuous, promiscuous);
        let mouth = Mouth::of(&pod.ns, "eth0");
        let ear = Ear::at(&host.ns, "br0");
        let ips = (ip(&own[0]), ip("10.9.0.99"));
        // A port is needed that it leaves by, and nobody there.
        mouth.say(&datagram([2, 0, 0, 0, 0, 0x77], mouth.mac, ips, (1, 1), b"to somebody else"));
        mouth.say(&datagram(BROADCAST, mouth.mac, (ips.0, ip("255.255.255.255")), (1, 1), b"the end"));
        let heard = ear.until(b"the end");
        let has = heard.iter().any(|frame| frame.ends_with(b"to somebody else"));
        // A frame for a stranger is flooded to all ports, the bridge's own device hears it if it is promiscuous.
        assert_eq!(has, promiscuous);
    }
}

#[test]
fn force_address_replaces_what_is_in_the_way_and_without_it_that_is_an_error() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    host.add(&one, &conf(&host));
    host.del(&one, &conf(&host));
    let before = host.state();
    let mut changed = conf(&host);
    changed["ipam"]["ranges"] = json!([[{"subnet": "10.9.0.0/16"}], [{"subnet": "fd09::/60"}]]);
    let refused = host.call(&two, "ADD", &changed);
    assert_eq!(refused.code(), 7, "{refused:?}");
    assert!(refused.msg().contains("forceAddress") && refused.msg().contains("10.9.0.1/24"), "{refused:?}");
    assert_eq!(host.state(), before);

    changed["forceAddress"] = json!(true);
    let own = host.add(&two, &changed).ips();
    let addresses = |host: &Host| -> Vec<String> {
        let index = device(&host.ns, "br0").index;
        let all = addr::list(&mut host.socket(), Some(index)).unwrap();
        let global = all.iter().filter(|addr| addr.scope == addr::Scope::Universe);
        global.map(|addr| addr.ip.to_string()).collect()
    };
    assert_eq!(addresses(&host), ["10.9.0.1/16", "fd09::1/60"]);
    for (own, gateway) in own.iter().zip(["10.9.0.1", "fd09::1"]) {
        let _server = Server::start(&host.ns, "host", (gateway, 7000));
        assert_eq!(udp(&two.ns, (gateway, 7000)).unwrap(), format!("host {own}"));
    }
    // A second one changes nothing, an address of another range of IPv4 goes.
    changed["ipam"]["ranges"] = json!([[{"subnet": "10.10.0.0/16"}], [{"subnet": "fd10::/64"}]]);
    host.add(&one, &changed);
    assert_eq!(addresses(&host), ["10.10.0.1/16", "fd10::1/64", "fd09::1/60"]);
}

#[test]
fn an_address_that_somebody_else_has_is_not_given_with_enabledad() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let detecting = with(&host, "enabledad", json!(true));
    let own = host.add(&pod, &detecting).ips();
    let index = device(&pod.ns, "eth0").index;
    let addresses = addr::list(&mut pod.socket(), Some(index)).unwrap();
    assert!(addresses.iter().any(|addr| addr.ip.ip() == ip(&own[1]) && !addr.tentative));
    let before = host.state();

    // Somebody on the bridge who did not ask us.
    let squatter = NetNs::create().unwrap();
    let bridge = device(&host.ns, "br0").index;
    let near = VethEnd { name: "squat", master: Some(bridge), ..VethEnd::default() };
    let far = VethEnd { name: "eth0", ns: Some(&squatter), ..VethEnd::default() };
    link::create_veth(&mut host.socket(), &near, &far).unwrap();
    let mut inside = Socket::open_in(&squatter).unwrap();
    let eth0 = device(&squatter, "eth0").index;
    let taken = addr::Addr { nodad: true, ..addr::Addr::new(eth0, "fd09::3/64".parse().unwrap()) };
    addr::add(&mut inside, &taken).unwrap();
    link::set_up(&mut inside, eth0).unwrap();
    let near = device(&host.ns, "squat").index;
    link::set_up(&mut host.socket(), near).unwrap();

    let second = Pod::new("second");
    let answer = host.call(&second, "ADD", &detecting);
    assert_eq!(answer.code(), 101, "{answer:?}");
    assert!(answer.msg().contains("enabledad: somebody else on the bridge has fd09::3"), "{answer:?}");
    assert!(link::by_name(&mut second.socket(), "eth0").unwrap().is_none());
    link::delete_by_name(&mut host.socket(), "squat").unwrap();
    assert_eq!(host.state(), before);
}

#[test]
fn without_ipam_a_pod_brings_its_own_addresses() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let first = Pod::new("first");
    let conf =
        json!({"cniVersion": "1.0.0", "name": "l2", "type": "heddle", "mode": "bridge", "bridge": "br0"});
    host.add(&first, &conf);
    host.del(&first, &conf);
    let before = host.state();
    let answer = host.add(&one, &conf);
    assert!(answer.json.get("ips").is_none_or(|ips| ips.as_array().unwrap().is_empty()), "{answer:?}");
    let result = answer.json;
    host.add(&two, &conf);
    for (pod, own) in [(&one, ["10.1.1.1/24", "fd01::1/64"]), (&two, ["10.1.1.2/24", "fd01::2/64"])] {
        let index = device(&pod.ns, "eth0").index;
        for own in own {
            let own = addr::Addr { nodad: true, ..addr::Addr::new(index, own.parse().unwrap()) };
            addr::add(&mut pod.socket(), &own).unwrap();
        }
    }
    for at in ["10.1.1.2", "fd01::2"] {
        let _server = Server::start(&two.ns, "two", (at, 7000));
        assert!(tcp(&one.ns, (at, 7000)).unwrap().starts_with("two "));
    }
    let whole = host.call(&one, "CHECK", &checked(&conf, &result));
    assert!(whole.success, "{whole:?}");
    // Its Ethernet address is all that is known, and that is kept to.
    let (mouth, ear) = (Mouth::of(&one.ns, "eth0"), Ear::at(&two.ns, "eth0"));
    let ips = (ip("10.1.1.1"), ip("255.255.255.255"));
    mouth.say(&datagram(BROADCAST, [2, 0, 0, 0, 0, 9], ips, (1, 1), b"of another"));
    mouth.say(&datagram(BROADCAST, mouth.mac, (ip("10.7.7.7"), ips.1), (1, 1), b"the end"));
    assert!(!ear.until(b"the end").iter().any(|frame| frame.ends_with(b"of another")));
    host.del(&one, &conf);
    host.del(&two, &conf);
    assert_eq!(host.state(), before);

    // Where even that may be anything, everything passes.
    let mut open = conf.clone();
    open["macspoofchk"] = json!(false);
    host.add(&one, &open);
    host.add(&two, &open);
    let (mouth, ear) = (Mouth::of(&one.ns, "eth0"), Ear::at(&two.ns, "eth0"));
    mouth.say(&datagram(BROADCAST, [2, 0, 0, 0, 0, 9], ips, (1, 1), b"of another"));
    ear.until(b"of another");
    host.del(&one, &open);
    host.del(&two, &open);
    assert_eq!(host.state(), before);
}

/// Pods with addresses that move (keepalived) or that route for others.
#[test]
fn with_ipspoofchk_off_a_pod_has_any_address_and_one_ethernet_address() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let conf = with(&host, "ipspoofchk", json!(false));
    let result = host.add(&one, &conf).json;
    host.add(&two, &conf);
    let (mouth, ear) = (Mouth::of(&one.ns, "eth0"), Ear::at(&two.ns, "eth0"));
    let ips = (ip("10.9.0.200"), ip("255.255.255.255"));
    mouth.say(&datagram(BROADCAST, [2, 0, 0, 0, 0, 9], ips, (1, 1), b"of another"));
    mouth.say(&datagram(BROADCAST, mouth.mac, ips, (1, 1), b"of the moving address"));
    assert!(!ear.until(b"of the moving address").iter().any(|frame| frame.ends_with(b"of another")));
    let whole = host.call(&one, "CHECK", &checked(&conf, &result));
    assert!(whole.success, "{whole:?}");
    host.del(&one, &conf);
    host.del(&two, &conf);
    assert!(!host.state().iter().any(|line| line.starts_with("element ")));
}

#[test]
fn a_disabled_interface_is_there_and_down() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "l2", "type": "heddle", "mode": "bridge", "bridge": "br0",
        "disableContainerInterface": true
    });
    let result = host.add(&pod, &conf).json;
    let eth0 = device(&pod.ns, "eth0");
    assert!(!eth0.up);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    let whole = host.call(&pod, "CHECK", &checked(&conf, &result));
    assert!(whole.success, "{whole:?}");
    // A virtual machine takes it over: what it sends with this address passes.
    link::set_up(&mut pod.socket(), eth0.index).unwrap();
    let damaged = host.call(&pod, "CHECK", &checked(&conf, &result));
    assert!(damaged.success, "to be up is the guest's business: {damaged:?}");
    host.del(&pod, &conf);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

#[test]
fn a_default_route_that_is_configured_too_is_one_route_unless_it_goes_elsewhere() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut conf = with(&host, "isDefaultGateway", json!(true));
    for gw in [json!(null), json!("10.9.0.1")] {
        conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": gw}]);
        let routes = host.add(&pod, &conf).json["routes"].as_array().unwrap().len();
        assert_eq!(routes, 2, "one of each family");
        host.del(&pod, &conf);
    }
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.9.0.254"}]);
    let refused = host.call(&pod, "ADD", &conf);
    assert_eq!(refused.code(), 7);
    assert!(
        refused.msg().contains("isDefaultGateway") && refused.msg().contains("ipam.routes"),
        "{refused:?}"
    );
}

#[test]
fn fault_024_check_sees_every_key_undone() {
    type Damage = fn(&Host, &Pod);
    let cases: [(&str, Value, &str, Damage); 13] = [
        ("isDefaultGateway", json!(true), "no route to ::/0", |_, pod| {
            let mut socket = pod.socket();
            let main = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
            let routes = route::list(&mut socket, &main).unwrap();
            let default = routes.iter().find(|route| route.dst.to_string() == "::/0").unwrap();
            route::delete(&mut socket, default).unwrap();
        }),
        ("hairpinMode", json!(true), "hairpinMode: ", |host, _| change_port(host, Port::default())),
        ("portIsolation", json!(true), "portIsolation: ", |host, _| change_port(host, Port::default())),
        ("hairpinMode", json!(false), "hairpinMode: ", |host, _| {
            change_port(host, Port { hairpin: true, isolated: false });
        }),
        ("promiscMode", json!(true), "promiscMode: ", |host, _| {
            let quiet = Change { promiscuous: Some(false), ..Change::default() };
            let index = device(&host.ns, "br0").index;
            link::change(&mut host.socket(), index, &quiet).unwrap();
        }),
        ("isGateway", json!(true), "isGateway: br0 has not the address 10.9.0.1", |host, _| {
            let index = device(&host.ns, "br0").index;
            addr::delete(&mut host.socket(), index, "10.9.0.1/24".parse().unwrap()).unwrap();
        }),
        ("isGateway", json!(true), "its gateway fd09::1", |_, pod| {
            let index = device(&pod.ns, "eth0").index;
            neigh::delete(&mut pod.socket(), index, ip("fd09::1")).unwrap();
        }),
        ("mtu", json!(1400), "MTU 1300", |host, _| {
            let smaller = Change { mtu: Some(1300), ..Change::default() };
            link::change(&mut host.socket(), near(host)[0].index, &smaller).unwrap();
        }),
        ("isGateway", json!(true), "the bridge br0 is down", |host, _| {
            let index = device(&host.ns, "br0").index;
            link::set_down(&mut host.socket(), index).unwrap();
        }),
        ("isGateway", json!(false), "is no port of the bridge br0", |host, _| {
            let free = Change { master: Some(None), ..Change::default() };
            link::change(&mut host.socket(), near(host)[0].index, &free).unwrap();
        }),
        ("isGateway", json!(false), "there is no bridge br0", |host, _| {
            link::delete_by_name(&mut host.socket(), "br0").unwrap();
        }),
        ("macspoofchk", json!(true), "the nf_tables rules against spoofed addresses", |host, _| {
            let mut batch = Batch::new();
            batch.flush_chain(Family::Bridge, "heddle", "spoofing");
            Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
        }),
        ("macspoofchk", json!(true), "is not in the nf_tables set pod_ipv6", |host, _| {
            let mut batch = Batch::new();
            batch.flush_set(Family::Bridge, "heddle", "pod_ipv6");
            Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
        }),
    ];
    for (key, value, wanted, damage) in cases {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let conf = with(&host, key, value);
        let result = host.add(&pod, &conf).json;
        let whole = host.call(&pod, "CHECK", &checked(&conf, &result));
        assert!(whole.success, "{wanted}: {whole:?}");
        damage(&host, &pod);
        let damaged = host.call(&pod, "CHECK", &checked(&conf, &result));
        assert_eq!(damaged.code(), 101, "{wanted}: {damaged:?}");
        assert!(damaged.msg().contains(wanted), "{wanted}: {damaged:?}");
        host.del(&pod, &conf);
        let left = host.state();
        assert!(
            !left.iter().any(|line| line.starts_with("element ") || line.contains("link hdl")),
            "{left:?}"
        );
    }
}

fn change_port(host: &Host, port: Port) {
    let index = near(host)[0].index;
    bridge::configure(&mut host.socket(), Of::Port, index, Some(port), &[]).unwrap();
}

/// After a flush nobody is cut off: neither at once, nor when the rules are back.
#[test]
fn fault_062_pods_on_a_bridge_go_on_after_a_flush_and_when_the_rules_are_back() {
    let (host, one, two, new) = (Host::new(), Pod::new("one"), Pod::new("two"), Pod::new("new"));
    let conf = conf(&host);
    host.add(&one, &conf);
    let other = host.add(&two, &conf).ips();
    let l2 =
        json!({"cniVersion": "1.0.0", "name": "l2", "type": "heddle", "mode": "bridge", "bridge": "br0"});
    let third = Pod::new("third");
    let result = host.add(&third, &l2).json;
    let with_three = host.state();
    let talk = || {
        for at in &other {
            let _server = Server::start(&two.ns, "two", (at, 7000));
            assert!(tcp(&one.ns, (at, 7000)).unwrap().starts_with("two "));
        }
    };
    let mut batch = Batch::new();
    batch.delete_table(Family::Bridge, "heddle");
    Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
    talk();
    host.add(&new, &conf);
    talk();
    let whole = host.call(&third, "CHECK", &checked(&l2, &result));
    assert!(whole.success, "{whole:?}");
    host.del(&new, &conf);
    let elements = |state: &std::collections::BTreeSet<String>| -> Vec<String> {
        state.iter().filter(|line| line.starts_with("element ")).cloned().collect()
    };
    assert_eq!(elements(&host.state()), elements(&with_three));
}

/// What an ADD that was killed left, GC finds by the mark that it wrote first, also where there are no leases.
#[test]
fn fault_041_gc_collects_what_a_killed_add_left_on_a_bridge() {
    let (host, pod, first) = (Host::new(), Pod::new("killed"), Pod::new("first"));
    let conf =
        json!({"cniVersion": "1.1.0", "name": "l2", "type": "heddle", "mode": "bridge", "bridge": "br0"});
    host.add(&first, &conf);
    host.del(&first, &conf);
    let before = host.state();
    host.add(&pod, &conf);
    let near = near(&host).remove(0);
    let begun = Change { alias: Some("~l2 killed eth0"), ..Change::default() };
    link::change(&mut host.socket(), near.index, &begun).unwrap();
    let mut other = conf.clone();
    other["name"] = json!("another");
    for conf in [&mut other.clone(), &mut conf.clone()] {
        conf["cni.dev/valid-attachments"] = json!([]);
        let kept = host.state().contains(&format!("link {}", near.name));
        assert!(kept, "GC of another network leaves it alone");
        let answer = host.call(&pod, "GC", conf);
        assert!(answer.success, "{answer:?}");
    }
    assert_eq!(host.state(), before);
    // Killed before it could write anything.
    let half = VethEnd { name: "hdl0123456789ab", ..VethEnd::default() };
    link::create_veth(&mut host.socket(), &half, &VethEnd { name: "half", ..VethEnd::default() }).unwrap();
    let mut collect = conf.clone();
    collect["cni.dev/valid-attachments"] = json!([]);
    let answer = host.call(&pod, "GC", &collect);
    assert!(answer.success, "{answer:?}");
    assert_eq!(host.state(), before);
    // A repeated ADD clears it away as well.
    host.add(&pod, &conf);
    let near = self::near(&host).remove(0);
    link::change(&mut host.socket(), near.index, &begun).unwrap();
    host.add(&pod, &conf);
    assert_eq!(host.call(&pod, "ADD", &conf).code(), 102, "a complete one is not cleared away");
    host.del(&pod, &conf);
    assert_eq!(host.state(), before);
}
