//! Somebody starts the program to see what it is.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::super::bench::{Host, Pod};

fn by_hand(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(heddle_lab::bin("heddle"));
    let output = command.env_clear().args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn fault_015_by_hand_the_program_says_what_it_is_and_where_it_belongs() {
    let (code, out, err) = by_hand(&[]);
    assert_eq!((code, out.as_str()), (Some(0), ""), "a program takes nothing for an answer");
    for words in
        ["/opt/cni/bin", "CNI versions: 0.1.0", "loopback", "ip netns add", "docs/cni.md", "portMappings"]
    {
        assert!(err.contains(words), "{words}: {err}");
    }
    assert!(err.lines().all(|line| line.len() <= 120), "{err}");
    for help in ["--help", "-h", "help"] {
        assert_eq!(by_hand(&[help]), (Some(0), err.clone(), String::new()));
    }
    for version in ["--version", "-V", "version"] {
        let (code, out, err) = by_hand(&[version]);
        assert!(code == Some(0) && err.is_empty() && out.lines().count() == 1, "{out}{err}");
        assert!(out.contains("1.1.0"), "{out}");
    }
    let (code, out, err) = by_hand(&["--nonsense"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("--nonsense") && err.contains("--help"), "{err}");
}

#[test]
fn the_configuration_that_it_shows_works() {
    let (_, help, _) = by_hand(&["--help"]);
    let from = help.find("\n{\n").unwrap();
    let to = help.find("\n}\n").unwrap();
    let list: Value = serde_json::from_str(&help[from..to + 3]).unwrap();
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    let (host, pod) = (Host::new(), Pod::new("try"));
    conf["ipam"]["dataDir"] = host.data_dir().to_str().unwrap().into();
    assert_eq!(host.add(&pod, &conf).ips(), ["10.244.1.2", "fd00:10:244:1::2"]);
    host.del(&pod, &conf);
    // And the one to try it with.
    let from = help.find("echo '").unwrap() + 6;
    let to = from + help[from..].find("' > net.json").unwrap();
    let mut conf: Value = serde_json::from_str(&help[from..to]).unwrap();
    conf["ipam"]["dataDir"] = host.data_dir().to_str().unwrap().into();
    assert_eq!(host.add(&pod, &conf).ips(), ["10.99.0.2"]);
    let mut ping = Command::new("ping");
    ping.args(["-c", "1", "10.99.0.1"]);
    let output = pod.ns.run(|| ping.output()).unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    host.del(&pod, &conf);
}

#[test]
fn fault_028_a_terminal_is_not_waited_for_and_nobody_need_listen_to_errors() {
    let host = Host::new();
    let pod = Pod::new("abc");
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = Command::new(heddle_lab::bin("heddle"));
    command.env_clear().envs(Host::variables(&pod, "ADD")).stdin(terminal.slave).stdout(Stdio::piped());
    let output = host.ns.run(|| command.output()).unwrap().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 6, "{error}");

    let mut deaf = Command::new("sh");
    deaf.args(["-c", r#"exec "$0" 2>&-"#]).arg(heddle_lab::bin("heddle"));
    let mut variables = Host::variables(&pod, "ADD");
    variables.push(("PATH".into(), "/usr/bin:/bin".into()));
    let answer = host.run(&mut deaf, &variables, host.conf().to_string().as_bytes());
    assert!(answer.success, "{answer:?}");
    host.del(&pod, &host.conf());
}
