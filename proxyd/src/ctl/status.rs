//! What the kernel says, for people and for programs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use heddle_ebpf_common::REMOTE_SNAT;
use heddle_model::{Backend, BackendState, Frontend, FrontendAddr, NodeName, ServiceTable};
use serde::Serialize;

use super::table;
use crate::dataplane::Error;
use crate::ebpf::{FlowCounts, View};

/// The state of the datapath.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `ebpf`; `None`: nothing is there.
    pub mode: Option<&'static str>,
    /// This node's name.
    pub node: Option<NodeName>,
    /// How a backend on another node is reached: `tunnel` or `snat`.
    pub remote: Option<&'static str>,
    pub frontends: Vec<FrontendStatus>,
    pub nodes: Vec<NodeStatus>,
    pub hooks: Vec<Hook>,
    pub flows: FlowCounts,
    /// Packets and flows since the maps were made, by name; drops are named `drop_REASON`.
    pub counters: BTreeMap<String, u64>,
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
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    pub address: String,
    /// `active` or `draining`.
    pub state: &'static str,
    /// `None`: no node of ours.
    pub node: Option<NodeName>,
    /// How what this node sends there gets there: `local`; `overlay`: as from pod to pod; `tunnel`: the client's
    /// own packet through the overlay; `snat`: with an address of this node as its source.
    pub by: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub name: NodeName,
    pub addresses: Vec<IpAddr>,
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

/// Reads it from what is pinned below `bpf_root`.
pub fn status(bpf_root: &Path) -> Result<Status, Error> {
    let Some(view) = View::read(bpf_root)? else {
        return Ok(Status {
            mode: None,
            node: None,
            remote: None,
            frontends: Vec::new(),
            nodes: Vec::new(),
            hooks: Vec::new(),
            flows: FlowCounts::default(),
            counters: BTreeMap::new(),
        });
    };
    let ways = Ways { tunnel: view.config.remote != REMOTE_SNAT, overlay: view.config.vxlan_ifindex != 0 };
    let hook = |link: &heddle_bpf::PinnedLink| {
        let is_cgroup = link.place.bytes().all(|byte| byte.is_ascii_digit());
        let at = if is_cgroup { format!("cgroup {}", link.place) } else { link.place.clone() };
        Hook { program: link.program.clone(), at, program_id: link.info.program_id, dead: link.is_dead() }
    };
    let mut hooks: Vec<Hook> = view.links.iter().map(hook).collect();
    hooks.sort();
    let table = &view.table;
    Ok(Status {
        mode: Some("ebpf"),
        node: table.local.clone(),
        remote: Some(if ways.tunnel { "tunnel" } else { "snat" }),
        frontends: table.frontends.iter().map(|(at, f)| frontend(table, ways, at, f)).collect(),
        nodes: table
            .nodes
            .iter()
            .map(|(name, node)| NodeStatus {
                name: name.clone(),
                addresses: node.addresses.iter().copied().collect(),
                overlay: node.overlay.iter().copied().collect(),
                mac: node.mac.map(|mac| mac.to_string()),
            })
            .collect(),
        hooks,
        flows: view.flows,
        counters: view.counters.0,
    })
}

fn frontend(table: &ServiceTable, ways: Ways, at: &FrontendAddr, frontend: &Frontend) -> FrontendStatus {
    let name = Some(frontend.name.clone()).filter(|name| !name.is_empty());
    let backend = |b| backend(b, ways.of(table, at, frontend.is_external(), b));
    let backends = frontend.backends.iter().map(backend).collect();
    FrontendStatus { address: at.to_string(), name, external: frontend.is_external(), backends }
}

/// The ways that lead from this node to others.
#[derive(Clone, Copy, Debug)]
struct Ways {
    /// `--remote tunnel`.
    tunnel: bool,
    /// This node has the overlay's device.
    overlay: bool,
}

impl Ways {
    fn of(self, table: &ServiceTable, at: &FrontendAddr, external: bool, backend: &Backend) -> &'static str {
        if backend.node.is_some() && backend.node == table.local {
            return "local";
        }
        let Some(node) = backend.node.as_ref().and_then(|name| table.nodes.get(name)) else { return "snat" };
        let reached = self.overlay && node.mac.is_some();
        match external {
            // The address that the client used must tell the other node which node it was.
            true if reached && self.tunnel && at.is_node_port() => "tunnel",
            false if reached && !node.addresses.contains(&backend.ip) => "overlay",
            _ => "snat",
        }
    }
}

fn backend(backend: &Backend, by: &'static str) -> BackendStatus {
    BackendStatus {
        address: std::net::SocketAddr::new(backend.ip, backend.port).to_string(),
        state: match backend.state {
            BackendState::Active => "active",
            BackendState::Draining => "draining",
            BackendState::Down => "down",
        },
        node: backend.node.clone(),
        by,
    }
}

