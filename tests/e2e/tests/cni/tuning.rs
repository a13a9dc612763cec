//! The tuning plugin's keys: the pod's kernel parameters, flags and queue; and nothing outside of the pod.

use std::process::Command;

use heddle_netlink::link::{self, Change};
use heddle_netlink::sysctl::{self, Key};
use serde_json::{Value, json};

use super::bench::{Host, Pod};

fn conf(host: &Host) -> Value {
    let mut conf = host.conf();
    conf["promisc"] = json!(true);
    conf["allmulti"] = json!(true);
    conf["txqueuelen"] = json!(77);
    conf["sysctl"] = json!({
        "net.ipv4.conf.IFNAME.arp_filter": "1",
        "net/ipv4/ip_local_port_range": "20000 30000",
        "net.core.somaxconn": "500",
    });
    conf
}

#[test]
fn a_pod_is_tuned_and_the_host_is_not() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = conf(&host);
    let read = |ns, path: &[&str]| sysctl::read_in(ns, &Key::new(path.iter().copied())).unwrap();
    let range = ["net", "ipv4", "ip_local_port_range"];
    let before = read(&host.ns, &range);
    let near = host.add(&pod, &conf).json["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let eth0 = link::by_name(&mut pod.socket(), "eth0").unwrap().unwrap();
    assert!(eth0.promiscuous && eth0.all_multicast && eth0.queue == 77, "{eth0:?}");
    assert_eq!(read(&pod.ns, &["net", "ipv4", "conf", "eth0", "arp_filter"]), "1");
    assert_eq!(read(&pod.ns, &range), "20000\t30000");
    assert_eq!(read(&pod.ns, &["net", "core", "somaxconn"]), "500");

    let outer = link::by_name(&mut host.socket(), &near).unwrap().unwrap();
    assert!(!outer.promiscuous && !outer.all_multicast && outer.queue != 77, "{outer:?}");
    assert_eq!(read(&host.ns, &range), before);
    assert_eq!(read(&host.ns, &["net", "ipv4", "conf", &near, "arp_filter"]), "0");
}

#[test]
fn a_check_compares() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut conf = conf(&host);
    conf["prevResult"] = host.add(&pod, &conf).json;
    let check = || host.call(&pod, "CHECK", &conf);
    assert!(check().success, "{:?}", check());
    let mut socket = pod.socket();
    let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    let mut change = |change: &Change<'_>| link::change(&mut socket, index, change).unwrap();
    let told = |wanted: &str| {
        let answer = check();
        assert!(answer.code() == 101 && answer.msg().contains(wanted), "{wanted}: {answer:?}");
    };
    change(&Change { promiscuous: Some(false), ..Change::default() });
    told("promisc");
    change(&Change { promiscuous: Some(true), queue: Some(78), ..Change::default() });
    told("txqueuelen is 78, not 77");
    change(&Change { queue: Some(77), ..Change::default() });
    let range = Key::new(["net", "ipv4", "ip_local_port_range"]);
    sysctl::write_in(&pod.ns, &[(range.clone(), "20000 30001")]).unwrap();
    told("ip_local_port_range");
    sysctl::write_in(&pod.ns, &[(range, "20000 30000")]).unwrap();
    assert!(check().success);
}

#[test]
fn what_is_not_the_pods_is_refused_before_anything_is_done() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = host.state();
    for name in [
        "kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4.conf.//.//.//.kernel.core_pattern",
        "/proc/sys/kernel/core_pattern",
        "../kernel/core_pattern",
        "net.ipv4.conf.IFNAME/../../../../kernel/core_pattern",
    ] {
        let mut conf = host.conf();
        conf["sysctl"] = json!({ name: "|/bin/false" });
        let refused = host.call(&pod, "ADD", &conf);
        assert!(refused.code() == 7 && refused.msg().starts_with("sysctl: "), "{name}: {refused:?}");
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    assert_eq!(host.state(), before);

    // One that there is not: all is taken back.
    let mut conf = host.conf();
    host.add(&pod, &conf);
    host.del(&pod, &conf);
    let settled = host.state();
    conf["sysctl"] = json!({"net.core.somaxconn": "600", "net.ipv4.no_such_thing": "1"});
    let failed = host.call(&pod, "ADD", &conf);
    assert!(failed.code() == 101 && failed.msg().contains("net/ipv4/no_such_thing"), "{failed:?}");
    assert_eq!(host.state(), settled);
}

/// In a mount namespace of its own, which goes with it.
fn with_allowed(host: &Host, pod: &Pod, list: &str, conf: &Value) -> super::bench::Answer {
    let script = "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning && \
                  printf '%s\\n' \"$LIST\" >/etc/cni/tuning/allowlist.conf && exec \"$HEDDLE\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    let mut variables = Host::variables(pod, "ADD");
    for (name, value) in
        [("PATH", "/usr/bin:/bin"), ("LIST", list), ("HEDDLE", heddle_lab::bin("heddle").to_str().unwrap())]
    {
        variables.push((name.to_owned(), value.to_owned()));
    }
    host.run(&mut command, &variables, conf.to_string().as_bytes())
}

#[test]
fn the_operators_list_of_parameters_counts() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = conf(&host);
    let refused = with_allowed(&host, &pod, "^net\\.core\\.", &conf);
    assert!(refused.code() == 7 && refused.msg().contains("allowlist.conf"), "{refused:?}");
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    let all = "^net\\.core\\.somaxconn$\n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\nip_local_port_range";
    let allowed = with_allowed(&host, &pod, all, &conf);
    assert!(allowed.success, "{allowed:?}");
}
