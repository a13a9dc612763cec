//! Called as `loopback`: the reference plugin's work.

use std::os::unix::process::CommandExt;
use std::process::Command;

use heddle_netlink::link;
use heddle_netlink::{NetNs, Socket, addr};
use serde_json::{Value, json};

use super::super::bench::{Answer, Host, Pod};

/// A pod as a runtime makes it: nothing is up.
fn fresh(id: &str) -> Pod {
    Pod { ns: NetNs::create().unwrap(), id: id.to_owned() }
}

fn is_up(ns: &NetNs) -> bool {
    link::by_name(&mut Socket::open_in(ns).unwrap(), "lo").unwrap().unwrap().up
}

/// What containerd sends.
fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "cni-loopback", "type": "loopback"})
}

fn variables(pod: &Pod, command: &str) -> Vec<(String, String)> {
    let mut variables = Host::variables(pod, command);
    variables.retain(|(name, _)| name != "CNI_IFNAME");
    variables.push(("CNI_IFNAME".into(), "lo".into()));
    variables
}

fn call(host: &Host, pod: &Pod, command: &str, conf: &Value) -> Answer {
    host.raw(&variables(pod, command), conf.to_string().as_bytes())
}

fn reference(host: &Host, pod: &Pod, command: &str, conf: &Value) -> Answer {
    let mut program = Command::new("/usr/lib/cni/loopback");
    host.run(&mut program, &variables(pod, command), conf.to_string().as_bytes())
}

#[test]
fn every_version_is_answered_in_its_shape_and_the_newest_as_the_reference_plugin_does() {
    let host = Host::new();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let (mine, theirs) = (fresh("abc"), fresh("abc"));
        let ours = call(&host, &mine, "ADD", &conf(version));
        let answer = reference(&host, &theirs, "ADD", &conf(version));
        assert!(ours.success && answer.success, "{version}: {ours:?} {answer:?}");
        assert!(is_up(&mine.ns) && is_up(&theirs.ns));
        assert_eq!(ours.json["cniVersion"], answer.json["cniVersion"]);
        if version == "1.0.0" {
            let mut inside = ours.json["interfaces"].clone();
            inside[0]["sandbox"] = json!(theirs.path());
            assert_eq!(inside, answer.json["interfaces"]);
            assert_eq!(ours.json["ips"], answer.json["ips"]);
        } else if version >= "0.3.0" {
            assert_eq!(ours.json["ips"][1], json!({"version": "6", "address": "::1/128", "interface": 0}));
        } else {
            // The reference plugin of Debian 12 writes all versions as it writes 1.0.0.
            assert_eq!(ours.json["ip4"]["ip"], "127.0.0.1/8");
            assert_eq!(ours.json["ip6"]["ip"], "::1/128");
        }
        assert!(call(&host, &mine, "DEL", &conf(version)).success);
        assert!(!is_up(&mine.ns), "{version}");
    }
}

#[test]
fn the_file_name_is_enough_and_the_type_is_too() {
    let host = Host::new();
    let pod = fresh("abc");
    let mut by_name = Command::new(heddle_lab::bin("heddle"));
    by_name.arg0("/opt/cni/bin/loopback");
    let mut typed = conf("1.1.0");
    typed["type"] = json!("something");
    let answer = host.run(&mut by_name, &variables(&pod, "ADD"), typed.to_string().as_bytes());
    assert!(answer.success && is_up(&pod.ns), "{answer:?}");
    assert_eq!(answer.json["ips"][0], json!({"address": "127.0.0.1/8", "interface": 0}));
    // Whatever CNI_IFNAME says, there is one such interface.
    let pod = fresh("abc");
    let answer = host.call(&pod, "ADD", &conf("1.1.0"));
    assert!(answer.success && answer.json["interfaces"][0]["name"] == "lo", "{answer:?}");
    // And heddle itself does not take it for a pod's.
    let refused = call(&host, &pod, "ADD", &host.conf());
    assert_eq!(refused.code(), 4, "{refused:?}");
}

#[test]
fn all_commands_of_a_life() {
    let host = Host::new();
    let pod = fresh("abc");
    assert!(call(&host, &pod, "STATUS", &conf("1.1.0")).success);
    let checked = |result: &Value| {
        let mut conf = conf("1.1.0");
        conf["prevResult"] = result.clone();
        conf
    };
    let result = call(&host, &pod, "ADD", &conf("1.1.0")).json;
    // Another ADD, as after a lost answer, is none the worse.
    assert_eq!(call(&host, &pod, "ADD", &conf("1.1.0")).json, result);
    assert!(call(&host, &pod, "CHECK", &checked(&result)).success);
    let mut collected = conf("1.1.0");
    collected["cni.dev/valid-attachments"] = json!([]);
    assert!(call(&host, &pod, "GC", &collected).success && is_up(&pod.ns));
    // Behind another plugin, its result is passed on.
    let before =
        json!({"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/24"}], "routes": [], "dns": {}});
    assert_eq!(call(&host, &pod, "ADD", &checked(&before)).json, before);
    assert_eq!(call(&host, &pod, "ADD", &checked(&json!("x"))).code(), 7);

    let mut socket = pod.socket();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    addr::delete(&mut socket, lo, "127.0.0.1/8".parse().unwrap()).unwrap();
    assert!(call(&host, &pod, "CHECK", &checked(&result)).msg().contains("127.0.0.1"));
    for _ in 0..2 {
        let answer = call(&host, &pod, "DEL", &checked(&result));
        assert!(answer.success && answer.stdout.is_empty() && !is_up(&pod.ns), "{answer:?}");
    }
    assert!(call(&host, &pod, "CHECK", &checked(&result)).msg().contains("lo is down"));
}

#[test]
fn fault_018_and_019_never_on_the_host_and_del_where_nothing_is() {
    let host = Host::new();
    let pod = fresh("abc");
    let at = |command: &str, netns: Option<&str>| {
        let mut variables = variables(&pod, command);
        variables.retain(|(name, _)| name != "CNI_NETNS");
        variables.extend(netns.map(|path| ("CNI_NETNS".to_owned(), path.to_owned())));
        host.raw(&variables, conf("1.0.0").to_string().as_bytes())
    };
    for nowhere in
        [None, Some(""), Some("/run/netns/absent"), Some("/etc/passwd"), Some("/proc/thread-self/ns/net")]
    {
        assert!(at("DEL", nowhere).success, "{nowhere:?}");
        let added = at("ADD", nowhere);
        assert!([3, 4].contains(&added.code()), "{nowhere:?}: {added:?}");
    }
    assert!(is_up(&host.ns), "the host's own stays up");
}
