//! `ipam.type` is a program: it is run as the specification says, and what it answers drives every mode.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use heddle_netlink::route::{self, Filter};
use heddle_netlink::{addr, link};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::bench::{Answer, Host, Pod};

/// A delegate that answers what the test wants, and remembers what it was asked.
struct Scripted {
    answers: TempDir,
}

/// Small programs, each with a habit.
fn programs() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../cni-plugin/tests/delegates"].iter().collect()
}

impl Scripted {
    fn new(add: &Value) -> Self {
        let scripted = Self { answers: tempfile::tempdir().unwrap() };
        scripted.answer("ADD", &add.to_string());
        scripted
    }

    fn answer(&self, command: &str, text: &str) {
        fs::write(self.answers.path().join(command), text).unwrap();
    }

    /// From now on it ends with exit status 1 after its answer.
    fn fail(&self, command: &str, text: &str) {
        self.answer(command, text);
        self.answer(&format!("{command}.fails"), "");
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        let path = self.answers.path().join("asked");
        let asked = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "").unwrap();
        asked.lines().map(str::to_owned).collect()
    }

    fn told(&self, what: &str, command: &str) -> String {
        fs::read_to_string(self.answers.path().join(format!("{what}.{command}"))).unwrap()
    }

    fn variables(&self, pod: &Pod, command: &str) -> Vec<(String, String)> {
        let mut variables = Host::variables(pod, command);
        variables.retain(|(name, _)| name != "CNI_PATH");
        variables
            .push(("CNI_PATH".into(), format!("/absent:{}", programs().canonicalize().unwrap().display())));
        variables.push(("ANSWERS".into(), self.answers.path().display().to_string()));
        variables.push(("PATH".into(), "/usr/bin:/bin".into()));
        variables
    }

    fn call(&self, host: &Host, pod: &Pod, command: &str, conf: &Value) -> Answer {
        host.raw(&self.variables(pod, command), conf.to_string().as_bytes())
    }
}

fn conf(mode: &str, ipam: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "heddle", "mode": mode,
        "ipam": {"type": ipam, "anything": ["of", "its", "own"]}
    })
}

/// Two addresses of a family and one of the other, routes and names.
fn much() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.7.0.5/16", "gateway": "10.7.0.1"},
            {"address": "10.8.0.5/24", "gateway": "10.8.0.1"},
            {"address": "fd07::5/64", "gateway": "fd07::1"}
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd07::1"}, {"dst": "192.0.2.7/24"}],
        "dns": {"nameservers": ["10.7.0.53"]}
    })
}

fn routes_of(pod: &Pod) -> Vec<String> {
    let main = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut pod.socket(), &main).unwrap();
    let wanted =
        routes.iter().filter(|route| route.dst.prefix() == 0 || route.dst.to_string() == "192.0.2.0/24");
    wanted.map(|route| format!("{} via {}", route.dst, route.gateway.unwrap())).collect()
}

#[test]
fn a_delegates_answer_drives_mode_ptp() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let scripted = Scripted::new(&much());
    let answer = scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted"));
    assert!(answer.success, "{answer:?}");
    assert_eq!(answer.ips(), ["10.7.0.5", "10.8.0.5", "fd07::5"]);
    assert_eq!(
        answer.json["ips"][2],
        json!({"address": "fd07::5/128", "gateway": "fd07::1", "interface": 1})
    );
    assert_eq!(answer.json["dns"], json!({"nameservers": ["10.7.0.53"]}));
    assert_eq!(answer.stderr, "scripted: ADD\n", "its words are ours");
    let mut routes = routes_of(&pod);
    routes.sort();
    assert_eq!(routes, ["0.0.0.0/0 via 10.7.0.1", "192.0.2.0/24 via 10.7.0.1", "::/0 via fd07::1"]);
    for address in ["10.7.0.5", "10.8.0.5", "fd07::5"] {
        let found = route::lookup(&mut host.socket(), address.parse().unwrap()).unwrap();
        assert!(found.link.is_some(), "{address}");
    }
    // It was given what we were given.
    assert_eq!(scripted.told("input", "ADD"), conf("ptp", "scripted").to_string());
    let environment = scripted.told("env", "ADD");
    for (name, value) in scripted.variables(&pod, "ADD") {
        assert!(environment.lines().any(|line| line == format!("{name}={value}")), "{name}: {environment}");
    }
    let mut checked = conf("ptp", "scripted");
    checked["prevResult"] = answer.json;
    assert!(scripted.call(&host, &pod, "CHECK", &checked).success);
    scripted.fail("CHECK", r#"{"code": 117, "msg": "unknown lease"}"#);
    let refused = scripted.call(&host, &pod, "CHECK", &checked);
    assert_eq!((refused.code(), refused.msg()), (117, "scripted: unknown lease"));
    let gone = scripted.call(&host, &pod, "DEL", &checked);
    assert!(gone.success && gone.stdout.is_empty(), "{gone:?}");
    assert_eq!(scripted.asked(), ["ADD", "CHECK", "CHECK", "DEL"]);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

#[test]
fn a_delegate_starts_as_if_the_runtime_had_started_it() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let scripted = Scripted::new(&much());
    for command in ["ADD", "DEL"] {
        let answer = scripted.call(&host, &pod, command, &conf("ptp", "scripted"));
        assert!(answer.success, "{answer:?}");
        // It holds none of our files: no socket, no lock that would outlive us in it, no namespace.
        let files = scripted.told("fd", command);
        let ours = ["socket:", "net:", "/networks", "/fd/", "anon_inode:"];
        assert!(
            files.contains(" -> ") && !ours.iter().any(|word| files.contains(word)),
            "{command}: {files}"
        );
        // Our signals are ours: no SIGXFSZ blocked, no SIGPIPE ignored.
        let status = scripted.told("status", command);
        let mask = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        assert_eq!(mask("SigBlk:"), 0, "{status}");
        assert_eq!(mask("SigIgn:") & (1 << 12), 0, "{status}");
    }
}

