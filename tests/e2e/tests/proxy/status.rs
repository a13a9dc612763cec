//! `proxyd status` and `proxyd cleanup`.

use heddle_lab::{Cmd, Result, Snapshot, bin};

use crate::world::{WEB, World, ask, list, status, strict};

#[test]
fn proxy_status_tells_without_a_daemon_and_cleanup_leaves_nothing() -> Result<()> {
    let mut world = World::start(strict())?;
    let client = world.cluster.client();
    ask(10, crate::world::By::Tcp, WEB.published(world.cluster.node(3).ip4()), client)?;
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
    }
    let node = world.cluster.node(3);
    let said = status(node)?;
    assert_eq!(
        (&said["mode"], &said["node"], &said["remote"]),
        (&"ebpf".into(), &"n3".into(), &"tunnel".into())
    );
    let web = list(&said["frontends"]).iter().find(|f| f["address"] == "node(ipv4):30010/tcp");
    let web = web.expect("the node port is there");
    assert_eq!(web["name"], "default/web:tcp");
    let by: Vec<_> = list(&web["backends"]).iter().map(|b| (&b["node"], &b["by"], &b["state"])).collect();
    let (tunnel, active) = ("tunnel".into(), "active".into());
    assert_eq!(by, [(&"n1".into(), &tunnel, &active), (&"n2".into(), &tunnel, &active)]);
    let by = |address: &str| {
        let found = list(&said["frontends"]).iter().find(|f| f["address"] == address);
        found.map(|f| f["backends"][0]["by"].clone())
    };
    assert_eq!(by("10.96.0.10:80/tcp"), Some("overlay".into()));
    assert_eq!(by("10.96.0.12:80/tcp"), Some("snat".into()), "a process of another node");
    assert!(said["counters"]["flow_new"].as_u64() >= Some(10), "{}", said["counters"]);
    for hook in ["connect4", "underlay_in", "underlay_out", "overlay_in", "pod"] {
        assert!(list(&said["hooks"]).iter().any(|h| h["program"] == hook), "{hook}: {}", said["hooks"]);
    }
    let text = node.run(Cmd::new(bin("proxyd")).arg("status"))?;
    assert!(text.contains("node(ipv4):30010/tcp") && text.contains("default/web:tcp"), "{text}");

    for node in world.cluster.nodes() {
        node.run(Cmd::new(bin("proxyd")).arg("cleanup"))?;
        let said = status(node)?;
        assert!(said["mode"].is_null(), "{said}");
    }
    let after = Snapshot::of(&world.cluster)?;
    for node in ["n1", "n2", "n3"] {
        assert_eq!(after.section(&format!("{node} pins")).filter(|pin| pin.contains("heddle")).count(), 0);
        let attached: Vec<_> = after.section(&format!("{node} attached")).collect();
        assert!(attached.is_empty(), "{attached:?}");
    }
    Ok(())
}
