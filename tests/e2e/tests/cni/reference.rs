//! The reference plugins and we read and write the same leases, in turn, on a living host.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};

/// Debian's package containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";

fn reference(host: &Host, pod: &Pod, plugin: &str, command: &str, conf: &Value) -> Answer {
    let program = Path::new(REFERENCE).join(plugin);
    assert!(program.exists(), "{} is missing: install containernetworking-plugins", program.display());
    host.run(&mut Command::new(program), &Host::variables(pod, command), conf.to_string().as_bytes())
}

/// The configuration in the newest version that the reference plugins of the distribution speak.
fn conf(host: &Host) -> Value {
    let mut conf = host.conf();
    conf["cniVersion"] = json!("1.0.0");
    conf
}

#[test]
fn fault_051_host_local_and_we_take_over_from_each_other() {
    let host = Host::new();
    let conf = conf(&host);
    let pods = ["one", "two", "three", "four"].map(Pod::new);
    let theirs = |pod: &Pod| {
        let answer = reference(&host, pod, "host-local", "ADD", &conf);
        assert!(answer.success, "{answer:?}");
        answer.ips()
    };
    // In turn, each goes on where the other stopped.
    assert_eq!(theirs(&pods[0]), ["10.244.1.2", "fd00:10:244:1::2"]);
    assert_eq!(host.add(&pods[1], &conf).ips(), ["10.244.1.3", "fd00:10:244:1::3"]);
    assert_eq!(theirs(&pods[2]), ["10.244.1.4", "fd00:10:244:1::4"]);
    assert_eq!(host.add(&pods[3], &conf).ips(), ["10.244.1.5", "fd00:10:244:1::5"]);
    // Each frees what the other gave.
    host.del(&pods[0], &conf);
    let answer = reference(&host, &pods[1], "host-local", "DEL", &conf);
    assert!(answer.success, "{answer:?}");
    let left: Vec<_> = host.leases().into_iter().filter(|lease| lease.contains("/10.244")).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    host.del(&pods[1], &conf);
    host.del(&pods[2], &conf);
    host.del(&pods[3], &conf);
    assert!(host.leases().is_empty(), "{:?}", host.leases());
}

#[test]
fn a_range_that_the_other_filled_is_full() {
    let host = Host::new();
    let mut conf = conf(&host);
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}]]);
    conf["ipam"]["routes"] = json!([]);
    let pods: Vec<_> = (0..5).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    for pod in &pods {
        assert!(reference(&host, pod, "host-local", "ADD", &conf).success);
    }
    assert_eq!(host.call(&Pod::new("late"), "ADD", &conf).code(), 100);
}

/// Our answers say what the reference plugins' say, where they mean the same.
#[test]
fn the_bridge_plugin_answers_the_owners_configuration_as_we_do() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.bridge_conf();
    let ours = host.add(&pod, &conf).json;
    host.del(&pod, &conf);
    let (other, pod) = (Host::new(), Pod::new("abc"));
    let theirs = reference(&other, &pod, "bridge", "ADD", &other.bridge_conf());
    assert!(theirs.success, "{theirs:?}");
    assert_eq!(ours["ip4"], theirs.json["ip4"]);
}
