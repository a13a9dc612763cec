//! DEL (section 2).

use anyhow::{Result, ensure};
use heddle_netlink::link;
use serde_json::json;

use crate::bench::Pod;
use crate::stage::{Stage, device, said};
use crate::subject::{ALL, Check, Part, WIRED};

const WITH_IPAM: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam];

pub const CHECKS: &[Check] = &[
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "nothing is left on the host or in the pod",
        run: leaves_nothing,
    },
    Check { section: "2 DEL", parts: ALL, name: "it may be repeated", run: repeated },
    Check {
        section: "2 DEL",
        parts: WITH_IPAM,
        name: "it succeeds for a container that was never added",
        run: never_added,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "without prevResult all is taken back as well",
        run: without_result,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "with an empty CNI_NETNS the address is free again",
        run: empty_namespace,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "with an empty CNI_NETNS the host side is taken away too",
        run: empty_namespace_device,
    },
    Check {
        section: "2 DEL",
        parts: WITH_IPAM,
        name: "with a CNI_NETNS that is gone the address is free again",
        run: gone_namespace,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after the interface vanished the address is free again",
        run: vanished,
    },
    Check { section: "2 DEL", parts: WIRED, name: "another pod is not touched", run: others_stay },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "another interface of the same pod is not touched",
        run: other_interface_stays,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after the range in the configuration changed, the address is free again",
        run: changed_range,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "a configuration that became invalid does not keep it from working",
        run: invalid_by_now,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "a prevResult that cannot be read does not keep it from working",
        run: broken_result,
    },
];

fn leaves_nothing(stage: &Stage) -> Result<()> {
    let list = stage.list();
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    ensure!(device(&pod, "eth0").is_err(), "the interface is still there");
    stage.nothing_more_than(&before)
}

fn repeated(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    let result = stage.add(&pod, &list)?;
    for _ in 0..3 {
        stage.del(&pod, &list, Some(&result))?;
    }
    Ok(())
}

fn never_added(stage: &Stage) -> Result<()> {
    stage.del(&Pod::new("abc"), &stage.list(), None)
}

fn without_result(stage: &Stage) -> Result<()> {
    let list = stage.list();
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    stage.add(&pod, &list)?;
    stage.del(&pod, &list, None)?;
    ensure!(device(&pod, "eth0").is_err(), "the interface is still there");
    stage.nothing_more_than(&before)
}

/// DEL with this in CNI_NETNS.
fn del_in(stage: &Stage, pod: &Pod, namespace: &str) -> Result<()> {
    let conf = stage.list().conf(0, None);
    let mut variables = stage.variables(pod, "DEL", stage.ifname());
    variables.retain(|(name, _)| name != "CNI_NETNS");
    variables.push(("CNI_NETNS".into(), namespace.into()));
    let answer = stage.raw(&conf, &variables, conf.to_string().as_bytes());
    ensure!(answer.success, "DEL fails: {}", said(&answer));
    Ok(())
}

fn free_again(stage: &Stage) -> Result<()> {
    ensure!(stage.leases().is_empty(), "it stays leased");
    Ok(())
}

fn empty_namespace(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &stage.list())?;
    del_in(stage, &pod, "")?;
    free_again(stage)
}

fn empty_namespace_device(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &stage.list())?;
    del_in(stage, &pod, "")?;
    ensure!(device(&pod, "eth0").is_err(), "the pair stays until somebody deletes the namespace");
    Ok(())
}

fn gone_namespace(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &stage.list())?;
    del_in(stage, &pod, "/nowhere")?;
    free_again(stage)
}

fn vanished(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    let result = stage.add(&pod, &list)?;
    link::delete_by_name(&mut pod.socket(), "eth0").unwrap();
    stage.del(&pod, &list, Some(&result))?;
    free_again(stage)
}

fn others_stay(stage: &Stage) -> Result<()> {
    let (list, pod, other) = (stage.list(), Pod::new("abc"), Pod::new("abcd"));
    let kept = stage.add(&other, &list)?;
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    let whole = stage.check(&other, &list, &kept);
    ensure!(whole.success, "CHECK of the other fails: {}", said(&whole));
    ensure!(stage.leases().len() == 1, "the other's lease is gone");
    Ok(())
}

fn other_interface_stays(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let list = stage.list().ipam("routes", json!([]));
    let kept = stage.add_as(&pod, "eth0", &list)?;
    let result = stage.add_as(&pod, "net1", &list)?;
    let answer = stage.try_del_as(&pod, "net1", &list, Some(&result));
    ensure!(answer.success, "DEL fails: {}", said(&answer));
    ensure!(device(&pod, "net1").is_err(), "the interface is still there");
    let whole = stage.check(&pod, &list, &kept);
    ensure!(whole.success, "CHECK of the other fails: {}", said(&whole));
    ensure!(stage.leases().len() == 1, "there are {} leases", stage.leases().len());
    Ok(())
}

fn changed_range(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list.ranges(json!([[{"subnet": "10.9.0.0/24"}]])), Some(&result))?;
    free_again(stage)
}

fn invalid_by_now(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    stage.add(&pod, &list)?;
    let list = list.with("mtu", json!("large")).ranges(json!("nonsense"));
    stage.del(&pod, &list, None)?;
    free_again(stage)
}

fn broken_result(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&json!("nonsense")))?;
    free_again(stage)
}
