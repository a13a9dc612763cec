//! Bad inputs: an error object on standard output, the right code, exit status 1, and nothing changed.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use heddle_netlink::link::{self, VethEnd};
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};

fn refused(answer: &Answer, code: u64) {
    assert!(!answer.success, "{answer:?}");
    assert_eq!(answer.code(), code, "{answer:?}");
    assert!(answer.json["cniVersion"].is_string() && !answer.msg().is_empty(), "{answer:?}");
}

#[test]
fn faults_001_to_006_input_that_is_no_configuration() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let large = vec![b' '; 100 << 20];
    let cases: [(&[u8], u64); 8] = [
        (b"", 6),
        (b"{\"cniVersion\": \"1.1.0\", ", 6),
        (b"\xff\xfe{}", 6),
        (b"\xef\xbb\xbf{}", 6),
        (b"{}\0", 6),
        (deep.as_bytes(), 6),
        (&large, 6),
        (br#"{"cniVersion":"1.1.0","name":"a","name":"b"}"#, 7),
    ];
    let before = host.state();
    for (input, code) in cases {
        let start = Instant::now();
        refused(&host.raw(&Host::variables(&pod, "ADD"), input), code);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(host.state(), before);
}

#[test]
fn faults_007_to_010_and_013_configurations_that_cannot_be_meant() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let with = |key: &str, value: Value| {
        let mut conf = host.conf();
        conf[key] = value;
        conf
    };
    let mut ipam = host.conf()["ipam"].clone();
    ipam["routes"] = json!([{"dst": "1.1.1.1/32", "gw": "10.244.1.254"}]);
    let cases = [
        (with("mtu", json!("1500")), 7, "mtu"),
        (with("mtu", json!(-5)), 7, "mtu"),
        (with("mtu", json!(70_000)), 7, "mtu"),
        (with("name", json!("../../etc")), 7, "name"),
        (with("name", json!("")), 7, "name"),
        (with("ipMasqBackend", json!("ebtables")), 7, "ipMasqBackend"),
        (with("mode", json!("macvlan")), 7, "mode"),
        (with("ipam", ipam), 7, "ipam.routes[0]"),
        (with("ipam", json!({"type": "host-local", "subnet": "127.0.0.0/24"})), 7, "ipam.subnet: "),
        (with("ipam", json!({"type": "host-local", "subnet": "ff02::/64"})), 7, "ipam.subnet: "),
        (with("cniVersion", json!("9.9.9")), 1, "9.9.9"),
        (with("cniVersion", json!("1.0")), 1, "1.0"),
        (with("cniVersion", json!("abc")), 1, "abc"),
        (with("cniVersion", json!(1)), 6, "cniVersion"),
    ];
    let before = host.state();
    for (conf, code, word) in cases {
        let answer = host.call(&pod, "ADD", &conf);
        refused(&answer, code);
        assert!(answer.msg().contains(word), "{answer:?}");
    }
    assert_eq!(host.state(), before);
    assert!(!host.data_dir().exists(), "not even a directory");
}

#[test]
fn fault_009_and_011_every_version_is_answered_in_its_own_shape() {
    let host = Host::new();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "", "none"] {
        let pod = Pod::new("abc");
        let mut conf = host.conf();
        conf["cniVersion"] = json!(version);
        if version == "none" {
            conf.as_object_mut().unwrap().remove("cniVersion");
        }
        let json = host.add(&pod, &conf).json;
        let spoken = json["cniVersion"].as_str().unwrap();
        assert_eq!(spoken, if version.len() == 5 { version } else { "0.1.0" });
        let old = spoken < "0.3.0";
        assert_eq!(json.get("ip4").is_some() && json.get("ip6").is_some(), old, "{json}");
        assert_eq!(json.get("ips").is_some() && json.get("interfaces").is_some(), !old, "{json}");
        assert_eq!(json["ips"][0].get("version").is_some(), !old && spoken < "1.0.0", "{json}");
        host.del(&pod, &conf);
    }
}

