//! What a pod says that it is not, dropped before anybody hears it; what a pod or a neighbour tells the host about
//! its network, without effect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use heddle_netlink::link::{self, Link};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{MacAddr, NetNs, Socket, addr, neigh};
use serde_json::{Value, json};

use super::around::{Around, HOST, NEIGHBOUR, Server, udp as ask};
use super::bench::{Answer, Host, Pod};
use super::raw::{
    ALL_NODES, BROADCAST, Ear, Mouth, advertisement, arp, icmp6, link_local, probe, redirect, router, tagged,
    udp, with_options, with_tag,
};

const LAST: &[u8] = b"this is the last one, and true";

fn bridge_conf(host: &Host) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
        }
    })
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn device(ns: &NetNs, name: &str) -> Link {
    link::by_name(&mut Socket::open_in(ns).unwrap(), name).unwrap().unwrap()
}

/// Every lie that a pod on a bridge can tell about itself and its network, each with a name.
fn lies(
    own: MacAddr,
    ips: &[String],
    peer: (MacAddr, &[String]),
    bridge: MacAddr,
) -> Vec<(&'static str, Vec<u8>)> {
    let other = [2, 0, 0, 0, 0, 9];
    let (own4, own6) = (v4(&ips[0]), v6(&ips[1]));
    let (peer4, peer6) = (v4(&peer.1[0]), v6(&peer.1[1]));
    let (gateway4, gateway6) = (v4("10.9.0.1"), v6("fd09::1"));
    let ll = link_local(own);
    let of = |a: Ipv4Addr, b: Ipv4Addr| (IpAddr::V4(a), IpAddr::V4(b));
    let of6 = |a: Ipv6Addr, b: Ipv6Addr| (IpAddr::V6(a), IpAddr::V6(b));
    let to_peer = |source: MacAddr, ips| udp(peer.0, source, ips, (1000, 1000), b"lie");
    vec![
        ("another IPv4 source", to_peer(own, of(v4("10.9.0.77"), peer4))),
        ("the gateway's IPv4 source", to_peer(own, of(gateway4, peer4))),
        ("another IPv6 source", to_peer(own, of6(v6("fd09::77"), peer6))),
        ("the gateway's IPv6 source", to_peer(own, of6(gateway6, peer6))),
        ("another link-local source", to_peer(own, of6(v6("fe80::bad"), link_local(peer.0)))),
        ("another MAC with IPv4", to_peer(other, of(own4, peer4))),
        ("another MAC with IPv6", to_peer(other, of6(own6, peer6))),
        ("the peer's MAC", udp(BROADCAST, peer.0, of(own4, peer4), (1, 1), b"lie")),
        ("gratuitous ARP for the gateway", arp(BROADCAST, own, 1, (own, gateway4), ([0; 6], gateway4))),
        ("ARP answer for the gateway", arp(peer.0, own, 2, (own, gateway4), (peer.0, peer4))),
        ("ARP answer for the peer, to the host", arp(bridge, own, 2, (own, peer4), (bridge, gateway4))),
        ("ARP: its own address elsewhere", arp(BROADCAST, own, 2, (other, own4), (BROADCAST, own4))),
        ("advertisement for the peer", advertisement(own, own6, (peer6, own))),
        ("advertisement for the peer from the link", advertisement(own, ll, (peer6, own))),
        ("advertisement for the gateway", advertisement(own, own6, (gateway6, own))),
        (
            "advertisement for the peer's link-local address",
            advertisement(own, ll, (link_local(peer.0), own)),
        ),
        ("advertisement in disguise", with_options(&advertisement(own, ll, (gateway6, own)))),
        ("the peer's address is mine, is it not?", probe(own, peer6)),
        ("the same in disguise", with_options(&probe(own, peer6))),
        ("router advertisement", router(own, ll)),
        ("router advertisement in disguise", with_options(&router(own, ll))),
        ("redirect", redirect((peer.0, own), (ll, link_local(peer.0)), (ll, v6("2001:db8::1")))),
        ("DHCP server", udp(BROADCAST, own, of(own4, Ipv4Addr::BROADCAST), (67, 68), b"lie")),
        ("DHCPv6 server", udp(ALL_NODES, own, of6(ll, v6("ff02::1")), (547, 546), b"lie")),
        (
            "DHCP client of somebody else",
            udp(BROADCAST, own, of(v4("0.0.0.0"), Ipv4Addr::BROADCAST), (68, 67), b"lie"),
        ),
        ("127.0.0.1 of the host", udp(bridge, own, of(own4, v4("127.0.0.1")), (1000, 1000), b"lie")),
        ("a tag", tagged(to_peer(own, of(own4, peer4)), 7)),
        ("a tag of a provider", with_tag(to_peer(own, of(own4, peer4)), 0x88a8, 7)),
        ("another protocol", [&peer.0[..], &own, &[0x88, 0xb5], b"lie of another protocol"].concat()),
        ("nobody's UDP", udp(ALL_NODES, own, of6(Ipv6Addr::UNSPECIFIED, v6("ff02::1")), (1, 1), b"lie")),
    ]
}

