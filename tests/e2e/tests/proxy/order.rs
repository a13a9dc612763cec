//! What comes first and what comes later: daemons, devices, pods.

use std::time::Duration;

use heddle_lab::{Ask, Cluster, Cmd, Plan, Result, Snapshot, bin, eventually};

use crate::world::{BY, SOLO, WEB, World, ask, list, servers, status, strict};

const LIMIT: Duration = Duration::from_secs(20);

/// Pods that were there before proxyd get its programs when it comes, and nothing of them is left when it is
/// removed for good.
#[test]
fn proxy_comes_after_the_pods_and_goes_without_a_trace() -> Result<()> {
    let cluster = Cluster::start_with(strict(), Plan::overlay())?;
    let web1 = cluster.backend(1, "web-1", WEB.target)?;
    let web2 = cluster.backend(2, "web-2", WEB.target)?;
    cluster.publish(&WEB.service(), &[web1.endpoint(), web2.endpoint()])?;
    let before = Snapshot::of(&cluster)?;
    let mut daemons = Vec::new();
    for node in cluster.nodes() {
        daemons.push(cluster.start_proxyd(node, &["--mode", "ebpf"])?);
    }
    let client = cluster.client();
    for node in cluster.nodes() {
        for v4 in [true, false] {
            let to = WEB.published(node.ip(v4));
            eventually("an answer", LIMIT, || {
                Ask::new(to).limit(Duration::from_millis(500)).tcp(client).map(|_| true)
            })?;
            let replies = ask(20, BY[0], to, client)?;
            assert_eq!(servers(&replies), ["web-1", "web-2"].into());
            assert!(replies.iter().all(|reply| reply.client == reply.local), "{replies:?}");
        }
    }
    for daemon in daemons {
        assert!(daemon.terminate(LIMIT)?.success(), "{}", daemon.log());
    }
    for node in cluster.nodes() {
        node.run(Cmd::new(bin("proxyd")).arg("cleanup"))?;
    }
    // The lock stays: removing it would let two daemons hold it.
    let after = Snapshot::of(&cluster)?;
    before.without(&["files", "neighbours"]).same_as(&after.without(&["files", "neighbours"]))
}

/// The VXLAN device is deleted; vxland makes it again, with another index. The hooks and the configuration follow.
#[test]
fn proxy_follows_the_overlay_device() -> Result<()> {
    let world = World::start(strict())?;
    let client = world.cluster.client();
    let node = world.cluster.node(3);
    let index =
        || -> Result<String> { Ok(node.run("cat /sys/class/net/heddle.1/ifindex")?.trim().to_owned()) };
    let to = SOLO.published(node.ip4());
    assert_eq!(ask(1, BY[0], to, client)?[0].server, "web-1");
    let old = index()?;
    node.run("ip link del heddle.1")?;
    eventually("another heddle.1", LIMIT, || Ok(index()? != old))?;
    eventually("an answer through the new device", LIMIT, || {
        Ask::new(to).limit(Duration::from_millis(300)).tcp(client).map(|_| true)
    })?;
    for v4 in [true, false] {
        let replies = ask(10, BY[1], WEB.published(node.ip(v4)), client)?;
        assert!(replies.iter().all(|reply| reply.client == reply.local));
    }
    let said = status(node)?;
    let hook = list(&said["hooks"]).iter().find(|hook| hook["program"] == "overlay_in");
    assert!(hook.is_some_and(|hook| hook["at"] == "heddle.1" && hook["dead"] == false), "{}", said["hooks"]);
    Ok(())
}

/// What the kernel or its set-up lacks is named, with the way out, and the exit code says so.
#[test]
fn proxy_says_what_is_missing() -> Result<()> {
    let lab = strict().nodes(1).build()?;
    let node = lab.node(1);
    let source = format!("manifests:{}", lab.manifests().dir().display());
    let refused = |wrap: &[&str], args: &[&str]| -> Result<String> {
        let words: Vec<String> = wrap.iter().map(|word| (*word).to_owned()).collect();
        let mut cmd = words.split_first().map_or_else(
            || Cmd::new(bin("proxyd")),
            |(first, rest)| Cmd::new(first).args(rest.to_vec()).arg(bin("proxyd")),
        );
        cmd = cmd.args(["--mode", "ebpf", "--node-name", "n1", "--source", &source]).args(args.to_vec());
        let output = node.output(cmd)?;
        assert_eq!(output.status.code(), Some(78), "{}", output.stderr);
        Ok(output.stderr)
    };
    let said = refused(&[], &["--bpf-root", "/run"])?;
    assert!(said.contains("/run is no BPF file system (mount one: mount -t bpf bpf /run)"), "{said}");
    let said = refused(&[], &["--bpf-root", "/nowhere"])?;
    assert!(said.contains("no BPF file system at /nowhere"), "{said}");
    let said = refused(&[], &["--cgroup-root", "/run"])?;
    assert!(said.contains("/run is no directory of a cgroup2 file system"), "{said}");
    let said = refused(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], &[])?;
    assert!(said.contains("CAP_BPF"), "{said}");
    Ok(())
}
