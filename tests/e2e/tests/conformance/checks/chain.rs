//! Several plugins in a list (section 3), and what the one before said (section 2, ADD).

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{Stage, device, said};
use crate::subject::{Check, WIRED};

pub const CHECKS: &[Check] = &[
    Check {
        section: "2 ADD",
        parts: WIRED,
        name: "behind another plugin: what that one told is in the result",
        run: passes_on,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "behind another plugin: ips still say which interface they are of",
        run: indexes_hold,
    },
    Check {
        section: "3 Execution",
        parts: WIRED,
        name: "the reference plugins tuning and portmap work behind it",
        run: others_behind,
    },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "what a later plugin of the chain changed (the MTU, a sysctl) is no fault",
        run: changed_behind,
    },
    Check {
        section: "3 Execution",
        parts: WIRED,
        name: "DEL of a chain in reverse order leaves nothing",
        run: deleted_in_reverse,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "DEL takes the result of the whole chain for prevResult",
        run: result_of_the_chain,
    },
];

/// What a plugin before told.
fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:07"}, {"name": "eth7", "mac": "02:00:00:00:00:08", "sandbox": "/x"}],
        "ips": [{"interface": 1, "address": "10.7.0.7/24", "gateway": "10.7.0.1"}],
        "routes": [{"dst": "203.0.113.0/24", "gw": "10.7.0.1"}],
        "dns": {"nameservers": ["10.96.0.10"]}
    })
}

fn behind(stage: &Stage) -> Result<Value> {
    let answer = stage.plugin(&Pod::new("abc"), "ADD", "eth0", &stage.list().conf(0, Some(&previous())));
    ensure!(answer.success, "ADD fails: {}", said(&answer));
    Ok(answer.json)
}

fn passes_on(stage: &Stage) -> Result<()> {
    let result = behind(stage)?;
    let has = |list: &str, key: &str, wanted: &str| {
        result[list].as_array().is_some_and(|all| all.iter().any(|one| one[key] == wanted))
    };
    ensure!(has("interfaces", "name", "eth7"), "its interfaces are gone");
    ensure!(has("ips", "address", "10.7.0.7/24"), "its addresses are gone");
    ensure!(has("routes", "dst", "203.0.113.0/24"), "its routes are gone");
    ensure!(
        has("interfaces", "name", "eth0") && result["ips"].as_array().unwrap().len() == 2,
        "ours are not there"
    );
    Ok(())
}

fn indexes_hold(stage: &Stage) -> Result<()> {
    let result = behind(stage)?;
    for (address, wanted) in [("10.7.0.7", "eth7"), ("10.1.0.2", "eth0")] {
        let all = result["ips"].as_array().unwrap();
        let ip = all.iter().find(|ip| ip["address"].as_str().unwrap().starts_with(address));
        let Some(ip) = ip else { anyhow::bail!("{address} is not in the result") };
        let name = &result["interfaces"][usize::try_from(ip["interface"].as_u64().unwrap()).unwrap()]["name"];
        ensure!(name == wanted, "{address} is told to be of {name}");
    }
    Ok(())
}

/// The subject, and two of the reference plugins behind it.
fn chain(stage: &Stage) -> List {
    let mut list = stage.list();
    let state = stage.bin().join("tuning-state");
    list.plugins.push(json!({
        "type": "tuning", "dataDir": state, "mtu": 1300,
        "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}
    }));
    list.plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    list.runtime.insert("portMappings".into(), mappings);
    list
}

fn others_behind(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), chain(stage));
    let result = stage.add(&pod, &list)?;
    ensure!(device(&pod, "eth0")?.mtu == 1300, "the MTU is not changed");
    ensure!(result["ips"][0]["address"].is_string(), "the chain's result has no address");
    stage.del(&pod, &list, Some(&result))
}

fn changed_behind(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), chain(stage));
    let result = stage.add(&pod, &list)?;
    let mut others = list.clone();
    others.plugins.truncate(1);
    let answer = stage.check(&pod, &others, &result);
    ensure!(answer.success, "CHECK fails: {}", said(&answer));
    Ok(())
}

fn deleted_in_reverse(stage: &Stage) -> Result<()> {
    let list = chain(stage);
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    ensure!(device(&pod, "eth0").is_err(), "the interface is still there");
    stage.nothing_more_than(&before)
}

fn result_of_the_chain(stage: &Stage) -> Result<()> {
    let (pod, mut list) = (Pod::new("abc"), chain(stage));
    let result = stage.add(&pod, &list)?;
    // The others do not get their turn.
    list.plugins.truncate(1);
    stage.del(&pod, &list, Some(&result))?;
    ensure!(stage.leases().is_empty() && device(&pod, "eth0").is_err(), "something is left");
    Ok(())
}