#[test]
fn s03_and_s14_what_a_pod_on_a_bridge_is_not_nobody_hears() {
    for name in ["plain", "vlan", "preserved", "any MAC"] {
        let (host, liar, victim) = (Host::new(), Pod::new("liar"), Pod::new("victim"));
        let mut conf = bridge_conf(&host);
        match name {
            "vlan" => (conf["vlan"], conf["preserveDefaultVlan"]) = (json!(100), json!(false)),
            "preserved" => conf["vlan"] = json!(100),
            "any MAC" => conf["macspoofchk"] = json!(false),
            _ => {}
        }
        if conf.get("vlan").is_some() && !super::bridge_vlan::kernel_has_vlans() {
            heddle_lab::skip("this kernel's bridge knows no VLANs");
            continue;
        }
        let ips = host.add(&liar, &conf).ips();
        let target = host.add(&victim, &conf).ips();
        let mouth = Mouth::of(&liar.ns, "eth0");
        let gateway = if conf.get("vlan").is_some() { "br0.100" } else { "br0" };
        let (peer, bridge) =
            (device(&victim.ns, "eth0").mac.unwrap(), device(&host.ns, gateway).mac.unwrap());
        let ears = [("victim", Ear::at(&victim.ns, "eth0")), ("host", Ear::at(&host.ns, gateway))];
        let mut lies = lies(mouth.mac, &ips, (peer, &target), bridge);
        if name == "any MAC" {
            lies.retain(|(lie, _)| !lie.contains("MAC") && *lie != "ARP: its own address elsewhere");
        }
        for (_, lie) in &lies {
            mouth.say(lie);
        }
        let own4 = IpAddr::V4(v4(&ips[0]));
        mouth.say(&udp(BROADCAST, mouth.mac, (own4, Ipv4Addr::BROADCAST.into()), (9, 9), LAST));
        for (who, ear) in ears {
            let heard = ear.until(LAST);
            let arrived = |lie: &str, frame: &Vec<u8>| {
                // The kernel keeps a tag beside the frame.
                heard.contains(frame)
                    || lie.starts_with("a tag") && heard.contains(&[&frame[..12], &frame[16..]].concat())
            };
            let arrived: Vec<&str> =
                lies.iter().filter(|(lie, frame)| arrived(lie, frame)).map(|(lie, _)| *lie).collect();
            assert_eq!(arrived, [""; 0], "{name}: what the {who} heard");
        }
        if name == "any MAC" {
            let other = udp(BROADCAST, [2, 0, 0, 0, 0, 9], (own4, Ipv4Addr::BROADCAST.into()), (9, 9), LAST);
            let ear = Ear::at(&victim.ns, "eth0");
            mouth.say(&other);
            ear.until(LAST);
        }
    }
}

/// What a pod says of itself arrives: the rules are not simply closed.
#[test]
fn what_a_pod_on_a_bridge_is_everybody_hears() {
    let (host, honest, other) = (Host::new(), Pod::new("honest"), Pod::new("other"));
    let conf = bridge_conf(&host);
    let ips = host.add(&honest, &conf).ips();
    host.add(&other, &conf);
    let mouth = Mouth::of(&honest.ns, "eth0");
    let (own4, own6, ll) = (v4(&ips[0]), v6(&ips[1]), link_local(mouth.mac));
    let ear = Ear::at(&other.ns, "eth0");
    let all = v6("ff02::1");
    let truths = [
        ("ARP", arp(BROADCAST, mouth.mac, 1, (mouth.mac, own4), ([0; 6], v4("10.9.0.1")))),
        ("gratuitous ARP", arp(BROADCAST, mouth.mac, 1, (mouth.mac, own4), ([0; 6], own4))),
        ("ARP probe", arp(BROADCAST, mouth.mac, 1, (mouth.mac, v4("0.0.0.0")), ([0; 6], own4))),
        ("IPv6", udp(ALL_NODES, mouth.mac, (own6.into(), all.into()), (5, 5), b"truth")),
        ("link-local", udp(ALL_NODES, mouth.mac, (ll.into(), all.into()), (5, 5), b"truth")),
        ("advertisement", advertisement(mouth.mac, own6, (own6, mouth.mac))),
        ("probe", probe(mouth.mac, own6)),
        ("multicast report", icmp6(ALL_NODES, mouth.mac, (Ipv6Addr::UNSPECIFIED, all), 143, ([0; 4], &[]))),
    ];
    for (_, truth) in &truths {
        mouth.say(truth);
    }
    mouth.say(&udp(BROADCAST, mouth.mac, (own4.into(), Ipv4Addr::BROADCAST.into()), (9, 9), LAST));
    let heard = ear.until(LAST);
    for (what, truth) in &truths {
        assert!(heard.contains(truth), "nobody heard: {what}");
    }
}

