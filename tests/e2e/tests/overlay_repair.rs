//! What others undo, vxland puts right; what stands, it leaves alone. Without pods: the nodes talk to each
//! other by their addresses in the overlay.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::{Duration, Instant};

use heddle_e2e::{
    Ask, Cluster, Cmd, Lab, Node, Output, Plan, Result, Server, Snapshot, Watch, bin, eventually, oracle,
};
use serde_json::Value;

/// Within which everything that was deleted must be back.
const REPAIR: Duration = Duration::from_secs(1);

fn cluster() -> Cluster {
    Cluster::start_with(Lab::builder().clients(0), Plan::overlay()).unwrap()
}

fn overlay_ip(node: usize, v4: bool) -> std::net::IpAddr {
    if v4 { format!("10.244.{node}.0") } else { format!("fd00:10:244:{node}::") }.parse().unwrap()
}

/// Asks from node to node inside the overlay, in both families and over TCP and UDP.
fn talk(from: &Node, to: &Node, server: &Server) -> Result<()> {
    for v4 in [true, false] {
        let ask = Ask::new((overlay_ip(to.index(), v4), server.port())).limit(Duration::from_millis(500));
        for reply in [ask.tcp(from)?, ask.udp(from)?] {
            assert_eq!(reply.server, server.name());
            assert_eq!(reply.client.ip(), overlay_ip(from.index(), v4), "seen from inside the overlay");
        }
    }
    Ok(())
}

/// Runs the program on a node, to its end.
fn vxland(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("vxland")).args(args.split(' '))).unwrap()
}

