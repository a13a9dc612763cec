//! Mode bridge with VLANs: who hears whom. Needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING.

use std::net::IpAddr;

use heddle_netlink::bridge::{self, Of, Vlan};
use heddle_netlink::link::{self, Bridge, Link, VethEnd};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{NetNs, Socket, addr};
use serde_json::{Value, json};

use super::around::{Server, tcp};
use super::bench::{Host, Pod};
use super::raw::{BROADCAST, Ear, Mouth, tagged, udp};

/// Whether bridges of the running kernel filter VLANs.
pub fn kernel_has_vlans() -> bool {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    link::create_bridge(&mut socket, &Bridge { name: "br0", vlan_filtering: true, ..Bridge::default() })
        .is_ok()
}

fn skipped() -> bool {
    let lacks = !kernel_has_vlans();
    if lacks {
        heddle_lab::skip("this kernel's bridge knows no VLANs");
    }
    lacks
}

fn device(ns: &NetNs, name: &str) -> Link {
    link::by_name(&mut Socket::open_in(ns).unwrap(), name).unwrap().unwrap()
}

/// A network of its own in one VLAN of the one bridge.
fn conf(host: &Host, vlan: u16) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": format!("vlan-{vlan}"), "type": "heddle", "mode": "bridge", "bridge": "br0",
        "isDefaultGateway": true, "vlan": vlan, "preserveDefaultVlan": false,
        "ipam": {
            "type": "host-local", "dataDir": host.data_dir(),
            "ranges": [[{"subnet": format!("10.{vlan}.0.0/24")}], [{"subnet": format!("fd09:{vlan}::/64")}]]
        }
    })
}

/// The VLANs of a pod's port.
fn vlans(host: &Host, result: &Value) -> Vec<Vlan> {
    let names = result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    let name = names.into_iter().find(|name| name.starts_with("hdl")).unwrap().to_owned();
    bridge::vlans(&mut host.socket(), device(&host.ns, &name).index).unwrap()
}

#[test]
fn pods_of_a_vlan_reach_each_other_and_their_gateway_and_nobody_else() {
    if skipped() {
        return;
    }
    let host = Host::new();
    let first = Pod::new("first");
    for vlan in [100, 200] {
        host.add(&first, &conf(&host, vlan));
        host.del(&first, &conf(&host, vlan));
    }
    let before = host.state();
    let pods = ["one", "two", "other"].map(Pod::new);
    let [one, two, other] = &pods;
    let answer = host.add(one, &conf(&host, 100));
    let mates = host.add(two, &conf(&host, 100)).ips();
    let theirs = host.add(other, &conf(&host, 200)).ips();
    let own = answer.ips();
    assert_eq!(answer.json["interfaces"][3]["name"], "br0.100", "the gateway's device is told");
    assert_eq!(vlans(&host, &answer.json), [Vlan::native(100)]);
    for name in ["accept_ra", "autoconf", "accept_redirects"] {
        let value = sysctl::read_in(&host.ns, &Key::ipv6_conf("br0.100", name)).unwrap();
        assert_eq!(value, "0", "{name}");
    }
    for family in 0..2 {
        let gateway = ["10.100.0.1", "fd09:100::1"][family];
        let _servers = [
            Server::start(&host.ns, "host", (gateway, 7000)),
            Server::start(&two.ns, "two", (&mates[family], 7000)),
        ];
        assert_eq!(tcp(&one.ns, (gateway, 7000)).unwrap(), format!("host {}", own[family]));
        assert_eq!(tcp(&one.ns, (&mates[family], 7000)).unwrap(), format!("two {}", own[family]));
        // By way of the gateways the other network is reached: the host routes.
        let _server = Server::start(&other.ns, "other", (&theirs[family], 7000));
        assert_eq!(tcp(&one.ns, (&theirs[family], 7000)).unwrap(), format!("other {}", own[family]));
    }
    // What one shouts, its own VLAN hears and the other does not; and the other way round.
    let (mate, stranger) = (Ear::at(&two.ns, "eth0"), Ear::at(&other.ns, "eth0"));
    let shout = |pod: &Pod, from: &str, what: &[u8]| {
        let mouth = Mouth::of(&pod.ns, "eth0");
        let ips: (IpAddr, IpAddr) = (from.parse().unwrap(), "255.255.255.255".parse().unwrap());
        mouth.say(&udp(BROADCAST, mouth.mac, ips, (1, 1), what));
        mouth.say(&tagged(udp(BROADCAST, mouth.mac, ips, (1, 1), what), 200));
    };
    shout(one, &own[0], b"to VLAN 100");
    mate.until(b"to VLAN 100");
    let host_side = Mouth::of(&host.ns, "br0.200");
    let ips = ("10.200.0.1".parse().unwrap(), "255.255.255.255".parse().unwrap());
    host_side.say(&udp(BROADCAST, host_side.mac, ips, (1, 1), b"the end"));
    assert!(!stranger.until(b"the end").iter().any(|frame| frame.ends_with(b"to VLAN 100")));
    for (pod, vlan) in [(one, 100), (two, 100), (other, 200)] {
        host.del(pod, &conf(&host, vlan));
    }
    assert_eq!(host.state(), before);
}

