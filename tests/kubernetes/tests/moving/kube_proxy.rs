//! From kube-proxy to proxyd: started beside it, proxyd takes over, and no connection breaks; what kube-proxy leaves is
//! told, and taken away.

use std::net::SocketAddr;
use std::time::Duration;

use heddle_kubernetes::control_plane::{ControlPlane, Options};
use heddle_kubernetes::{Result, program, programs};
use heddle_lab::addresses::cluster_ip;
use heddle_lab::{
    Backend, Cluster, Cmd, Error, Lab, Load, Place, Plan, Pod, Process, Proto, Running, Service, bin,
    eventually,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const NODE_PORT: u16 = 30010;
const MODES: [&str; 3] = ["iptables", "nftables", "iptables"];

struct World {
    proxies: Vec<Process>,
    _plane: ControlPlane,
    backends: [Backend; 2],
    visitor: Pod,
    cluster: Cluster,
}

fn service() -> Service {
    Service::new("web")
        .cluster_ip(cluster_ip(10, true))
        .cluster_ip(cluster_ip(10, false))
        .port("tcp", Proto::Tcp, 80, 8080)
        .node_port(NODE_PORT)
        .port("udp", Proto::Udp, 80, 8080)
        .node_port(NODE_PORT)
        .spec("ipFamilyPolicy: RequireDualStack")
}

impl World {
    /// Three nodes with an overlay; kube-proxy serves, in a mode for each.
    fn start() -> Result<Self> {
        let lab = Lab::builder().clients(2).build()?;
        for node in lab.nodes() {
            lab.manifests().node(node)?;
        }
        let plane = ControlPlane::raise(&lab, &lab.clients()[1], Options::default())?;
        let cluster = Cluster::on(lab, Plan::overlay())?;
        let backends = [cluster.backend(1, "web-1", 8080)?, cluster.backend(2, "web-2", 8080)?];
        let visitor = cluster.pod(3, "visitor")?;
        cluster.publish(&service(), &[backends[0].endpoint(), backends[1].endpoint()])?;
        // The same objects for both proxies.
        let dir = cluster.manifests().dir().display().to_string();
        plane.kubectl(&["create", "-f", &dir], "")?;
        let (kubeconfig, _) = plane.user("system:kube-proxy", Some("system:masters"), &plane.url(true))?;
        let mut world = Self { proxies: Vec::new(), _plane: plane, backends, visitor, cluster };
        for (node, mode) in world.cluster.nodes().iter().zip(MODES) {
            // Of the kubelet: not kube-proxy's, whatever they are called.
            node.run("iptables -t mangle -N KUBE-KUBELET-CANARY")?;
            node.run("iptables -N KUBE-FIREWALL")?;
            node.run("iptables -A OUTPUT -j KUBE-FIREWALL")?;
            let proxy = Cmd::new(program("kube-proxy")?).arg("--kubeconfig").arg(&kubeconfig).args([
                "--hostname-override",
                node.name(),
                "--proxy-mode",
                mode,
                "--cluster-cidr",
                "10.244.0.0/16,fd00:10:244::/48",
                "--conntrack-max-per-core",
                "0",
                "--conntrack-min",
                "0",
            ]);
            world.proxies.push(node.spawn(proxy)?);
        }
        for (who, to) in world.questions() {
            let ask = heddle_lab::Ask::new(to);
            eventually("an answer through kube-proxy", LIMIT, || {
                ask.limit(LIMIT / 60).tcp(who).map(|_| true)
            })
            .map_err(|error| {
                let log = world.proxies[0].log();
                Error::Oracle(format!("{error}: {} asks {to}: {log}", who.name()))
            })?;
        }
        Ok(world)
    }

    /// Who asks whom: pods, one of them on the node of a backend, a process of a node, a client outside through each node.
    fn questions(&self) -> Vec<(&Place, SocketAddr)> {
        let cluster = |v4| SocketAddr::from((cluster_ip(10, v4), 80));
        let (visitor, client) = (self.visitor.place(), self.cluster.client());
        let mut questions: Vec<(&Place, SocketAddr)> = vec![
            (visitor, cluster(true)),
            (visitor, cluster(false)),
            (self.backends[0].pod().place(), cluster(true)),
            (self.cluster.node(2).place(), cluster(true)),
        ];
        for (node, v4) in self.cluster.nodes().iter().zip([true, true, false]) {
            questions.push((client, (node.ip(v4), NODE_PORT).into()));
        }
        questions
    }

    fn loads(&self, load: impl Fn(SocketAddr) -> Load) -> Result<Vec<Running>> {
        self.questions().into_iter().map(|(who, to)| Ok(load(to).rate(20).start(who)?)).collect()
    }
}

fn wait_all(loads: &[Running], count: u64) -> Result<()> {
    Ok(loads.iter().try_for_each(|load| load.wait_for(count, LIMIT).map(drop))?)
}

/// What `proxyd kube-proxy` says.
fn found(node: &Place) -> Result<Value> {
    let text = node.run(Cmd::new(bin("proxyd")).args(["kube-proxy", "-o", "json"]))?;
    serde_json::from_str(&text).map_err(|error| Error::Oracle(format!("{error}: {text}")).into())
}

#[test]
fn from_kube_proxy_to_proxyd() -> Result<()> {
    if let Some(reason) = ControlPlane::missing().or_else(|| programs::missing(&["kube-proxy", "kubectl"])) {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let mut world = World::start()?;
    let streams = world.loads(|to| Load::streams(to, 2))?;
    wait_all(&streams, 10)?;
    // While some nodes have none, a request must not travel to them untranslated.
    let none = ["--metrics-address", "off", "--healthz-address", "off"];
    world.cluster.plan_proxyd(&[&["--mode", "ebpf", "--remote", "snat"], &none[..]].concat());
    let connects = world.loads(Load::connects)?;
    let datagrams = world.loads(Load::datagrams)?;
    let others = || [&connects, &datagrams].into_iter().try_for_each(|loads| wait_all(loads, 5));
    others()?;
    for node in 1..=3 {
        world.cluster.start_daemon_on(node, "proxyd")?;
        wait_all(&streams, 10)?;
        others()?;
    }

    // Both run: it is told, and nothing is taken away.
    let node = world.cluster.node(1);
    let there = found(node)?;
    assert!(there["running"].is_string() && there["connections"].as_u64() > Some(0), "{there}");
    let refused = node.output(Cmd::new(bin("proxyd")).args(["kube-proxy", "--remove"]))?;
    assert!(!refused.status.success() && refused.stderr.contains("stop it first"), "{refused:?}");
    let status = node.run(Cmd::new(bin("proxyd")).arg("status"))?;
    assert!(status.contains("it runs beside proxyd"), "{status}");

    for proxy in world.proxies.drain(..) {
        proxy.terminate(LIMIT)?;
    }
    for (node, mode) in world.cluster.nodes().iter().zip(MODES) {
        let there = found(node)?;
        assert!(there["running"].is_null(), "{there}");
        let (tables, chains) = (size(&there["nft"]), size(&there["iptables"]));
        assert_eq!((tables, chains > 3), if mode == "nftables" { (2, false) } else { (0, true) }, "{there}");
        node.run(Cmd::new(bin("proxyd")).args(["kube-proxy", "--remove"]))?;
        let left = found(node)?;
        for what in ["nft", "iptables", "iptablesLegacy", "ipsets"] {
            assert_eq!(size(&left[what]), 0, "{what}: {left}");
        }
        assert!(left["connections"].as_u64() > Some(0), "those that live go on: {left}");
        // What is the kubelet's is there.
        node.run("iptables -t mangle -L KUBE-KUBELET-CANARY")?;
        node.run("iptables -C OUTPUT -j KUBE-FIREWALL")?;
    }
    wait_all(&streams, 10)?;
    others()?;
    for load in streams.into_iter().chain(connects) {
        load.stop().assert_clean();
    }
    // A datagram has nobody who sends it again: those on their way while the one stops translating and the other begins.
    for load in datagrams {
        let report = load.stop();
        assert!(report.lost <= 2 && report.misdelivered + report.refused == 0, "{report}");
    }
    // When the last connection is gone, so is the last trace.
    for node in world.cluster.nodes() {
        eventually("nothing is left", LIMIT, || {
            let there = found(node).map_err(|error| Error::Oracle(error.to_string()))?;
            let tables = node.run("nft list tables")?;
            let kept = tables.contains("kube-proxy") || tables.contains("heddle-kept");
            match kept || there["connections"] != 0 {
                true => Err(Error::Oracle(format!("{there} {tables}"))),
                false => Ok(true),
            }
        })?;
    }
    Ok(())
}

/// Of a list or a table.
fn size(value: &Value) -> usize {
    value
        .as_array()
        .map(Vec::len)
        .or_else(|| value.as_object().map(serde_json::Map::len))
        .unwrap_or(usize::MAX)
}
