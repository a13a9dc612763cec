//! The setting: a cluster with five services.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use heddle_lab::addresses::cluster_ip;
use heddle_lab::{
    Ask, Backend, Builder, Cluster, Cmd, Endpoint, Error, Firewall, Lab, Place, Plan, Pod, Proto, Reply,
    Result, Server, Service, bin, eventually,
};
use serde_json::{Value, json};

/// A service of the setting: its ClusterIP is number `number`, its node port 30000 + `number`, TCP and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: &'static str,
    pub number: u8,
    /// Port of its backends.
    pub target: u16,
}

/// Two pods, on the first and the second node.
pub const WEB: Named = Named { name: "web", number: 10, target: 8080 };
/// One pod, on the first node.
pub const SOLO: Named = Named { name: "solo", number: 11, target: 8080 };
/// A process in the host network of the second node.
pub const HOST: Named = Named { name: "host", number: 12, target: 9090 };
/// Nobody.
pub const NONE: Named = Named { name: "none", number: 13, target: 8080 };

impl Named {
    pub fn cluster(self, v4: bool) -> SocketAddr {
        (cluster_ip(self.number, v4), 80).into()
    }

    pub fn node_port(self) -> u16 {
        30000 + u16::from(self.number)
    }

    pub fn published(self, node: IpAddr) -> SocketAddr {
        (node, self.node_port()).into()
    }

    pub fn service(self) -> Service {
        Service::new(self.name)
            .cluster_ip(cluster_ip(self.number, true))
            .cluster_ip(cluster_ip(self.number, false))
            .port("tcp", Proto::Tcp, 80, self.target)
            .node_port(self.node_port())
            .port("udp", Proto::Udp, 80, self.target)
            .node_port(self.node_port())
    }
}

/// How somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Tcp,
    Udp,
}

pub const BY: [By; 2] = [By::Tcp, By::Udp];

impl By {
    pub fn ask(self, ask: Ask, place: &Place) -> Result<Reply> {
        match self {
            Self::Tcp => ask.tcp(place),
            Self::Udp => ask.udp(place),
        }
    }
}

/// The cluster, two serving pods, one pod that only asks on the third node, a server in the host network of
/// the second.
#[derive(Debug)]
pub struct World {
    pub web1: Backend,
    pub web2: Backend,
    pub visitor: Pod,
    pub _host2: Server,
    /// Of the switch's ports; see [`World::start_xdp`].
    _drivers: Vec<OwnedFd>,
    // Last: pods and servers end before their lab.
    pub cluster: Cluster,
}

/// The nodes of all scenarios about packets.
pub fn strict() -> Builder {
    Lab::builder().firewall(Firewall::Strict).default_route(false)
}

impl World {
    pub fn start(builder: Builder) -> Result<Self> {
        Self::on(Cluster::start(builder)?)
    }

    /// With further arguments for proxyd.
    pub fn start_with(builder: Builder, args: &[&str]) -> Result<Self> {
        let plan = args.iter().fold(Plan::default(), |plan, arg| plan.proxyd_arg(arg));
        Self::on(Cluster::start_with(builder, plan)?)
    }

    /// Nodes that route directly. The switch lets pods' packets through.
    pub fn start_direct(builder: Builder) -> Result<Self> {
        let cluster = Cluster::start_with(builder, Plan::default().vxland_arg("--direct-routing"))?;
        for rule in ["ip saddr 10.244.0.0/16", "ip daddr 10.244.0.0/16"] {
            cluster.switch().place().run(format!("nft insert rule bridge lab judge {rule} accept"))?;
        }
        for rule in ["ip6 saddr fd00:10:244::/48", "ip6 daddr fd00:10:244::/48"] {
            cluster.switch().place().run(format!("nft insert rule bridge lab judge {rule} accept"))?;
        }
        Self::on(cluster)
    }

    /// No socket hook sees any process: all is left to the hooks of the devices.
    pub fn start_unhooked(builder: Builder) -> Result<Self> {
        let lab = builder.build()?;
        for node in lab.nodes() {
            lab.manifests().node(node)?;
            node.run("mkdir /sys/fs/cgroup/nobody")?;
        }
        let plan = Plan::default().proxyd_arg("--cgroup-root").proxyd_arg("/sys/fs/cgroup/nobody");
        Self::on(Cluster::on(lab, plan)?)
    }

    /// With further arguments for proxyd, on devices that do what network cards do for XDP: frames that a driver
    /// sends by itself are taken, and checksums are finished.
    pub fn start_xdp(builder: Builder, args: &[&str]) -> Result<Self> {
        let lab = builder.build()?;
        let mut drivers = Vec::new();
        for node in lab.nodes() {
            lab.manifests().node(node)?;
            drivers.push(lab.switch().take_xdp(node.name())?);
        }
        for place in lab.nodes().iter().map(|node| node.place()).chain(lab.clients().iter().map(|c| &**c)) {
            place.run("ethtool -K eth0 tx off")?;
        }
        let plan = args.iter().fold(Plan::default(), |plan, arg| plan.proxyd_arg(arg));
        let world = Self::on(Cluster::on(lab, plan)?)?;
        Ok(Self { _drivers: drivers, ..world })
    }

