//! VERSION, STATUS and GC (section 2): what is about the plugin or a network, not about one container.

use anyhow::{Result, ensure};
use heddle_netlink::link;
use serde_json::json;

use crate::bench::Pod;
use crate::stage::{Stage, device, said};
use crate::subject::{ALL, Check, Part, WIRED};

const WITH_IPAM: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam];

pub const CHECKS: &[Check] = &[
    Check {
        section: "2 VERSION",
        parts: ALL,
        name: "VERSION names every version from 0.1.0 to 1.1.0",
        run: every_version,
    },
    Check {
        section: "2 VERSION",
        parts: ALL,
        name: "VERSION is answered in the version of the request",
        run: version_of_the_request,
    },
    Check {
        section: "2 VERSION",
        parts: ALL,
        name: "VERSION needs no other variable and no network",
        run: version_needs_nothing,
    },
    Check { section: "2 STATUS", parts: ALL, name: "STATUS succeeds where ADD would", run: ready },
    Check {
        section: "2 STATUS",
        parts: WITH_IPAM,
        name: "STATUS fails with code 50 when no address is free",
        run: exhausted,
    },
    Check {
        section: "2 STATUS",
        parts: WITH_IPAM,
        name: "STATUS succeeds again when an address is free again",
        run: recovered,
    },
    Check {
        section: "2 STATUS",
        parts: WITH_IPAM,
        name: "STATUS fails with code 50 when leases cannot be written",
        run: unwritable,
    },
    Check {
        section: "2 STATUS",
        parts: ALL,
        name: "STATUS for a version before 1.1.0 is refused with code 1",
        run: status_before_1_1_0,
    },
    Check {
        section: "2 GC",
        parts: WITH_IPAM,
        name: "GC frees the addresses of attachments that are not named",
        run: collects_leases,
    },
    Check {
        section: "2 GC",
        parts: WIRED,
        name: "GC takes away the devices of attachments that are not named",
        run: collects_devices,
    },
    Check {
        section: "2 GC",
        parts: WITH_IPAM,
        name: "GC leaves the attachments that are named as they are",
        run: keeps_the_valid,
    },
    Check {
        section: "2 GC",
        parts: WITH_IPAM,
        name: "GC tells two interfaces of one container apart",
        run: tells_interfaces_apart,
    },
    Check {
        section: "2 GC",
        parts: WITH_IPAM,
        name: "GC leaves other networks alone",
        run: leaves_other_networks,
    },
    Check {
        section: "2 GC",
        parts: WITH_IPAM,
        name: "GC without the list of valid attachments is refused and takes nothing",
        run: without_list,
    },
    Check { section: "2 GC", parts: ALL, name: "GC may be repeated, and is silent", run: collects_again },
];

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn every_version(stage: &Stage) -> Result<()> {
    let answer = stage.command("VERSION", &stage.list().conf(0, None));
    ensure!(answer.success, "it fails: {}", said(&answer));
    let told = &answer.json["supportedVersions"];
    ensure!(told == &json!(VERSIONS), "it names {told}");
    Ok(())
}

fn version_of_the_request(stage: &Stage) -> Result<()> {
    for version in ["0.4.0", "1.0.0"] {
        let answer = stage.command("VERSION", &stage.list().version(version).conf(0, None));
        ensure!(answer.json["cniVersion"] == version, "{version}: in {}", answer.json["cniVersion"]);
    }
    Ok(())
}

fn version_needs_nothing(stage: &Stage) -> Result<()> {
    let variables = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())];
    let answer = stage.raw(&stage.list().conf(0, None), &variables, br#"{"cniVersion": "1.0.0"}"#);
    ensure!(answer.success && answer.json["supportedVersions"].is_array(), "it fails: {}", said(&answer));
    Ok(())
}

fn ready(stage: &Stage) -> Result<()> {
    let answer = stage.status(&stage.list().version("1.1.0"));
    ensure!(answer.success, "it fails: {}", said(&answer));
    ensure!(answer.stdout.trim().is_empty(), "it writes to standard output");
    Ok(())
}

/// A network with one address, and the pod that has it.
fn full(stage: &Stage) -> Result<(crate::list::List, Pod)> {
    let list = stage.list().ranges(json!([[{"subnet": "10.1.0.0/30"}]]));
    let pod = Pod::new("abc");
    stage.add(&pod, &list)?;
    Ok((list.version("1.1.0"), pod))
}

fn exhausted(stage: &Stage) -> Result<()> {
    let (list, _pod) = full(stage)?;
    let answer = stage.status(&list);
    ensure!(!answer.success, "it succeeds");
    ensure!(answer.code() == 50, "code {}: {}", answer.code(), said(&answer));
    Ok(())
}

