//! A pod with a bandwidth limit and a host port, on a node with proxyd: the limit holds for what the programs redirect
//! too, and a host port is answered beside services.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use heddle_lab::{Ask, Cluster, Lab, Place, Plan, Proto, Result, Service, patient};
use serde_json::json;

const NODE_PORT: u16 = 30_055;
const HOST_PORT: u16 = 8055;
const TARGET: u16 = 8056;

/// Bits per second; an emulated machine does not come to 50 million.
fn rate() -> u64 {
    50_000_000 / patient(Duration::from_secs(1)).as_secs()
}

/// A node whose pods are limited, and published at a port of the node. (It can have one.)
fn start() -> Result<Cluster> {
    let lab = Lab::builder().nodes(1).build()?;
    for node in lab.nodes() {
        lab.manifests().node(node)?;
        node.run("mkdir /run/elsewhere")?;
        let ranges: Vec<_> = node.pod_ranges().iter().map(|range| json!([{ "subnet": range }])).collect();
        let plugin = json!({
            "type": "heddle", "mtu": 1430, "ingressRate": rate(), "egressRate": rate(),
            "runtimeConfig": {"portMappings": [
                {"hostPort": HOST_PORT, "containerPort": TARGET, "protocol": "tcp"}]},
            "ipam": {
                "type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        });
        let list = json!({ "cniVersion": "1.0.0", "name": "heddle", "plugins": [plugin] });
        node.write_conflist(&list.to_string())?;
    }
    Cluster::on(lab, Plan::default().vxland_arg("--cni-conf-dir").vxland_arg("/run/elsewhere"))
}

/// Megabits per second from the listener to the client or back, after a beginning that does not count.
fn throughput(client: &Place, to: SocketAddr, listener: &TcpListener, upload: bool) -> f64 {
    let server = listener.try_clone().unwrap();
    let (send, receive) = (
        |mut stream: TcpStream| while stream.write_all(&[0; 65_536]).is_ok() {},
        |mut stream: TcpStream| {
            let mut buffer = vec![0; 1 << 20];
            let mut count = |time: Duration| {
                let (start, mut bytes) = (Instant::now(), 0);
                while start.elapsed() < time {
                    bytes += stream.read(&mut buffer).unwrap();
                }
                bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6
            };
            count(Duration::from_millis(300));
            count(Duration::from_millis(1000))
        },
    );
    let connect = || TcpStream::connect_timeout(&to, patient(Duration::from_secs(5))).unwrap();
    if upload {
        let sink = std::thread::spawn(move || receive(server.accept().unwrap().0));
        client.enter(|| send(connect())).unwrap();
        sink.join().unwrap()
    } else {
        let source = std::thread::spawn(move || send(server.accept().unwrap().0));
        let rate = client.enter(|| receive(connect())).unwrap();
        source.join().unwrap();
        rate
    }
}

#[test]
fn proxy_limits_hold_for_redirected_packets_and_host_ports_are_answered() -> Result<()> {
    let cluster = start()?;
    let backend = cluster.backend(1, "web-1", 8080)?;
    let service = Service::new("bulk")
        .port("tcp", Proto::Tcp, 80, TARGET)
        .node_port(NODE_PORT)
        .port("talk", Proto::Tcp, 81, 8080)
        .node_port(NODE_PORT + 1);
    cluster.publish(&service, &[backend.endpoint()])?;
    let limit = rate() as f64 / 1e6;
    // What a slow machine's reader left lying before a measurement began counts in it.
    let most = if rate() < 50_000_000 { 1.3 } else { 1.1 };
    let node = cluster.node(1);
    let client = cluster.client();
    let talk = Ask::new((node.ip(true), NODE_PORT + 1));
    cluster.await_answer(client, talk)?;
    for v4 in [true, false] {
        let pod = backend.pod();
        let at: IpAddr = if v4 { pod.ip4() } else { pod.ip6() };
        let listener = pod.place().enter(|| TcpListener::bind((at, TARGET)).unwrap())?;
        for (what, port) in [("the node port", NODE_PORT), ("the host port", HOST_PORT)] {
            for upload in [true, false] {
                let to = (node.ip(v4), port).into();
                let enough = (0..5).any(|_| {
                    let rate = throughput(client, to, &listener, upload);
                    assert!(rate <= most * limit, "{what} {to}, upload {upload}: {rate:.1} Mbit/s");
                    rate >= 0.9 * limit
                });
                assert!(enough, "{what} {to}, upload {upload}: less than {:.1} Mbit/s", 0.9 * limit);
            }
        }
    }
    Ok(())
}
