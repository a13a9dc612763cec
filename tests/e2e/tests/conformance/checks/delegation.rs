//! Delegation to an IPAM plugin (section 4).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{Stage, device, ips, said};
use crate::subject::{BRIDGE, Check, WIRED};

pub const CHECKS: &[Check] = &[
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "the IPAM plugin that is named is found in CNI_PATH and called for ADD",
        run: called,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "the delegate has the same variables and the whole configuration",
        run: told_everything,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "the pod has the delegate's addresses and routes, the result its dns",
        run: result_is_used,
    },
    Check { section: "4 Delegation", parts: WIRED, name: "DEL is delegated", run: delete_is_delegated },
    Check { section: "4 Delegation", parts: WIRED, name: "CHECK is delegated", run: check_is_delegated },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "a CHECK that the delegate refuses fails",
        run: check_fails_with_it,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "the delegate's error is told with its code and its words",
        run: error_is_told,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "when ADD fails behind the delegate, the delegate's DEL is called",
        run: taken_back,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "STATUS is delegated, and fails where the delegate does, with its code",
        run: status_is_delegated,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "GC is delegated with the list of valid attachments",
        run: gc_is_delegated,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "an answer of the delegate without any address is an error",
        run: no_address,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "an answer of the delegate that is no JSON is an error, and nothing is left",
        run: no_json,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "an IPAM plugin that is nowhere in CNI_PATH is an error that names it",
        run: nowhere,
    },
    Check {
        section: "1 Network configuration",
        parts: WIRED,
        name: "an ipam.type that is a path is refused, and not run",
        run: path_for_type,
    },
    Check {
        section: "4 Delegation",
        parts: WIRED,
        name: "the reference plugin static gives its addresses",
        run: fixed,
    },
    Check { section: "4 Delegation", parts: WIRED, name: "heddle-ipam gives its addresses", run: our_ipam },
    Check {
        section: "bridge",
        parts: BRIDGE,
        name: "without ipam there is an interface without addresses",
        run: without_ipam,
    },
];

/// A delegate that writes down what it is told, and says what is in a file.
const DELEGATE: &str = r#"#!/bin/sh
cd "${0%/*}"
cat > stdin.$CNI_COMMAND
env > env.$CNI_COMMAND
echo $CNI_COMMAND >> calls
cat answer.$CNI_COMMAND 2>/dev/null
[ ! -e fails.$CNI_COMMAND ]
"#;

/// The configuration with it, and the delegate in place.
fn list(stage: &Stage) -> List {
    let program = file(stage, "delegate");
    fs::write(&program, DELEGATE).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let answer = json!({
        "cniVersion": "1.0.0", "ips": [{"address": "10.1.0.50/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24"}], "dns": {"nameservers": ["10.96.0.10"]}
    });
    fs::write(file(stage, "answer.ADD"), answer.to_string()).unwrap();
    stage.list().with("ipam", json!({"type": "delegate", "colour": "green"}))
}

fn file(stage: &Stage, name: &str) -> PathBuf {
    stage.bin().join(name)
}

fn calls(stage: &Stage) -> String {
    let calls = fs::read_to_string(file(stage, "calls")).unwrap_or_default();
    calls.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn fails(stage: &Stage, command: &str, code: u64) {
    fs::write(file(stage, &format!("fails.{command}")), "").unwrap();
    let answer = json!({"cniVersion": "1.0.0", "code": code, "msg": "the pool of the delegate is dry"});
    fs::write(file(stage, &format!("answer.{command}")), answer.to_string()).unwrap();
}

fn called(stage: &Stage) -> Result<()> {
    let result = stage.add(&Pod::new("abc"), &list(stage))?;
    ensure!(ips(&result) == ["10.1.0.50".parse::<std::net::IpAddr>()?], "the result is {}", result["ips"]);
    ensure!(calls(stage) == "ADD", "it is called for {}", calls(stage));
    Ok(())
}

fn told_everything(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list = list(stage);
    stage.add(&pod, &list)?;
    let input: Value =
        serde_json::from_str(&fs::read_to_string(file(stage, "stdin.ADD"))?).context("no JSON")?;
    ensure!(input == list.conf(0, None), "it is told {input}");
    let variables = fs::read_to_string(file(stage, "env.ADD"))?;
    for (name, value) in stage.variables(&pod, "ADD", "eth0").into_iter().filter(|(name, _)| name != "PATH") {
        ensure!(variables.lines().any(|line| line == format!("{name}={value}")), "{name} is another");
    }
    Ok(())
}

fn result_is_used(stage: &Stage) -> Result<()> {
    use heddle_netlink::route::{self, Filter};
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list(stage))?;
    let filter = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut pod.socket(), &filter).unwrap();
    ensure!(routes.iter().any(|route| route.dst.to_string() == "198.51.100.0/24"), "its route is missing");
    ensure!(result["dns"] == json!({"nameservers": ["10.96.0.10"]}), "dns is {}", result["dns"]);
    Ok(())
}

fn delete_is_delegated(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    ensure!(calls(stage) == "ADD DEL", "it is called for {}", calls(stage));
    Ok(())
}

fn check_is_delegated(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    let result = stage.add(&pod, &list)?;
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "CHECK fails: {}", said(&answer));
    ensure!(calls(stage) == "ADD CHECK", "it is called for {}", calls(stage));
    Ok(())
}

fn check_fails_with_it(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    let result = stage.add(&pod, &list)?;
    fails(stage, "CHECK", 101);
    ensure!(!stage.check(&pod, &list, &result).success, "CHECK succeeds");
    Ok(())
}

