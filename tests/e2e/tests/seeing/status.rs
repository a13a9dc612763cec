//! `proxyd status`.

use heddle_lab::{Cmd, Load, Result, bin};
use std::time::Duration;

use crate::world::{WEB, World, list, status, strict};

/// The backends of a frontend with the flows that status shows: `(address, answered)`.
fn flows(said: &serde_json::Value, frontend: &str) -> Vec<(String, u64)> {
    let found = list(&said["frontends"]).iter().find(|f| f["address"] == frontend);
    let backends = found.map_or(&[][..], |frontend| list(&frontend["backends"]));
    let flows = |b: &serde_json::Value| b["flows"]["answered"].as_u64().unwrap_or(0);
    backends.iter().map(|b| (b["address"].as_str().unwrap_or("?").to_owned(), flows(b))).collect()
}

#[test]
fn seeing_status_counts_the_flows_of_each_backend() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let streams = Load::streams(WEB.published(node.ip4()), 12).rate(100).start(client)?;
    let report = streams.wait_for(200, Duration::from_secs(20))?;
    let said = status(node)?;
    let shown = flows(&said, "node(ipv4):30010/tcp");
    assert_eq!(shown.iter().map(|(_, flows)| flows).sum::<u64>(), 12, "{shown:?}");
    for backend in [&world.web1, &world.web2] {
        let address = format!("{}:{}", backend.pod().ip4(), WEB.target);
        let counted = shown.iter().find(|(at, _)| *at == address).map_or(0, |(_, flows)| *flows);
        assert_eq!(counted > 0, report.by_backend.contains_key(backend.name()), "{shown:?} {report}");
    }
    let web = list(&said["frontends"]).iter().find(|f| f["address"] == "node(ipv4):30010/tcp");
    let sum = |what: &str| {
        let backends = web.map_or(&[][..], |web| list(&web["backends"]));
        backends.iter().filter_map(|b| b["flows"][what].as_u64()).sum::<u64>()
    };
    assert_eq!(sum("given"), 12, "{web:?}");
    assert!(sum("packets") > 12 * 4 && sum("bytes") > 40 * sum("packets"), "{web:?}");
    // Of the other family and protocol there is none.
    assert!(flows(&said, "node(ipv6):30010/tcp").iter().all(|(_, flows)| *flows == 0));
    drop(streams);

    let run = |args: &str| node.run(Cmd::new(bin("proxyd")).arg("status").args(args.split(' ')));
    let text = run("default/web")?;
    assert!(text.contains("node(ipv4):30010/tcp") && text.contains("10.96.0.10:80/udp"), "{text}");
    assert!(!text.contains("default/solo") && !text.contains("HOOK"), "{text}");
    let text = run("10.96.0.11")?;
    assert!(text.contains("default/solo:udp") && !text.contains("30011"), "{text}");
    Ok(())
}
