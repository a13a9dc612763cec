//! From flannel to Heddle and back, node by node: pods of both talk to each other all the time.

use std::net::IpAddr;
use std::time::Duration;

use heddle_kubernetes::control_plane::{ControlPlane, Options};
use heddle_kubernetes::{Result, program, programs};
use heddle_lab::{Ask, Cmd, Error, Lab, Load, Node, Place, Pod, Process, Running, Server, bin, eventually};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";

/// Serves, and is asked.
struct Inmate {
    _server: Server,
    pod: Pod,
}

struct World {
    flannel: Vec<Option<Process>>,
    vxland: Vec<Option<Process>>,
    kubeconfig: String,
    config: String,
    pods: Vec<Inmate>,
    _plane: ControlPlane,
    lab: Lab,
}

fn place(error: heddle_kubernetes::Error) -> Error {
    Error::Oracle(error.to_string())
}

impl World {
    fn start() -> Result<Self> {
        let lab = Lab::builder().clients(2).build()?;
        for node in lab.nodes() {
            lab.manifests().node(node)?;
        }
        let plane = ControlPlane::raise(&lab, &lab.clients()[1], Options::default())?;
        plane.kubectl(&["create", "-f", &lab.manifests().dir().display().to_string()], "")?;
        // As every node of a kubelet's has some; flannel adds its own to them.
        plane.kubectl(
            &["annotate", "nodes", "--all", "volumes.kubernetes.io/controller-managed-attach-detach=true"],
            "",
        )?;
        let (kubeconfig, _) = plane.user("mover", Some("system:masters"), &plane.url(true))?;
        let config = lab.dir().join("flannel.json");
        // IPv6 is not switched on; but flannel looks at the nodes' second ranges all the same, and ends without this.
        let network = json!({
            "Network": "10.244.0.0/16", "IPv6Network": "fd00:10:244::/48", "Backend": { "Type": "vxlan" },
        });
        std::fs::write(&config, network.to_string())
            .map_err(|error| heddle_kubernetes::Error::new("write flannel's configuration", error))?;
        let mut world = Self {
            flannel: Vec::new(),
            vxland: Vec::new(),
            kubeconfig: kubeconfig.display().to_string(),
            config: config.display().to_string(),
            pods: Vec::new(),
            _plane: plane,
            lab,
        };
        for node in world.lab.nodes() {
            world.flannel.push(Some(world.start_flannel(node)?));
            world.vxland.push(None);
        }
        for node in world.lab.nodes() {
            world.await_flannel(node)?;
        }
        for index in 1..=3 {
            world.add_pod(index, "old")?;
        }
        Ok(world)
    }

    fn start_flannel(&self, node: &Node) -> Result<Process> {
        let flannel = Cmd::new(program("flanneld")?)
            .env("NODE_NAME", node.name())
            .args([
                "--kube-subnet-mgr",
                "--ip-masq",
                "--iface",
                "eth0",
                "--kubeconfig-file",
                &self.kubeconfig,
            ])
            .args(["--net-config-path", &self.config, "--subnet-file", "/run/flannel/subnet.env"]);
        Ok(node.spawn(flannel)?)
    }

