//! In whose name packets leave the cluster: outside it pods are never seen, inside it always.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use heddle_e2e::{Ask, Cluster, Cmd, Lab, Load, Node, Place, Plan, Result, bin, eventually};
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// Within which what somebody flushed must be back.
const REPAIR: Duration = Duration::from_secs(1);

fn overlay_ip(node: usize, v4: bool) -> IpAddr {
    if v4 { format!("10.244.{node}.0") } else { format!("fd00:10:244:{node}::") }.parse().unwrap()
}

fn status(node: &Node) -> Value {
    let output = node.output(Cmd::new(bin("vxland")).args(["status", "-o", "json"])).unwrap();
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Where the server at `to` sees a question from `from` come from, over TCP and UDP alike.
fn seen(from: &Place, to: IpAddr) -> Result<IpAddr> {
    let ask = Ask::new((to, PORT)).limit(Duration::from_millis(500));
    let (tcp, udp) = (ask.tcp(from)?.client.ip(), ask.udp(from)?.client.ip());
    assert_eq!(tcp, udp, "from {} to {to}", from.name());
    Ok(tcp)
}

#[test]
fn outside_pods_are_their_nodes_and_inside_they_are_themselves() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2), Plan::overlay()).unwrap();
    let [n1, n2] = [1, 2].map(|n| cluster.node(n));
    let servers: Vec<&Place> = vec![cluster.client(), n1, n2];
    let _servers: Vec<_> = servers.iter().map(|place| place.serve(place.name(), PORT).unwrap()).collect();
    let pod = cluster.pod(1, "client").unwrap();
    let (near, far) = (cluster.backend(1, "near", PORT).unwrap(), cluster.backend(2, "far", PORT).unwrap());
    for v4 in [true, false] {
        let (own, node) = (pod.ip(v4).unwrap(), n1.ip(v4));
        for (to, as_whom) in [
            (cluster.client().ip(v4), node),
            (n2.ip(v4), node),
            (n1.ip(v4), own),
            (near.pod().ip(v4).unwrap(), own),
            (far.pod().ip(v4).unwrap(), own),
            (overlay_ip(2, v4), own),
        ] {
            assert_eq!(seen(&pod, to).unwrap(), as_whom, "{own} to {to}");
        }
        // The node itself, in the overlay.
        assert_eq!(seen(n1, far.pod().ip(v4).unwrap()).unwrap(), overlay_ip(1, v4));
    }
    assert_eq!(cluster.switch().foreign().unwrap(), 0, "{:?}", cluster.switch().foreigners());
    let status = status(n1);
    assert_eq!(status["edge"]["masquerade"], true, "{status}");
    assert_eq!(status["wrong"], json!([]));
}

/// Somebody else's router sends packets for pods to a node that they are not on; and kube-proxy on a node has the
/// kernel send a connection to another node's pod, and wants its source translated.
#[test]
fn what_enters_the_overlay_comes_from_it() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).rp_filter(1), Plan::overlay()).unwrap();
    let (n1, client) = (cluster.node(1), cluster.client());
    let far = cluster.backend(2, "far", PORT).unwrap();
    for v4 in [true, false] {
        let (to, flag) = (far.pod().ip(v4).unwrap(), if v4 { "-4" } else { "-6" });
        // As one that is no router of the cluster may do it: the switch lets hosts' packets alone pass.
        cluster.switch().admit(to).unwrap();
        client.run(format!("ip {flag} route add {to} via {}", n1.ip(v4))).unwrap();
        assert_eq!(seen(client, to).unwrap(), overlay_ip(1, v4));
        client.run(format!("ip {flag} route del {to}")).unwrap();

        let family = if v4 { "ip" } else { "ip6" };
        let target = if v4 { format!("{to}:{PORT}") } else { format!("[{to}]:{PORT}") };
        for line in [
            format!("add table {family} proxy"),
            format!("add chain {family} proxy pre {{ type nat hook prerouting priority dstnat; }}"),
            format!("add chain {family} proxy post {{ type nat hook postrouting priority srcnat; }}"),
            format!(
                "add rule {family} proxy pre meta l4proto {{ tcp, udp }} th dport {PORT} \
                 {family} daddr {} meta mark set meta mark or 0x4000 dnat to {target}",
                n1.ip(v4)
            ),
            format!("add rule {family} proxy post meta mark and 0x4000 != 0 masquerade fully-random"),
        ] {
            n1.run(Cmd::new("nft").arg(line)).unwrap();
        }
        assert_eq!(seen(client, n1.ip(v4)).unwrap(), overlay_ip(1, v4));
        // A pod, too, is marked there.
        let pod = cluster.pod(1, if v4 { "four" } else { "six" }).unwrap();
        assert_eq!(seen(&pod, n1.ip(v4)).unwrap(), overlay_ip(1, v4));
        n1.run(format!("nft delete table {family} proxy")).unwrap();
    }
    assert_eq!(cluster.switch().foreign().unwrap(), 0, "{:?}", cluster.switch().foreigners());
}

