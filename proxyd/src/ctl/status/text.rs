//! The state of the datapath, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{BackendStatus, FrontendStatus, NodeStatus, Status};
use crate::ctl::table;
use crate::ebpf::{FlowCounts, Load};

/// The name of a frontend without one.
pub(super) const HALF_WRITTEN: &str = "(half written)";

/// More frontends than these are summed up by service, unless somebody asks for them.
const MANY: usize = 200;

impl Status {
    /// For people.
    pub fn text(&self) -> String {
        let Some(mode) = self.mode else { return "proxyd: nothing is there\n".into() };
        let node = self.node.as_ref().map_or("(unknown)", |node| &*node.0);
        let remote = self.remote.unwrap_or("-");
        let FlowCounts { answered, unanswered } = self.flows;
        let mut flows = format!("{} answered, {} unanswered", answered / 2, unanswered / 2);
        if self.stale_flows > 0 {
            flows += &format!(" ({} of backends that are gone)", self.stale_flows);
        }
        let mut text = format!("mode {mode}, node {node}, remote backends by {remote}, flows: {flows}\n");
        if self.filtered || self.frontends.len() <= MANY {
            text +=
                &table::print("FRONTEND NAME BACKEND STATE NODE BY GIVEN FLOWS BYTES", self.frontend_rows());
            text += &self.rules();
        } else {
            text += &table::print("SERVICE FRONTENDS BACKENDS ACTIVE GIVEN FLOWS BYTES", self.service_rows());
            text += "\n(one service with its backends: proxyd status NAMESPACE/NAME; all: -o json)\n";
        }
        if self.filtered {
            if self.frontends.is_empty() {
                text += "\nno frontend is called so\n";
            }
            return text;
        }
        text += &table::print("NODE STATE ADDRESSES OVERLAY MAC", self.nodes.iter().map(node_row));
        let mut hooks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for hook in self.hooks.iter().filter(|hook| !hook.dead) {
            hooks.entry(&hook.program).or_default().push(&hook.at);
        }
        let hooks = hooks.into_iter().map(|(program, at)| vec![program.into(), shorten(&at)]);
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
            let name = frontend.name.clone().unwrap_or_else(|| HALF_WRITTEN.into());
            let mut first = vec![frontend.address.clone(), name];
            for backend in &frontend.backends {
                let node = backend.node.as_ref().map_or("-", |node| &*node.0);
                let node = if backend.node_down { format!("{node} (down)") } else { node.into() };
                let row = [
                    backend.address.clone(),
                    backend.state.into(),
                    node,
                    backend.by.into(),
                    backend.flows.given.to_string(),
                    flows(backend.flows),
                    size(backend.flows.bytes),
                ];
                rows.push(first.into_iter().chain(row).collect());
                // Said once.
                first = vec![String::new(), String::new()];
            }
            if frontend.backends.is_empty() {
                let what = if frontend.refusal == "drop" { "dropped" } else { "rejected" };
                first.push(format!("(none: {what})"));
                rows.push(first);
            }
        }
        rows
    }

    /// What is special about a frontend, in words.
    fn rules(&self) -> String {
        let rules = self.frontends.iter().filter_map(|frontend| {
            let rules = rules(frontend);
            (!rules.is_empty()).then(|| vec![frontend.address.clone(), rules.join("; ")])
        });
        table::print("FRONTEND RULE", rules)
    }

    fn service_rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.services().into_iter().map(|(service, frontends)| {
            let backends = || frontends.iter().flat_map(|frontend| &frontend.backends);
            let different = |wanted: fn(&BackendStatus) -> bool| {
                let addresses = backends().filter(|b| wanted(b)).map(|b| b.address.as_str());
                addresses.collect::<BTreeSet<_>>().len().to_string()
            };
            let load = backends().fold(Load::default(), |load, backend| load.and(backend.flows));
            vec![
                service.to_owned(),
                frontends.len().to_string(),
                different(|_| true),
                different(|backend| backend.state == "active"),
                load.given.to_string(),
                flows(load),
                size(load.bytes),
            ]
        })
    }
}

fn rules(frontend: &FrontendStatus) -> Vec<String> {
    let mut rules = Vec::new();
    if frontend.local {
        let here = frontend.backends.iter().filter(|backend| backend.outside).count();
        let refused = frontend.refusal_outside.unwrap_or("reject");
        rules.push(match here {
            0 => format!("clients from outside: backends of this node only; there is none ({refused})"),
            here => format!("clients from outside: backends of this node only ({here})"),
        });
    }
    if frontend.refusal == "drop" && !frontend.backends.iter().any(|backend| backend.state == "active") {
        rules.push("clients in the cluster: no backend may take them (drop)".into());
    }
    rules.extend(frontend.affinity.map(|seconds| format!("a client keeps its backend for {seconds}s")));
    rules.extend(frontend.sources.as_ref().map(|sources| match sources.is_empty() {
        true => "nobody may use it".into(),
        false => format!("only for {}", sources.join(", ")),
    }));
    rules
}

fn node_row(node: &NodeStatus) -> Vec<String> {
    let mac = node.mac.clone().unwrap_or_else(|| "(no overlay)".into());
    let state = if node.down { "down" } else { "up" };
    let ports: Vec<String> = node
        .addresses
        .iter()
        .map(|ip| match node.node_ports.contains(ip) {
            true => ip.to_string(),
            false => format!("{ip} (no node ports)"),
        })
        .collect();
    let addresses = if ports.is_empty() { "-".into() } else { ports.join(",") };
    vec![node.name.to_string(), state.into(), addresses, list(&node.overlay), mac]
}

fn flows(load: Load) -> String {
    if load.unanswered == 0 {
        return load.answered.to_string();
    }
    format!("{} (+{} unanswered)", load.answered, load.unanswered)
}

/// Bytes, to three digits.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 1000.0 || unit == "T" {
            return if unit.is_empty() || value >= 100.0 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    bytes.to_string()
}

/// Devices of many pods.
fn shorten(places: &[&str]) -> String {
    const SHOWN: usize = 8;
    match places.len().checked_sub(SHOWN) {
        None | Some(0) => places.join(", "),
        Some(more) => format!("{} and {more} more", places[..SHOWN].join(", ")),
    }
}

fn list(ips: &[IpAddr]) -> String {
    if ips.is_empty() {
        return "-".into();
    }
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