#[test]
fn a_delegates_answer_drives_mode_bridge_with_the_first_address_as_gateway() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let scripted = Scripted::new(&json!({"ips": [{"address": "10.7.0.5/16"}, {"address": "fd07::5/64"}]}));
    let mut conf = conf("bridge", "scripted");
    conf["cniVersion"] = json!("0.4.0");
    conf["isDefaultGateway"] = json!(true);
    let answer = scripted.call(&host, &pod, "ADD", &conf);
    assert!(answer.success, "{answer:?}");
    assert_eq!(answer.json["ips"][0]["gateway"], "10.7.0.1");
    let mut socket = host.socket();
    let bridge = link::by_name(&mut socket, "cni0").unwrap().unwrap();
    let own: Vec<_> = addr::list(&mut socket, Some(bridge.index)).unwrap();
    for gateway in ["10.7.0.1/16", "fd07::1/64"] {
        assert!(own.iter().any(|addr| addr.ip.to_string() == gateway), "{own:?}");
    }
    let mut routes = routes_of(&pod);
    routes.sort();
    assert_eq!(routes, ["0.0.0.0/0 via 10.7.0.1", "::/0 via fd07::1"]);
    assert!(scripted.call(&host, &pod, "DEL", &conf).success);
}

#[test]
fn an_answer_that_no_pod_can_have_is_given_back() {
    let (host, _, pod, state) = Host::settled();
    let answers = [
        (json!({}), 103, "no address"),
        (json!({"ips": []}), 103, "no address"),
        (json!({"ips": [{"address": "nowhere"}]}), 103, "ips[0]"),
        (json!({"ips": [{"address": "10.7.0.5"}]}), 103, "ips[0]"),
        (json!({"ips": [{"address": "127.0.0.2/8", "gateway": "127.0.0.1"}]}), 103, "127.0.0.2"),
        (json!({"ips": [{"address": "224.0.0.5/8", "gateway": "10.7.0.1"}]}), 103, "224.0.0.5"),
        (json!({"ips": [{"address": "10.7.0.5/16", "gateway": "10.7.0.5"}]}), 103, "its own gateway"),
        (
            json!({"ips": [{"address": "10.7.0.5/16", "gateway": "10.7.0.1"}, {"address": "10.7.0.5/24"}]}),
            103,
            "twice",
        ),
        (json!({"ips": [{"address": "10.7.0.5/16"}]}), 7, "without a gateway"),
        (
            json!({"ips": [{"address": "10.7.0.5/16", "gateway": "10.7.0.1"}], "routes": [{"dst": "::/0"}]}),
            7,
            "routes[0]",
        ),
        (json!({"cniVersion": "9.0.0", "ips": []}), 103, "9.0.0"),
        (json!("nonsense"), 103, "not an object"),
    ];
    for (answer, code, words) in answers {
        let scripted = Scripted::new(&answer);
        let refused = scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted"));
        assert_eq!(refused.code(), code, "{answer}: {refused:?}");
        assert!(refused.msg().contains(words), "{answer}: {refused:?}");
        assert_eq!(scripted.asked(), ["ADD", "DEL"], "{answer}");
        assert_eq!(host.state(), state, "{answer}");
    }
    // Version 0.2.0 has one address a family; IPv6 wants 1280 bytes.
    let scripted = Scripted::new(&much());
    let mut old = conf("ptp", "scripted");
    old["cniVersion"] = json!("0.2.0");
    assert_eq!(scripted.call(&host, &pod, "ADD", &old).code(), 7);
    let mut small = conf("ptp", "scripted");
    small["mtu"] = json!(1000);
    assert!(scripted.call(&host, &pod, "ADD", &small).msg().starts_with("mtu: "));
    assert_eq!(scripted.asked(), ["ADD", "DEL", "ADD", "DEL"]);
    assert_eq!(host.state(), state);
}