#[test]
fn fault_014_and_015_the_environment() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.conf().to_string();
    let all = Host::variables(&pod, "ADD");
    for missing in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        let some: Vec<_> = all.iter().filter(|(name, _)| name != missing).cloned().collect();
        let answer = host.raw(&some, conf.as_bytes());
        refused(&answer, 4);
        assert!(answer.msg().contains(missing), "{answer:?}");
    }
    for command in ["add", "ADDD", "", " "] {
        refused(&host.call(&pod, command, &host.conf()), 4);
    }
    let none = host.raw(&[], b"");
    assert!(
        none.success && none.stdout.is_empty() && none.stderr.contains("CNI versions: 0.1.0"),
        "{none:?}"
    );
}

#[test]
fn faults_016_and_017_and_029_hostile_names() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let huge = "x".repeat(100_000);
    let before = host.state();
    for (name, value, code) in [
        ("CNI_CONTAINERID", "-x", 4),
        ("CNI_CONTAINERID", "../../etc/passwd", 4),
        ("CNI_CONTAINERID", "a b", 4),
        ("CNI_CONTAINERID", "", 3),
        ("CNI_CONTAINERID", &huge, 4),
        ("CNI_IFNAME", "eth%d", 4),
        ("CNI_IFNAME", "..", 4),
        ("CNI_IFNAME", "0123456789abcdef", 4),
        ("CNI_IFNAME", "lo", 4),
        ("CNI_IFNAME", "a/b", 4),
        ("CNI_IFNAME", &huge, 4),
        ("CNI_NETNS", &huge, 4),
        ("CNI_ARGS", "nonsense", 4),
        ("CNI_ARGS", "IP=10.9.9.9", 7),
        ("CNI_ARGS", "IP=10.244.1.1", 7),
    ] {
        let mut variables = Host::variables(&pod, "ADD");
        variables.retain(|(n, _)| n != name);
        variables.push((name.into(), value.into()));
        refused(&host.raw(&variables, host.conf().to_string().as_bytes()), code);
    }
    assert_eq!(host.state(), before);
}

#[test]
fn fault_018_what_is_no_network_namespace() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let absent = dir.path().join("absent");
    let mount = "/proc/self/ns/mnt".into();
    for (path, code) in
        [(&fifo, 4), (&file, 4), (&link, 4), (&dir.path().to_owned(), 4), (&mount, 4), (&absent, 3)]
    {
        for (command, code) in [("ADD", code), ("DEL", 0)] {
            let mut variables = Host::variables(&pod, command);
            variables.retain(|(name, _)| name != "CNI_NETNS");
            variables.push(("CNI_NETNS".into(), path.display().to_string()));
            let answer = host.raw(&variables, host.conf().to_string().as_bytes());
            assert_eq!(answer.code(), code, "{command} {}: {answer:?}", path.display());
        }
    }
    assert!(!host.data_dir().join("heddle").exists() || host.leases().is_empty());
}

#[test]
fn fault_019_the_hosts_own_namespace_is_refused() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let before = host.state();
    // In the host's namespace, this path is the host's.
    let mut variables = Host::variables(&pod, "ADD");
    variables.retain(|(name, _)| name != "CNI_NETNS");
    variables.push(("CNI_NETNS".into(), "/proc/thread-self/ns/net".into()));
    let answer = host.raw(&variables, host.conf().to_string().as_bytes());
    refused(&answer, 4);
    assert!(answer.msg().contains("the host's own network namespace"), "{answer:?}");
    assert_eq!(host.state(), before);
}

#[test]
fn fault_020_an_interface_that_is_there_is_not_touched() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut socket = pod.socket();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("eth0"), &end("far")).unwrap();
    let before = link::by_name(&mut socket, "eth0").unwrap();
    let answer = host.call(&pod, "ADD", &host.conf());
    refused(&answer, 102);
    assert!(answer.msg().contains("eth0"), "{answer:?}");
    assert_eq!(link::by_name(&mut socket, "eth0").unwrap(), before);
    assert!(host.leases().is_empty());
    host.del(&pod, &host.conf());
    assert_eq!(link::by_name(&mut socket, "eth0").unwrap(), before, "nor by DEL");
}

