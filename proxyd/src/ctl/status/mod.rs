//! What the kernel says, for people and for programs.

#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use heddle_ebpf_common::{REMOTE_DSR, REMOTE_SNAT};
use heddle_model::{
    Backend, BackendState, Frontend, FrontendAddr, NodeName, Outside, Refusal, ServiceNode, ServiceTable,
};
use serde::Serialize;

use super::filter::Filter;
use crate::dataplane::Error;
use crate::ebpf::{FlowCounts, Load, View};

/// The state of the datapath.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `ebpf`; `None`: nothing is there.
    pub mode: Option<&'static str>,
    /// This node's name.
    pub node: Option<NodeName>,
    /// How a backend on another node is reached: `tunnel`, `snat` or `dsr`.
    pub remote: Option<&'static str>,
    pub frontends: Vec<FrontendStatus>,
    pub nodes: Vec<NodeStatus>,
    pub hooks: Vec<Hook>,
    /// Entries of the conntrack maps, two a flow.
    pub flows: FlowCounts,
    /// Flows whose backend is gone: they are kept for a while to be answered.
    pub stale_flows: u64,
    /// Packets and flows since the maps were made, by name; drops are named `drop_REASON`.
    pub counters: BTreeMap<String, u64>,
    /// Only frontends that were asked for are in `frontends`.
    #[serde(skip)]
    filtered: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// `10.96.0.1:80/tcp`, or `node(ipv4):30080/tcp` for a port of every node.
    pub address: String,
    /// `namespace/name:port`; `None`: half written, the daemon will write it anew.
    pub name: Option<String>,
    /// Reached from outside the cluster.
    pub external: bool,
    /// Clients from outside reach backends of this node only (externalTrafficPolicy Local).
    pub local: bool,
    /// What a client in the cluster gets where no backend takes new flows: `reject` or `drop`.
    pub refusal: &'static str,
    /// The same for a client from outside; `None`: nobody comes from there.
    pub refusal_outside: Option<&'static str>,
    /// Session affinity by client address, in seconds.
    pub affinity: Option<u32>,
    /// Who may use it (loadBalancerSourceRanges); `None`: everybody.
    pub sources: Option<Vec<String>>,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    pub address: String,
    /// `active` or `draining`.
    pub state: &'static str,
    /// Clients from outside are sent there by this node.
    pub outside: bool,
    /// `None`: no node of ours.
    pub node: Option<NodeName>,
    /// Its node is down: it takes no new flows as long as there are others.
    pub node_down: bool,
    /// How what this node sends there gets there: `local`; `overlay`: as from pod to pod; `tunnel`: the client's
    /// own packet through the overlay; `dsr`: the same, and the answer goes straight to the client; `snat`: with
    /// an address of this node as its source.
    pub by: &'static str,
    /// Flows under way that are translated packet by packet.
    pub flows: Load,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub name: NodeName,
    pub down: bool,
    pub addresses: Vec<IpAddr>,
    /// Those of `addresses` that node ports answer on.
    pub node_ports: Vec<IpAddr>,
    pub overlay: Vec<IpAddr>,
    pub mac: Option<String>,
}

/// An attached program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub program: String,
    /// Interface, or `cgroup ID`.
    pub at: String,
    pub program_id: u32,
    /// Its interface or cgroup is gone.
    pub dead: bool,
}

/// Reads it from what is pinned below `bpf_root`; `filter`: of these frontends alone.
pub fn status(bpf_root: &Path, filter: Option<&Filter>) -> Result<Status, Error> {
    Ok(View::read(bpf_root)?.map_or_else(Status::default, |view| of(view, filter)))
}

fn of(view: View, filter: Option<&Filter>) -> Status {
    let ways = Ways { remote: view.config.remote, overlay: view.config.vxlan_ifindex != 0 };
    let hook = |link: &heddle_bpf::PinnedLink| {
        let is_cgroup = link.place.bytes().all(|byte| byte.is_ascii_digit());
        let at = if is_cgroup { format!("cgroup {}", link.place) } else { link.place.clone() };
        Hook { program: link.program.clone(), at, program_id: link.info.program_id, dead: link.is_dead() }
    };
    let mut hooks: Vec<Hook> = view.links.iter().map(hook).collect();
    hooks.sort();
    let asked = |at: &FrontendAddr, frontend: &Frontend| {
        filter.is_none_or(|filter| filter.takes(&frontend.name, &at.to_string()))
    };
    let frontends = view.table.frontends.iter().filter(|(at, f)| asked(at, f));
    Status {
        mode: Some("ebpf"),
        node: view.table.local.clone(),
        remote: Some(ways.name()),
        frontends: frontends.map(|(at, f)| frontend(&view.table, ways, &view.loads, at, f)).collect(),
        nodes: view.table.nodes.iter().map(|(name, node)| self::node(name, node)).collect(),
        hooks,
        flows: view.flows,
        stale_flows: view.stale,
        counters: view.counters.0,
        filtered: filter.is_some(),
    }
}

