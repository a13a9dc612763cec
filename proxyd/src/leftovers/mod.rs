//! What another proxy leaves on a node: kube-proxy in each of its modes. It is looked for, told, and on request taken
//! away; what is the kubelet's or anybody else's stays.
//!
//! Nothing of it is in proxyd's way: its hooks meet packets before netfilter does. But connections that were
//! made through it live in the kernel's connection tracking: as long as there may be any, packets of connections that
//! our programs do not know are passed on ([`heddle_ebpf_common::CONFIG_OTHER_PROXY`]).

mod follow;
mod names;
mod remove;
mod running;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use aya::maps::MapError;
use heddle_bpf::{Maps, Pins};
use heddle_ebpf_common::{Addr, FrontendKey};
use heddle_netlink::conntrack::{Conntrack, Flow};
use heddle_netlink::ipset::Sets;
use heddle_netlink::ipvs::Ipvs;
use heddle_netlink::nft::{Family, Nft};
use heddle_netlink::{Socket, link, xtables};
use nix::libc;
use serde::Serialize;

use crate::dataplane::Error;
use crate::ebpf::encode;
pub use follow::{Counts, Follow, Following, OtherProxy};
pub use remove::{Options, remove};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// By what it is seen that kube-proxy runs.
    pub running: Option<String>,
    /// Chains of iptables (over nf_tables), by family and table.
    pub iptables: BTreeMap<String, Vec<String>>,
    /// Chains of the old iptables, by program and table.
    pub iptables_legacy: BTreeMap<String, Vec<String>>,
    /// Its own tables of nf_tables.
    pub nft: Vec<String>,
    /// The device of the IPVS mode.
    pub ipvs_device: bool,
    /// Virtual services of IPVS, if that device is there: without it they are somebody else's.
    pub ipvs_services: usize,
    pub ipsets: Vec<String>,
    /// Living connections to services that the kernel translates.
    pub connections: usize,
}

impl Found {
    /// Is there anything but connections?
    pub fn has_rules(&self) -> bool {
        !self.iptables.is_empty()
            || !self.iptables_legacy.is_empty()
            || !self.nft.is_empty()
            || self.ipvs_device
            || !self.ipsets.is_empty()
    }

    /// Is there anything?
    pub fn is_empty(&self) -> bool {
        self.running.is_none() && !self.has_rules() && self.connections == 0
    }

    /// What there is, in one line; empty if there is nothing.
    pub fn summary(&self) -> String {
        let count = |tables: &BTreeMap<String, Vec<String>>| tables.values().map(Vec::len).sum::<usize>();
        let mut parts = Vec::new();
        match count(&self.iptables) {
            0 => {}
            chains => parts.push(format!("{chains} chains of iptables")),
        }
        match count(&self.iptables_legacy) {
            0 => {}
            chains => parts.push(format!("{chains} chains of iptables-legacy")),
        }
        parts.extend(self.nft.iter().map(|table| format!("table {table}")));
        if self.ipvs_device {
            parts.push(format!("device {} and {} virtual services", names::IPVS_DEVICE, self.ipvs_services));
        }
        if !self.ipsets.is_empty() {
            parts.push(format!("{} ipsets", self.ipsets.len()));
        }
        if self.connections > 0 {
            parts.push(format!("{} living connections through its translation", self.connections));
        }
        parts.join(", ")
    }

    /// What is to be done about it.
    pub fn advice(&self) -> String {
        match (&self.running, self.has_rules()) {
            (Some(_), _) => {
                "when all nodes have proxyd: kubectl -n kube-system delete daemonset kube-proxy, then \
                             proxyd kube-proxy --remove"
                    .into()
            }
            (None, true) if self.iptables_legacy.is_empty() => "proxyd kube-proxy --remove".into(),
            (None, true) => "proxyd kube-proxy --remove; it says the commands for iptables-legacy".into(),
            (None, false) => "nothing is to be done: they end by themselves".into(),
        }
    }

