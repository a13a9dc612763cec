//! Links, addresses, routes, neighbours, FDB and sysctls, written to and read back from the kernel.
//! Each test has namespaces of its own.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;
use std::time::Duration;

use heddle_netlink::addr::{self, Addr, Scope};
use heddle_netlink::fdb::{self, Fdb};
use heddle_netlink::link::{self, AddrGen, Bridge, Change, Link, Operational, VethEnd};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Filter, Kind, PROTOCOL_HEDDLE, Route, TABLE_LOCAL};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::vxlan::{self, Vxlan};
use heddle_netlink::{NetNs, Socket, Watch};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn namespace() -> (NetNs, Socket) {
    let ns = NetNs::create().unwrap();
    let socket = Socket::open_in(&ns).unwrap();
    (ns, socket)
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A veth pair inside one namespace, both ends up.
fn pair(socket: &mut Socket) -> (Link, Link) {
    let near = VethEnd { name: "near", mac: Some(MAC), mtu: Some(1450), ns: None, master: None };
    let far = VethEnd { name: "far", ..VethEnd::default() };
    link::create_veth(socket, &near, &far).unwrap();
    for name in ["near", "far"] {
        let index = link::by_name(socket, name).unwrap().unwrap().index;
        link::set_up(socket, index).unwrap();
    }
    (link::by_name(socket, "near").unwrap().unwrap(), link::by_name(socket, "far").unwrap().unwrap())
}

#[test]
fn a_veth_is_born_with_its_peer_in_the_other_namespace() {
    let (_ns, mut host) = namespace();
    let (pod_ns, mut pod) = namespace();
    let near = VethEnd { name: "hdl0", mac: Some(MAC), mtu: Some(1450), ns: None, master: None };
    let far = VethEnd {
        name: "eth0",
        mac: Some([2, 0, 0, 0, 0, 8]),
        mtu: Some(1400),
        ns: Some(&pod_ns),
        master: None,
    };
    link::create_veth(&mut host, &near, &far).unwrap();

    let outside = link::by_name(&mut host, "hdl0").unwrap().unwrap();
    let inside = link::by_name(&mut pod, "eth0").unwrap().unwrap();
    assert_eq!((outside.mac, outside.mtu, outside.up), (Some(MAC), 1450, false));
    assert_eq!((inside.mac, inside.mtu), (Some([2, 0, 0, 0, 0, 8]), 1400));
    assert_eq!(outside.kind.as_deref(), Some("veth"));
    assert_eq!(outside.peer, Some(inside.index));
    assert!(outside.peer_ns.is_some(), "the peer is elsewhere");
    assert!(link::by_name(&mut host, "eth0").unwrap().is_none());

    let again = link::create_veth(&mut host, &near, &VethEnd { name: "eth1", ..far.clone() }).unwrap_err();
    assert!(again.already_exists(), "{again}");
    let taken = link::create_veth(&mut host, &VethEnd { name: "hdl1", ..near.clone() }, &far).unwrap_err();
    assert!(taken.already_exists(), "{taken}");
    assert!(link::by_name(&mut host, "hdl1").unwrap().is_none(), "nothing half made stays");

    link::delete_by_name(&mut host, "hdl0").unwrap();
    assert!(link::by_name(&mut pod, "eth0").unwrap().is_none(), "the peer goes with it");
    assert_eq!(link::delete_by_name(&mut host, "hdl0").unwrap_err().errno(), Some(Errno::ENODEV));
}

#[test]
fn a_link_is_changed_and_found_by_name_index_and_list() {
    let (_ns, mut socket) = namespace();
    link::create_bridge(&mut socket, &Bridge { name: "br0", mac: Some(MAC), ..Bridge::default() }).unwrap();
    let bridge = link::by_name(&mut socket, "br0").unwrap().unwrap();
    assert_eq!((bridge.kind.as_deref(), bridge.mac), (Some("bridge"), Some(MAC)));
    let (near, _) = pair(&mut socket);
    let change = Change {
        mtu: Some(1400),
        master: Some(Some(bridge.index)),
        addr_gen: Some(AddrGen::None),
        alias: Some("pod a"),
        ..Change::default()
    };
    link::change(&mut socket, near.index, &change).unwrap();
    let seen = link::by_index(&mut socket, near.index).unwrap().unwrap();
    assert_eq!((seen.mtu, seen.master), (1400, Some(bridge.index)));
    assert_eq!(seen.addr_gen, Some(AddrGen::None));
    assert_eq!(seen.alias.as_deref(), Some("pod a"));
    assert!(seen.up && seen.lower_up);
    link::change(&mut socket, near.index, &Change { master: Some(None), ..Change::default() }).unwrap();
    link::set_down(&mut socket, near.index).unwrap();
    link::change(&mut socket, near.index, &Change { name: Some("other"), ..Change::default() }).unwrap();
    let list = link::list(&mut socket).unwrap();
    let other = list.iter().find(|l| l.name == "other").unwrap();
    assert_eq!((other.master, other.up, other.index), (None, false, near.index));
    assert!(list.iter().any(|l| l.loopback && l.name == "lo"));
    assert_eq!(link::by_index(&mut socket, 9999).unwrap(), None);
}

#[test]
fn names_that_the_kernel_would_change_or_refuse_are_not_sent() {
    let (_ns, mut socket) = namespace();
    for name in ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "0123456789abcdef", "é", "a\nb"] {
        let error = link::by_name(&mut socket, name).unwrap_err();
        assert!(error.to_string().contains("a device name has"), "{name:?}: {error}");
    }
}