    /// The pods of a node share a bridge, and no socket hook sees any process.
    pub fn start_bridged(builder: Builder) -> Result<Self> {
        let lab = builder.build()?;
        for node in lab.nodes() {
            lab.manifests().node(node)?;
            node.run("mkdir /sys/fs/cgroup/nobody /run/elsewhere")?;
            let ranges: Vec<_> = node.pod_ranges().iter().map(|range| json!([{ "subnet": range }])).collect();
            let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] });
            let plugin = json!({ "type": "heddle", "mode": "bridge", "bridge": "pods0", "isGateway": true, "mtu": 1430, "ipam": ipam });
            node.write_conflist(
                &json!({ "cniVersion": "1.0.0", "name": "heddle", "plugins": [plugin] }).to_string(),
            )?;
        }
        let plan =
            ["--cgroup-root", "/sys/fs/cgroup/nobody"].into_iter().fold(Plan::default(), Plan::proxyd_arg);
        let plan = ["--cni-conf-dir", "/run/elsewhere"].into_iter().fold(plan, Plan::vxland_arg);
        Self::on(Cluster::on(lab, plan)?)
    }

    fn on(cluster: Cluster) -> Result<Self> {
        let world = Self {
            web1: cluster.backend(1, "web-1", WEB.target)?,
            web2: cluster.backend(2, "web-2", WEB.target)?,
            visitor: cluster.pod(3, "visitor")?,
            _host2: cluster.node(2).serve("host-2", HOST.target)?,
            _drivers: Vec::new(),
            cluster,
        };
        let (one, two) = (world.web1.endpoint(), world.web2.endpoint());
        world.publish(WEB, &[one.clone(), two])?;
        world.publish(SOLO, &[one])?;
        world.publish(HOST, &[Endpoint::host(world.cluster.node(2))])?;
        world.publish(NONE, &[])?;
        Ok(world)
    }

    /// Declares the endpoints of a service, and waits until every node carries them out.
    pub fn publish(&self, named: Named, endpoints: &[Endpoint]) -> Result<()> {
        self.cluster.publish(&named.service(), endpoints)?;
        let wanted: BTreeSet<IpAddr> = endpoints.iter().flat_map(|e| e.ips.iter().copied()).collect();
        for node in self.cluster.nodes() {
            self.await_backends(node, named, &wanted)?;
        }
        Ok(())
    }

    /// Waits until a node gives new flows of a service to exactly these addresses.
    pub fn await_backends(&self, node: &Place, named: Named, wanted: &BTreeSet<IpAddr>) -> Result<()> {
        let what = format!("service {} of {wanted:?} on {}", named.name, node.name());
        eventually(&what, Duration::from_secs(20), || {
            let status = status(node)?;
            let (mut found, mut frontends) = (BTreeSet::new(), 0);
            let prefix = format!("default/{}:", named.name);
            for frontend in list(&status["frontends"]) {
                if !frontend["name"].as_str().is_some_and(|name| name.starts_with(&prefix)) {
                    continue;
                }
                frontends += 1;
                let mut ips = BTreeSet::new();
                for backend in list(&frontend["backends"]).iter().filter(|b| b["state"] == "active") {
                    let address: SocketAddr = backend["address"]
                        .as_str()
                        .and_then(|a| a.parse().ok())
                        .ok_or_else(|| Error::Oracle(format!("no address in {backend}")))?;
                    ips.insert(address.ip());
                }
                found.extend(ips);
            }
            // Two families, two protocols, ClusterIP and node port.
            Ok(frontends == 8 && found == *wanted)
        })
    }

    /// Who can ask from inside, with the address of a family that a server sees: all pods and all nodes.
    /// A node's processes have the address of the way they take, which is not foreseen here.
    pub fn insiders(&self) -> Vec<(&Place, Option<(IpAddr, IpAddr)>)> {
        let pods = [self.web1.pod(), self.web2.pod(), &self.visitor];
        let pods = pods.map(|pod| (pod.place(), Some((pod.ip4(), pod.ip6()))));
        let nodes = self.cluster.nodes().iter().map(|node| (node.place(), None));
        pods.into_iter().chain(nodes).collect()
    }
}

/// What `proxyd status` says of frontends and their backends, without what changes with every packet.
pub fn tables(status: &Value) -> Vec<String> {
    let frontends = list(&status["frontends"]).iter().map(|frontend| {
        let backends = list(&frontend["backends"]).iter().map(|backend| {
            format!("{} {} {} {}", backend["address"], backend["state"], backend["node"], backend["by"])
        });
        format!("{} {}: {:?}", frontend["address"], frontend["name"], backends.collect::<Vec<_>>())
    });
    frontends.collect()
}

/// `proxyd status` on a node.
pub fn status(node: &Place) -> Result<Value> {
    let text = node.run(Cmd::new(bin("proxyd")).args(["status", "-o", "json"]))?;
    serde_json::from_str(&text).map_err(|e| Error::Oracle(format!("proxyd status: {e}: {text}")))
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Asks `count` times, each time from another port. The replies.
pub fn ask(count: usize, by: By, to: SocketAddr, place: &Place) -> Result<Vec<Reply>> {
    // A datagram conversation lives for minutes: a port that comes up again, through another node, would be
    // another one's, and be translated. The kernel would give such a port now and then.
    static PORT: AtomicU16 = AtomicU16::new(0);
    let ask = || match by {
        By::Tcp => Ask::new(to),
        By::Udp => Ask::new(to).from_port(10000 + PORT.fetch_add(1, Ordering::Relaxed) % 20000),
    };
    (0..count).map(|_| by.ask(ask(), place)).collect()
}

/// The servers that answered.
pub fn servers(replies: &[Reply]) -> BTreeSet<&str> {
    replies.iter().map(|reply| reply.server.as_str()).collect()
}

/// Nobody sent a packet that belongs to neither a node nor a client.
pub fn assert_no_foreign(cluster: &Cluster) -> Result<()> {
    match cluster.switch().foreign()? {
        0 => Ok(()),
        _ => Err(Error::Oracle(format!(
            "foreign frames in the underlay: {:?}",
            cluster.switch().foreigners()?
        ))),
    }
}
