//! CHECK finds what somebody did to a pod; GC finds what nobody knows any more.

use heddle_netlink::addr;
use heddle_netlink::link::{self, Change};
use heddle_netlink::neigh;
use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::route::{self, Filter, Route};
use serde_json::{Value, json};

use super::bench::{Host, Pod};

/// The configuration with the result of ADD in it.
fn checked(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
fn fault_024_whatever_is_changed_is_named() {
    type Damage = fn(&Host, &Pod);
    let damages: [(&str, Damage); 11] = [
        ("has not the address 10.244.1.2", |_, pod| {
            let mut socket = pod.socket();
            let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
            addr::delete(&mut socket, index, "10.244.1.2/32".parse().unwrap()).unwrap();
        }),
        ("is not leased", |host, _| {
            std::fs::remove_file(host.data_dir().join("heddle/fd00:10:244:1::2")).unwrap();
        }),
        ("no route to ::/0", |_, pod| {
            let mut socket = pod.socket();
            let routes = route::list(&mut socket, &Filter { table: Some(254), ..Filter::default() }).unwrap();
            let default = routes.iter().find(|route| route.dst.to_string() == "::/0").unwrap();
            route::delete(&mut socket, default).unwrap();
        }),
        ("does not know the Ethernet address of its gateway 10.244.1.1", |_, pod| {
            let mut socket = pod.socket();
            let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
            neigh::delete(&mut socket, index, "10.244.1.1".parse().unwrap()).unwrap();
        }),
        ("the host does not know", |host, _| {
            let mut socket = host.socket();
            neigh::delete(&mut socket, near(host).index, "10.244.1.2".parse().unwrap()).unwrap();
        }),
        ("the host has no route to fd00:10:244:1::2", |host, _| {
            let own = Route::on_link("fd00:10:244:1::2/128".parse().unwrap(), near(host).index);
            let ours = Route { protocol: route::PROTOCOL_POD, ..own };
            route::delete(&mut host.socket(), &ours).unwrap();
        }),
        ("is down", |host, _| link::set_down(&mut host.socket(), near(host).index).unwrap()),
        ("MTU 1400", |host, _| {
            let smaller = Change { mtu: Some(1400), ..Change::default() };
            link::change(&mut host.socket(), near(host).index, &smaller).unwrap();
        }),
        ("another Ethernet address", |host, _| {
            let other = Change { mac: Some([2, 0, 0, 0, 0, 9]), ..Change::default() };
            link::change(&mut host.socket(), near(host).index, &other).unwrap();
        }),
        ("there is no interface", |host, _| link::delete(&mut host.socket(), near(host).index).unwrap()),
        ("rules against spoofed addresses", |host, _| {
            let mut batch = Batch::new();
            batch.flush_chain(Family::Inet, "heddle", "spoofing");
            Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
        }),
    ];
    for (wanted, damage) in damages {
        let (host, pod) = (Host::new(), Pod::new("abc"));
        let conf = host.conf();
        let result = host.add(&pod, &conf).json;
        let whole = host.call(&pod, "CHECK", &checked(&conf, &result));
        assert!(whole.success && whole.stdout.is_empty(), "{whole:?}");
        damage(&host, &pod);
        let damaged = host.call(&pod, "CHECK", &checked(&conf, &result));
        assert_eq!(damaged.code(), 101, "{wanted}: {damaged:?}");
        assert!(damaged.msg().contains(wanted), "{wanted}: {damaged:?}");
        host.del(&pod, &checked(&conf, &result));
    }
}

fn near(host: &Host) -> link::Link {
    let links = link::list(&mut host.socket()).unwrap();
    links.into_iter().find(|link| link.name.starts_with("hdl")).unwrap()
}

#[test]
fn fault_023_and_024_what_others_added_is_no_fault_and_a_result_is_needed() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.conf();
    let result = host.add(&pod, &conf).json;
    let mut socket = pod.socket();
    let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    addr::add(&mut socket, &addr::Addr::new(index, "192.0.2.1/32".parse().unwrap())).unwrap();
    route::add(&mut socket, &Route::on_link("198.51.100.0/24".parse().unwrap(), index)).unwrap();
    assert!(host.call(&pod, "CHECK", &checked(&conf, &result)).success);
    assert_eq!(host.call(&pod, "CHECK", &conf).code(), 7);
    assert_eq!(host.call(&pod, "CHECK", &checked(&conf, &json!("nonsense"))).code(), 7);
    let mut old = checked(&conf, &result);
    old["cniVersion"] = json!("0.3.1");
    assert_eq!(host.call(&pod, "CHECK", &old).code(), 1, "it came with 0.4.0");

    let bridge = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "heddle", "mode": "bridge", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": host.data_dir(), "subnet": "10.9.0.0/24"}
    });
    let pod = Pod::new("on-a-bridge");
    let result = host.add(&pod, &bridge).json;
    let whole = host.call(&pod, "CHECK", &checked(&bridge, &result));
    assert!(whole.success, "{whole:?}");
}

#[test]
fn fault_025_what_nobody_knows_is_collected_and_nothing_else() {
    let host = Host::new();
    let conf = host.conf();
    let mut other = conf.clone();
    other["name"] = json!("other");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]);
    let pods = ["kept", "lost", "elsewhere", "dead"].map(Pod::new);
    let [kept, lost, elsewhere, dead] = &pods;
    host.add(kept, &conf);
    let before = host.state();
    host.add(lost, &conf);
    host.add(dead, &conf);
    // Its namespace went, and the pair with it: only the leases are left.
    link::delete_by_name(&mut dead.socket(), "eth0").unwrap();

    let collect = |list: Value| {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = list;
        host.call(kept, "GC", &conf)
    };
    let with_all = host.state();
    for bad in
        [json!("x"), json!([{"containerID": "kept"}]), json!([{"containerID": "../x", "ifname": "eth0"}])]
    {
        assert_eq!(collect(bad.clone()).code(), 7, "{bad}");
    }
    assert_eq!(host.call(kept, "GC", &conf).code(), 7, "no list is not an empty one");
    assert_eq!(host.state(), with_all);

    let many: Vec<_> =
        (0..10_000).map(|n| json!({"containerID": format!("unknown-{n}"), "ifname": "eth0"})).collect();
    let mut list = many;
    list.push(json!({"containerID": "kept", "ifname": "eth0"}));
    let answer = collect(json!(list));
    assert!(answer.success && answer.stdout.is_empty(), "{answer:?}");
    assert_eq!(host.state(), before);

    host.add(elsewhere, &other);
    // As libcni writes no list at all.
    let empty = collect(Value::Null);
    assert!(empty.success, "{empty:?}");
    let left = host.leases();
    assert!(left.iter().all(|lease| lease.contains("/other/")) && left.len() == 3, "{left:?}");
    assert!(link::by_name(&mut elsewhere.socket(), "eth0").unwrap().is_some());
    assert!(link::by_name(&mut kept.socket(), "eth0").unwrap().is_none());
}