fn status(node: &Node) -> Value {
    let output = vxland(node, "status -o json");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn wrong(node: &Node) -> Vec<String> {
    let status = status(node);
    let list = status["wrong"].as_array().unwrap_or_else(|| panic!("{status}")).iter();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Every command line deletes or bends something of node 1's overlay. Each is put right within a second, by
/// the event, and packets pass again.
#[test]
fn fault_140_what_is_deleted_or_bent_is_back_within_a_second() {
    let cluster = cluster();
    let (n1, n2) = (cluster.node(1), cluster.node(2));
    let server = n2.serve("two", 9000).unwrap();
    talk(n1, n2, &server).unwrap();
    let before = Snapshot::of(&cluster).unwrap();
    let mac = n2.run("cat /sys/class/net/heddle.1/address").unwrap().trim().to_owned();
    let undo = [
        "ip link del heddle.1".to_owned(),
        "ip link set heddle.1 down".to_owned(),
        "ip link set heddle.1 mtu 1300".to_owned(),
        "ip link set heddle.1 address 02:ba:d0:ba:d0:00".to_owned(),
        "ip route del 10.244.2.0/24".to_owned(),
        "ip -6 route del fd00:10:244:2::/64".to_owned(),
        "ip route del unreachable 10.244.1.0/24 metric 4294967295".to_owned(),
        "ip neigh del 10.244.2.0 dev heddle.1".to_owned(),
        "ip neigh del fd00:10:244:2:: dev heddle.1".to_owned(),
        "ip neigh replace 10.244.2.0 lladdr 02:ba:d0:ba:d0:00 dev heddle.1 nud permanent".to_owned(),
        "ip addr del 10.244.1.0/32 dev heddle.1".to_owned(),
        "ip addr del fd00:10:244:1::/128 dev heddle.1".to_owned(),
        "ip addr flush dev heddle.1".to_owned(),
        "ip route flush dev heddle.1".to_owned(),
        "ip neigh flush dev heddle.1 nud permanent".to_owned(),
        format!("bridge fdb del {mac} dev heddle.1"),
        format!("bridge fdb replace {mac} dev heddle.1 dst 192.168.77.3 self permanent"),
        "bridge fdb append 00:00:00:00:00:00 dev heddle.1 dst 192.168.77.3 self permanent".to_owned(),
        "ip neigh add 10.244.66.0 lladdr 02:ba:d0:ba:d0:00 dev heddle.1 nud permanent".to_owned(),
    ];
    for command in undo {
        n1.run(command.as_str()).unwrap();
        let begin = Instant::now();
        eventually(&command, REPAIR, || Ok(before.changes(&Snapshot::of(&cluster)?).is_empty()))
            .unwrap_or_else(|error| {
                panic!("{error}: {:#?}", before.changes(&Snapshot::of(&cluster).unwrap()))
            });
        println!("{:>4} ms {command}", begin.elapsed().as_millis());
        talk(n1, n2, &server).unwrap_or_else(|error| panic!("after {command}: {error}"));
    }
    assert_eq!(cluster.switch().foreign().unwrap(), 0, "{:?}", cluster.switch().foreigners());
}

#[test]
fn a_second_reconcile_writes_nothing() {
    let mut cluster = cluster();
    let before = Snapshot::of(&cluster).unwrap();
    let watch = Watch::start(cluster.node(1)).unwrap();
    let device = cluster.node(1).run("cat /sys/class/net/heddle.1/ifindex").unwrap();
    for again in 0..2 {
        if again == 0 {
            cluster.stop_daemon(1, "vxland").unwrap();
        }
        // SIGKILL the second time.
        cluster.start_daemon_on(1, "vxland").unwrap();
        assert_eq!(watch.writes().unwrap(), [""; 0]);
        assert_eq!(cluster.node(1).run("cat /sys/class/net/heddle.1/ifindex").unwrap(), device);
    }
    // An event that is nobody's concern, and one that is but changes nothing.
    cluster.node(1).run("ip link set lo mtu 65000").unwrap();
    cluster.node(1).run("ip neigh add 10.244.77.1 lladdr 02:00:00:00:00:77 dev eth0").unwrap();
    cluster.node(1).run("ip neigh del 10.244.77.1 dev eth0").unwrap();
    cluster.node(1).run("ip link set lo mtu 65536").unwrap();
    let own = watch.writes().unwrap().len();
    assert!(own <= 4, "our own four commands and nothing else: {own}");
    before
        .without(&["tasks", "files"])
        .same_as(&Snapshot::of(&cluster).unwrap().without(&["tasks", "files"]))
        .unwrap();
}

#[test]
fn what_was_planted_before_the_start_goes_once_the_sources_have_told_everything() {
    let lab = Lab::builder().clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let n1 = lab.node(1);
    {
        let _first = lab.start_vxland(n1, &[]).unwrap();
    }
    let clean = Snapshot::of(&lab).unwrap().without(&["tasks", "files"]);
    for plant in [
        "bridge fdb add 02:00:00:00:66:66 dev heddle.1 dst 192.168.77.66 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev heddle.1 dst 192.168.77.66 self permanent",
        "ip neigh add 10.244.66.0 lladdr 02:00:00:00:66:66 dev heddle.1 nud permanent",
        "ip neigh add fd00:10:244:66:: lladdr 02:00:00:00:66:66 dev heddle.1 nud permanent",
        "ip route add 10.244.66.0/24 via 10.244.66.0 dev heddle.1 onlink proto 72",
        "ip -6 route add fd00:10:244:66::/64 via fd00:10:244:66:: dev heddle.1 onlink proto 72",
    ] {
        n1.run(plant).unwrap();
    }
    let planted = Snapshot::of(&lab).unwrap().without(&["tasks", "files"]);
    assert_eq!(clean.changes(&planted).len(), 6);

    // A file that cannot be read: the source has not told everything, and nothing may go.
    lab.manifests().put("broken.yaml", "kind: [").unwrap();
    let daemon = lab.start_daemon::<&str>(n1, "vxland", &[]).unwrap();
    eventually("the daemon's word", Duration::from_secs(10), || Ok(daemon.log().contains("not synced")))
        .unwrap();
    planted.same_as(&Snapshot::of(&lab).unwrap().without(&["tasks", "files"])).unwrap();
    assert!(daemon.is_running() && !n1.path("/run/heddle/vxland.ready").exists());

    lab.manifests().remove("broken.yaml").unwrap();
    oracle::converges("node 1", Duration::from_secs(10), &Vec::new(), || {
        Ok(clean.changes(&Snapshot::of(&lab)?.without(&["tasks", "files"])))
    })
    .unwrap();
    eventually("readiness", Duration::from_secs(10), || Ok(n1.path("/run/heddle/vxland.ready").exists()))
        .unwrap();
}

#[test]
fn an_unknown_node_is_left_alone_and_says_so() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    lab.manifests().node(lab.node(2)).unwrap();
    let n1 = lab.node(1);
    let before = Snapshot::of(&lab).unwrap().without(&["tasks", "files"]);
    let daemon = lab.start_daemon::<&str>(n1, "vxland", &[]).unwrap();
    let said = "no source tells of node n1 and its address (is --node-name right?)";
    eventually("the daemon's word", Duration::from_secs(10), || Ok(daemon.log().contains(said))).unwrap();
    assert!(wrong(n1).iter().any(|wrong| wrong.contains(said)), "{:?}", wrong(n1));
    before.same_as(&Snapshot::of(&lab).unwrap().without(&["tasks", "files"])).unwrap();
    assert!(!n1.path("/etc/cni/net.d/10-heddle.conflist").exists());

    // Known now: at once.
    lab.manifests().node(n1).unwrap();
    eventually("readiness", Duration::from_secs(5), || Ok(n1.path("/run/heddle/vxland.ready").exists()))
        .unwrap();
    assert_eq!(wrong(n1), [""; 0]);
    let conflist = std::fs::read_to_string(n1.path("/etc/cni/net.d/10-heddle.conflist")).unwrap();
    assert_eq!(
        conflist.trim(),
        concat!(
            r#"{"cniVersion":"1.0.0","cniVersions":["1.0.0","1.1.0"],"name":"heddle","#,
            r#""plugins":[{"type":"heddle","mode":"ptp","mtu":1450,"overlay":"heddle.1","#,
            r#""ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:10:244:1::/64"}]],"#,
            r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]},"#,
            r#""capabilities":{"portMappings":true,"bandwidth":true}}]}"#
        )
    );
    // Gone again: what stands, stands.
    let stands = Snapshot::of(&lab).unwrap().without(&["tasks", "files"]);
    lab.manifests().remove("node-n1.yaml").unwrap();
    eventually("the daemon's word", Duration::from_secs(10), || {
        Ok(wrong(n1).iter().any(|wrong| wrong.contains(said)))
    })
    .unwrap();
    stands.same_as(&Snapshot::of(&lab).unwrap().without(&["tasks", "files"])).unwrap();
}

