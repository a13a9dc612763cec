//! A network card that says that it does the checksums of packets in packets, and does not.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use heddle_e2e::{Ask, Cluster, Cmd, Lab, Node, Plan, bin, eventually};
use heddle_netlink::{Socket, offload};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

const PORT: u16 = 8080;
/// A frame that this machine sends, as a packet socket sees it (`PACKET_OUTGOING`).
const OUTGOING: u8 = 4;

fn edge(node: &Node) -> Value {
    let output = node.output(Cmd::new(bin("vxland")).args(["status", "-o", "json"])).unwrap();
    let mut status: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    status["edge"].take()
}

fn is_left(node: &Node) -> bool {
    edge(node)["checksumsLeft"]["heddle.1"].as_bool().unwrap()
}

/// Between a node's port of the switch and the switch: carries frames as they come, by a packet socket. What was still
/// to be done to a frame (its checksum) is forgotten on the way, as by a card that does not do it.
struct Cable {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Cable {
    fn put(lab: &Lab, port: &str) -> Self {
        let switch = lab.switch().place();
        switch.run(format!("ip link set {port} nomaster")).unwrap();
        switch.run("ip link add cable type veth peer name plug").unwrap();
        switch.run("ip link set plug master br0 up").unwrap();
        switch.run("ip link set cable up").unwrap();
        let (ends, over) = ([port.to_owned(), "cable".to_owned()], Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        let thread = switch.thread("cable", move || carry(&ends, &stop)).unwrap();
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn carry(ends: &[String; 2], over: &AtomicBool) {
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100)).unwrap();
    let ends = [&ends[0], &ends[1]].map(|name| if_nametoindex(name.as_str()).unwrap() as usize);
    // An address to send to is one that something has come from.
    let mut known: [Option<LinkAddr>; 2] = [None; 2];
    let mut frame = vec![0; 65536];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut frame) else { continue };
        let Some(end) = ends.iter().position(|index| *index == from.ifindex()) else { continue };
        if from.pkttype() == OUTGOING {
            continue;
        }
        known[end] = Some(from);
        if let Some(to) = known[1 - end] {
            // What is too large for the wire is lost.
            let _ = sendto(fd.as_raw_fd(), &frame[..length], &to, MsgFlags::empty());
        }
    }
}

#[test]
fn fault_134_checksums_that_do_not_arrive_are_done_here() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    let _cable = Cable::put(&lab, "n1");
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