#[test]
fn the_default_vlan_stays_unless_it_is_not_wanted() {
    if skipped() {
        return;
    }
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut preserving = conf(&host, 100);
    preserving.as_object_mut().unwrap().remove("preserveDefaultVlan");
    let result = host.add(&pod, &preserving).json;
    let default = Vlan { pvid: false, ..Vlan::native(1) };
    assert_eq!(vlans(&host, &result), [default, Vlan::native(100)]);
    host.del(&pod, &preserving);
    // The default VLAN itself.
    let result = host.add(&pod, &conf(&host, 1)).json;
    assert_eq!(vlans(&host, &result), [Vlan::native(1)]);
}

#[test]
fn a_trunk_carries_its_vlans_with_tags() {
    if skipped() {
        return;
    }
    let (host, trunk, access, stranger) =
        (Host::new(), Pod::new("trunk"), Pod::new("access"), Pod::new("stranger"));
    let conf_trunk = json!({
        "cniVersion": "1.0.0", "name": "trunk", "type": "heddle", "mode": "bridge", "bridge": "br0",
        "vlanTrunk": [{"minID": 100, "maxID": 102}, {"id": 7}], "preserveDefaultVlan": false
    });
    let result = host.add(&trunk, &conf_trunk).json;
    assert_eq!(vlans(&host, &result), [7, 100, 101, 102].map(Vlan::tagged));
    let own = host.add(&access, &conf(&host, 100)).ips();
    host.add(&stranger, &conf(&host, 200));
    // A VLAN device in the pod, with an address that nobody leased.
    let mut socket = trunk.socket();
    let eth0 = device(&trunk.ns, "eth0").index;
    link::create_vlan(&mut socket, "eth0.100", eth0, 100).unwrap();
    let inside = device(&trunk.ns, "eth0.100").index;
    addr::add(&mut socket, &addr::Addr::new(inside, "10.100.0.200/24".parse().unwrap())).unwrap();
    link::set_up(&mut socket, inside).unwrap();
    let _server = Server::start(&access.ns, "access", (&own[0], 7000));
    assert_eq!(tcp(&trunk.ns, (&own[0], 7000)).unwrap(), "access 10.100.0.200");
    // A VLAN that it is not in, and frames of another device.
    let (mouth, ears) = (
        Mouth::of(&trunk.ns, "eth0"),
        [(Ear::at(&stranger.ns, "eth0"), 200), (Ear::at(&access.ns, "eth0"), 100)],
    );
    let shout = |mac, vlan, what: &[u8]| {
        let ips: (IpAddr, IpAddr) = ("10.1.1.1".parse().unwrap(), "255.255.255.255".parse().unwrap());
        mouth.say(&tagged(udp(BROADCAST, mac, ips, (1, 1), what), vlan));
    };
    shout(mouth.mac, 200, b"a lie about the VLAN");
    shout([2, 0, 0, 0, 0, 9], 100, b"a lie about the address");
    for (ear, vlan) in ears {
        let out = Mouth::of(&host.ns, &format!("br0.{vlan}"));
        let ips = ("10.9.9.9".parse().unwrap(), "255.255.255.255".parse().unwrap());
        out.say(&udp(BROADCAST, out.mac, ips, (1, 1), b"the end"));
        let heard = ear.until(b"the end");
        assert!(!heard.iter().any(|frame| frame.windows(5).any(|part| part == b"a lie")), "VLAN {vlan}");
    }
    let mut with_result = conf_trunk.clone();
    with_result["prevResult"] = result;
    let whole = host.call(&trunk, "CHECK", &with_result);
    assert!(whole.success, "{whole:?}");
    host.del(&trunk, &conf_trunk);
}