    /// The commands that take away what no netlink reaches.
    pub fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        for (at, chains) in &self.iptables_legacy {
            let Some((program, table)) = at.split_once(' ') else { continue };
            let list = chains.join("|");
            // Rules that are in the chains or lead to them, and the chains.
            commands.push(format!(
                "{program}-save -t {table} | grep -vE '(^:|-A |-j |-g )({list})( |$)' | {program}-restore -T {table}"
            ));
        }
        commands
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = match &self.running {
            Some(by) => format!("kube-proxy runs on this node ({by})\n"),
            None => "kube-proxy does not run on this node\n".to_owned(),
        };
        if !self.has_rules() && self.connections == 0 {
            text.push_str("nothing of kube-proxy is left\n");
            return text;
        }
        let _ = writeln!(text, "of kube-proxy there is: {}", self.summary());
        for (at, chains) in self.iptables.iter().chain(&self.iptables_legacy) {
            let some: Vec<&str> = chains.iter().take(5).map(String::as_str).collect();
            let more = if chains.len() > some.len() { ", ..." } else { "" };
            let _ = writeln!(text, "  {at}: {} chains ({}{more})", chains.len(), some.join(", "));
        }
        for command in self.commands() {
            let _ = writeln!(text, "  by hand: {command}");
        }
        let _ = writeln!(text, "next: {}", self.advice());
        text
    }
}

/// Looks at the network namespace of the caller. `connections`: those too, which costs a walk through all that the kernel
/// tracks.
///
/// # Errors
/// The kernel's.
pub fn look(bpf_root: &Path, connections: bool) -> Result<Found, Error> {
    let mut found = Found { running: running::running(), ..Found::default() };
    let mut nft = Nft::open()?;
    for chain in nft.chains()? {
        if matches!(chain.family, Family::Ip | Family::Ip6) && names::is_chain(&chain.name) {
            found.iptables.entry(format!("{} {}", chain.family, chain.table)).or_default().push(chain.name);
        }
    }
    for table in nft.tables()? {
        if matches!(table.family, Family::Ip | Family::Ip6) && table.name == names::TABLE {
            found.nft.push(format!("{} {}", table.family, table.name));
        }
    }
    for chain in xtables::chains("KUBE-")? {
        if names::is_chain(&chain.name) {
            let program = if chain.ipv4 { "iptables-legacy" } else { "ip6tables-legacy" };
            found.iptables_legacy.entry(format!("{program} {}", chain.table)).or_default().push(chain.name);
        }
    }
    found.ipvs_device = link::by_name(&mut Socket::open()?, names::IPVS_DEVICE)?.is_some();
    // Asking would load the module.
    if found.ipvs_device && Path::new("/proc/net/ip_vs").exists() {
        found.ipvs_services = Ipvs::open()?.map_or(Ok(0), |mut ipvs| ipvs.services().map(|all| all.len()))?;
    }
    if Path::new("/sys/module/ip_set").exists() {
        found.ipsets = Sets::open()?.names()?.into_iter().filter(|name| names::is_set(name)).collect();
    }
    if connections {
        found.connections = self::connections(bpf_root)?;
    }
    Ok(found)
}

/// Living connections to services (as our maps know them; before there are maps, to anything) that the kernel translates.
fn connections(bpf_root: &Path) -> Result<usize, Error> {
    let pins = Pins::new(bpf_root);
    let maps = if pins.exist()? { Some(Maps::open(&pins)?) } else { None };
    let mut conntrack = Conntrack::open()?;
    let mut count = 0;
    for ipv4 in [true, false] {
        // Datagrams are ours with the next one.
        let living = |flow: &&Flow| flow.alive && flow.protocol != libc::IPPROTO_UDP as u8;
        for flow in conntrack.translated(ipv4)?.iter().filter(living) {
            let Some(maps) = &maps else {
                count += 1;
                continue;
            };
            let node_port = if ipv4 { Addr::ANY4 } else { Addr::ANY6 };
            for addr in [encode::addr(flow.destination), node_port] {
                let key =
                    FrontendKey { addr, net: 0, port: flow.port.to_be(), proto: flow.protocol, zero: 0 };
                match maps.frontends.get(&key, 0) {
                    Ok(_) => {
                        count += 1;
                        break;
                    }
                    Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_said_with_the_way_out() {
        let mut found = Found::default();
        assert!(found.is_empty() && found.text().contains("nothing of kube-proxy is left"));
        found.iptables.insert("ip nat".into(), vec!["KUBE-SERVICES".into(), "KUBE-NODEPORTS".into()]);
        found.connections = 3;
        assert_eq!(found.summary(), "2 chains of iptables, 3 living connections through its translation");
        assert!(found.advice().contains("proxyd kube-proxy --remove"), "{}", found.advice());
        found.running = Some("process 7".into());
        assert!(found.advice().contains("delete daemonset kube-proxy"), "{}", found.advice());
        found.iptables_legacy.insert("iptables-legacy nat".into(), vec!["KUBE-SERVICES".into()]);
        assert_eq!(
            found.commands(),
            [
                "iptables-legacy-save -t nat | grep -vE '(^:|-A |-j |-g )(KUBE-SERVICES)( |$)' | iptables-legacy-restore -T nat"
            ]
        );
    }
}