fn error_is_told(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    fails(stage, "ADD", 123);
    let answer = stage.try_add(&pod, &list);
    ensure!(!answer.success, "ADD succeeds");
    ensure!(answer.msg().contains("the pool of the delegate is dry"), "it says: {}", said(&answer));
    ensure!(answer.code() == 123, "the code is {}", answer.code());
    ensure!(device(&pod, "eth0").is_err(), "the interface stays");
    Ok(())
}

fn taken_back(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    let routes = json!([{"dst": "198.51.100.0/24", "gw": "172.31.7.7"}]);
    let answer = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.50/24", "gateway": "10.1.0.1"}], "routes": routes});
    fs::write(file(stage, "answer.ADD"), answer.to_string())?;
    ensure!(!stage.try_add(&pod, &list).success, "ADD succeeds");
    ensure!(calls(stage) == "ADD DEL", "it is called for {}", calls(stage));
    Ok(())
}

fn status_is_delegated(stage: &Stage) -> Result<()> {
    let list = list(stage).version("1.1.0");
    let answer = stage.status(&list);
    ensure!(answer.success, "STATUS fails: {}", said(&answer));
    fails(stage, "STATUS", 50);
    let answer = stage.status(&list);
    ensure!(answer.code() == 50, "code {}: {}", answer.code(), said(&answer));
    Ok(())
}

fn gc_is_delegated(stage: &Stage) -> Result<()> {
    let answer = stage.gc(&list(stage).version("1.1.0"), &[("kept", "eth0")]);
    ensure!(answer.success, "GC fails: {}", said(&answer));
    let input: Value = serde_json::from_str(&fs::read_to_string(file(stage, "stdin.GC"))?)?;
    let wanted = json!([{"containerID": "kept", "ifname": "eth0"}]);
    ensure!(
        input["cni.dev/valid-attachments"] == wanted,
        "it is told {}",
        input["cni.dev/valid-attachments"]
    );
    Ok(())
}

fn no_address(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    fs::write(file(stage, "answer.ADD"), json!({"cniVersion": "1.0.0", "ips": []}).to_string())?;
    let answer = stage.try_add(&pod, &list);
    ensure!(!answer.success && answer.json["msg"].is_string(), "ADD succeeds");
    ensure!(device(&pod, "eth0").is_err(), "the interface stays");
    Ok(())
}

fn no_json(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), list(stage));
    let before = stage.state();
    fs::write(file(stage, "answer.ADD"), "{")?;
    let answer = stage.try_add(&pod, &list);
    ensure!(!answer.success && answer.json["msg"].is_string(), "ADD succeeds, or there is no error object");
    ensure!(device(&pod, "eth0").is_err(), "the interface stays");
    let now = stage.state();
    // A bridge may have been made for all pods by then.
    let left = now.difference(&before).find(|line| line.contains("veth") || line.contains("hdl"));
    ensure!(left.is_none(), "left behind: {left:?}");
    Ok(())
}

fn nowhere(stage: &Stage) -> Result<()> {
    let answer =
        stage.try_add(&Pod::new("abc"), &stage.list().with("ipam", json!({"type": "no-such-plugin"})));
    ensure!(!answer.success && answer.json["msg"].is_string(), "ADD succeeds");
    ensure!(answer.msg().contains("no-such-plugin"), "it says: {}", said(&answer));
    Ok(())
}

fn path_for_type(stage: &Stage) -> Result<()> {
    drop(list(stage));
    let direct = file(stage, "delegate").display().to_string();
    for kind in [direct.as_str(), "../bin/delegate", "./delegate"] {
        let answer = stage.try_add(&Pod::new("abc"), &stage.list().with("ipam", json!({"type": kind})));
        ensure!(!answer.success, "{kind}: ADD succeeds");
        ensure!(calls(stage).is_empty(), "{kind}: it is run");
    }
    Ok(())
}

fn fixed(stage: &Stage) -> Result<()> {
    let ipam = json!({
        "type": "static", "addresses": [{"address": "10.1.0.60/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}]
    });
    let (pod, list) = (Pod::new("abc"), stage.list().with("ipam", ipam));
    let result = stage.add(&pod, &list)?;
    ensure!(ips(&result) == ["10.1.0.60".parse::<std::net::IpAddr>()?], "the result is {}", result["ips"]);
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "CHECK fails: {}", said(&answer));
    stage.del(&pod, &list, Some(&result))
}

fn our_ipam(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.list().ipam("type", json!("heddle-ipam")));
    let result = stage.add(&pod, &list)?;
    ensure!(ips(&result) == ["10.1.0.2".parse::<std::net::IpAddr>()?], "the result is {}", result["ips"]);
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "CHECK fails: {}", said(&answer));
    stage.del(&pod, &list, Some(&result))?;
    ensure!(stage.leases().is_empty(), "it stays leased");
    Ok(())
}

fn without_ipam(stage: &Stage) -> Result<()> {
    let (pod, mut list) = (Pod::new("abc"), stage.list().with("isGateway", json!(false)));
    list.plugins[0].as_object_mut().unwrap().remove("ipam");
    stage.add(&pod, &list)?;
    let eth0 = device(&pod, "eth0")?;
    ensure!(eth0.up, "it is down");
    let addresses = heddle_netlink::addr::list(&mut pod.socket(), Some(eth0.index)).unwrap();
    ensure!(addresses.iter().all(|a| a.ip.is_ipv6()), "it has {addresses:?}");
    stage.del(&pod, &list, None)
}
