//! What a runtime may have left the process with: limits, descriptors.

use std::process::Command;

use heddle_netlink::link;
use serde_json::Value;

use super::bench::{Answer, Host, Pod};

/// Runs the plugin through `program`, which sets its surroundings up and becomes the plugin.
fn within(host: &Host, pod: &Pod, command: &str, program: &[&str]) -> Answer {
    let mut run = Command::new(program[0]);
    run.args(&program[1..]).arg(heddle_lab::bin("heddle"));
    let mut variables = Host::variables(pod, command);
    variables.push(("PATH".into(), "/usr/bin:/bin".into()));
    host.run(&mut run, &variables, host.conf().to_string().as_bytes())
}

fn nothing_in(pod: &Pod) {
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_not_a_signal() {
    let host = Host::new();
    let refused = |id: &str, limit: u32, operation: &str| {
        let (pod, before) = (Pod::new(id), host.state());
        let answer = within(&host, &pod, "ADD", &["prlimit", &format!("--fsize={limit}:{limit}")]);
        assert_eq!(answer.code(), 5, "{limit}: {answer:?}");
        assert!(answer.msg().contains(operation) && answer.msg().contains("File too large"), "{answer:?}");
        assert_eq!(host.state(), before, "{limit}: {answer:?}");
        nothing_in(&pod);
    };
    // The first file is the identity of the boot: 36 bytes.
    for limit in [0, 1, 35] {
        refused("abc", limit, "boot");
    }
    let pod = Pod::new("abc");
    host.add(&pod, &host.conf());
    host.del(&pod, &host.conf());
    // From now on it is there. The note of two addresses comes next, then the lease with its container's name.
    for limit in [0, 1, 30] {
        refused("abc", limit, "cannot write");
    }
    refused(&"x".repeat(200), 100, "cannot create lease");
    // What needs no file is not disturbed.
    host.add(&pod, &host.conf());
    let answer = within(&host, &pod, "DEL", &["prlimit", "--fsize=0:0"]);
    assert!(answer.success, "{answer:?}");
    nothing_in(&pod);
}

#[test]
fn add_without_standard_output_attaches_nothing() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let before = host.state();
    for closed in [r#"exec "$0" >&-"#, r#"exec "$0" >/dev/null"#] {
        let answer = within(&host, &pod, "ADD", &["sh", "-c", closed]);
        assert!(!answer.success && answer.json == Value::Null, "{closed}: {answer:?}");
        assert!(answer.stderr.contains("standard output"), "{closed}: {answer:?}");
        assert_eq!(host.state(), before, "{closed}");
        assert!(!host.data_dir().exists(), "{closed}: not even a directory");
        nothing_in(&pod);
    }
    // DEL answers nothing, and does its work for anybody.
    host.add(&pod, &host.conf());
    assert!(within(&host, &pod, "DEL", &["sh", "-c", r#"exec "$0" >&-"#]).success);
    nothing_in(&pod);
}