    /// Waits until it has its lease and its device, then does what its plugin does with them.
    fn await_flannel(&self, node: &Node) -> Result<()> {
        let ready = eventually("flannel's lease", LIMIT, || {
            Ok(node.run("cat /run/flannel/subnet.env").is_ok() && node.run("ip link show flannel.1").is_ok())
        });
        ready.map_err(|error| {
            let log = self.flannel.get(node.index() - 1).and_then(Option::as_ref).map(Process::log);
            Error::Oracle(format!("{error}: {}", log.unwrap_or_default()))
        })?;
        let list = json!({
            "name": "cbr0", "cniVersion": "0.3.1",
            "plugins": [{
                "type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "isDefaultGateway": true,
                "hairpinMode": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "subnet": node.pod_ranges()[0], "routes": [{ "dst": "10.244.0.0/16" }],
                },
            }],
        });
        node.run("mkdir -p /etc/cni/net.d")?;
        node.run(Cmd::new("tee").arg(CONFLIST).stdin(list.to_string()))?;
        Ok(())
    }

    fn start_vxland(&self, node: &Node) -> Result<Process> {
        let source = format!("kubernetes:{}", self.kubeconfig);
        let vxland = Cmd::new(bin("vxland")).args([
            "--source",
            &source,
            "--node-name",
            node.name(),
            "--network",
            "cbr0",
            "--replace-flannel",
        ]);
        Ok(node.spawn(vxland)?)
    }

    /// A new pod, by whatever plugin this node has.
    fn add_pod(&mut self, index: usize, age: &str) -> Result<()> {
        let name = format!("{age}-{index}");
        let pod = self.lab.node(index).pod(&name)?;
        pod.cni_add()?;
        let server = pod.serve(&name, 8080)?;
        self.pods.push(Inmate { _server: server, pod });
        Ok(())
    }

    /// Streams between the pods of different nodes that are there.
    fn streams(&self) -> Result<Vec<Running>> {
        let mut streams = Vec::new();
        for from in &self.pods {
            for to in &self.pods {
                if from.pod.node().name() != to.pod.node().name() {
                    streams.push(Load::streams((to.pod.ip4(), 8080), 1).rate(20).start(&from.pod)?);
                }
            }
        }
        Ok(streams)
    }

    /// Every pod reaches every other, and every node's processes reach every pod.
    fn all_reach_all(&self) -> Result<()> {
        let mut addresses: Vec<IpAddr> = self.pods.iter().map(|inmate| inmate.pod.ip4()).collect();
        let places = self.pods.iter().map(|inmate| inmate.pod.place());
        let places: Vec<&Place> = places.chain(self.lab.nodes().iter().map(|node| node.place())).collect();
        for place in places {
            for to in &addresses {
                eventually("an answer", LIMIT, || {
                    Ask::new((*to, 8080)).limit(Duration::from_secs(1)).tcp(place).map(|_| true)
                })
                .map_err(|error| Error::Oracle(format!("{} asks {to}: {error}", place.name())))?;
            }
        }
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), self.pods.len(), "nobody has another's address");
        Ok(())
    }

    /// What of flannel's is on a node.
    fn of_flannel(&self, node: &Node) -> Result<String> {
        let links = node.run("ip -o link")?;
        let devices = links.lines().filter(|line| line.contains("flannel")).map(str::to_owned);
        let rules = node.run("iptables-save")?;
        let rules = rules.lines().filter(|line| line.contains("FLANNEL-")).map(str::to_owned);
        Ok(devices.chain(rules).collect::<Vec<_>>().join("\n"))
    }

    fn move_to_heddle(&mut self, index: usize) -> Result<()> {
        if let Some(flannel) = self.flannel[index - 1].take() {
            flannel.terminate(LIMIT)?;
        }
        let node = self.lab.node(index);
        let vxland = self.start_vxland(node)?;
        heddle_lab::await_ready(node, &vxland, "vxland")?;
        self.vxland[index - 1] = Some(vxland);
        eventually("nothing of flannel's is left", LIMIT, || {
            let left = self.of_flannel(node).map_err(place)?;
            if left.is_empty() { Ok(true) } else { Err(Error::Oracle(left)) }
        })?;
        Ok(())
    }

    fn move_to_flannel(&mut self, index: usize) -> Result<()> {
        if let Some(vxland) = self.vxland[index - 1].take() {
            vxland.terminate(LIMIT)?;
        }
        let node = self.lab.node(index);
        node.run(Cmd::new(bin("vxland")).arg("cleanup"))?;
        // What a node that forwards has from its administrator.
        node.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let flannel = self.start_flannel(node)?;
        self.flannel[index - 1] = Some(flannel);
        self.await_flannel(node)
    }
}

fn wait_all(loads: &[Running], count: u64) -> Result<()> {
    Ok(loads.iter().try_for_each(|load| load.wait_for(count, LIMIT).map(drop))?)
}

#[test]
fn from_flannel_to_heddle_and_back() -> Result<()> {
    if let Some(reason) = ControlPlane::missing().or_else(|| programs::missing(&["flanneld", "kubectl"])) {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let mut world = World::start()?;
    world.all_reach_all()?;
    let mut streams = world.streams()?;
    wait_all(&streams, 10)?;

    // Beside flannel it is told what is in the way, and nothing is done.
    let node = world.lab.node(1);
    let source = format!("kubernetes:{}", world.kubeconfig);
    let timid =
        node.spawn(Cmd::new(bin("vxland")).args(["--source", &source, "--node-name", node.name()]))?;
    eventually("it says who is in the way", LIMIT, || {
        Ok(timid.log().contains(
            "this node is flannel's (stop flannel on it, then start vxland with --replace-flannel)",
        ))
    })?;
    timid.terminate(LIMIT)?;
    wait_all(&streams, 10)?;

    for index in 1..=3 {
        world.move_to_heddle(index)?;
        wait_all(&streams, 10)?;
        world.add_pod(index, "new")?;
        world.all_reach_all()?;
    }
    streams.extend(world.streams()?);
    wait_all(&streams, 10)?;
    // And one of them back.
    world.move_to_flannel(3)?;
    wait_all(&streams, 10)?;
    world.all_reach_all()?;
    for load in streams {
        let report = load.stop();
        // A packet or two are lost while the devices change; no connection is.
        assert_eq!((report.resets, report.refused, report.misdelivered), (0, 0, 0), "{report}");
        println!("{report}");
    }
    Ok(())
}