impl Status {
    /// For people.
    pub fn text(&self) -> String {
        let Some(mode) = self.mode else { return "proxyd: nothing is there\n".into() };
        let node = self.node.as_ref().map_or("(unknown)", |node| node.0.as_str());
        let remote = self.remote.unwrap_or("-");
        let FlowCounts { answered, unanswered } = self.flows;
        let flows = format!("{} answered, {} unanswered", answered / 2, unanswered / 2);
        let mut text = format!("mode {mode}, node {node}, remote backends by {remote}, flows: {flows}\n");
        text += &table::print("FRONTEND NAME BACKEND STATE NODE BY", self.frontend_rows());
        let node = |node: &NodeStatus| {
            let mac = node.mac.clone().unwrap_or_else(|| "(no overlay)".into());
            vec![node.name.0.clone(), list(&node.addresses), list(&node.overlay), mac]
        };
        text += &table::print("NODE ADDRESSES OVERLAY MAC", self.nodes.iter().map(node));
        let mut hooks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for hook in self.hooks.iter().filter(|hook| !hook.dead) {
            hooks.entry(&hook.program).or_default().push(&hook.at);
        }
        let hooks = hooks.into_iter().map(|(program, at)| vec![program.into(), at.join(", ")]);
        text += &table::print("HOOK AT", hooks);
        let counters = self.counters.iter().filter(|(_, count)| **count > 0);
        text + &table::print(
            "COUNTER COUNT",
            counters.map(|(name, count)| vec![name.clone(), count.to_string()]),
        )
    }

    fn frontend_rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for frontend in &self.frontends {
            let name = frontend.name.clone().unwrap_or_else(|| "(half written)".into());
            let mut first = vec![frontend.address.clone(), name];
            for backend in &frontend.backends {
                let node = backend.node.as_ref().map_or("-", |node| node.0.as_str());
                let row = [&backend.address, backend.state, node, backend.by].map(str::to_owned);
                rows.push(first.into_iter().chain(row).collect());
                // Said once.
                first = vec![String::new(), String::new()];
            }
            if frontend.backends.is_empty() {
                first.push("(none: rejected)".into());
                rows.push(first);
            }
        }
        rows
    }
}

fn list(ips: &[IpAddr]) -> String {
    if ips.is_empty() {
        return "-".into();
    }
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use heddle_model::{Mac, Protocol, ServiceNode};

    use std::sync::Arc;

    use heddle_model::Outside;

    use super::*;

    fn example() -> Status {
        let node = |host: u8, mac: bool| ServiceNode {
            addresses: [[192, 168, 77, host].into()].into(),
            overlay: [[10, 244, host, 0].into()].into(),
            mac: mac.then_some(Mac([2, 0, 0, 0, 0, host])),
            ..ServiceNode::default()
        };
        let name = |n: u8| NodeName(format!("n{n}"));
        let backend = |host: u8, node: Option<u8>, state| Backend {
            ip: [10, 244, host, 2].into(),
            port: 8080,
            proto: Protocol::Tcp,
            node: node.map(name),
            state,
        };
        let backends = [
            backend(1, Some(1), BackendState::Active),
            backend(2, Some(2), BackendState::Draining),
            backend(3, Some(3), BackendState::Active),
            backend(9, None, BackendState::Active),
        ];
        let web = Frontend {
            name: "default/web:http".into(),
            backends: backends.into(),
            outside: Some(Outside::Cluster),
            ..Frontend::default()
        };
        let torn = Frontend::default();
        let table = ServiceTable {
            frontends: [
                (FrontendAddr::new([0, 0, 0, 0].into(), 30080, Protocol::Tcp), Arc::new(web)),
                (FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp), Arc::new(torn)),
            ]
            .into(),
            nodes: (1..=3).map(|n| (name(n), node(n, n < 3))).collect(),
            local: Some(name(1)),
        };
        let ways = Ways { tunnel: true, overlay: true };
        let frontends = table.frontends.iter().map(|(at, f)| frontend(&table, ways, at, f)).collect();
        Status {
            mode: Some("ebpf"),
            node: table.local.clone(),
            remote: Some("tunnel"),
            frontends,
            nodes: Vec::new(),
            hooks: vec![Hook { program: "pod".into(), at: "hdl1".into(), program_id: 7, dead: false }],
            flows: FlowCounts { answered: 4, unanswered: 2 },
            counters: [("flow_new".into(), 3), ("drop_ttl".into(), 0)].into(),
        }
    }

    #[test]
    fn people_read_this() {
        let expected = "\
mode ebpf, node n1, remote backends by tunnel, flows: 2 answered, 1 unanswered

FRONTEND              NAME              BACKEND           STATE     NODE  BY
node(ipv4):30080/tcp  default/web:http  10.244.1.2:8080   active    n1    local
                                        10.244.2.2:8080   draining  n2    tunnel
                                        10.244.3.2:8080   active    n3    snat
                                        10.244.9.2:8080   active    -     snat
10.96.0.1:80/tcp      (half written)    (none: rejected)

HOOK  AT
pod   hdl1

COUNTER   COUNT
flow_new  3
";
        assert_eq!(example().text(), expected);
    }

    #[test]
    fn programs_read_this() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["frontends"][0]["backends"][1]["state"], "draining");
        assert_eq!(json["frontends"][0]["backends"][2]["by"], "snat");
        assert_eq!(json["counters"]["drop_ttl"], 0);
        assert_eq!(json["hooks"][0]["programId"], 7);
        assert_eq!(json["flows"]["answered"], 4);
    }
}
