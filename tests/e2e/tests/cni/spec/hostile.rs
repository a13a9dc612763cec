//! S1 and S2: whatever names and paths come in, nothing outside the directory of leases is touched, and no program
//! is started that the configuration does not name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use heddle_lab::bin;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::super::bench::{Answer, Host, Pod};

/// Every file below `dir`, with what would tell that it was touched.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let size = if meta.is_dir() { 0 } else { meta.size() };
        found.insert(format!("{} {:o} {size} {}", path.display(), meta.mode(), meta.ctime_nsec()));
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// A directory with things in it that a path could lead to, and the leases beside them.
struct Trap {
    dir: tempfile::TempDir,
}

impl Trap {
    fn new() -> Self {
        let trap = Self { dir: tempfile::tempdir().unwrap() };
        let inside = trap.dir.path().join("a/b");
        fs::create_dir_all(&inside).unwrap();
        fs::write(trap.dir.path().join("precious"), "x").unwrap();
        fs::write(inside.join("eth0"), "x").unwrap();
        trap
    }

    fn conf(&self, host: &Host) -> Value {
        let mut conf = host.conf();
        conf["ipam"]["dataDir"] = json!(self.dir.path().join("a/b/leases"));
        conf
    }

    /// All but the leases.
    fn around(&self) -> BTreeSet<String> {
        let leases = self.dir.path().join("a/b/leases").display().to_string();
        // The directory that the leases' is made in changes with it.
        let parent = format!("{} ", self.dir.path().join("a/b").display());
        tree(self.dir.path())
            .into_iter()
            .filter(|f| !f.starts_with(&leases) && !f.starts_with(&parent))
            .collect()
    }
}

const HOSTILE: [&str; 22] = [
    "..",
    ".",
    "../precious",
    "../../precious",
    "a/../../precious",
    "/etc/passwd",
    "a/b",
    "-rf",
    "a\0b",
    "a\nb",
    "$(touch precious)",
    "`id`",
    "a;b",
    "%s%n",
    "\u{202e}x",
    "ñ",
    " ",
    "a b",
    "con:",
    "\\..\\x",
    "*",
    "~root",
];

fn call(host: &Host, pod: &Pod, command: &str, name: Option<(&str, &str)>, conf: &Value) -> Answer {
    let mut variables = Host::variables(pod, command);
    if let Some((name, value)) = name {
        variables.retain(|(one, _)| one != name);
        variables.push((name.into(), value.into()));
    }
    host.raw(&variables, conf.to_string().as_bytes())
}

#[test]
fn s1_hostile_names_touch_nothing() {
    let (host, _, pod, state) = Host::settled();
    let trap = Trap::new();
    let around = trap.around();
    let untouched = |what: &str| {
        assert_eq!(trap.around(), around, "{what}");
        assert_eq!(host.state(), state, "{what}");
    };
    for hostile in HOSTILE {
        for command in ["ADD", "CHECK", "DEL"] {
            for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
                // No program can be given a zero byte in its environment.
                if hostile.contains('\0') {
                    continue;
                }
                let answer = call(&host, &pod, command, Some((variable, hostile)), &trap.conf(&host));
                // A DEL may well succeed: there is nothing of that name. And some are odd names of interfaces.
                let odd = variable == "CNI_IFNAME" && heddle_netlink::link::name_is_valid(hostile);
                assert!(
                    command == "DEL" || !answer.success || odd,
                    "{command} {variable}={hostile:?}: {answer:?}"
                );
                if answer.success && command == "ADD" {
                    assert!(call(&host, &pod, "DEL", Some((variable, hostile)), &trap.conf(&host)).success);
                }
            }
            let mut named = trap.conf(&host);
            named["name"] = json!(hostile);
            assert_eq!(call(&host, &pod, command, None, &named).code(), 7, "{command} {hostile:?}");
        }
        for key in ["type", "dataDir"] {
            let mut ipam = trap.conf(&host);
            ipam["ipam"][key] = json!(hostile);
            if key == "dataDir" && hostile.starts_with('/') {
                ipam["ipam"][key] = json!(trap.dir.path().join("precious"));
            }
            let answer = call(&host, &pod, "ADD", None, &ipam);
            assert!([5, 7].contains(&answer.code()), "{key} {hostile:?}: {answer:?}");
        }
        let mut list = trap.conf(&host);
        list["cni.dev/valid-attachments"] = json!([{"containerID": hostile, "ifname": "eth0"}]);
        assert_eq!(call(&host, &pod, "GC", None, &list).code(), 7, "{hostile:?}");
        untouched(hostile);
    }
}

