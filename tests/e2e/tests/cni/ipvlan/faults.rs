//! What goes wrong, and what is left of it.

use std::path::Path;

use heddle_netlink::ipvlan::{self, Ipvlan, Mode};
use heddle_netlink::link::{self, Change, VethEnd};
use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::route::{self, Route};
use heddle_netlink::{Socket, addr};
use serde_json::{Value, json};

use super::{Lan, ROUTER, by_name, connect, refused};
use crate::bench::{Host, Pod};

#[test]
fn fault_024_whatever_is_changed_is_named() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod) = (&lan.host, Pod::new("one"));
    let mut conf = lan.l2();
    conf["prevResult"] = host.add(&pod, &conf).json;
    let mut socket = pod.socket();
    let far = by_name(&mut socket, "eth0");
    let own: ipnetwork::IpNetwork = "192.168.50.10/24".parse().unwrap();
    let differs = |what: &str| refused(&host.call(&pod, "CHECK", &conf), 101, what);

    addr::delete(&mut socket, far.index, own).unwrap();
    differs("eth0 has not the address 192.168.50.10/24");
    addr::add(&mut socket, &addr::Addr::new(far.index, own)).unwrap();
    differs("the pod has no route to 0.0.0.0/0");
    let default = Route::via("0.0.0.0/0".parse().unwrap(), ROUTER[0].parse().unwrap(), far.index);
    route::add(&mut socket, &default).unwrap();
    let checked = host.call(&pod, "CHECK", &conf);
    assert!(checked.success, "{checked:?}");
    link::change(&mut socket, far.index, &Change { mtu: Some(1300), ..Change::default() }).unwrap();
    differs("eth0 has the MTU 1300");
    link::change(&mut socket, far.index, &Change { mtu: Some(far.mtu), ..Change::default() }).unwrap();
    let mut batch = Batch::new();
    batch.delete_table(Family::Netdev, "heddle-eth0");
    Nft::open_in(&pod.ns).unwrap().commit(&batch).unwrap();
    differs("the nf_tables rules against spoofed addresses are not there");
    let mut other = conf.clone();
    other["ipvlanMode"] = json!("l3");
    refused(&host.call(&pod, "CHECK", &other), 101, "eth0 is in mode l2, not l3");
    other = conf.clone();
    other["master"] = json!("uplink");
    refused(&host.call(&pod, "CHECK", &other), 7, "master: uplink is down");
    link::set_down(&mut socket, far.index).unwrap();
    differs("eth0 is down");
    // Gone, and another device in its place.
    link::delete(&mut socket, far.index).unwrap();
    differs("there is no interface eth0");
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("eth0"), &end("other")).unwrap();
    differs("eth0 is no ipvlan device");
    host.del(&pod, &conf);
    by_name(&mut socket, "eth0");
    assert!(host.leases().is_empty() && lan.records() == 0);
}

#[test]
fn fault_025_and_035_a_device_is_found_without_being_told_where() {
    let Some(lan) = Lan::new() else { return };
    let (host, conf) = (&lan.host, lan.l2());
    let (dead, gone, kept) = (Pod::new("dead"), Pod::new("gone"), Pod::new("kept"));
    for pod in [&dead, &gone, &kept] {
        host.add(pod, &conf);
    }
    // DEL without a namespace, as after a restart of the runtime.
    let mut variables = Host::variables(&gone, "DEL");
    variables.retain(|(name, _)| name != "CNI_NETNS");
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert!(answer.success, "{answer:?}");
    assert!(link::by_name(&mut gone.socket(), "eth0").unwrap().is_none());
    // GC: the namespace lives, though the runtime has forgotten it.
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let answer = host.call(&kept, "GC", &gc);
    assert!(answer.success, "{answer:?}");
    assert!(link::by_name(&mut dead.socket(), "eth0").unwrap().is_none());
    by_name(&mut kept.socket(), "eth0");
    let leases = host.leases();
    let of_kept = |address: &str| leases.iter().any(|lease| lease.ends_with(address));
    assert!(lan.records() == 1 && of_kept("192.168.50.12") && of_kept("fd50::12"), "{leases:?}");
    assert!(!of_kept("192.168.50.10") && !of_kept("192.168.50.11"), "{leases:?}");
    // The namespace is gone before DEL.
    let path = kept.path();
    let variables = Host::variables(&kept, "DEL");
    drop(kept);
    assert!(!Path::new(&path).exists());
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert!(answer.success, "{answer:?}");
    assert_eq!((lan.records(), host.leases().len()), (0, 0));
}

