//! Where the built-in addresses meet the rest of the plugin: dead pods, names, options of routes.

use std::fs;
use std::time::Duration;

use heddle_lab::eventually;
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{addr, link};
use serde_json::{Value, json};

use super::bench::{Host, Pod};

/// Small ranges of either mode, where a pod's address is soon needed again.
fn confs(host: &Host) -> [Value; 2] {
    [host.conf(), host.bridge_conf()].map(|mut conf| {
        conf["cniVersion"] = json!("1.1.0");
        let subnet = conf["ipam"].as_object_mut().unwrap().remove("subnet");
        drop(subnet);
        conf["ipam"]["gateway"] = json!(null);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}]]);
        conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        conf
    })
}

/// ADD, which must succeed when the kernel has taken apart what is dead; the addresses.
fn eventually_added(host: &Host, pod: &Pod, conf: &Value) -> Vec<String> {
    let mut ips = Vec::new();
    eventually("a dead pod's address is free", Duration::from_secs(10), || {
        let answer = host.call(pod, "ADD", conf);
        if answer.success {
            ips = answer.ips();
        } else {
            assert_eq!(answer.code(), 100, "{answer:?}");
        }
        Ok(answer.success)
    })
    .unwrap();
    ips
}

#[test]
fn fault_056_all_that_a_dead_pod_left_is_cleared_away_when_its_address_is_needed() {
    for n in 0..2 {
        let host = Host::new();
        let mut conf = confs(&host)[n].clone();
        // Things in nf_tables live on when a pod's namespace is gone.
        conf["ipMasq"] = json!(true);
        let living: Vec<Pod> = (0..4).map(|n| Pod::new(&format!("pod-{n}"))).collect();
        for pod in &living {
            host.add(pod, &conf);
        }
        let before = host.state();
        let dead = Pod::new("dead");
        let ip = host.add(&dead, &conf).ips();
        let late = Pod::new("late");
        assert_eq!(host.call(&late, "ADD", &conf).code(), 100, "all live");
        drop(dead);
        // The kernel takes a namespace apart when it has time; until the interface is gone, so is no lease.
        let given = eventually_added(&host, &late, &conf);
        assert_eq!(given, ip);
        host.del(&late, &conf);
        assert_eq!(host.state(), before, "nothing is left of the dead one");
        let status = host.call(&late, "STATUS", &conf);
        assert!(status.success, "{status:?}");
    }
}

/// The namespace is not where it was, and nobody that can be seen is in it; but its interface is there.
#[test]
fn a_pod_whose_interface_is_there_keeps_its_address() {
    for n in 0..2 {
        let host = Host::new();
        let conf = confs(&host)[n].clone();
        let pods: Vec<Pod> = (0..4).map(|n| Pod::new(&format!("pod-{n}"))).collect();
        for pod in &pods {
            host.add(pod, &conf);
        }
        let hidden = Pod::new("hidden");
        let path = host.data_dir().with_file_name("netns");
        std::os::unix::fs::symlink(hidden.path(), &path).unwrap();
        let mut variables = Host::variables(&hidden, "ADD");
        for (name, value) in &mut variables {
            if name == "CNI_NETNS" {
                *value = path.to_str().unwrap().to_owned();
            }
        }
        assert!(host.raw(&variables, conf.to_string().as_bytes()).success);
        fs::remove_file(&path).unwrap();
        // A socket holds it, of a process that is elsewhere.
        let mut socket = hidden.socket();
        drop(hidden);
        let late = host.call(&Pod::new("late"), "ADD", &conf);
        assert!(late.code() == 100 && late.msg().contains("5 leases"), "{late:?}");
        assert!(link::by_name(&mut socket, "eth0").unwrap().unwrap().up, "the pod has its interface");
        drop(socket);
        // With the last holder the namespace goes, and with it the interface; the kernel takes its time.
        eventually_added(&host, &Pod::new("late"), &conf);
    }
}

#[test]
fn resolv_conf_is_what_the_answer_says_of_names_unless_the_configuration_does() {
    let host = Host::new();
    let mut conf = host.conf();
    let path = host.data_dir().with_file_name("resolv.conf");
    conf["ipam"]["resolvConf"] = json!(path);
    let pod = Pod::new("abc");
    let absent = host.call(&pod, "ADD", &conf);
    assert!(absent.code() == 5 && absent.msg().contains(path.to_str().unwrap()), "{absent:?}");
    assert!(!host.leases().iter().any(|lease| lease.contains("/10.244.1.")));
    assert_eq!(host.call(&pod, "STATUS", &conf).code(), 50);
    fs::write(&path, "nameserver 10.96.0.10\nsearch a b\n").unwrap();
    let answer = host.add(&pod, &conf);
    assert_eq!(answer.json["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["a", "b"]}));
    host.del(&pod, &conf);
    conf["dns"] = json!({"nameservers": ["10.1.1.1"]});
    assert_eq!(host.add(&pod, &conf).json["dns"], json!({"nameservers": ["10.1.1.1"]}));
    host.del(&pod, &conf);
}

#[test]
fn a_route_has_the_advmss_that_the_configuration_says() {
    for n in 0..2 {
        let host = Host::new();
        let mut conf = confs(&host)[n].clone();
        conf["ipam"]["routes"] = json!([{"dst": "10.7.0.0/16", "advmss": 1300, "mtu": 1400}]);
        let pod = Pod::new("abc");
        let answer = host.add(&pod, &conf);
        assert_eq!(answer.json["routes"][0]["advmss"], json!(1300));
        let routes = route::list(&mut pod.socket(), &Filter::default()).unwrap();
        let wanted = routes.iter().find(|route| route.dst.to_string() == "10.7.0.0/16").unwrap();
        assert_eq!((wanted.advmss, wanted.mtu), (Some(1300), Some(1400)));
        host.del(&pod, &conf);
    }
}

#[test]
fn fault_s23_the_nodes_own_addresses_are_given_to_no_pod() {
    let host = Host::new();
    let mut socket = host.socket();
    let uplink = link::by_name(&mut socket, "uplink").unwrap().unwrap().index;
    addr::add(&mut socket, &addr::Addr::new(uplink, "10.244.1.2/32".parse().unwrap())).unwrap();
    let conf = confs(&host)[0].clone();
    let pod = Pod::new("abc");
    assert_eq!(host.add(&pod, &conf).ips(), ["10.244.1.3"]);
    host.del(&pod, &conf);
    let mut variables = Host::variables(&pod, "ADD");
    variables.push(("CNI_ARGS".into(), "IP=10.244.1.2".into()));
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert!(answer.code() == 7 && answer.msg().contains("this node's own"), "{answer:?}");
}
