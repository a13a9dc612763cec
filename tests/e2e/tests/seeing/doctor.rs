//! `proxyd doctor`: what is wrong is said, with a way out.

use std::time::Duration;

use heddle_lab::{Cmd, Error, Place, Result, bin, eventually};
use serde_json::Value;

use crate::world::{SOLO, World, list, strict};

/// What it finds: the exit code, and the checks that are not ok.
fn doctor(node: &Place) -> Result<(i32, Vec<Value>)> {
    let output = node.output(Cmd::new(bin("proxyd")).args(["doctor", "-o", "json"]))?;
    let said: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| Error::Oracle(format!("{error}: {output:?}")))?;
    let wrong = list(&said["checks"]).iter().filter(|check| check["verdict"] != "ok").cloned().collect();
    Ok((output.status.code().unwrap_or(-1), wrong))
}

fn find<'a>(wrong: &'a [Value], about: &str) -> Option<&'a str> {
    wrong.iter().find(|check| check["about"] == about)?["found"].as_str()
}

#[test]
fn seeing_doctor_says_what_is_wrong() -> Result<()> {
    let mut world = World::start(strict())?;
    let node = world.cluster.node(1);
    // The lab's nodes have no helper. What the daemon says is up to a second old.
    eventually("nothing is wrong", Duration::from_secs(20), || {
        let (code, wrong) = doctor(node)?;
        let left: Vec<_> = wrong.iter().filter(|check| check["about"] != "stale sockets").collect();
        if code == 0 && left.is_empty() { Ok(true) } else { Err(Error::Oracle(format!("{left:?}"))) }
    })?;

    // A process listens on a node port: it hears nothing, the service answers.
    let listener = node.enter(|| std::net::TcpListener::bind(("0.0.0.0", SOLO.node_port())))?;
    let (code, wrong) = doctor(node)?;
    let found = find(&wrong, "node ports").unwrap_or_default();
    assert!(
        code == 0 && found.contains("listens on 30011/tcp, a node port of default/solo:tcp"),
        "{wrong:?}"
    );
    drop(listener);

    let set = |range: &str| {
        node.run(Cmd::new("sysctl").arg("-qw").arg(format!("net.ipv4.ip_local_port_range={range}")))
    };
    set("1024 65535")?;
    let (_, wrong) = doctor(node)?;
    assert!(find(&wrong, "snat ports").is_some_and(|found| found.contains("1024-65535")), "{wrong:?}");
    set("32768 60999")?;

    world.cluster.stop_daemon(1, "proxyd")?;
    let node = world.cluster.node(1);
    let (code, wrong) = doctor(node)?;
    assert_eq!((code, find(&wrong, "proxyd")), (1, Some("it does not run")), "{wrong:?}");
    let text = node.output(Cmd::new(bin("proxyd")).arg("doctor"))?;
    assert!(text.stdout.contains("FAILURE  it does not run (start it;"), "{text:?}");
    node.run(Cmd::new(bin("proxyd")).arg("cleanup"))?;
    eventually("nothing is there", Duration::from_secs(5), || {
        Ok(find(&doctor(node)?.1, "datapath") == Some("nothing is there"))
    })
}