#[test]
fn fault_041_what_a_killed_add_left_is_cleared_by_the_next_and_by_delete() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod, conf) = (&lan.host, Pod::new("one"), lan.l2());
    let mut socket = pod.socket();
    host.add(&pod, &conf);
    let leases = host.leases().len();
    let temporary =
        std::fs::read_dir(lan.run_dir().join("ipvlan")).unwrap().next().unwrap().unwrap().file_name();
    let temporary = temporary.to_str().unwrap();
    // As ADD goes on: born; named and marked; up, with all but the last mark.
    let unfinished = |socket: &mut Socket, named: bool| {
        let far = by_name(socket, "eth0").index;
        let mark = by_name(socket, "eth0").alias.unwrap();
        let change = Change { alias: Some(&format!("~{mark}")), ..Change::default() };
        link::change(socket, far, &change).unwrap();
        if !named {
            link::set_down(socket, far).unwrap();
            link::change(socket, far, &Change { name: Some(temporary), ..Change::default() }).unwrap();
        }
    };
    for named in [true, false] {
        unfinished(&mut socket, named);
        host.add(&pod, &conf);
        assert_eq!(host.leases().len(), leases, "no second lease");
        connect(&pod.ns, &lan.router, ROUTER[0]);
        assert_eq!(link::list(&mut socket).unwrap().len(), 2);
        unfinished(&mut socket, named);
        host.del(&pod, &conf);
        lan.assert_gone(&pod);
        host.add(&pod, &conf);
    }
    // Killed by others' hands: a device of the same name that is not ours stays.
    host.del(&pod, &conf);
    let master = by_name(&mut host.socket(), "lan0").index;
    let foreign = Ipvlan { name: "foreign", master, mode: Mode::L2, mtu: None, ns: &pod.ns };
    ipvlan::create(&mut host.socket(), &foreign).unwrap();
    let index = by_name(&mut socket, "foreign").index;
    link::change(&mut socket, index, &Change { name: Some("eth0"), ..Change::default() }).unwrap();
    refused(&host.call(&pod, "ADD", &conf), 102, "has an interface eth0 already");
    host.del(&pod, &conf);
    assert_eq!(by_name(&mut socket, "eth0").index, index);
    assert!(host.leases().is_empty() && lan.records() == 0);
}

#[test]
fn fault_032_one_master_has_one_mode_and_no_other_lord() {
    let Some(lan) = Lan::new() else { return };
    let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
    host.add(&one, &lan.l2());
    refused(
        &host.call(&two, "ADD", &lan.l3("l3")),
        7,
        "master: lan0 is in mode l2 for eth0 of one; all devices on it are in one mode, so l3 needs another master",
    );
    assert_eq!(by_name(&mut one.socket(), "eth0").ipvlan, Some(Mode::L2), "the kernel would have changed it");
    host.del(&one, &lan.l2());
    lan.assert_gone(&two);
    // A device of somebody else, on the host.
    let master = by_name(&mut host.socket(), "lan0").index;
    let foreign = Ipvlan { name: "foreign", master, mode: Mode::L3s, mtu: None, ns: &host.ns };
    ipvlan::create(&mut host.socket(), &foreign).unwrap();
    refused(&host.call(&two, "ADD", &lan.l2()), 7, "master: lan0 is in mode l3s for foreign");
    link::delete_by_name(&mut host.socket(), "foreign").unwrap();
    // With the last device the mode is forgotten.
    host.add(&two, &lan.l3("l3"));
    host.del(&two, &lan.l3("l3"));

    let mut socket = host.socket();
    link::create_bridge(&mut socket, &link::Bridge { name: "br0", ..link::Bridge::default() }).unwrap();
    let bridge = by_name(&mut socket, "br0").index;
    link::change(&mut socket, master, &Change { master: Some(Some(bridge)), ..Change::default() }).unwrap();
    refused(&host.call(&two, "ADD", &lan.l2()), 7, "master: lan0 is taken: a port of a bridge");
    lan.assert_gone(&two);
}

#[test]
fn fault_031_a_master_that_cannot_be_is_refused_before_anything_is_done() {
    let lan = Lan::anywhere();
    let (host, pod) = (&lan.host, Pod::new("one"));
    let before = host.state();
    let cases = [
        ("master", json!("eth7"), 7, "master: there is no interface eth7"),
        ("master", json!("uplink"), 7, "master: uplink is down"),
        ("master", json!("lo"), 7, "master: lo is no Ethernet device"),
        ("master", json!(""), 7, "master: there is no default route"),
        ("mtu", json!(1501), 7, "mtu: 1501 is more than lan0 has, which is 1500"),
        ("ipvlanMode", json!("l4"), 7, "ipvlanMode: \"l4\""),
        ("mode", json!("l4"), 7, "mode: \"l4\""),
        ("mode", Value::Null, 7, "master: "),
        ("ipMasq", json!(true), 2, "ipMasq: "),
        ("runtimeConfig", json!({"mac": "02:00:00:00:00:07"}), 2, "mac: "),
    ];
    for (key, value, code, words) in cases {
        let mut conf = lan.l2();
        conf[key] = value;
        refused(&host.call(&pod, "ADD", &conf), code, words);
    }
    assert_eq!(host.state(), before);
    assert!(lan.records() == 0 && link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    let mut conf = lan.l2();
    conf["master"] = json!("eth7");
    refused(&host.call(&pod, "STATUS", &conf), 50, "master: there is no interface eth7");
}

#[test]
fn a_kernel_without_ipvlan_is_named() {
    let lan = Lan::anywhere();
    if lan.supports_ipvlan() {
        return heddle_lab::skip("this kernel has ipvlan");
    }
    let pod = Pod::new("one");
    let before = lan.host.state();
    let answer = lan.host.call(&pod, "ADD", &lan.l2());
    refused(&answer, 101, "this kernel has no ipvlan, or not its mode l2 (try: modprobe ipvlan)");
    lan.assert_gone(&pod);
    assert_eq!(lan.host.state(), before);
}
