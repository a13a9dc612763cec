//! What a pod can reach, in each mode.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use heddle_netlink::addr;
use heddle_netlink::ipvlan::Mode;
use heddle_netlink::link::{self, Change, VethEnd};
use heddle_netlink::route::{self, Filter};
use serde_json::{Value, json};

use super::{BEYOND, Lan, ROUTER, by_name, connect, refused, set_up};
use crate::bench::{Host, Pod};

#[test]
fn l2_pods_are_machines_of_the_network() {
    let Some(lan) = Lan::new() else { return };
    let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
    let before = host.state();
    let mut conf = lan.l2();
    conf["mtu"] = json!(1400);
    conf["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
    conf["txQLen"] = json!(77);
    let answer = host.add(&one, &conf);
    let far = by_name(&mut one.socket(), "eth0");
    let mac = by_name(&mut host.socket(), "lan0").mac.unwrap();
    let wanted = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{
            "name": "eth0", "mac": heddle_netlink::DisplayMac(mac).to_string(), "mtu": 1400, "sandbox": one.path()
        }],
        "ips": [
            {"interface": 0, "address": "192.168.50.10/24", "gateway": "192.168.50.1"},
            {"interface": 0, "address": "fd50::10/64", "gateway": "fd50::1"}
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {}
    });
    assert_eq!(answer.json, wanted);
    assert_eq!((far.ipvlan, far.mtu, far.up, far.queue), (Some(Mode::L2), 1400, true, 77));
    let routes = route::list(&mut one.socket(), &Filter::default()).unwrap();
    for gateway in ROUTER {
        let gateway: IpAddr = gateway.parse().unwrap();
        assert!(routes.iter().any(|r| r.dst.prefix() == 0 && r.gateway == Some(gateway)), "{routes:?}");
    }
    // The first packet passes: nobody has to detect duplicates or to learn anything first.
    let target = host.add(&two, &conf).ips();
    for family in 0..2 {
        connect(&one.ns, &two.ns, &target[family]);
        connect(&one.ns, &lan.router, ROUTER[family]);
        connect(&one.ns, &lan.router, BEYOND[family]);
        connect(&lan.router, &one.ns, &answer.ips()[family]);
    }
    // A second interface, and what is there already.
    refused(&host.call(&one, "ADD", &conf), 102, "is attached already");
    let mut check = conf.clone();
    check["prevResult"] = answer.json;
    let checked = host.call(&one, "CHECK", &check);
    assert!(checked.success, "{checked:?}");
    check["txQLen"] = json!(78);
    refused(&host.call(&one, "CHECK", &check), 101, "txqueuelen is 77, not 78");

    host.del(&one, &conf);
    host.del(&two, &conf);
    host.del(&two, &conf);
    lan.assert_gone(&one);
    lan.assert_gone(&two);
    assert_eq!(host.state(), before);
}

#[test]
fn l3_and_l3s_pods_are_behind_the_host() {
    let Some(lan) = Lan::new() else { return };
    for mode in ["l3", "l3s"] {
        let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
        // Once in our words, once in those of the reference plugin.
        let mut conf = lan.l3(mode);
        let first = host.add(&one, &conf).ips();
        conf["mode"] = json!(mode);
        conf.as_object_mut().unwrap().remove("ipvlanMode");
        let second = host.add(&two, &conf).ips();
        let far = by_name(&mut one.socket(), "eth0");
        assert_eq!(far.ipvlan.unwrap().as_str(), mode);
        let routes = route::list(&mut one.socket(), &Filter::default()).unwrap();
        let default: Vec<_> = routes.iter().filter(|r| r.dst.prefix() == 0).collect();
        assert_eq!(default.len(), 2, "{routes:?}");
        assert!(default.iter().all(|r| r.gateway.is_none() && r.link == Some(far.index)), "{default:?}");
        for family in 0..2 {
            connect(&one.ns, &two.ns, &second[family]);
            connect(&one.ns, &lan.router, BEYOND[family]);
            connect(&lan.router, &one.ns, &first[family]);
        }
        host.del(&one, &conf);
        host.del(&two, &conf);
        lan.assert_gone(&one);
    }
}