/// In mode ptp frames end at the host: what they say about neighbours and routers must change nothing there.
#[test]
fn s03_and_s14_what_a_routed_pod_says_of_the_network_changes_nothing() {
    let (host, liar, victim) = (Host::new(), Pod::new("liar"), Pod::new("victim"));
    let conf = host.conf();
    let answer = host.add(&liar, &conf);
    let (ips, near) = (answer.ips(), near(&host, &answer));
    let target = host.add(&victim, &conf).ips();
    let mouth = Mouth::of(&liar.ns, "eth0");
    let (gateway, peer) = ((v4("10.244.1.1"), near.mac.unwrap()), device(&victim.ns, "eth0"));
    let ll = link_local(mouth.mac);
    let before = picture(&host.ns);
    let (own4, own6) = (v4(&ips[0]), v6(&ips[1]));
    let lies = [
        arp(BROADCAST, mouth.mac, 1, (mouth.mac, gateway.0), ([0; 6], gateway.0)),
        arp(gateway.1, mouth.mac, 2, (mouth.mac, v4(&target[0])), (gateway.1, gateway.0)),
        arp(gateway.1, mouth.mac, 2, ([2, 0, 0, 0, 0, 9], own4), (gateway.1, gateway.0)),
        advertisement(mouth.mac, ll, (v6(&target[1]), mouth.mac)),
        advertisement(mouth.mac, own6, (v6("fe80::1"), mouth.mac)),
        advertisement(mouth.mac, own6, (own6, [2, 0, 0, 0, 0, 9])),
        router(mouth.mac, ll),
        redirect((gateway.1, mouth.mac), (ll, v6("fe80::1")), (ll, v6(&target[1]))),
        udp(gateway.1, mouth.mac, (v4(&target[0]).into(), gateway.0.into()), (1, 1), b"lie"),
        udp(gateway.1, mouth.mac, (v6(&target[1]).into(), v6("fe80::1").into()), (1, 1), b"lie"),
        udp(gateway.1, mouth.mac, (v4(&target[0]).into(), v4(&target[0]).into()), (1, 1), b"lie"),
    ];
    let ear = Ear::at(&victim.ns, "eth0");
    for lie in &lies {
        mouth.say(lie);
    }
    // By another address than its own nothing is forwarded; by its own it is.
    let forward = |from: Ipv4Addr, what: &[u8]| {
        mouth.say(&udp(gateway.1, mouth.mac, (from.into(), v4(&target[0]).into()), (9, 9), what));
    };
    forward(v4("10.244.1.200"), b"a lie that is forwarded");
    forward(own4, LAST);
    let heard = ear.until(LAST);
    assert!(heard.iter().all(|frame| !frame.ends_with(b"a lie that is forwarded")));
    assert_eq!(picture(&host.ns), before);
    assert_eq!(device(&victim.ns, "eth0"), peer);
}

/// What of a namespace somebody else's packets could change.
fn picture(ns: &NetNs) -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut socket = Socket::open_in(ns).unwrap();
    let routes = route::list(&mut socket, &Filter::default()).unwrap();
    let addresses = addr::list(&mut socket, None).unwrap();
    let known = neigh::list(&mut socket, None).unwrap();
    let permanent = known.iter().filter(|one| one.permanent);
    (
        routes.iter().map(|route| format!("{route:?}")).collect(),
        addresses.iter().map(|addr| format!("{} {}", addr.link, addr.ip)).collect(),
        permanent.map(|one| format!("{one:?}")).collect(),
    )
}