#[test]
fn status_tells_what_is_missing_and_cleanup_leaves_nothing() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let n1 = lab.node(1);
    let pristine = Snapshot::of(&lab).unwrap();
    let daemon = lab.start_vxland(n1, &[]).unwrap();
    let output = vxland(n1, "status");
    assert!(output.status.success(), "{output:?}");
    println!("{}", output.stdout);
    assert!(output.stdout.contains("n2    192.168.77.2  02:"), "{}", output.stdout);
    // Beside the daemon it would be in vain.
    let refused = vxland(n1, "cleanup");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_eq!(status(n1)["daemon"], daemon.pid());
    daemon.terminate(Duration::from_secs(10)).unwrap();
    assert_eq!(wrong(n1), [""; 0], "SIGTERM leaves everything in place");
    assert_eq!(status(n1)["daemon"], Value::Null);

    n1.run("ip route del 10.244.2.0/24").unwrap();
    n1.run("ip link set heddle.1 mtu 1400").unwrap();
    assert_eq!(
        wrong(n1),
        ["device heddle.1 has the MTU 1400 instead of 1450", "route 10.244.2.0/24 is missing"]
    );
    let output = vxland(n1, "status");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.starts_with("vxland: device heddle.1 has the MTU"), "{}", output.stderr);
    assert_eq!(status(n1)["peers"][0]["ranges"][0]["route"], "missing");

    println!("{}", vxland(n1, "cleanup").stdout);
    let after = Snapshot::of(&lab).unwrap();
    let left: Vec<String> =
        pristine.changes(&after).into_iter().filter(|line| !line.contains("/run/heddle")).collect();
    assert_eq!(left, [""; 0]);
    assert!(vxland(n1, "cleanup -o json").stdout.contains(r#""removed": []"#), "twice is once");
}
