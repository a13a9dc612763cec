//! What comes in: variables, the configuration, and how a refusal is told (sections 1, 2 and 5).

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Answer, Pod};
use crate::stage::{Stage, said};
use crate::subject::{ALL, Check, IPAM, Part, WIRED};

const WITH_IPAM: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam];

pub const CHECKS: &[Check] = &[
    Check {
        section: "2 Parameters",
        parts: ALL,
        name: "a variable that ADD needs and has not is named, with code 4",
        run: missing_variable,
    },
    Check {
        section: "2 Parameters",
        parts: ALL,
        name: "all missing variables are named at once",
        run: missing_variables,
    },
    Check {
        section: "2 Parameters",
        parts: ALL,
        name: "a CNI_COMMAND that does not exist is refused with code 4",
        run: unknown_command,
    },
    Check {
        section: "2 Parameters",
        parts: ALL,
        name: "a container ID that is none is refused with code 4",
        run: container_ids,
    },
    Check {
        section: "2 Parameters",
        parts: ALL,
        name: "an interface name that Linux refuses is refused with code 4",
        run: interface_names,
    },
    Check {
        section: "2 Parameters",
        parts: WIRED,
        name: "an interface name that is a pattern to the kernel (eth%d) is refused",
        run: interface_pattern,
    },
    Check {
        section: "2 Parameters",
        parts: WIRED,
        name: "a CNI_NETNS that leads nowhere is refused, and no address stays leased",
        run: no_namespace,
    },
    Check {
        section: "2 Parameters",
        parts: WIRED,
        name: "a CNI_NETNS that is an ordinary file is refused",
        run: file_for_namespace,
    },
    Check {
        section: "2 Parameters",
        parts: WIRED,
        name: "the host's own namespace is refused before anything is changed",
        run: own_namespace,
    },
    Check {
        section: "2 Parameters",
        parts: WITH_IPAM,
        name: "CNI_ARGS: an unknown key is refused, and ignored with IgnoreUnknown",
        run: unknown_args,
    },
    Check {
        section: "2 Errors",
        parts: ALL,
        name: "no configuration at all is refused with code 6",
        run: no_configuration,
    },
    Check {
        section: "2 Errors",
        parts: ALL,
        name: "a configuration that is no JSON is refused with code 6",
        run: broken_configuration,
    },
    Check {
        section: "2 Errors",
        parts: ALL,
        name: "a configuration of 10,000 nested objects is refused with code 6",
        run: nested_configuration,
    },
    Check {
        section: "5 Error",
        parts: ALL,
        name: "a cniVersion that is not spoken is refused with code 1",
        run: unknown_version,
    },
    Check {
        section: "5 Error",
        parts: ALL,
        name: "an error says cniVersion, code and msg, on standard output",
        run: error_object,
    },
    Check {
        section: "1 Network configuration",
        parts: WIRED,
        name: "a network without a name is refused with code 7",
        run: no_name,
    },
    Check {
        section: "1 Network configuration",
        parts: WITH_IPAM,
        name: "a network name that is a path is refused with code 7, and no file is made",
        run: path_for_name,
    },
    Check {
        section: "1 Network configuration",
        parts: ALL,
        name: "keys that nobody knows are ignored",
        run: unknown_keys,
    },
    Check {
        section: "5 Error",
        parts: WIRED,
        name: "a key of the wrong type is refused with code 6 or 7 and named",
        run: wrong_type,
    },
    Check {
        section: "5 Error",
        parts: WIRED,
        name: "an MTU that no device can have is refused with code 7 before anything is made",
        run: impossible_mtu,
    },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "a dataDir that is no absolute path is refused",
        run: relative_directory,
    },
];

fn refused(answer: &Answer, code: u64, what: &str) -> Result<()> {
    ensure!(!answer.success, "{what}: it is accepted");
    ensure!(answer.code() == code, "{what}: code {}: {}", shown(answer.code()), said(answer));
    Ok(())
}