fn near(host: &Host, answer: &Answer) -> Link {
    let names = answer.json["interfaces"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    device(&host.ns, names.into_iter().find(|name| name.starts_with("hdl")).unwrap())
}

/// Also where somebody sets route_localnet, as kube-proxy does.
#[test]
fn s04_services_at_127_0_0_1_are_not_reached_from_pods_and_neighbours() {
    for mode in ["ptp", "bridge"] {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let around = Around::of(&host);
        let conf = if mode == "ptp" { host.conf() } else { bridge_conf(&host) };
        let answer = host.add(&pod, &conf);
        let own4 = v4(&answer.ips()[0]);
        let entry = if mode == "ptp" { near(&host, &answer) } else { device(&host.ns, "br0") };
        for device in ["all", "net0", &entry.name] {
            let key = Key::ipv4_conf(device, "route_localnet");
            assert_eq!(sysctl::read_in(&host.ns, &key).unwrap(), "0", "{mode}: {device}");
        }
        let lo = device(&host.ns, "lo");
        link::set_up(&mut host.socket(), lo.index).unwrap();
        let inside = Server::start(&host.ns, "localhost", ("127.0.0.1", 7001));
        let gateway = if mode == "ptp" { "10.244.1.1" } else { "10.9.0.1" };
        let _outside = Server::start(&host.ns, "host", (gateway, 7001));
        assert!(ask(&host.ns, ("127.0.0.1", 7001)).unwrap().starts_with("localhost"));
        if mode == "ptp" {
            sysctl::write_in(&host.ns, &[(Key::ipv4_conf("all", "route_localnet"), "1")]).unwrap();
        }
        let ear = Ear::at(&pod.ns, "eth0");
        let mouth = Mouth::of(&pod.ns, "eth0");
        let asks = |to: Ipv4Addr| {
            udp(entry.mac.unwrap(), mouth.mac, (own4.into(), to.into()), (4000, 7001), b"who?")
        };
        mouth.say(&asks(v4("127.0.0.1")));
        mouth.say(&asks(v4("127.9.9.9")));
        mouth.say(&asks(v4(gateway)));
        let heard = ear.until(b"host ");
        assert!(!heard.iter().any(|frame| frame.windows(9).any(|part| part == b"localhost")), "{mode}");
        if mode == "ptp" {
            let ear = Ear::at(&around.neighbour, "eth0");
            let mouth = Mouth::of(&around.neighbour, "eth0");
            let door = device(&host.ns, "net0").mac.unwrap();
            let _outside = Server::start(&host.ns, "host", (HOST[0], 7001));
            for to in ["127.0.0.1", HOST[0]] {
                let ips = (v4(NEIGHBOUR[0]).into(), v4(to).into());
                mouth.say(&udp(door, mouth.mac, ips, (4000, 7001), b"who?"));
            }
            let heard = ear.until(b"host ");
            assert!(!heard.iter().any(|frame| frame.windows(9).any(|part| part == b"localhost")));
        }
        drop(inside);
    }
}

/// In many ADDs, several at once, no device is up for a moment without being hardened.
#[test]
fn s03_no_device_is_up_before_it_is_hardened() {
    let rounds: usize =
        std::env::var("HEDDLE_HARDENING_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let (host, done) = (Host::new(), AtomicBool::new(false));
    let (routed, bridged) = (host.conf(), bridge_conf(&host));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            host.ns
                .run(|| {
                    let (mut socket, mut seen) = (Socket::open().unwrap(), 0);
                    while !done.load(Ordering::Relaxed) {
                        for one in link::list(&mut socket).unwrap() {
                            if !one.up || !(one.name.starts_with("hdl") || one.name == "br0") {
                                continue;
                            }
                            for name in ["accept_ra", "autoconf", "accept_redirects"] {
                                // A device that is gone by now has nothing.
                                let Ok(value) = sysctl::read(&Key::ipv6_conf(&one.name, name)) else {
                                    continue;
                                };
                                assert_eq!(value, "0", "{} {name}", one.name);
                                seen += 1;
                            }
                        }
                    }
                    seen
                })
                .unwrap()
        });
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (host, conf) = (&host, if worker % 2 == 0 { &routed } else { &bridged });
                scope.spawn(move || {
                    for round in 0..rounds {
                        let pod = Pod::new(&format!("pod-{worker}-{round}"));
                        host.add(&pod, conf);
                        host.del(&pod, conf);
                        if worker == 1 {
                            // The next one makes it again, perhaps at the same time as another.
                            drop(link::delete_by_name(&mut host.socket(), "br0"));
                        }
                    }
                })
            })
            .collect();
        let failed = workers.into_iter().map(|worker| worker.join()).filter(Result::is_err).count();
        done.store(true, Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 0, "nothing was seen");
        assert_eq!(failed, 0);
    });
}