fn recovered(stage: &Stage) -> Result<()> {
    let (list, pod) = full(stage)?;
    stage.del(&pod, &list.clone().version("1.0.0"), None)?;
    let answer = stage.status(&list);
    ensure!(answer.success, "it fails: {}", said(&answer));
    Ok(())
}

fn unwritable(stage: &Stage) -> Result<()> {
    // A file where the directory should be: root is kept out by nothing else.
    std::fs::create_dir_all(stage.host.data_dir()).unwrap();
    std::fs::write(stage.host.data_dir().join("net"), "").unwrap();
    let answer = stage.status(&stage.list().version("1.1.0"));
    ensure!(!answer.success, "it succeeds");
    ensure!(answer.code() == 50, "code {}: {}", answer.code(), said(&answer));
    Ok(())
}

fn status_before_1_1_0(stage: &Stage) -> Result<()> {
    let answer = stage.status(&stage.list().version("1.0.0"));
    ensure!(!answer.success, "it succeeds");
    ensure!(answer.code() == 1, "code {}: {}", answer.code(), said(&answer));
    Ok(())
}

/// GC, which must succeed.
fn collect(stage: &Stage, valid: &[(&str, &str)]) -> Result<()> {
    let answer = stage.gc(&stage.list().version("1.1.0"), valid);
    ensure!(answer.success, "GC fails: {}", said(&answer));
    ensure!(answer.stdout.trim().is_empty(), "GC writes to standard output");
    Ok(())
}

fn collects_leases(stage: &Stage) -> Result<()> {
    let (list, pods) = (stage.list(), ["one", "two"].map(Pod::new));
    for pod in &pods {
        stage.add(pod, &list)?;
    }
    collect(stage, &[])?;
    ensure!(stage.leases().is_empty(), "they stay leased");
    Ok(())
}

fn collects_devices(stage: &Stage) -> Result<()> {
    let list = stage.list();
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    stage.add(&pod, &list)?;
    collect(stage, &[])?;
    ensure!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none(), "the interface stays");
    stage.nothing_more_than(&before)
}

fn keeps_the_valid(stage: &Stage) -> Result<()> {
    let (list, kept, lost) = (stage.list(), Pod::new("kept"), Pod::new("lost"));
    let result = stage.add(&kept, &list)?;
    let before = stage.state();
    stage.add(&lost, &list)?;
    collect(stage, &[("kept", stage.ifname())])?;
    let whole = stage.check(&kept, &list, &result);
    ensure!(whole.success, "CHECK of the valid one fails: {}", said(&whole));
    ensure!(
        stage.state() == before,
        "something else than the other is gone, or more than the valid one is left"
    );
    Ok(())
}

fn tells_interfaces_apart(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list().ipam("routes", json!([])), Pod::new("abc"));
    stage.add_as(&pod, "eth0", &list)?;
    stage.add_as(&pod, "net1", &list)?;
    collect(stage, &[("abc", "net1")])?;
    let left = stage.leases();
    ensure!(
        left.len() == 1 && left.iter().all(|lease| lease.ends_with("10.1.0.3")),
        "{} leases are left",
        left.len()
    );
    if stage.subject.part != Part::Ipam {
        device(&pod, "net1")?;
    }
    Ok(())
}

fn leaves_other_networks(stage: &Stage) -> Result<()> {
    let mut other = stage.list().ranges(json!([[{"subnet": "10.2.0.0/24"}]]));
    other.name = "other".into();
    if stage.subject.part == Part::Bridge {
        other = other.with("bridge", json!("br1"));
    }
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &other)?;
    collect(stage, &[])?;
    let whole = stage.check(&pod, &other, &result);
    ensure!(whole.success, "CHECK there fails: {}", said(&whole));
    Ok(())
}

fn without_list(stage: &Stage) -> Result<()> {
    let (list, pod) = (stage.list(), Pod::new("abc"));
    let result = stage.add(&pod, &list)?;
    let answer = stage.command("GC", &list.clone().version("1.1.0").conf(0, None));
    ensure!(!answer.success, "it is accepted");
    ensure!(answer.code() == 7, "code {}: {}", answer.code(), said(&answer));
    let whole = stage.check(&pod, &list, &result);
    ensure!(whole.success, "CHECK fails then: {}", said(&whole));
    Ok(())
}

fn collects_again(stage: &Stage) -> Result<()> {
    for _ in 0..3 {
        collect(stage, &[])?;
    }
    Ok(())
}
