//! The oracles see what they are there to see.

use std::time::Duration;

use heddle_lab::oracle::{Watch, converges};
use heddle_lab::{Lab, Result, Snapshot};

/// Something that a faulty program might leave on a node, and the section that shows it.
const LEAKS: [(&str, &str, &str); 16] = [
    ("links", "ip link add left type bridge", "ip link del left"),
    ("addresses", "ip addr add 10.9.9.9/32 dev lo", "ip addr del 10.9.9.9/32 dev lo"),
    ("routes", "ip route add 10.9.9.0/24 via 192.168.77.1", "ip route del 10.9.9.0/24"),
    ("routes", "ip route add 10.9.9.0/24 via 192.168.77.1 table 77", "ip route del 10.9.9.0/24 table 77"),
    ("routes6", "ip route add fd99::/64 via fd77::1", "ip route del fd99::/64"),
    ("rules", "ip rule add from 10.9.9.9 lookup 77", "ip rule del from 10.9.9.9 lookup 77"),
    ("rules6", "ip -6 rule add from fd99::9 lookup 77", "ip -6 rule del from fd99::9 lookup 77"),
    (
        "neighbours",
        "ip neigh add 192.168.77.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        "ip neigh del 192.168.77.99 dev eth0",
    ),
    ("fdb", "bridge fdb add 02:00:00:00:00:99 dev eth0", "bridge fdb del 02:00:00:00:00:99 dev eth0"),
    ("queueing", "tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact"),
    ("nftables", "nft add table inet left", "nft delete table inet left"),
    ("files", "touch /run/left", "rm /run/left"),
    ("files", "mkdir -p /var/lib/cni/networks/left", "rm -r /var/lib/cni"),
    ("pins", "mkdir /sys/fs/bpf/left", "rmdir /sys/fs/bpf/left"),
    ("mounts", "mount -t tmpfs left /mnt", "umount /mnt"),
    ("cgroups", "mkdir /sys/fs/cgroup/left", "rmdir /sys/fs/cgroup/left"),
];

#[test]
fn every_leak_is_seen_and_named() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let node = lab.node(2);
    // umount(8) makes it.
    node.run("mkdir /run/mount")?;
    let before = Snapshot::of(&lab)?;
    before.same_as(&Snapshot::of(&lab)?)?;
    for (kind, leave, clean) in LEAKS {
        node.run(leave)?;
        let changes = before.changes(&Snapshot::of(&lab)?);
        let seen = changes.iter().any(|line| line.starts_with(&format!("+ n2 {kind}: ")));
        assert!(seen, "`{leave}` is not seen as {kind}: {changes:?}");
        node.run(clean)?;
        before.same_as(&Snapshot::of(&lab)?)?;
    }
    Ok(())
}

#[test]
fn a_process_that_runs_on_is_seen() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let before = Snapshot::of(&lab)?;
    let process = lab.node(1).spawn("sleep 1000")?;
    let changes = before.changes(&Snapshot::of(&lab)?);
    assert_eq!(changes, [format!("+ n1 tasks: {} sleep", process.pid())]);
    drop(process);
    before.same_as(&Snapshot::of(&lab)?)
}

#[test]
fn a_pod_that_is_gone_leaves_nothing() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let before = Snapshot::of(&lab)?;
    let pod = lab.node(1).pod("web")?;
    pod.run("ip link set lo up")?;
    let server = pod.serve("web", 80)?;
    let changes = before.changes(&Snapshot::of(&lab)?);
    assert_eq!(
        changes,
        ["+ n1 cgroups: pods/web", "+ n1 files: /run/netns/web", "+ n1 mounts: /run/netns/web nsfs"]
    );
    drop(server);
    drop(pod);
    before.same_as(&Snapshot::of(&lab)?)
}

#[test]
fn a_watch_sees_writes_and_nothing_else() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let (node, server) = (lab.node(1), lab.node(2).serve("two", 80)?);
    let watch = Watch::start(node)?;
    // Traffic makes the kernel learn neighbours; nobody wrote those.
    heddle_lab::Ask::new((lab.node(2).ip4(), server.port())).tcp(node)?;
    node.run("ip route show")?;
    assert_eq!(watch.writes()?, Vec::<String>::new());
    for (command, write) in [
        ("ip route replace 10.9.9.0/24 via 192.168.77.2", "rtnetlink 24"),
        ("ip addr add 10.9.9.9/32 dev lo", "rtnetlink 20"),
        ("ip neigh replace 192.168.77.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent", "rtnetlink 28"),
        ("nft add table inet some", "nf_tables 0"),
    ] {
        node.run(command)?;
        let writes = watch.writes()?;
        assert!(writes.iter().any(|seen| seen == write), "`{command}`: {writes:?}");
    }
    Ok(())
}

#[test]
fn what_does_not_converge_is_shown() {
    let limit = Duration::from_millis(20);
    let mut left = 3;
    converges("a counter", limit, &0, || {
        left -= 1;
        Ok(left)
    })
    .expect("it converges");
    let error = converges("a number", limit, &1, || Ok(2)).expect_err("it does not converge");
    assert!(error.to_string().contains("a number has not converged"), "{error}");
    assert!(error.to_string().ends_with("expected 1\nfound 2"), "{error}");
}
