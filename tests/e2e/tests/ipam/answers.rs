//! Same question, same answer as the reference `host-local`; and what it has no answer to.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::bench::{Host, Program};

/// An answer, but for what says nothing: lists and objects without content.
fn bare(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| {
            *value = bare(value.take());
            *value != json!([]) && *value != json!({})
        });
    } else if let Some(list) = value.as_array_mut() {
        for value in list {
            *value = bare(value.take());
        }
    }
    value
}

/// Asks both for the same, each on a host of its own with the same leases (none).
fn ask_both(version: &str, change: impl Fn(&Host, &mut Value), variables: &[(&str, &str)]) -> [Value; 2] {
    Program::BOTH.map(|program| {
        let host = Host::new();
        let mut conf = host.dual();
        conf["cniVersion"] = json!(version);
        change(&host, &mut conf);
        let answer = host.call_with(program, "ADD", "abc", &conf, variables);
        assert!(answer.success, "{program:?} {version}: {answer:?}");
        bare(answer.json)
    })
}

#[test]
fn fault_011_every_version_is_answered_as_host_local_answers_it() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.1.0.9"}, {"dst": "::/0"}]);
        let [ours, theirs] = ask_both(version, |_, conf| conf["ipam"]["routes"] = routes.clone(), &[]);
        assert_eq!(ours, theirs, "{version}");
    }
    // The newest, which the distribution's does not speak.
    let host = Host::new();
    let mut conf = host.dual();
    conf["cniVersion"] = json!("1.1.0");
    conf["ipam"]["routes"] =
        json!([{"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 9}]);
    let answer = host.call(Program::Ours, "ADD", "abc", &conf).json;
    assert_eq!(answer["ips"][0], json!({"address": "10.1.0.2/24", "gateway": "10.1.0.1"}));
    assert_eq!(answer["routes"], conf["ipam"]["routes"]);
    assert!(answer.get("interfaces").is_none(), "{answer}");
}

#[test]
fn what_a_runtime_asks_for_is_given_as_host_local_gives_it() {
    type Change = fn(&Host, &mut Value);
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(&str, Change, Variables); 6] = [
        ("CNI_ARGS", |_, _| {}, &[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.1.0.77")]),
        ("args", |_, conf| conf["args"] = json!({"cni": {"ips": ["10.1.0.78", "fd00:1::78"]}}), &[]),
        ("ips", |_, conf| conf["runtimeConfig"] = json!({"ips": ["10.1.0.79/24", "fd00:1::79"]}), &[]),
        (
            "ipRanges",
            |_, conf| conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}),
            &[],
        ),
        (
            "a subnet beside ranges",
            |_, conf| {
                conf["ipam"]["subnet"] = json!("10.8.0.0/24");
                conf["ipam"]["rangeStart"] = json!("10.8.0.10");
                conf["ipam"]["gateway"] = json!("10.8.0.200");
            },
            &[],
        ),
        (
            "resolvConf",
            |host, conf| {
                let path = host.path("resolv.conf");
                let text = "# none\nnameserver 10.0.0.1\n nameserver fd00::1 x\ndomain a\ndomain b\nsearch c d\n\
                            search e\noptions ndots:5\tedns0\nother x\nnameserver\n";
                fs::write(&path, text).unwrap();
                conf["ipam"]["resolvConf"] = json!(path);
            },
            &[],
        ),
    ];
    for (what, change, variables) in cases {
        let [ours, theirs] = ask_both("1.0.0", change, variables);
        assert_eq!(ours, theirs, "{what}");
    }
}

#[test]
fn a_range_set_of_several_ranges_goes_through_them_as_host_local_does() {
    let ranges = json!([[
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.250", "rangeEnd": "10.1.0.252"},
        {"subnet": "10.2.0.0/30"}
    ]]);
    let [ours, theirs] = Program::BOTH.map(|program| {
        let host = Host::new();
        let conf = host.conf(ranges.clone());
        let given: Vec<String> = (0..4).flat_map(|n| host.add(program, &format!("c{n}"), &conf)).collect();
        assert!(!host.call(program, "ADD", "late", &conf).success);
        given
    });
    assert_eq!(ours, ["10.1.0.250", "10.1.0.251", "10.1.0.252", "10.2.0.2"]);
    assert_eq!(ours, theirs);
}

#[test]
fn a_resolv_conf_that_cannot_be_read_is_named() {
    let host = Host::new();
    let mut conf = host.small();
    conf["cniVersion"] = json!("1.1.0");
    let absent = host.path("absent.conf");
    conf["ipam"]["resolvConf"] = json!(absent);
    let answer = host.call(Program::Ours, "ADD", "abc", &conf);
    assert!(answer.code() == 5 && answer.msg().contains(absent.to_str().unwrap()), "{answer:?}");
    assert!(host.leases().is_empty());
    let status = host.call(Program::Ours, "STATUS", "", &conf);
    assert!(status.code() == 50 && status.msg().contains("absent.conf"), "{status:?}");
    host.del(Program::Ours, "abc", &conf);
}

#[test]
fn several_networks_have_nothing_to_do_with_each_other() {
    let host = Host::new();
    let confs = ["net", "other"].map(|name| {
        let mut conf = host.small();
        conf["name"] = json!(name);
        conf
    });
    for conf in &confs {
        assert_eq!(host.add(Program::Ours, "abc", conf), ["10.1.0.2"]);
    }
    host.del(Program::Ours, "abc", &confs[0]);
    assert!(host.leases().is_empty());
    assert!(host.path("networks/other/10.1.0.2").exists());
}

#[test]
fn fault_033_and_034_and_035_owners() {
    let host = Host::new();
    let mut conf = host.dual();
    let first = host.add(Program::Ours, "abc", &conf);
    assert_eq!(host.add(Program::Ours, "abc", &conf), first, "33: the same again");
    let second = [("CNI_IFNAME", "eth1")];
    let answer = host.call_with(Program::Ours, "ADD", "abc", &conf, &second);
    assert_eq!(answer.ips(), ["10.1.0.3", "fd00:1::3"], "34: another interface");
    host.del(Program::Ours, "abc", &conf);
    assert_eq!(host.leases().len(), 2, "34: DEL leaves the other");
    // 35: without a namespace, again and again, of a configuration that is another or nonsense by now.
    conf["ipam"]["ranges"] = json!([[{"subnet": "192.168.0.0/24"}]]);
    let variables = [("CNI_IFNAME", "eth1"), ("CNI_NETNS", ""), ("CNI_ARGS", "nonsense")];
    for _ in 0..100 {
        let answer = host.call_with(Program::Ours, "DEL", "abc", &conf, &variables);
        assert!(answer.success, "{answer:?}");
        conf["ipam"]["ranges"] = json!("nonsense");
    }
    assert!(host.leases().is_empty() && host.notes() == 0);
    host.del(Program::Ours, "never", &conf);
}

#[test]
fn fault_050_and_055_an_old_lease_is_honoured_until_its_delete() {
    let host = Host::new();
    let conf = host.small();
    host.add(Program::Ours, "old", &conf);
    let mut new =
        host.conf(json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.9"}]]));
    fs::write(host.lease("last_reserved_ip.0"), "10.1.0.1").unwrap();
    assert_eq!(
        host.add(Program::Ours, "new", &new),
        ["10.1.0.3"],
        "the old range's address is not given twice"
    );
    // 55: a result that the runtime lost.
    new["prevResult"] = json!({});
    host.del(Program::Ours, "old", &new);
    new["prevResult"] = json!(7);
    host.del(Program::Ours, "new", &new);
    assert!(host.leases().is_empty());
}

#[test]
fn gc_and_status_and_version() {
    let host = Host::new();
    let mut conf = host.small();
    conf["cniVersion"] = json!("1.1.0");
    for n in 0..5 {
        host.add(if n == 4 { Program::Reference } else { Program::Ours }, &format!("c{n}"), &{
            let mut conf = conf.clone();
            conf["cniVersion"] = json!("1.0.0");
            conf
        });
    }
    let status = host.call(Program::Ours, "STATUS", "", &conf);
    assert_eq!(status.code(), 50, "{status:?}");
    assert_eq!(host.call(Program::Ours, "GC", "", &conf).code(), 7, "without a list nothing is collected");
    assert_eq!(host.leases().len(), 5);
    conf["cni.dev/valid-attachments"] =
        json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c4", "ifname": "eth1"}]);
    let gc = host.call(Program::Ours, "GC", "", &conf);
    assert!(gc.success && gc.stdout.is_empty(), "{gc:?}");
    assert_eq!(host.leases().into_iter().collect::<Vec<_>>(), ["10.1.0.3"]);
    assert!(host.call(Program::Ours, "STATUS", "", &conf).success);
    conf["cniVersion"] = json!("1.0.0");
    assert_eq!(host.call(Program::Ours, "STATUS", "", &conf).code(), 1, "it came with 1.1.0");
    let version = host.call(Program::Ours, "VERSION", "", &json!(null));
    assert!(version.json["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")), "{version:?}");
}

#[test]
fn by_hand_it_explains_itself() {
    let output = Command::new(Program::Ours.path()).env_clear().output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    for word in ["heddle-ipam", "/opt/cni/bin", "host-local", "CNI_COMMAND=ADD", "1.1.0"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