#[test]
fn fault_024_check_sees_vlans_undone() {
    if skipped() {
        return;
    }
    type Damage = fn(&Host, u32);
    let damages: [(&str, Damage); 5] = [
        ("is not in VLAN 100", |host, near| {
            bridge::delete_vlans(&mut host.socket(), Of::Port, near, &[100]).unwrap();
        }),
        ("is in VLAN 7 too", |host, near| {
            bridge::configure(&mut host.socket(), Of::Port, near, None, &[Vlan::tagged(7)]).unwrap();
        }),
        ("there is no interface br0.100", |host, _| {
            link::delete_by_name(&mut host.socket(), "br0.100").unwrap();
        }),
        ("br0.100 has not the address 10.100.0.1", |host, _| {
            let index = device(&host.ns, "br0.100").index;
            addr::delete(&mut host.socket(), index, "10.100.0.1/24".parse().unwrap()).unwrap();
        }),
        ("br0.100 is down", |host, _| {
            let index = device(&host.ns, "br0.100").index;
            link::set_down(&mut host.socket(), index).unwrap();
        }),
    ];
    for (wanted, damage) in damages {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let mut conf = conf(&host, 100);
        conf["prevResult"] = host.add(&pod, &conf).json;
        let whole = host.call(&pod, "CHECK", &conf);
        assert!(whole.success, "{whole:?}");
        let links = link::list(&mut host.socket()).unwrap();
        damage(&host, links.iter().find(|link| link.name.starts_with("hdl")).unwrap().index);
        let damaged = host.call(&pod, "CHECK", &conf);
        assert_eq!(damaged.code(), 101, "{wanted}: {damaged:?}");
        assert!(damaged.msg().contains(wanted), "{wanted}: {damaged:?}");
    }
}

#[test]
fn a_bridge_of_others_is_not_made_to_filter_and_one_of_ours_is() {
    if skipped() {
        return;
    }
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut socket = host.socket();
    link::create_bridge(&mut socket, &Bridge { name: "br0", ..Bridge::default() }).unwrap();
    let before = host.state();
    let refused = host.call(&pod, "ADD", &conf(&host, 100));
    assert_eq!(refused.code(), 7, "{refused:?}");
    assert!(refused.msg().contains("vlan: ") && refused.msg().contains("vlan_filtering 1"), "{refused:?}");
    assert_eq!(host.state(), before);
    link::delete_by_name(&mut socket, "br0").unwrap();

    let mut plain = conf(&host, 100);
    plain.as_object_mut().unwrap().remove("vlan");
    let old = Pod::new("old");
    let own = host.add(&old, &plain).ips();
    assert_eq!(device(&host.ns, "br0").vlans.map(|vlans| vlans.filtering), Some(false));
    host.add(&pod, &conf(&host, 101));
    assert_eq!(device(&host.ns, "br0").vlans.map(|vlans| vlans.filtering), Some(true));
    // Who was there before goes on.
    let _server = Server::start(&old.ns, "old", (&own[0], 7000));
    assert!(tcp(&host.ns, (&own[0], 7000)).unwrap().starts_with("old "));
}

/// The reference plugin's gateway is a veth with its other end on the bridge: one that is there serves.
#[test]
fn a_gateway_device_of_the_reference_plugin_serves_and_one_of_others_does_not() {
    if skipped() {
        return;
    }
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let first = Pod::new("first");
    let mut plain = conf(&host, 50);
    plain["vlanTrunk"] = json!([]);
    plain.as_object_mut().unwrap().remove("vlan");
    host.add(&first, &plain);
    host.del(&first, &plain);
    let mut socket = host.socket();
    let br0 = device(&host.ns, "br0").index;
    let near = VethEnd { name: "br0.100", ..VethEnd::default() };
    let far = VethEnd { name: "vethref", ..VethEnd::default() };
    link::create_veth(&mut socket, &near, &far).unwrap();
    let refused = host.call(&pod, "ADD", &conf(&host, 100));
    assert_eq!(refused.code(), 7, "{refused:?}");
    assert!(refused.msg().contains("br0.100 exists and does not belong to bridge br0"), "{refused:?}");
    let index = device(&host.ns, "vethref").index;
    let join = link::Change { master: Some(Some(br0)), ..link::Change::default() };
    link::change(&mut socket, index, &join).unwrap();
    bridge::configure(&mut socket, Of::Port, index, None, &[Vlan::native(100)]).unwrap();
    link::set_up(&mut socket, index).unwrap();
    let own = host.add(&pod, &conf(&host, 100)).ips();
    let _server = Server::start(&host.ns, "host", ("fd09:100::1", 7000));
    assert_eq!(tcp(&pod.ns, ("fd09:100::1", 7000)).unwrap(), format!("host {}", own[1]));
}