/// With what the CNI plugin does for host ports.
#[test]
fn host_ports_are_reached_from_pods_of_every_node() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2), Plan::overlay()).unwrap();
    let n2 = cluster.node(2);
    let name = "/etc/cni/net.d/10-heddle.conflist";
    let plain = std::fs::read_to_string(n2.path(name)).unwrap();
    let mut conflist: Value = serde_json::from_str(&plain).unwrap();
    conflist["plugins"][0]["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
    ]});
    // Beside ours: the first by name is taken.
    std::fs::write(n2.path("/etc/cni/net.d/00-ports.conflist"), conflist.to_string()).unwrap();
    let web = n2.pod("web").unwrap();
    web.cni_add().unwrap();
    let _server = web.serve("web", 80).unwrap();
    std::fs::remove_file(n2.path("/etc/cni/net.d/00-ports.conflist")).unwrap();
    let (near, far) = (cluster.pod(2, "near").unwrap(), cluster.pod(1, "far").unwrap());
    for v4 in [true, false] {
        let to = n2.ip(v4);
        assert_eq!(seen(&near, to).unwrap(), near.ip(v4).unwrap(), "on its own node it is itself");
        assert_eq!(seen(&far, to).unwrap(), cluster.node(1).ip(v4));
        assert_eq!(seen(cluster.client(), to).unwrap(), cluster.client().ip(v4));
        assert_eq!(seen(cluster.node(1), to).unwrap(), cluster.node(1).ip(v4));
    }
    assert_eq!(cluster.switch().foreign().unwrap(), 0, "{:?}", cluster.switch().foreigners());
}

/// Firewalls are loaded anew and people flush what they do not know: what is ours is back within a second, and what was
/// running runs.
#[test]
fn fault_062_what_somebody_flushes_is_back_within_a_second() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2), Plan::overlay()).unwrap();
    let (n1, client) = (cluster.node(1), cluster.client());
    let server = client.serve("outside", PORT).unwrap();
    let pod = cluster.pod(1, "client").unwrap();
    let far = cluster.backend(2, "far", PORT).unwrap();
    let list = || n1.run("nft -s list table inet vxland");
    let before = list().unwrap();
    let streams: Vec<_> = [true, false]
        .into_iter()
        .flat_map(|v4| [(client.ip(v4), server.name()), (far.pod().ip(v4).unwrap(), far.name())])
        .map(|(to, name)| {
            Load::streams((to, PORT), 1).limit(Duration::from_secs(5)).expect([name]).start(&pod).unwrap()
        })
        .collect();
    for undo in [
        "nft flush ruleset",
        "nft delete table inet vxland",
        "nft flush table inet vxland",
        "nft flush chain inet vxland leaving",
        "nft flush chain inet vxland unwrapped",
        "nft flush set inet vxland pods4",
        "nft flush set inet vxland others6",
        "nft delete element inet vxland peers4 { 192.168.77.2 }",
        "nft add element inet vxland peers4 { 192.168.77.201 }",
        "nft insert rule inet vxland leaving accept",
    ] {
        n1.run(undo).unwrap();
        let begin = Instant::now();
        eventually(undo, REPAIR, || Ok(list()? == before)).unwrap_or_else(|error| {
            panic!("{error}: {before}\nis now\n{}", list().unwrap_or_default());
        });
        println!("{:>4} ms {undo}", begin.elapsed().as_millis());
        for v4 in [true, false] {
            assert_eq!(seen(&pod, client.ip(v4)).unwrap(), n1.ip(v4), "after {undo}");
        }
    }
    for (n, stream) in streams.into_iter().enumerate() {
        stream.wait_for(3, Duration::from_secs(5)).unwrap();
        let report = stream.stop();
        if n % 2 == 0 {
            // Without any nat chain the kernel translates nothing back either: an answer from outside that comes just then is
            // for the node itself, which knows of no such connection. Twice all chains went.
            assert!(report.resets <= 2 && report.lost + report.misdelivered == 0, "{report}");
        } else {
            report.assert_clean();
        }
    }
    // What others have is theirs.
    n1.run("nft add table inet others").unwrap();
    n1.run("nft delete table inet vxland").unwrap();
    eventually("the table", REPAIR, || Ok(list()? == before)).unwrap();
    assert!(n1.run("nft list tables").unwrap().contains("table inet others"));
}

#[test]
fn it_can_be_left_out_for_some_or_for_all() {
    let plan = Plan::overlay()
        .vxland_arg("--no-masquerade=192.168.77.192/27")
        .vxland_arg("--no-masquerade=fd77::200/120");
    let cluster = Cluster::start_with(Lab::builder().nodes(2), plan).unwrap();
    let (n1, client) = (cluster.node(1), cluster.client());
    let _servers = [client.serve("outside", PORT).unwrap(), cluster.node(2).serve("two", PORT).unwrap()];
    let pod = cluster.pod(1, "client").unwrap();
    for v4 in [true, false] {
        let own = pod.ip(v4).unwrap();
        cluster.switch().admit(own).unwrap();
        let flag = if v4 { "-4" } else { "-6" };
        client.run(format!("ip {flag} route add {own} via {}", n1.ip(v4))).unwrap();
        assert_eq!(seen(&pod, client.ip(v4)).unwrap(), own, "the range sees pods");
        assert_eq!(seen(&pod, cluster.node(2).ip(v4)).unwrap(), n1.ip(v4), "and nobody else");
    }
    assert_eq!(cluster.switch().foreign().unwrap(), 0, "{:?}", cluster.switch().foreigners());

    // Switched off, and on again.
    let mut cluster = cluster;
    for (masquerade, chains) in [("false", 0), ("true", 1)] {
        cluster.stop_daemon(1, "vxland").unwrap();
        let daemon = cluster.lab().start_vxland(cluster.node(1), &["--masquerade", masquerade]).unwrap();
        let table = cluster.node(1).run("nft list table inet vxland").unwrap();
        assert_eq!(table.matches("type nat hook postrouting").count(), chains, "{table}");
        assert_eq!(table.matches("hook prerouting").count(), 1, "the check of senders stays");
        daemon.terminate(Duration::from_secs(10)).unwrap();
    }
}
