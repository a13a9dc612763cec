//! What a lab is to be like.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::addresses::{client_ip, node_ip};
use crate::bin::bin_dir;
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::filesystem;
use crate::firewall::Firewall;
use crate::lab::{Frame, Lab};
use crate::manifests::Manifests;
use crate::namespace::{MountNs, NetNs, on_thread};
use crate::node::{Client, Node};
use crate::owner::poll_until;
use crate::place::Place;
use crate::switch::Switch;
use crate::tools::{ip, sysctls};

/// Address families of the pods and services. The underlay always has both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    #[default]
    Dual,
    V4,
    V6,
}

impl Families {
    /// Whether IPv4 is among them.
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether IPv6 is among them.
    pub fn v6(self) -> bool {
        self != Self::V4
    }
}

/// Describes a lab; [`build`](Self::build) makes it.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) families: Families,
    pub(crate) rp_filter: u8,
    pub(crate) firewall: Firewall,
    pub(crate) default_route: bool,
    pub(crate) mtu: u32,
    pub(crate) threaded: bool,
}

impl Default for Builder {
    /// Three nodes, one client, both families, the strictest reverse path filter, no packet filter, a
    /// default route, MTU 1500.
    fn default() -> Self {
        Self {
            nodes: 3,
            clients: 1,
            families: Families::Dual,
            rp_filter: 1,
            firewall: Firewall::Open,
            default_route: true,
            mtu: 1500,
            threaded: true,
        }
    }
}

impl Builder {
    /// How many nodes, at most 200: `n1`, `n2`, ...
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many outside clients, at most 50: `client`, `client2`, ...
    #[must_use]
    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients;
        self
    }

    /// The address families of pods and services.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// `net.ipv4.conf.{all,default}.rp_filter` of the nodes: 0, 1 or 2.
    #[must_use]
    pub fn rp_filter(mut self, value: u8) -> Self {
        self.rp_filter = value;
        self
    }

    /// The packet filter that the nodes' owner has set up.
    #[must_use]
    pub fn firewall(mut self, firewall: Firewall) -> Self {
        self.firewall = firewall;
        self
    }

    /// Whether single threads of the test can be put into the groups of nodes (the default), so that a node's
    /// socket programs see sockets that are made in [`Place::enter`]. A container runtime wants groups of whole
    /// processes.
    #[must_use]
    pub fn threaded(mut self, threaded: bool) -> Self {
        self.threaded = threaded;
        self
    }

    /// Whether nodes have a default route (to a router that reaches nothing).
    #[must_use]
    pub fn default_route(mut self, there: bool) -> Self {
        self.default_route = there;
        self
    }

    /// The MTU of the underlay, 1280 or more.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// When the kernel refuses (it wants root) or `ip` or `nft` is not installed; nothing is left then.
    pub fn build(self) -> Result<Lab> {
        let frame = Frame::new(self.threaded)?;
        let (cgroup, spawner) = (&frame.cgroup, &frame.spawner);
        let place = |name: &str| -> Result<Place> {
            let group = cgroup.child(name)?;
            group.child("pods")?;
            let (net, mounts) = own_namespaces(&group, &frame.dir)?;
            Ok(Place::new(name, net, Some(mounts), group, Arc::clone(spawner)))
        };
        let switch = Place::new("switch", NetNs::new()?, None, cgroup.child("switch")?, Arc::clone(spawner));
        let switch = Switch::new(switch, self.default_route, self.mtu)?;
        let nodes: Vec<_> = (1..=self.nodes)
            .map(|i| Ok(Node::new(i, place(&format!("n{i}"))?, self.families)))
            .collect::<Result<_>>()?;
        let clients: Vec<_> = (1..=self.clients)
            .map(|i| {
                let name = if i == 1 { "client".to_owned() } else { format!("client{i}") };
                Ok(Client::new(i, place(&name)?))
            })
            .collect::<Result<_>>()?;

        let hosts = || {
            let nodes =
                nodes.iter().map(|n| (n.place(), node_ip(n.index(), true), node_ip(n.index(), false)));
            let clients =
                clients.iter().map(|c| (c.place(), client_ip(c.index(), true), client_ip(c.index(), false)));
            nodes.chain(clients)
        };
        for (host, ..) in hosts() {
            self.set_sysctls(host)?;
        }
        let plugs: Vec<_> = hosts().map(|(place, a, b)| (place, a.to_string(), b.to_string())).collect();
        switch.plug(&plugs, self.mtu)?;
        for (host, v4, v6) in &plugs {
            sysctls(host, &[("ipv6/conf/eth0/accept_dad", "0"), ("ipv6/conf/eth0/accept_ra", "0")])?;
            let mut batch = format!(
                "link set lo up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
            );
            if self.default_route {
                let (gw4, gw6) = (Switch::GATEWAY4, Switch::GATEWAY6);
                batch += &format!("route add default via {gw4}\nroute add default via {gw6}\n");
            }
            ip(host, &batch)?;
        }
        let ports: Vec<_> = plugs.iter().map(|(host, ..)| host.name()).collect();
        switch.await_open(&ports)?;
        for (host, ..) in &plugs {
            await_carrier(host)?;
        }
        for node in &nodes {
            self.firewall.raise(node.place())?;
        }
        let manifests = Manifests::new(frame.dir.join("manifests"))?;
        Ok(Lab::new(self, frame, switch, nodes, clients, manifests))
    }

    /// What a new namespace inherits from the machine is not left to chance.
    fn set_sysctls(&self, host: &Place) -> Result<()> {
        let rp_filter = self.rp_filter.to_string();
        sysctls(
            host,
            &[
                ("ipv4/ip_forward", "0"),
                ("ipv4/conf/all/rp_filter", &rp_filter),
                ("ipv4/conf/default/rp_filter", &rp_filter),
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
            ],
        )
    }
}

/// Waits until `eth0` sends: the kernel gives it a queue some time after the link is up.
fn await_carrier(host: &Place) -> Result<()> {
    let state = host.path("/sys/class/net/eth0/operstate");
    let waited = Duration::from_secs(20);
    let up = || std::fs::read_to_string(&state).is_ok_and(|state| state.trim() == "up");
    let what = || format!("a carrier on eth0 of {}", host.name());
    poll_until(waited, up).then_some(()).ok_or_else(|| Error::Timeout {
        what: what(),
        waited,
        detail: String::new(),
    })
}

/// A network and a mount namespace, the latter with the file system of a node.
fn own_namespaces(cgroup: &Cgroup, dir: &Path) -> Result<(NetNs, MountNs)> {
    let keep = [dir.to_owned(), bin_dir()];
    on_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context(|| "create a network namespace".into())?;
        let net = NetNs::current()?;
        let mounts = MountNs::unshare_thread()?;
        filesystem::make(cgroup, &keep)?;
        Ok((net, mounts))
    })
}