#[test]
fn addresses_carry_scope_and_flags() {
    let (_ns, mut socket) = namespace();
    let (near, _) = pair(&mut socket);
    let v4 = Addr { scope: Scope::Link, no_prefix_route: true, ..Addr::new(near.index, net("10.1.0.0/24")) };
    let v6 = Addr { nodad: true, ..Addr::new(near.index, net("fd00::5/64")) };
    addr::add(&mut socket, &v4).unwrap();
    addr::add(&mut socket, &v6).unwrap();
    assert!(addr::add(&mut socket, &v4).unwrap_err().already_exists());
    addr::replace(&mut socket, &v6).unwrap();
    let seen = addr::list(&mut socket, Some(near.index)).unwrap();
    let find = |ip: IpNetwork| seen.iter().find(|a| a.ip == ip).unwrap();
    let got = find(v4.ip);
    assert_eq!((got.scope, got.no_prefix_route, got.permanent), (Scope::Link, true, true));
    let got = find(v6.ip);
    assert!(got.nodad && !got.tentative, "usable at once: {got:?}");
    assert!(addr::list(&mut socket, Some(9999)).unwrap().is_empty());
    addr::delete(&mut socket, near.index, v4.ip).unwrap();
    assert!(addr::delete(&mut socket, near.index, v4.ip).unwrap_err().not_found());
    assert!(!addr::list(&mut socket, None).unwrap().iter().any(|a| a.ip == v4.ip));
}