#[test]
fn the_master_is_that_of_the_default_route_or_of_the_plugin_before_or_in_the_pod() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod) = (&lan.host, Pod::new("one"));
    let mut conf = lan.l3("l3");
    conf.as_object_mut().unwrap().remove("master");
    let master = by_name(&mut host.socket(), "lan0").index;
    host.add(&pod, &conf);
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(master));
    let status = host.call(&pod, "STATUS", &conf);
    assert!(status.success, "{status:?}");
    host.del(&pod, &conf);

    // Second in a chain, without IPAM: device and addresses are those of the plugin before.
    let mut chained = conf.clone();
    chained.as_object_mut().unwrap().remove("ipam");
    chained["prevResult"] = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "uplink"}],
        "ips": [{"address": "10.60.1.77/24", "interface": 0}], "routes": [{"dst": "10.70.0.0/16"}]
    });
    set_up(&mut host.socket(), "uplink", &[]);
    let answer = host.add(&pod, &chained);
    assert_eq!(answer.json["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(answer.json["ips"], json!([{"address": "10.60.1.77/24", "interface": 1}]));
    let uplink = by_name(&mut host.socket(), "uplink").index;
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(uplink));
    let routes = route::list(&mut pod.socket(), &Filter::default()).unwrap();
    assert!(routes.iter().any(|route| route.dst.to_string() == "10.70.0.0/16"));
    host.del(&pod, &chained);
    lan.assert_gone(&pod);
    chained["prevResult"]["interfaces"] = json!([{"name": "uplink"}, {"name": "switch"}]);
    refused(&host.call(&pod, "ADD", &chained), 7, "master: prevResult has not exactly one interface");
    chained.as_object_mut().unwrap().remove("prevResult");
    refused(&host.call(&pod, "ADD", &chained), 7, "ipam: ");

    // In the pod's namespace already.
    let near = VethEnd { name: "in0", ns: Some(&pod.ns), ..VethEnd::default() };
    let far = VethEnd { name: "in1", ..VethEnd::default() };
    link::create_veth(&mut host.socket(), &near, &far).unwrap();
    set_up(&mut pod.socket(), "in0", &[]);
    let mut inside = lan.l3("l3s");
    inside["master"] = json!("in0");
    refused(&host.call(&pod, "ADD", &inside), 7, "master: there is no interface in0");
    inside["linkInContainer"] = json!(true);
    let answer = host.add(&pod, &inside);
    let master = by_name(&mut pod.socket(), "in0").index;
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(master));
    inside["prevResult"] = answer.json;
    let checked = host.call(&pod, "CHECK", &inside);
    assert!(checked.success, "{checked:?}");
    host.del(&pod, &inside);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

/// The reference plugin with the same configuration but for `type` and `mode`.
#[test]
fn the_reference_plugin_wires_a_pod_as_we_do() {
    let Some(lan) = Lan::new() else { return };
    let plugin = Path::new("/usr/lib/cni/ipvlan");
    if !plugin.exists() {
        return heddle_lab::skip("the package containernetworking-plugins is not installed");
    }
    let seen = |pod: &Pod| {
        let mut socket = pod.socket();
        let far = by_name(&mut socket, "eth0");
        let own = addr::list(&mut socket, Some(far.index)).unwrap().into_iter();
        let own: Vec<_> = own.map(|a| a.ip).filter(|ip| !ip.to_string().starts_with("fe80")).collect();
        let routes = route::list(&mut socket, &Filter { table: Some(254), ..Filter::default() }).unwrap();
        let mut routes: Vec<_> = routes
            .into_iter()
            .filter(|route| !route.dst.to_string().starts_with("fe80"))
            .map(|route| (route.dst, route.gateway, route.scope))
            .collect();
        routes.sort_by_key(|route| route.0);
        (far.mtu, far.mac, far.ipvlan, own, routes)
    };
    let mut conf = lan.l2();
    conf["cniVersion"] = json!("1.0.0");
    let (ours, theirs) = (Pod::new("one"), Pod::new("one"));
    let our_answer = lan.host.add(&ours, &conf);
    let our_wiring = seen(&ours);
    lan.host.del(&ours, &conf);
    std::fs::remove_dir_all(lan.host.data_dir()).unwrap();
    conf["mode"] = json!("l2");
    let variables = Host::variables(&theirs, "ADD");
    let their_answer = lan.host.run(&mut Command::new(plugin), &variables, conf.to_string().as_bytes());
    assert!(their_answer.success, "{their_answer:?}");
    assert_eq!(our_wiring, seen(&theirs));
    assert_eq!(our_answer.json["ips"], their_answer.json["ips"]);
    assert_eq!(our_answer.json["routes"], their_answer.json["routes"]);
}

#[test]
fn the_configuration_of_the_documentation_works() {
    let Some(lan) = Lan::new() else { return };
    let mut socket = lan.host.socket();
    let index = by_name(&mut socket, "lan0").index;
    link::set_down(&mut socket, index).unwrap();
    link::change(&mut socket, index, &Change { name: Some("eth0"), ..Change::default() }).unwrap();
    link::set_up(&mut socket, index).unwrap();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ipvlan.md");
    let page = std::fs::read_to_string(page).unwrap();
    let block = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let mut conf: Value = serde_json::from_str(block).unwrap();
    conf["runDir"] = json!(lan.run_dir());
    conf["ipam"]["dataDir"] = json!(lan.host.data_dir());
    let pod = Pod::new("one");
    assert_eq!(lan.host.add(&pod, &conf).ips(), ["192.168.1.200"]);
    lan.host.del(&pod, &conf);
    lan.assert_gone(&pod);
}