#[test]
fn what_fails_after_the_delegate_gave_is_given_back() {
    let (host, _, pod, state) = Host::settled();
    let twice = json!({
        "ips": [{"address": "10.7.0.5/16", "gateway": "10.7.0.1"}],
        "routes": [{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]
    });
    let scripted = Scripted::new(&twice);
    let refused = scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted"));
    assert_eq!(refused.code(), 101, "{refused:?}");
    assert_eq!(scripted.asked(), ["ADD", "DEL"]);
    assert_eq!(host.state(), state);
}

#[test]
fn its_failure_is_ours_and_it_is_told_to_clean_up() {
    let (host, _, pod, state) = Host::settled();
    let scripted = Scripted::new(&json!({}));
    scripted.fail("ADD", r#"{"cniVersion": "1.1.0", "code": 11, "msg": "later", "details": "asleep"}"#);
    let refused = scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted"));
    assert_eq!((refused.code(), refused.msg()), (11, "scripted: later"));
    assert_eq!(refused.json["details"], "asleep");
    assert_eq!(scripted.asked(), ["ADD", "DEL"]);
    assert_eq!(host.state(), state);
}

#[test]
fn del_tells_it_however_broken_the_rest_of_the_configuration_is() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let scripted = Scripted::new(&much());
    assert!(scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted")).success);
    let mut broken = conf("nonsense", "scripted");
    broken["mtu"] = json!("x");
    broken["prevResult"] = json!("x");
    assert!(scripted.call(&host, &pod, "DEL", &broken).success);
    assert_eq!(scripted.asked(), ["ADD", "DEL"]);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    // Its failure is told, after our own part is done, so that the runtime tries again.
    assert!(scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted")).success);
    scripted.fail("DEL", r#"{"code": 5, "msg": "disk"}"#);
    let refused = scripted.call(&host, &pod, "DEL", &conf("ptp", "scripted"));
    assert_eq!((refused.code(), refused.msg()), (5, "scripted: disk"));
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

#[test]
fn fault_025_and_026_gc_and_status_are_passed_on() {
    let (host, pod) = (Host::new(), Pod::new("lost"));
    let scripted = Scripted::new(&much());
    let mut collect = conf("ptp", "scripted");
    collect["cni.dev/valid-attachments"] = json!([]);
    collect["cni.dev/attachments"] = json!([]);
    assert!(scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted")).success);
    scripted.asked();
    let collected = scripted.call(&host, &pod, "GC", &collect);
    assert!(collected.success && collected.stdout.is_empty(), "{collected:?}");
    assert_eq!(scripted.asked(), ["GC"], "once for all");
    assert_eq!(scripted.told("input", "GC"), collect.to_string());
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    // A failure of the one keeps the other from nothing.
    assert!(scripted.call(&host, &pod, "ADD", &conf("ptp", "scripted")).success);
    scripted.fail("GC", r#"{"code": 5, "msg": "disk"}"#);
    assert_eq!(scripted.call(&host, &pod, "GC", &collect).code(), 5);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());

    assert!(scripted.call(&host, &pod, "STATUS", &conf("ptp", "scripted")).success);
    for code in [50, 51] {
        scripted.fail("STATUS", &json!({"code": code, "msg": "no"}).to_string());
        assert_eq!(scripted.call(&host, &pod, "STATUS", &conf("ptp", "scripted")).code(), code);
    }
    scripted.fail("STATUS", "");
    assert_eq!(
        scripted.call(&host, &pod, "STATUS", &conf("ptp", "scripted")).code(),
        50,
        "no word is not ready"
    );
    assert_eq!(scripted.call(&host, &pod, "STATUS", &conf("ptp", "absent")).code(), 50);
}

#[test]
fn s1_cve_2021_20206_no_path_is_a_plugin() {
    let (host, _, pod, state) = Host::settled();
    let scripted = Scripted::new(&much());
    let path = programs().canonicalize().unwrap().join("scripted").display().to_string();
    for name in
        ["../delegates/scripted", &path, "./scripted", "..", "scripted/", "scripted\u{0}", "scri pted"]
    {
        for command in ["ADD", "STATUS"] {
            let refused = scripted.call(&host, &pod, command, &conf("ptp", name));
            assert_eq!(refused.code(), 7, "{command} {name:?}: {refused:?}");
        }
        // There is nothing to tell a program that is none; what is ours goes.
        assert!(scripted.call(&host, &pod, "DEL", &conf("ptp", name)).success, "{name:?}");
    }
    // Nor is what stands in a directory by a relative path, or cannot be run, or is not there.
    let mut variables = scripted.variables(&pod, "ADD");
    variables.retain(|(name, _)| name != "CNI_PATH");
    variables
        .push(("CNI_PATH".into(), "cni-plugin/tests/delegates:../../cni-plugin/tests/delegates::.".into()));
    let refused = host.raw(&variables, conf("ptp", "scripted").to_string().as_bytes());
    assert_eq!(refused.code(), 103, "{refused:?}");
    assert!(scripted.asked().is_empty());
    assert_eq!(host.state(), state);
}

#[test]
fn a_plugin_is_not_its_own_delegate() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(heddle_lab::bin("heddle"), directory.path().join("other")).unwrap();
    let mut variables = Host::variables(&pod, "ADD");
    variables.retain(|(name, _)| name != "CNI_PATH");
    variables.push(("CNI_PATH".into(), directory.path().display().to_string()));
    let refused = host.raw(&variables, conf("ptp", "other").to_string().as_bytes());
    assert_eq!(refused.code(), 7, "{refused:?}");
    assert!(refused.msg().contains("heddle itself"), "{refused:?}");
}

#[test]
fn dhcp_is_refused_with_the_reason() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let refused = host.call(&pod, "ADD", &conf("bridge", "dhcp"));
    assert_eq!(refused.code(), 2, "{refused:?}");
    assert!(refused.msg().starts_with("ipam.type: \"dhcp\""), "{refused:?}");
}

#[test]
fn the_reference_plugin_static_gives_what_it_is_told_to() {
    let host = Host::new();
    for mode in ["ptp", "bridge"] {
        let pod = Pod::new(mode);
        let conf = json!({
            "cniVersion": "1.0.0", "name": mode, "type": "heddle", "mode": mode, "isGateway": mode == "bridge",
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.10.0.9/24", "gateway": "10.10.0.254"},
                    {"address": "fd10::9/64", "gateway": "fd10::fe"}
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.10.0.254"}],
                "dns": {"nameservers": ["10.10.0.53"], "search": ["example.net"]}
            }
        });
        let answer = host.add(&pod, &conf);
        assert_eq!(answer.ips(), ["10.10.0.9", "fd10::9"], "{mode}");
        assert_eq!(answer.json["dns"]["search"], json!(["example.net"]));
        let mut routes = routes_of(&pod);
        routes.sort();
        assert_eq!(routes, ["0.0.0.0/0 via 10.10.0.254", "192.0.2.0/24 via 10.10.0.254"], "{mode}");
        for to in ["10.10.0.254", "fd10::fe"] {
            let mut ping = Command::new("ping");
            ping.args(["-c1", "-W5", to]);
            let output = pod.ns.run(|| ping.output()).unwrap().unwrap();
            assert!(output.status.success(), "{mode} {to}: {output:?}");
        }
        let mut checked = conf.clone();
        checked["prevResult"] = answer.json;
        let whole = host.call(&pod, "CHECK", &checked);
        assert!(whole.success, "{mode}: {whole:?}");
        host.del(&pod, &checked);
    }
}

#[test]
fn a_bridge_without_ipam_carries_what_pods_agree_on() {
    let host = Host::new();
    let conf = json!({"cniVersion": "1.0.0", "name": "l2", "type": "heddle", "mode": "bridge", "ipam": {}});
    let pods = ["one", "two"].map(Pod::new);
    for (n, pod) in pods.iter().enumerate() {
        let answer = host.add(pod, &conf);
        assert_eq!(answer.json["interfaces"].as_array().unwrap().len(), 3);
        assert!(answer.ips().is_empty(), "{answer:?}");
        let mut socket = pod.socket();
        let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
        let own = format!("192.0.2.{}/24", n + 1).parse().unwrap();
        addr::add(&mut socket, &addr::Addr::new(index, own)).unwrap();
        let mut checked = conf.clone();
        checked["prevResult"] = answer.json;
        let whole = host.call(pod, "CHECK", &checked);
        assert!(whole.success, "{whole:?}");
    }
    let mut ping = Command::new("ping");
    ping.args(["-c1", "-W5", "192.0.2.2"]);
    let output = pods[0].ns.run(|| ping.output()).unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    for pod in &pods {
        host.del(pod, &conf);
    }
    assert!(!host.data_dir().exists(), "no leases, no directory");
}
