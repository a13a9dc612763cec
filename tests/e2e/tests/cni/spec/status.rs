//! STATUS: is the node ready for pods?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use heddle_netlink::sysctl::{self, Key};
use serde_json::{Value, json};

use super::super::bench::{Answer, Host, Pod};

fn status(host: &Host, conf: &Value) -> Answer {
    let variables = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/usr/lib/cni")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    host.raw(&variables, conf.to_string().as_bytes())
}

#[test]
fn fault_026_an_exhausted_pool_is_told_and_one_that_recovers_too() {
    let host = Host::new();
    let mut conf = host.conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00::/125", "rangeStart": "fd00::2", "rangeEnd": "fd00::3"}]]);
    assert!(status(&host, &conf).success);
    let pods = ["one", "two"].map(Pod::new);
    for pod in &pods {
        host.add(pod, &conf);
    }
    // One family is enough: an ADD needs both.
    let full = status(&host, &conf);
    assert_eq!(full.code(), 50, "{full:?}");
    assert!(full.msg().contains("fd00::"), "{full:?}");
    assert_eq!(host.call(&Pod::new("late"), "ADD", &conf).code(), 100);
    host.del(&pods[0], &conf);
    assert!(status(&host, &conf).success);
}

#[test]
fn fault_026_leases_that_cannot_be_kept_are_told() {
    let host = Host::new();
    let mut conf = host.conf();
    // A file where the directory should be: of root, which no permissions hold back.
    let blocked = host.data_dir().with_file_name("blocked");
    fs::write(&blocked, "").unwrap();
    conf["ipam"]["dataDir"] = json!(blocked);
    let answer = status(&host, &conf);
    assert_eq!(answer.code(), 50, "{answer:?}");
    assert!(answer.msg().contains("blocked"), "{answer:?}");
    fs::set_permissions(&blocked, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn fault_026_a_read_only_file_system_is_told() {
    let host = Host::new();
    let conf = host.conf();
    fs::create_dir_all(host.data_dir()).unwrap();
    // A mount namespace of its own, in which the leases' directory is read-only.
    let script = r#"mount --bind -o ro "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$0""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(heddle_lab::bin("heddle")).arg(host.data_dir());
    let variables =
        [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/x"), ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let answer = host.run(&mut command, &variables, conf.to_string().as_bytes());
    assert_eq!(answer.code(), 50, "{answer:?}");
    assert!(answer.msg().to_lowercase().contains("read-only"), "{answer:?}");
}

#[test]
fn fault_026_an_overlay_that_is_gone_is_told_with_51() {
    let host = Host::new();
    let mut conf = host.conf();
    conf["overlay"] = json!("heddle.1");
    let answer = status(&host, &conf);
    assert_eq!(answer.code(), 51, "{answer:?}");
    assert!(answer.msg().contains("heddle.1"), "{answer:?}");
    // ADD goes on: pods of this node reach each other, and the overlay comes when it comes.
    let pod = Pod::new("abc");
    host.add(&pod, &conf);
    host.del(&pod, &conf);
    conf["overlay"] = json!("uplink");
    assert_eq!(status(&host, &conf).code(), 51, "it is there, and down");
    let mut socket = host.socket();
    let index = heddle_netlink::link::by_name(&mut socket, "uplink").unwrap().unwrap().index;
    heddle_netlink::link::set_up(&mut socket, index).unwrap();
    assert!(status(&host, &conf).success);
    conf["overlay"] = json!("../x");
    assert_eq!(status(&host, &conf).code(), 7);
}

#[test]
fn fault_026_forwarding_that_is_off_is_no_fault_where_add_can_switch_it_on() {
    let host = Host::new();
    let conf = host.conf();
    let forward = Key::new(["net", "ipv4", "ip_forward"]);
    sysctl::write_in(&host.ns, &[(forward.clone(), "0")]).unwrap();
    assert!(status(&host, &conf).success);
    let read_only = |command: &str| {
        let script = r#"mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0""#;
        let mut program = Command::new("unshare");
        program.args(["--mount", "sh", "-c", script]).arg(heddle_lab::bin("heddle"));
        let variables =
            [("CNI_COMMAND", command), ("CNI_PATH", "/x"), ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        host.run(&mut program, &variables, conf.to_string().as_bytes())
    };
    let answer = read_only("STATUS");
    assert_eq!(answer.code(), 50, "{answer:?}");
    assert!(answer.msg().contains("ip_forward"), "{answer:?}");
    // With a pod on the node, there is one that may not be reached.
    let pod = Pod::new("abc");
    host.add(&pod, &conf);
    sysctl::write_in(&host.ns, &[(forward, "0")]).unwrap();
    assert_eq!(read_only("STATUS").code(), 51);
}
