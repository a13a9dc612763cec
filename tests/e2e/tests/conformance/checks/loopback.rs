//! The plugin `loopback`: containerd 1.x runs it for every pod.

use anyhow::{Result, ensure};
use heddle_netlink::{NetNs, Socket, link};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{Stage, said};
use crate::subject::{Check, LOOPBACK};

pub const CHECKS: &[Check] = &[
    Check { section: "loopback", parts: LOOPBACK, name: "ADD brings lo up", run: up },
    Check {
        section: "loopback",
        parts: LOOPBACK,
        name: "ADD says so for every version from 0.1.0 to 1.1.0",
        run: versions,
    },
    Check {
        section: "loopback",
        parts: LOOPBACK,
        name: "the result has lo with both addresses and the sandbox",
        run: result,
    },
    Check { section: "3 Execution", parts: LOOPBACK, name: "ADD passes prevResult on", run: passes_on },
    Check { section: "loopback", parts: LOOPBACK, name: "DEL takes lo down", run: down },
    Check {
        section: "loopback",
        parts: LOOPBACK,
        name: "DEL without a namespace succeeds",
        run: no_namespace,
    },
    Check { section: "loopback", parts: LOOPBACK, name: "CHECK succeeds after ADD", run: whole },
    Check { section: "loopback", parts: LOOPBACK, name: "CHECK finds that lo is down", run: found_down },
    Check {
        section: "loopback",
        parts: LOOPBACK,
        name: "CNI_IFNAME eth0, as some runtimes say, is no error",
        run: another_name,
    },
];

/// A pod whose lo is down, as it is born.
fn newborn() -> Pod {
    Pod { ns: NetNs::create().unwrap(), id: "abc".into() }
}

fn lo(pod: &Pod) -> link::Link {
    link::by_name(&mut Socket::open_in(&pod.ns).unwrap(), "lo").unwrap().unwrap()
}

fn up(stage: &Stage) -> Result<()> {
    let pod = newborn();
    ensure!(!lo(&pod).up, "it was up before");
    stage.add(&pod, &stage.list())?;
    ensure!(lo(&pod).up, "it is down");
    Ok(())
}

fn versions(stage: &Stage) -> Result<()> {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let answer = stage.try_add(&newborn(), &stage.list().version(version));
        ensure!(answer.success, "{version}: {}", said(&answer));
        ensure!(
            answer.json["cniVersion"] == version,
            "{version}: cniVersion is {}",
            answer.json["cniVersion"]
        );
    }
    Ok(())
}

fn result(stage: &Stage) -> Result<()> {
    let pod = newborn();
    let result = stage.add(&pod, &stage.list())?;
    let one = &result["interfaces"][0];
    ensure!(one["name"] == "lo" && one["sandbox"] == json!(pod.path()), "the interface is {one}");
    let ips: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| &ip["address"]).collect();
    ensure!(ips == ["127.0.0.1/8", "::1/128"], "the addresses are {ips:?}");
    Ok(())
}

fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0", "interfaces": [{"name": "eth7", "mac": "02:00:00:00:00:07", "sandbox": "/x"}],
        "ips": [{"interface": 0, "address": "10.7.0.7/24"}], "dns": {}
    })
}

fn passes_on(stage: &Stage) -> Result<()> {
    let answer = stage.plugin(&newborn(), "ADD", "lo", &stage.list().conf(0, Some(&previous())));
    ensure!(answer.success, "ADD fails: {}", said(&answer));
    ensure!(answer.json["interfaces"][0]["name"] == "eth7", "the result is {}", answer.json);
    ensure!(answer.ips().contains(&"10.7.0.7".to_owned()), "the address is gone");
    Ok(())
}

fn down(stage: &Stage) -> Result<()> {
    let (pod, list) = (newborn(), stage.list());
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    ensure!(!lo(&pod).up, "it is up");
    Ok(())
}

fn no_namespace(stage: &Stage) -> Result<()> {
    let conf = stage.list().conf(0, None);
    for path in ["", "/nowhere"] {
        let mut variables = stage.variables(&newborn(), "DEL", "lo");
        variables.retain(|(name, _)| name != "CNI_NETNS");
        variables.push(("CNI_NETNS".into(), path.into()));
        let answer = stage.raw(&conf, &variables, conf.to_string().as_bytes());
        ensure!(answer.success, "{path:?}: {}", said(&answer));
    }
    Ok(())
}

fn whole(stage: &Stage) -> Result<()> {
    let (pod, list): (Pod, List) = (newborn(), stage.list());
    let result = stage.add(&pod, &list)?;
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "it fails: {}", said(&answer));
    Ok(())
}

fn found_down(stage: &Stage) -> Result<()> {
    let (pod, list) = (newborn(), stage.list());
    let result = stage.add(&pod, &list)?;
    let mut socket = pod.socket();
    let index = lo(&pod).index;
    link::set_down(&mut socket, index).unwrap();
    ensure!(!stage.check(&pod, &list, &result).success, "it succeeds");
    Ok(())
}

fn another_name(stage: &Stage) -> Result<()> {
    let pod = newborn();
    stage.add_as(&pod, "eth0", &stage.list())?;
    ensure!(lo(&pod).up, "lo is down");
    Ok(())
}
