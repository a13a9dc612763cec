//! ADD (section 2).

use anyhow::{Result, ensure};
use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{DisplayMac, Socket, addr};
use serde_json::json;

use crate::bench::Pod;
use crate::stage::{Stage, device, ips, said};
use crate::subject::{Check, WIRED};

pub const CHECKS: &[Check] = &[
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "the interface is in the pod, under its name, and up",
        run: interface_is_there,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "the interface has the addresses that the result tells, and no others",
        run: addresses_are_there,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "the pod has the routes that the result tells",
        run: routes_are_there,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "the configured MTU is that of both ends",
        run: mtu_of_both_ends,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "two families: both addresses, both default routes",
        run: two_families,
    },
    Check { section: "2 ADD", parts: WIRED, name: "IPv6 alone works", run: ipv6_alone },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "an interface that is there already is an error, and is not touched",
        run: interface_exists,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "a second ADD for the same interface leaves the first as it is, and no second lease",
        run: added_twice,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "a pod may have two interfaces in one network",
        run: two_interfaces,
    },
    Check { section: "2 ADD", parts: WIRED, name: "a pod may be in two networks", run: two_networks },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "8 pods at once: each has an interface and an address of its own",
        run: at_once,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "what Kubernetes tells in CNI_ARGS is taken",
        run: kubernetes_args,
    },
    Check {
        section: "conventions",
        parts: WIRED,
        name: "the capabilities dns and cgroupPath are taken",
        run: other_capabilities,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "an ADD that finds no free address leaves nothing",
        run: fails_without_address,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "an ADD that fails at its last route leaves nothing",
        run: fails_at_a_route,
    },
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "an ADD whose answer nobody reads leaves nothing",
        run: fails_at_the_answer,
    },
];

fn interface_is_there(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add_as(&pod, "net7", &stage.list())?;
    let found = device(&pod, "net7")?;
    ensure!(found.up && found.lower_up, "it is down");
    ensure!(found.kind.as_deref() == Some("veth"), "it is no veth");
    Ok(())
}

fn addresses_are_there(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.list())?;
    let eth0 = device(&pod, "eth0")?;
    let has = addr::list(&mut pod.socket(), Some(eth0.index)).unwrap();
    let has: Vec<_> =
        has.iter().map(|a| a.ip).filter(|ip| ip.is_ipv4()).map(|ip| json!(ip.to_string())).collect();
    let told: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect();
    ensure!(has == told, "the result tells {told:?}, the interface has {has:?}");
    Ok(())
}

fn routes_are_there(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24"}]);
    let result = stage.add(&pod, &stage.list().ipam("routes", routes.clone()))?;
    ensure!(
        result["routes"].as_array().is_some_and(|told| told.len() == 2),
        "the result tells the routes {}",
        result["routes"]
    );
    for dst in ["0.0.0.0/0", "198.51.100.0/24"] {
        ensure!(has_route(&pod, dst), "there is no route to {dst}");
    }
    Ok(())
}

fn has_route(pod: &Pod, dst: &str) -> bool {
    let filter = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut pod.socket(), &filter).unwrap();
    routes.iter().any(|route| route.dst.to_string() == dst)
}

fn mtu_of_both_ends(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.list().with("mtu", json!(1400)))?;
    let inner = device(&pod, "eth0")?;
    let outer = stage.host_side(&result)?;
    ensure!(
        inner.mtu == 1400 && outer.mtu == 1400,
        "it is {} in the pod and {} outside",
        inner.mtu,
        outer.mtu
    );
    Ok(())
}

fn two_families(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.dual())?;
    let own = ips(&result);
    ensure!(own.len() == 2 && own[0].is_ipv4() && own[1].is_ipv6(), "the result tells {own:?}");
    let eth0 = device(&pod, "eth0")?;
    let has = addr::list(&mut pod.socket(), Some(eth0.index)).unwrap();
    for ip in own {
        let found = has.iter().find(|a| a.ip.ip() == ip);
        ensure!(found.is_some_and(|a| !a.tentative), "{ip} is not there, or not usable yet");
    }
    ensure!(has_route(&pod, "0.0.0.0/0") && has_route(&pod, "::/0"), "a default route is missing");
    Ok(())
}

fn ipv6_alone(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list =
        stage.list().ranges(json!([[{"subnet": "fd01::/64"}]])).ipam("routes", json!([{"dst": "::/0"}]));
    let result = stage.add(&pod, &list)?;
    ensure!(ips(&result).len() == 1 && has_route(&pod, "::/0"), "no address or no route");
    Ok(())
}

