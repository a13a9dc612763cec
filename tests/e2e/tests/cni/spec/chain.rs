//! Heddle as one of several plugins: what came before is passed on, what comes after is left room.

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link::{self, Change, VethEnd};
use heddle_netlink::route::{self, Route};
use serde_json::{Value, json};

use super::super::bench::{Host, Pod};

/// What another plugin did for the same pod.
fn before() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "br7", "mac": "02:00:00:00:07:01"},
            {"name": "net1", "mac": "02:00:00:00:07:02", "sandbox": "/ns", "mtu": 9000, "pciID": "0000:00:1f.6"}
        ],
        "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1", "interface": 1}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
        "dns": {"nameservers": ["192.0.2.53"], "domain": "first"}
    })
}

fn with(conf: &Value, key: &str, value: &Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value.clone();
    conf
}

#[test]
fn what_a_plugin_before_us_did_is_passed_on_and_ours_comes_behind() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut conf = with(&host.conf(), "prevResult", &before());
    conf["dns"] = json!({"nameservers": ["10.96.0.10", "192.0.2.53"], "domain": "second"});
    let json = host.add(&pod, &conf).json;
    let first = before();
    assert_eq!(json["interfaces"][0], first["interfaces"][0]);
    assert_eq!(json["interfaces"][1], first["interfaces"][1]);
    assert_eq!(json["interfaces"][3]["name"], "eth0");
    assert_eq!(json["ips"][0], first["ips"][0]);
    assert_eq!(json["ips"][1], json!({"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 3}));
    assert_eq!(json["ips"][2]["interface"], 3);
    assert_eq!(json["routes"][0], first["routes"][0]);
    assert_eq!(json["routes"].as_array().unwrap().len(), 3);
    assert_eq!(json["dns"], json!({"nameservers": ["192.0.2.53", "10.96.0.10"], "domain": "first"}));
    // The result of the chain is what the others are given from now on.
    let checked = host.call(&pod, "CHECK", &with(&host.conf(), "prevResult", &json));
    assert!(checked.success, "{checked:?}");
    host.del(&pod, &with(&host.conf(), "prevResult", &json));
}

#[test]
fn a_bridge_comes_behind_too() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "prevResult": before(),
        "ipam": {"type": "host-local", "dataDir": host.data_dir(), "subnet": "10.9.0.0/24"}
    });
    let json = host.add(&pod, &conf).json;
    assert_eq!(json["interfaces"][2]["name"], "cni0");
    assert_eq!(json["ips"][1]["interface"], 4);
    assert_eq!(json["interfaces"][4]["name"], "eth0");
    assert!(json["interfaces"][1].get("mtu").is_none(), "1.0.0 has no mtu: {json}");
}

#[test]
fn results_of_every_version_are_understood() {
    let host = Host::new();
    let old = json!({"ip6": {"ip": "fd07::9/64", "gateway": "fd07::1"}, "dns": {"domain": "old"}});
    let mut conf = host.conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
    conf["ipam"]["routes"] = json!([]);
    for version in ["0.1.0", "0.2.0"] {
        let pod = Pod::new("abc");
        conf["cniVersion"] = json!(version);
        conf["prevResult"] = old.clone();
        let json = host.add(&pod, &conf).json;
        assert_eq!(json["ip6"], json!({"ip": "fd07::9/64", "gateway": "fd07::1", "routes": []}), "{version}");
        assert!(json["ip4"]["ip"].as_str().unwrap().starts_with("10.244.1."), "{json}");
        assert_eq!(json["dns"]["domain"], "old");
        host.del(&pod, &conf);
    }
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new("abc");
        let mut first = before();
        first.as_object_mut().unwrap().remove("cniVersion");
        conf["cniVersion"] = json!(version);
        conf["prevResult"] = first;
        let json = host.add(&pod, &conf).json;
        assert_eq!(json["ips"].as_array().unwrap().len(), 2, "{version}");
        assert_eq!(json["ips"][0].get("version").is_some(), version < "1.0.0", "{version}");
        host.del(&pod, &conf);
    }
}

#[test]
fn an_old_version_has_no_room_for_two_addresses_of_a_family() {
    let (host, conf, pod, state) = Host::settled();
    let mut conf = with(&conf, "prevResult", &json!({"ip4": {"ip": "192.0.2.9/24"}}));
    conf["cniVersion"] = json!("0.2.0");
    let answer = host.call(&pod, "ADD", &conf);
    assert_eq!(answer.code(), 7, "{answer:?}");
    assert!(answer.msg().contains("one address a family"), "{answer:?}");
    assert_eq!(host.state(), state);
}