#[test]
fn fault_012_a_network_has_a_name() {
    let (host, conf, pod, state) = Host::settled();
    for name in [Value::Null, json!(""), json!(7), json!([]), json!("absent")] {
        let mut nameless = conf.clone();
        nameless["name"] = name.clone();
        if name == "absent" {
            nameless.as_object_mut().unwrap().remove("name");
        }
        nameless["cni.dev/valid-attachments"] = json!([]);
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let refused = call(&host, &pod, command, None, &nameless);
            assert_eq!(refused.code(), 7, "{command} {name}: {refused:?}");
            assert!(refused.msg().starts_with("name: "), "{refused:?}");
        }
    }
    assert_eq!(host.state(), state);
}

#[test]
fn s1_a_directory_of_leases_that_leads_elsewhere_is_not_followed() {
    let (host, pod, trap) = (Host::new(), Pod::new("abc"), Trap::new());
    let conf = trap.conf(&host);
    let data = trap.dir.path().join("a/b/leases");
    fs::create_dir_all(&data).unwrap();
    let elsewhere = trap.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, data.join("heddle")).unwrap();
    let (state, around) = (host.state(), trap.around());
    let answer = call(&host, &pod, "ADD", None, &conf);
    assert_eq!(answer.code(), 5, "{answer:?}");
    assert_eq!(trap.around(), around);
    assert_eq!(host.state(), state);
}

#[test]
fn s1_whatever_text_comes_as_a_name_nothing_else_is_touched() {
    let (host, pod, trap) = (Host::new(), Pod::new("abc"), Trap::new());
    let around = trap.around();
    let cases = std::env::var("HEDDLE_HOSTILE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let name = prop_oneof!["[./a\\\\-]{0,12}", "[^\\x00]{0,40}", "(\\.\\./){1,5}[a-z]{1,8}"];
    let place =
        prop::sample::select(vec!["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "name", "type"]);
    runner
        .run(&(name, place, any::<bool>()), |(name, place, first)| {
            let mut conf = trap.conf(&host);
            match place {
                "name" => conf["name"] = json!(name),
                "type" => conf["ipam"]["type"] = json!(name),
                _ => {}
            }
            let variable = place.starts_with("CNI_").then_some((place, name.as_str()));
            let answer = call(&host, &pod, if first { "ADD" } else { "DEL" }, variable, &conf);
            // Some are good names. What they made goes again.
            if answer.success && first {
                prop_assert!(call(&host, &pod, "DEL", variable, &conf).success);
            }
            prop_assert!(!answer.stderr.contains("panicked"), "{answer:?}");
            prop_assert_eq!(trap.around(), around.clone());
            Ok(())
        })
        .unwrap();
}

#[test]
fn s2_no_program_is_started_but_a_delegate() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let dir = tempfile::tempdir().unwrap();
    let started = |command: &str, conf: &Value| {
        let trace = dir.path().join("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=execve,execveat", "-o"]).arg(&trace).arg(bin("heddle"));
        let mut variables = Host::variables(&pod, command);
        variables.push(("PATH".into(), "/usr/bin:/bin".into()));
        let answer = host.run(&mut strace, &variables, conf.to_string().as_bytes());
        assert!(answer.success, "{command}: {answer:?}");
        let text = fs::read_to_string(&trace).unwrap();
        let programs = text.lines().filter(|line| line.contains("execve") && line.ends_with("= 0"));
        // The first is heddle itself.
        (programs.skip(1).map(str::to_owned).collect::<Vec<_>>(), answer.json)
    };
    let bridge = json!({
        "cniVersion": "1.1.0", "name": "lan", "type": "heddle", "mode": "bridge", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": host.data_dir(), "subnet": "10.9.0.0/24"}
    });
    for conf in [host.conf(), bridge] {
        let (programs, result) = started("ADD", &conf);
        assert_eq!(programs, Vec::<String>::new());
        let mut conf = conf;
        conf["prevResult"] = result;
        conf["cni.dev/valid-attachments"] = json!([{"containerID": "abc", "ifname": "eth0"}]);
        for command in ["CHECK", "STATUS", "GC", "DEL"] {
            assert_eq!(started(command, &conf).0, Vec::<String>::new(), "{command}");
        }
    }
    // That one would be seen.
    let delegated = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "heddle",
        "ipam": {"type": "static", "addresses": [{"address": "10.10.0.9/24", "gateway": "10.10.0.254"}]}
    });
    let (programs, _) = started("ADD", &delegated);
    assert!(programs.len() == 1 && programs[0].contains("/usr/lib/cni/static"), "{programs:?}");
}