fn shown(code: u64) -> String {
    if code == u64::MAX { "none".into() } else { code.to_string() }
}

/// ADD with one variable changed or taken away.
fn add_with(stage: &Stage, pod: &Pod, name: &str, value: Option<&str>) -> Answer {
    let conf = stage.list().conf(0, None);
    let mut variables = stage.variables(pod, "ADD", stage.ifname());
    variables.retain(|(n, _)| n != name);
    variables.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    stage.raw(&conf, &variables, conf.to_string().as_bytes())
}

const NEEDED: [&str; 4] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];

fn missing_variable(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    for name in NEEDED {
        let answer = add_with(stage, &pod, name, None);
        refused(&answer, 4, name)?;
        ensure!(answer.msg().contains(name), "{name}: not named: {}", said(&answer));
    }
    Ok(())
}

fn missing_variables(stage: &Stage) -> Result<()> {
    let conf = stage.list().conf(0, None);
    let variables = [("CNI_COMMAND".to_owned(), "ADD".to_owned())];
    let answer = stage.raw(&conf, &variables, conf.to_string().as_bytes());
    refused(&answer, 4, "none")?;
    let unnamed: Vec<_> = NEEDED.into_iter().filter(|name| !answer.msg().contains(name)).collect();
    ensure!(unnamed.is_empty(), "not named: {}", unnamed.join(", "));
    Ok(())
}

fn unknown_command(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    for command in ["add", "REMOVE", "ADD "] {
        refused(&add_with(stage, &pod, "CNI_COMMAND", Some(command)), 4, &format!("{command:?}"))?;
    }
    Ok(())
}

fn container_ids(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    for id in ["-x", "../x", "a b", "a/b", "a\nb"] {
        refused(&add_with(stage, &pod, "CNI_CONTAINERID", Some(id)), 4, &format!("{id:?}"))?;
    }
    Ok(())
}

fn interface_names(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    for name in [".", "..", "0123456789abcdef", "a/b", "a:b", "a b"] {
        refused(&add_with(stage, &pod, "CNI_IFNAME", Some(name)), 4, &format!("{name:?}"))?;
    }
    Ok(())
}

fn interface_pattern(stage: &Stage) -> Result<()> {
    let answer = add_with(stage, &Pod::new("abc"), "CNI_IFNAME", Some("eth%d"));
    ensure!(!answer.success, "it is accepted");
    Ok(())
}

fn no_namespace(stage: &Stage) -> Result<()> {
    let answer = add_with(stage, &Pod::new("abc"), "CNI_NETNS", Some("/nowhere"));
    ensure!(!answer.success, "it is accepted");
    ensure!(answer.msg().contains("/nowhere"), "not named: {}", said(&answer));
    ensure!(stage.leases().is_empty(), "an address stays leased");
    Ok(())
}

fn file_for_namespace(stage: &Stage) -> Result<()> {
    let answer = add_with(stage, &Pod::new("abc"), "CNI_NETNS", Some("/etc/hostname"));
    ensure!(!answer.success && answer.json.is_object(), "it is accepted, or there is no error object");
    ensure!(stage.leases().is_empty(), "an address stays leased");
    Ok(())
}

fn own_namespace(stage: &Stage) -> Result<()> {
    let before = stage.state();
    let answer = add_with(stage, &Pod::new("abc"), "CNI_NETNS", Some("/proc/thread-self/ns/net"));
    ensure!(!answer.success, "it is accepted");
    stage.nothing_more_than(&before)
}

fn unknown_args(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    let answer = stage.with_args(&pod, "ADD", &list, "COLOUR=green");
    ensure!(!answer.success, "it is accepted without IgnoreUnknown");
    let answer = stage.with_args(&pod, "ADD", &list, "IgnoreUnknown=1;COLOUR=green");
    ensure!(answer.success, "refused with IgnoreUnknown: {}", said(&answer));
    Ok(())
}