fn node(name: &NodeName, node: &ServiceNode) -> NodeStatus {
    NodeStatus {
        name: name.clone(),
        down: node.down,
        addresses: node.addresses.iter().copied().collect(),
        node_ports: node.node_ports.iter().copied().collect(),
        overlay: node.overlay.iter().copied().collect(),
        mac: node.mac.map(|mac| mac.to_string()),
    }
}

fn frontend(
    table: &ServiceTable,
    ways: Ways,
    loads: &BTreeMap<(FrontendAddr, IpAddr, u16), Load>,
    at: &FrontendAddr,
    frontend: &Frontend,
) -> FrontendStatus {
    let nobody = BTreeSet::new();
    let (local, refusal_outside) = match &frontend.outside {
        None => (Some(&nobody), None),
        Some(Outside::Cluster) => (None, Some(said(frontend.refusal))),
        Some(Outside::Local { backends, refusal }) => (Some(backends), Some(said(*refusal))),
    };
    let backend = |backend: &Backend| {
        let node = backend.node.as_ref().and_then(|name| table.nodes.get(name));
        let active = backend.state == BackendState::Active;
        BackendStatus {
            address: std::net::SocketAddr::new(backend.ip, backend.port).to_string(),
            state: match backend.state {
                BackendState::Active => "active",
                BackendState::Draining => "draining",
                BackendState::Down => "down",
            },
            outside: local.map_or(active, |local| local.contains(&(backend.ip, backend.port))),
            node: backend.node.clone(),
            node_down: node.is_some_and(|node| node.down),
            by: ways.of(table, frontend.is_external(), backend),
            flows: loads.get(&(*at, backend.ip, backend.port)).copied().unwrap_or_default(),
        }
    };
    FrontendStatus {
        address: at.to_string(),
        name: Some(frontend.name.clone()).filter(|name| !name.is_empty()),
        external: frontend.is_external(),
        local: matches!(frontend.outside, Some(Outside::Local { .. })),
        refusal: said(frontend.refusal),
        refusal_outside,
        affinity: frontend.affinity,
        sources: frontend.sources.as_ref().map(|sources| sources.iter().map(ToString::to_string).collect()),
        backends: frontend.backends.iter().map(backend).collect(),
    }
}

const fn said(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Reject => "reject",
        Refusal::Drop => "drop",
    }
}

/// The ways that lead from this node to others.
#[derive(Clone, Copy, Debug)]
struct Ways {
    /// `REMOTE_*`.
    remote: u32,
    /// This node has the overlay's device.
    overlay: bool,
}

impl Ways {
    const fn name(self) -> &'static str {
        match self.remote {
            REMOTE_SNAT => "snat",
            REMOTE_DSR => "dsr",
            _ => "tunnel",
        }
    }

    fn of(self, table: &ServiceTable, external: bool, backend: &Backend) -> &'static str {
        if backend.node.is_some() && backend.node == table.local {
            return "local";
        }
        let Some(node) = backend.node.as_ref().and_then(|name| table.nodes.get(name)) else { return "snat" };
        let reached = self.overlay && node.mac.is_some();
        match external {
            true if reached => self.name(),
            false if reached && !node.addresses.contains(&backend.ip) => "overlay",
            _ => "snat",
        }
    }
}

impl Status {
    /// The services, each with all its frontends.
    fn services(&self) -> BTreeMap<&str, Vec<&FrontendStatus>> {
        let mut services: BTreeMap<&str, Vec<&FrontendStatus>> = BTreeMap::new();
        for frontend in &self.frontends {
            let name = frontend.name.as_deref().unwrap_or(text::HALF_WRITTEN);
            let service = name.rsplit_once(':').map_or(name, |(service, _)| service);
            services.entry(service).or_default().push(frontend);
        }
        services
    }
}