#[test]
fn routes_are_read_back_as_they_were_written() {
    let (ns, mut socket) = namespace();
    let (near, far) = pair(&mut socket);
    addr::add(&mut socket, &Addr::new(near.index, net("10.1.0.1/32"))).unwrap();
    addr::add(&mut socket, &Addr { nodad: true, ..Addr::new(near.index, net("fd00::1/128")) }).unwrap();
    let routes = [
        Route::on_link(net("10.1.0.9/32"), near.index),
        Route { src: Some(ip("10.1.0.1")), ..Route::via(net("10.2.0.0/24"), ip("10.2.0.0"), near.index) },
        Route {
            mtu: Some(1400),
            advmss: Some(1300),
            ..Route::via(net("0.0.0.0/0"), ip("169.254.1.1"), near.index)
        },
        Route { table: 1000, ..Route::on_link(net("10.3.0.0/24"), near.index) },
        Route {
            src: Some(ip("fd00::1")),
            priority: Some(77),
            ..Route::via(net("fd00:2::/64"), ip("fd00:2::"), near.index)
        },
        Route { advmss: Some(1200), ..Route::on_link(net("fd00::9/128"), near.index) },
        Route::via(net("10.4.0.0/24"), ip("fe80::1"), near.index),
    ];
    for route in &routes {
        route::add(&mut socket, route).unwrap();
        assert!(route::add(&mut socket, route).unwrap_err().already_exists());
    }
    let ours = Filter { protocol: Some(PROTOCOL_HEDDLE), ..Filter::default() };
    let mut seen = route::list(&mut socket, &ours).unwrap();
    let mut want = routes.to_vec();
    seen.sort();
    want.sort();
    assert_eq!(seen, want);

    let moved = Route::on_link(net("10.1.0.9/32"), far.index);
    route::replace(&mut socket, &moved).unwrap();
    let seen = route::list(&mut socket, &Filter { link: Some(far.index), ..ours }).unwrap();
    assert_eq!(seen, std::slice::from_ref(&moved), "replaced, not added");
    let table = route::list(&mut socket, &Filter { table: Some(1000), ..ours }).unwrap();
    assert_eq!(table.len(), 1);
    assert!(route::list(&mut socket, &Filter { table: Some(4711), ..ours }).unwrap().is_empty());

    // A worker of the kernel makes an IPv6 address one of the host's own.
    let mut watch = ns.run(Watch::open).unwrap().unwrap();
    let local = Filter { table: Some(TABLE_LOCAL), ..Filter::default() };
    let own = net("fd00::1/128");
    let there = watch.until(Duration::from_secs(10), || {
        Ok(route::list(&mut socket, &local)?.iter().any(|route| route.dst == own))
    });
    assert!(there.unwrap());
    let chosen = route::lookup(&mut socket, ip("10.2.0.77")).unwrap();
    assert_eq!((chosen.link, chosen.src), (Some(near.index), Some(ip("10.1.0.1"))));
    for (dst, wanted, kind) in [
        ("10.2.0.77", "10.2.0.0/24", Kind::Unicast),
        ("10.1.0.9", "10.1.0.9/32", Kind::Unicast),
        ("10.1.0.1", "10.1.0.1/32", Kind::Local),
        ("fd00:2::77", "fd00:2::/64", Kind::Unicast),
        ("fd00::1", "fd00::1/128", Kind::Local),
    ] {
        let found = route::matching(&mut socket, ip(dst)).unwrap();
        assert_eq!((found.dst, found.kind), (net(wanted), kind), "{dst}");
    }
    route::delete(&mut socket, &moved).unwrap();
    assert!(route::delete(&mut socket, &moved).unwrap_err().not_found());
}

#[test]
fn an_error_has_the_kernels_explanation() {
    let (_ns, mut socket) = namespace();
    let (near, _) = pair(&mut socket);
    let unreachable = Route { onlink: false, ..Route::via(net("10.9.0.0/24"), ip("10.8.0.1"), near.index) };
    let error = route::add(&mut socket, &unreachable).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENETUNREACH));
    let text = error.to_string();
    assert!(text.starts_with("cannot add route 10.9.0.0/24 via 10.8.0.1 dev"), "{text}");
    assert!(text.contains("Nexthop has invalid gateway"), "{text}");
}

#[test]
fn neighbours_and_fdb_entries_are_permanent_and_replaced_in_place() {
    let (_ns, mut socket) = namespace();
    let (near, _) = pair(&mut socket);
    addr::add(&mut socket, &Addr::new(near.index, net("192.168.77.1/24"))).unwrap();
    let wanted = Vxlan {
        vni: 1,
        port: 8472,
        local: Some(ip("192.168.77.1")),
        underlay: Some(near.index),
        ..Vxlan::default()
    };
    vxlan::create(&mut socket, "heddle.1", &wanted, Some(MAC), Some(1400)).unwrap();
    let device = link::by_name(&mut socket, "heddle.1").unwrap().unwrap();
    assert_eq!(device.vxlan.as_ref(), Some(&wanted));
    assert_eq!((device.mac, device.mtu), (Some(MAC), 1400));
    link::set_up(&mut socket, device.index).unwrap();

    for peer in ["10.2.0.0", "fd00:2::"] {
        let entry = Neigh::new(device.index, ip(peer), [2, 0, 0, 0, 1, 1]);
        neigh::add(&mut socket, &entry).unwrap();
        assert!(neigh::add(&mut socket, &entry).unwrap_err().already_exists());
        let moved = Neigh::new(device.index, ip(peer), [2, 0, 0, 0, 1, 2]);
        neigh::replace(&mut socket, &moved).unwrap();
        let seen = neigh::list(&mut socket, Some(device.index)).unwrap();
        assert!(seen.contains(&moved) && !seen.contains(&entry), "{seen:?}");
        neigh::delete(&mut socket, device.index, ip(peer)).unwrap();
        assert!(neigh::delete(&mut socket, device.index, ip(peer)).unwrap_err().not_found());
    }

    let entry = Fdb::new(device.index, [2, 0, 0, 0, 1, 1], ip("192.168.77.2"));
    fdb::add(&mut socket, &entry).unwrap();
    let moved = Fdb::new(device.index, [2, 0, 0, 0, 1, 1], ip("192.168.77.3"));
    fdb::replace(&mut socket, &moved).unwrap();
    assert_eq!(fdb::list(&mut socket, device.index).unwrap(), std::slice::from_ref(&moved));
    fdb::delete(&mut socket, &moved).unwrap();
    assert!(fdb::delete(&mut socket, &moved).unwrap_err().not_found());
}