#[test]
fn fault_022_an_address_that_is_asked_for() {
    let (host, pod, other) = (Host::new(), Pod::new("abc"), Pod::new("other"));
    let ask = |pod: &Pod, args: &str| {
        let mut variables = Host::variables(pod, "ADD");
        variables.push(("CNI_ARGS".into(), args.into()));
        host.raw(&variables, host.conf().to_string().as_bytes())
    };
    let args = "IgnoreUnknown=1;K8S_POD_NAME=a\nb;K8S_POD_INFRA_CONTAINER_ID=x;IP=10.244.1.77";
    assert_eq!(ask(&pod, args).ips()[0], "10.244.1.77");
    let taken = ask(&other, args);
    refused(&taken, 7);
    assert!(taken.msg().contains("leased to abc eth0"), "{taken:?}");
}

#[test]
fn fault_027_version_is_answered_whatever_comes_in() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    for (input, spoken) in [
        ("garbage", "1.1.0"),
        ("", "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"7"}"#, "1.1.0"),
    ] {
        let answer = host.raw(&[("CNI_COMMAND".into(), "VERSION".into())], input.as_bytes());
        assert!(answer.success, "{answer:?}");
        assert_eq!(answer.json["cniVersion"], spoken);
        assert_eq!(answer.json["supportedVersions"].as_array().unwrap().len(), 7);
    }
    assert!(host.call(&pod, "VERSION", &host.conf()).success);
    // A runtime may take its time to write, and finds somebody who reads.
    for command in ["VERSION", "ADD", "nonsense"] {
        let mut plugin = Command::new(heddle_lab::bin("heddle"));
        plugin.env_clear().env("CNI_COMMAND", command).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = plugin.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for _ in 0..20 {
            std::thread::yield_now();
            std::io::Write::write_all(&mut stdin, b"            ").unwrap();
        }
        drop(stdin);
        child.wait().unwrap();
    }
}

#[test]
fn fault_028_a_result_that_cannot_be_delivered_is_taken_back() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let conf = host.conf();
    host.add(&pod, &conf);
    host.del(&pod, &conf);
    let before = host.state();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(heddle_lab::bin("heddle"));
    command
        .env_clear()
        .envs(Host::variables(&pod, "ADD"))
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::piped());
    let mut child = host.ns.run(|| command.spawn()).unwrap().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes()).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("cannot write the answer") && !said.contains("panicked"), "{said}");
    assert_eq!(host.state(), before);
}

#[test]
fn a_failure_after_the_first_change_is_taken_back() {
    let (host, conf, pod, before) = Host::settled();
    // The kernel takes the second of two equal routes for what it is; by then all the rest is done.
    let mut twice = conf.clone();
    twice["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]);
    let answer = host.call(&pod, "ADD", &twice);
    refused(&answer, 101);
    assert!(answer.msg().contains("cannot add route 192.0.2.0/24"), "{answer:?}");
    assert_eq!(host.state(), before);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    host.add(&pod, &conf);
}

#[test]
fn fault_030_too_few_descriptors() {
    let (host, conf, pod, before) = Host::settled();
    let mut failed = 0;
    for limit in 3..16 {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(heddle_lab::bin("heddle"));
        let mut variables = Host::variables(&pod, "ADD");
        variables.push(("PATH".into(), "/usr/bin:/bin".into()));
        let answer = host.run(&mut command, &variables, conf.to_string().as_bytes());
        if answer.success {
            host.del(&pod, &conf);
        } else {
            failed += 1;
        }
        assert!(!answer.stderr.contains("panicked"), "{limit}: {answer:?}");
        assert_eq!(host.state(), before, "{limit}: {answer:?}");
    }
    assert!(failed > 3, "some of the limits are too small");
}