fn interface_exists(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let mut socket = pod.socket();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("eth0"), &end("far")).unwrap();
    let before = link::by_name(&mut socket, "eth0").unwrap();
    let answer = stage.try_add(&pod, &stage.list());
    ensure!(!answer.success, "it is no error");
    ensure!(link::by_name(&mut socket, "eth0").unwrap() == before, "it is changed");
    ensure!(stage.leases().is_empty(), "an address stays leased");
    Ok(())
}

fn added_twice(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list = stage.list();
    let result = stage.add(&pod, &list)?;
    let before = stage.state();
    let again = stage.try_add(&pod, &list);
    if again.success {
        ensure!(again.json["ips"] == result["ips"], "it succeeds with another address");
    }
    ensure!(stage.leases().len() == 1, "there are {} leases then", stage.leases().len());
    ensure!(stage.state() == before, "the host is not as before");
    let whole = stage.check(&pod, &list, &result);
    ensure!(whole.success, "CHECK fails then: {}", said(&whole));
    Ok(())
}

fn two_interfaces(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list = stage.list().ipam("routes", json!([]));
    let first = stage.add_as(&pod, "eth0", &list)?;
    let second = stage.add_as(&pod, "net1", &list)?;
    ensure!(ips(&first) != ips(&second), "with the same address");
    device(&pod, "eth0")?;
    device(&pod, "net1").map(drop)
}

fn two_networks(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list = stage.list();
    let mut other = list.clone().ipam("routes", json!([])).ranges(json!([[{"subnet": "10.2.0.0/24"}]]));
    other.name = "other".into();
    if !stage.ptp() {
        other = other.with("bridge", json!("br1"));
    }
    let (first, second) = (stage.add_as(&pod, "eth0", &list)?, stage.add_as(&pod, "eth1", &other)?);
    ensure!(ips(&first)[0].to_string() == "10.1.0.2", "the first has {:?}", ips(&first));
    ensure!(ips(&second)[0].to_string() == "10.2.0.2", "the second has {:?}", ips(&second));
    Ok(())
}

fn at_once(stage: &Stage) -> Result<()> {
    let list = stage.list();
    let pods: Vec<Pod> = (0..8).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    let given: Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| stage.add(pod, &list))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("one panicked"))?)
            .collect()
    });
    let given: std::collections::BTreeSet<_> = given?.iter().map(|result| ips(result)[0]).collect();
    ensure!(given.len() == 8, "they have {} addresses", given.len());
    for pod in &pods {
        ensure!(device(pod, "eth0")?.up, "an interface is down");
    }
    Ok(())
}

fn kubernetes_args(stage: &Stage) -> Result<()> {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=7";
    let answer = stage.with_args(&Pod::new("abc"), "ADD", &stage.list(), args);
    ensure!(answer.success, "ADD fails: {}", said(&answer));
    Ok(())
}

fn other_capabilities(stage: &Stage) -> Result<()> {
    let list = stage
        .list()
        .capability("dns", json!({"servers": ["10.96.0.10"], "searches": ["a.example.org"]}))
        .capability("cgroupPath", json!("/kubepods/pod7"));
    stage.add(&Pod::new("abc"), &list).map(drop)
}

fn fails_without_address(stage: &Stage) -> Result<()> {
    let list = stage.list().ranges(json!([[{"subnet": "10.1.0.0/30"}]]));
    stage.settle(&list)?;
    stage.add_one("abc", &list)?;
    let before = stage.state();
    let late = Pod::new("late");
    let answer = stage.try_add(&late, &list);
    ensure!(!answer.success, "it succeeds");
    ensure!(device(&late, "eth0").is_err(), "the interface stays");
    stage.nothing_more_than(&before)
}

fn fails_at_a_route(stage: &Stage) -> Result<()> {
    let list = stage.list();
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    // The gateway is on no link.
    let answer =
        stage.try_add(&pod, &list.ipam("routes", json!([{"dst": "198.51.100.0/24", "gw": "172.31.7.7"}])));
    ensure!(!answer.success, "it succeeds");
    ensure!(device(&pod, "eth0").is_err(), "the interface stays");
    stage.nothing_more_than(&before)
}

fn fails_at_the_answer(stage: &Stage) -> Result<()> {
    let list = stage.list();
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let answer = stage.unheard(&pod, &list.conf(0, None));
    ensure!(!answer, "it ends with success");
    ensure!(device(&pod, "eth0").is_err(), "the interface stays");
    stage.nothing_more_than(&before)
}

/// The Ethernet address of a device, as a result tells it.
pub fn mac(socket: &mut Socket, name: &str) -> Option<String> {
    let link = link::by_name(socket, name).unwrap()?;
    link.mac.map(|mac| DisplayMac(mac).to_string())
}