#[test]
fn a_vxlan_device_over_ipv6_is_read_back() {
    let (_ns, mut socket) = namespace();
    let wanted = Vxlan { vni: 77, port: 4789, local: Some(ip("fd77::1")), ttl: 9, ..Vxlan::default() };
    vxlan::create(&mut socket, "heddle.77", &wanted, None, None).unwrap();
    let device = link::by_name(&mut socket, "heddle.77").unwrap().unwrap();
    assert_eq!(device.vxlan, Some(wanted));
}

#[test]
fn sysctls_are_those_of_the_namespace() {
    let (ns, mut socket) = namespace();
    pair(&mut socket);
    let key = Key::ipv4_conf("near", "rp_filter");
    sysctl::write_in(&ns, &[(key.clone(), "2"), (Key::ipv6_conf("near", "accept_ra"), "0")]).unwrap();
    assert_eq!(sysctl::read_in(&ns, &key).unwrap(), "2");
    assert_eq!(sysctl::read_in(&ns, &Key::ipv6_conf("near", "accept_ra")).unwrap(), "0");
    assert!(sysctl::is_missing(&sysctl::read(&key).unwrap_err()), "the host has no such device");
    for hostile in ["..", "a/b", ""] {
        let error = sysctl::read(&Key::ipv4_conf(hostile, "rp_filter")).unwrap_err();
        assert!(error.to_string().contains("is no name"), "{error}");
    }
}

#[test]
fn a_watch_sees_a_link_come_up() {
    let (ns, mut socket) = namespace();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("near"), &end("far")).unwrap();
    let index = |socket: &mut Socket, name| link::by_name(socket, name).unwrap().unwrap().index;
    let (near, far) = (index(&mut socket, "near"), index(&mut socket, "far"));
    link::set_up(&mut socket, near).unwrap();
    let mut watch = ns.run(Watch::open).unwrap().unwrap();
    let mut up = |patience| {
        watch.until(patience, || {
            Ok(link::by_name(&mut socket, "near")?.is_some_and(|link| link.operational == Operational::Up))
        })
    };
    assert!(!up(Duration::from_millis(5)).unwrap(), "without a peer there is no carrier");
    let mut other = Socket::open_in(&ns).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| up(Duration::from_secs(10)).unwrap());
        link::set_up(&mut other, far).unwrap();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_dump_under_change_is_whole() {
    let (ns, mut socket) = namespace();
    let (near, _) = pair(&mut socket);
    let fixed: Vec<_> = (0..3000u32)
        .map(|n| {
            Route::on_link(IpNetwork::new(IpAddr::V4((0x0a01_0000 + n).into()), 32).unwrap(), near.index)
        })
        .collect();
    for route in &fixed {
        route::add(&mut socket, route).unwrap();
    }
    let ours = Filter { protocol: Some(PROTOCOL_HEDDLE), ..Filter::default() };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut socket = Socket::open_in(&ns).unwrap();
            let route = Route::on_link(net("10.0.0.1/32"), near.index);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                route::add(&mut socket, &route).unwrap();
                route::delete(&mut socket, &route).unwrap();
            }
        });
        for _ in 0..10 {
            match route::list(&mut socket, &ours) {
                Ok(seen) => {
                    let present = seen.iter().filter(|route| route.dst != net("10.0.0.1/32")).count();
                    assert_eq!(present, fixed.len());
                }
                // Never a part given for the whole.
                Err(error) => assert_eq!(error.errno(), Some(Errno::EINTR)),
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
    });
}