/// ADD with this input.
fn add_input(stage: &Stage, input: &[u8]) -> Answer {
    let pod = Pod::new("abc");
    stage.raw(&stage.list().conf(0, None), &stage.variables(&pod, "ADD", stage.ifname()), input)
}

fn no_configuration(stage: &Stage) -> Result<()> {
    refused(&add_input(stage, b""), 6, "nothing")
}

fn broken_configuration(stage: &Stage) -> Result<()> {
    refused(&add_input(stage, br#"{"cniVersion": "1.0.0", "name": "net""#), 6, "cut off")?;
    refused(&add_input(stage, b"\xff\xfe{}"), 6, "no UTF-8")
}

fn nested_configuration(stage: &Stage) -> Result<()> {
    let mut conf = stage.list().conf(0, None);
    conf["deep"] = json!("HERE");
    let deep = format!("{}{}", r#"{"a":"#.repeat(10_000), "1".to_owned() + &"}".repeat(10_000));
    refused(&add_input(stage, conf.to_string().replace("\"HERE\"", &deep).as_bytes()), 6, "deep")
}

fn unknown_version(stage: &Stage) -> Result<()> {
    for version in ["9.9.9", "1.0"] {
        let pod = Pod::new("abc");
        refused(&stage.try_add(&pod, &stage.list().version(version)), 1, version)?;
    }
    Ok(())
}

fn error_object(stage: &Stage) -> Result<()> {
    let answer = add_with(stage, &Pod::new("abc"), "CNI_IFNAME", Some("a/b"));
    let answer = if answer.success { add_input(stage, b"{") } else { answer };
    ensure!(answer.json.is_object(), "no object: {:?}", answer.stdout);
    ensure!(answer.json["code"].is_u64(), "no code");
    ensure!(answer.json["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "no msg");
    ensure!(answer.json["cniVersion"].is_string(), "no cniVersion");
    Ok(())
}

fn no_name(stage: &Stage) -> Result<()> {
    let mut conf = stage.list().conf(0, None);
    conf.as_object_mut().unwrap().remove("name");
    refused(&add_input(stage, conf.to_string().as_bytes()), 7, "no name")
}

fn path_for_name(stage: &Stage) -> Result<()> {
    let mut list = stage.list();
    list.name = "../../escaped".into();
    refused(&stage.try_add(&Pod::new("abc"), &list), 7, "../../escaped")?;
    let data = stage.host.data_dir();
    let escaped = data.parent().and_then(|dir| dir.parent()).unwrap().join("escaped");
    ensure!(!escaped.exists(), "a directory is made outside dataDir");
    Ok(())
}

fn unknown_keys(stage: &Stage) -> Result<()> {
    stage.add(&Pod::new("abc"), &stage.list().with("colour", json!({"name": "green"}))).map(drop)
}

fn wrong_type(stage: &Stage) -> Result<()> {
    let answer = stage.try_add(&Pod::new("abc"), &stage.list().with("mtu", json!("1500")));
    ensure!(!answer.success, "it is accepted");
    ensure!(matches!(answer.code(), 6 | 7), "code {}: {}", shown(answer.code()), said(&answer));
    ensure!(answer.msg().contains("mtu"), "not named: {}", said(&answer));
    Ok(())
}

fn impossible_mtu(stage: &Stage) -> Result<()> {
    let before = stage.state();
    for mtu in [json!(67), json!(70_000), json!(-1)] {
        refused(
            &stage.try_add(&Pod::new("abc"), &stage.list().with("mtu", mtu.clone())),
            7,
            &mtu.to_string(),
        )?;
    }
    stage.nothing_more_than(&before)
}

fn relative_directory(stage: &Stage) -> Result<()> {
    let list = stage.list().ipam("dataDir", Value::from("relative"));
    let answer = stage.try_add(&Pod::new("abc"), &list);
    // Where it went is the directory of this process.
    drop(std::fs::remove_dir_all("relative"));
    ensure!(!answer.success, "it is accepted");
    Ok(())
}
