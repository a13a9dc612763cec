//! A network card that says that it does the checksums of packets in packets, and does not.

use std::time::Duration;

use heddle_e2e::{Ask, Cluster, Cmd, Lab, Node, Plan, bin, eventually};
use heddle_netlink::{Socket, offload};
use serde_json::Value;

use crate::cable::Cable;

const PORT: u16 = 8080;
fn edge(node: &Node) -> Value {
    let output = node.output(Cmd::new(bin("vxland")).args(["status", "-o", "json"])).unwrap();
    let mut status: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    status["edge"].take()
}

fn is_left(node: &Node) -> bool {
    edge(node)["checksumsLeft"]["heddle.1"].as_bool().unwrap()
}

#[test]
fn fault_134_checksums_that_do_not_arrive_are_done_here() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let _cable = Cable::put(&lab, "n1", |_, frame| vec![frame.to_vec()]);
    let mut cluster = Cluster::on(lab, Plan::overlay()).unwrap();
    let pod = cluster.pod(1, "client").unwrap();
    let server = cluster.backend(2, "server", PORT).unwrap();
    let ask = |v4| Ask::new((server.pod().ip(v4).unwrap(), PORT)).limit(Duration::from_millis(700));

    // Found out from both ends: the cable is as bad in both directions.
    for node in cluster.nodes() {
        eventually("the finding", Duration::from_secs(20), || Ok(!is_left(node))).unwrap();
        let why = edge(node)["checksumsBroken"].as_str().unwrap().to_owned();
        assert!(why.contains("with the checksum left to the device"), "{why}");
    }
    for v4 in [true, false] {
        ask(v4).tcp(&pod).unwrap();
        ask(v4).udp(&pod).unwrap();
    }
    // What somebody sets is set back.
    let n1 = cluster.node(1);
    n1.enter(|| offload::set_transmit_checksums(&Socket::open().unwrap(), "heddle.1", true))
        .unwrap()
        .unwrap();
    eventually("the setting", Duration::from_secs(1), || Ok(!is_left(n1))).unwrap();

    // What the administrator wants is done: here nothing passes then.
    cluster.stop_daemon(1, "vxland").unwrap();
    let daemon = cluster.lab().start_vxland(cluster.node(1), &["--checksum-offload", "on"]).unwrap();
    assert!(is_left(cluster.node(1)));
    for v4 in [true, false] {
        assert!(ask(v4).tcp(&pod).is_err(), "this cable is no bad one");
    }
    daemon.terminate(Duration::from_secs(10)).unwrap();
    // And what was found out once is known.
    let _daemon = cluster.lab().start_vxland(cluster.node(1), &[]).unwrap();
    assert!(!is_left(cluster.node(1)));
    ask(true).tcp(&pod).unwrap();
}

#[test]
fn fault_134_on_a_good_cable_checksums_are_left_to_the_device() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::overlay()).unwrap();
    let n1 = cluster.node(1);
    let counted = || -> u64 {
        let text = n1.run("nstat -asz IcmpInDestUnreachs").unwrap();
        text.split_whitespace()
            .skip_while(|word| *word != "IcmpInDestUnreachs")
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    eventually("an answer to a probe", Duration::from_secs(10), || Ok(counted() > 0)).unwrap();
    assert!(is_left(n1) && edge(n1)["checksumsBroken"].is_null());
}