#[test]
fn fault_023_and_055_a_result_that_is_no_result_stops_add_before_any_change_and_del_never() {
    let (host, conf, pod, state) = Host::settled();
    let malformed = [
        json!("nonsense"),
        json!([1]),
        json!({"ips": [{"address": "nowhere"}]}),
        json!({"ips": [{"address": "10.0.0.1/8", "interface": 3}]}),
        json!({"interfaces": 7}),
        json!({"cniVersion": "7.0.0"}),
    ];
    for wrong in &malformed {
        for command in ["ADD", "CHECK"] {
            let answer = host.call(&pod, command, &with(&conf, "prevResult", wrong));
            assert_eq!(answer.code(), 7, "{command} {wrong}: {answer:?}");
            assert!(answer.msg().starts_with("prevResult: "), "{answer:?}");
        }
        assert_eq!(host.state(), state, "{wrong}");
    }
    // What a runtime's empty cache makes of a result is not wrong, but none.
    for none in [Value::Null, json!({})] {
        assert_eq!(host.call(&pod, "CHECK", &with(&conf, "prevResult", &none)).code(), 7);
        host.add(&pod, &with(&conf, "prevResult", &none));
        host.del(&pod, &with(&conf, "prevResult", &none));
    }
    for wrong in malformed.iter().chain([&json!(""), &Value::Null, &json!({})]) {
        host.add(&pod, &conf);
        host.del(&pod, &with(&conf, "prevResult", wrong));
        assert_eq!(host.state(), state, "{wrong}");
    }
}

#[test]
fn fault_023_check_names_what_the_result_has_and_the_pod_has_not() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.conf();
    let result = host.add(&pod, &conf).json;
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 4] = [
        ("has not the address 10.244.1.99", |r| r["ips"][0]["address"] = json!("10.244.1.99/32")),
        ("another Ethernet address", |r| r["interfaces"][1]["mac"] = json!("02:00:00:00:00:09")),
        ("no route to ::/0", |r| r["routes"][1]["gw"] = json!("fe80::7")),
        ("does not know the pod's interface eth0", |r| r["interfaces"][1]["name"] = json!("eth7")),
    ];
    for (wanted, lie) in lies {
        let mut told = result.clone();
        lie(&mut told);
        let answer = host.call(&pod, "CHECK", &with(&conf, "prevResult", &told));
        assert_eq!(answer.code(), 101, "{wanted}: {answer:?}");
        assert!(answer.msg().contains(wanted), "{wanted}: {answer:?}");
    }
}

#[test]
fn check_leaves_room_for_what_a_plugin_behind_us_does() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.conf();
    let mut result = host.add(&pod, &conf).json;
    let mut socket = pod.socket();
    let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    // Another interface, another address on ours, an MTU, and one of our routes taken away, all of them told.
    link::create_veth(
        &mut socket,
        &VethEnd { name: "net1", ..VethEnd::default() },
        &VethEnd { name: "net2", ..VethEnd::default() },
    )
    .unwrap();
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "net1", "sandbox": pod.path()}));
    result["ips"].as_array_mut().unwrap().push(json!({"address": "203.0.113.1/24", "interface": 2}));
    addr::add(&mut socket, &Addr::new(index, "192.0.2.1/32".parse().unwrap())).unwrap();
    result["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.1/32", "interface": 1}));
    link::change(&mut socket, index, &Change { mtu: Some(1300), ..Change::default() }).unwrap();
    result["interfaces"][1]["mtu"] = json!(1300);
    let default = Route::via("0.0.0.0/0".parse().unwrap(), "10.244.1.1".parse().unwrap(), index);
    route::delete(&mut socket, &Route { protocol: route::PROTOCOL_BOOT, ..default }).unwrap();
    result["routes"] = json!([{"dst": "::/0"}, {"dst": "203.0.113.0/24"}]);
    let answer = host.call(&pod, "CHECK", &with(&conf, "prevResult", &result));
    assert!(answer.success, "{answer:?}");
    // The change that nobody told of is a fault.
    link::change(&mut socket, index, &Change { mtu: Some(1301), ..Change::default() }).unwrap();
    let answer = host.call(&pod, "CHECK", &with(&conf, "prevResult", &result));
    assert!(answer.msg().contains("MTU 1301, not 1300"), "{answer:?}");
}

#[test]
fn fault_010_an_error_names_the_version_that_was_asked_for() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = with(&host.conf(), "cniVersion", &json!("0.3.1"));
    let with_key = with(&conf, "mtu", &json!("x"));
    assert_eq!(host.call(&pod, "ADD", &with_key).json["cniVersion"], "0.3.1");
    // Also where the environment is wrong.
    let mut variables = Host::variables(&pod, "ADD");
    variables.retain(|(name, _)| name != "CNI_IFNAME");
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert_eq!((answer.code(), &answer.json["cniVersion"]), (4, &json!("0.3.1")));
    assert_eq!(host.call(&pod, "STATUS", &conf).json["cniVersion"], "0.3.1");
    let unknown = with(&conf, "cniVersion", &json!("9.9.9"));
    assert_eq!(host.call(&pod, "ADD", &unknown).json["cniVersion"], "1.1.0");
}
