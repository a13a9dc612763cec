//! What of a wanted table the maps can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::shared_map::differences;
use heddle_model::{
    Backend, BackendState, Frontend, FrontendAddr, NodeName, Outside, PortMatch, ProtoMatch, Protocol,
    ServiceNode, ServiceTable, SharedMap,
};

use ipnetwork::IpNetwork;

use super::encode;
use super::state::{element, is_named};
use crate::dataplane::Unsupported;

/// Bytes of the longest name that a map holds, with one zero behind it.
const NAME_MAX: usize = 255;

/// Tells what the maps can hold, and remembers it: what was asked of them before is not looked at again.
#[derive(Debug, Default)]
pub struct Projector {
    /// What was asked for last, and what of it can be held.
    asked: ServiceTable,
    held: ServiceTable,
    /// Those frontends that cannot be held as they were asked for: most can.
    others: BTreeMap<FrontendAddr, Answer>,
}

#[derive(Debug)]
struct Answer {
    held: Option<Arc<Frontend>>,
    lacks: Vec<String>,
}

impl Projector {
    /// The frontends that were asked for last, as they can be held.
    pub const fn held(&self) -> &SharedMap<FrontendAddr, Arc<Frontend>> {
        &self.held.frontends
    }

    /// The part of `desired` that the maps can hold, in the very form in which it is read back, and what is
    /// left out. Backends that are down are left out in silence: to the programs they are gone.
    pub fn project(&mut self, desired: &ServiceTable) -> (ServiceTable, Vec<Unsupported>) {
        if self.asked.nodes != desired.nodes || self.asked.local != desired.local {
            self.held.nodes = nodes(&desired.nodes);
            self.held.local.clone_from(&desired.local);
            // Which backends are on a node that is known follows from the names alone.
            if !self.asked.nodes.keys().eq(desired.nodes.keys()) || self.asked.local != desired.local {
                self.asked.frontends = SharedMap::default();
                self.held.frontends = SharedMap::default();
                self.others.clear();
            }
        }
        // If all can be held, there is one map and no copy of it.
        let alike = self.others.is_empty();
        let asked = std::mem::replace(&mut self.asked, desired.clone());
        if alike {
            self.held.frontends = desired.frontends.clone();
        }
        for (at, _, frontend) in differences(&asked.frontends, &desired.frontends) {
            self.others.remove(at);
            let Some(frontend) = frontend else {
                self.held.frontends.remove(at);
                continue;
            };
            let answer = self.answer(at, frontend);
            match &answer.held {
                Some(held) if Arc::ptr_eq(held, frontend) => {
                    if !alike {
                        self.held.frontends.insert(*at, Arc::clone(held));
                    }
                    continue;
                }
                Some(held) => drop(self.held.frontends.insert(*at, Arc::clone(held))),
                None => drop(self.held.frontends.remove(at)),
            }
            self.others.insert(*at, answer);
        }
        if self.others.is_empty() {
            self.held.frontends = desired.frontends.clone();
        }
        let lacks = |(at, answer): (&FrontendAddr, &Answer)| {
            let frontend = *at;
            let what = answer.lacks.clone().into_iter();
            what.map(move |what| Unsupported { frontend, what }).collect::<Vec<_>>()
        };
        (self.held.clone(), self.others.iter().flat_map(lacks).collect())
    }

    fn answer(&self, at: &FrontendAddr, asked: &Arc<Frontend>) -> Answer {
        let table = &self.held;
        let known = |name: &NodeName| table.nodes.contains_key(name) || table.local.as_ref() == Some(name);
        let mut lacks = Vec::new();
        let why = if encode::key(at).is_none() { Some(why_no_key(at)) } else { why_not_sctp(at, asked) };
        let held = match why {
            Some(why) => {
                lacks.push(why);
                None
            }
            None => {
                let held = held(at, asked, known, &mut lacks);
                // One copy is enough.
                Some(if held == **asked { Arc::clone(asked) } else { Arc::new(held) })
            }
        };
        Answer { held, lacks }
    }
}

/// What of a frontend can be held.
fn held(
    at: &FrontendAddr,
    frontend: &Frontend,
    known: impl Fn(&NodeName) -> bool,
    lacks: &mut Vec<String>,
) -> Frontend {
    let backends = backends(at, frontend, known, &mut |what| lacks.push(what));
    let outside = frontend.outside.as_ref().map(|outside| match outside {
        Outside::Cluster => Outside::Cluster,
        Outside::Local { backends: local, refusal } => {
            let there = |at: &(IpAddr, u16)| backends.iter().any(|backend| (backend.ip, backend.port) == *at);
            let backends = local.iter().copied().filter(there).collect();
            Outside::Local { backends, refusal: *refusal }
        }
    });
    let sources = frontend.sources.as_ref().map(|sources| {
        // Ranges of the other family match no client of this one.
        let same = sources.iter().filter(|range| range.is_ipv4() == at.ip.is_ipv4() && storable(&range.ip()));
        same.filter_map(|range| IpNetwork::new(range.network(), range.prefix()).ok()).collect()
    });
    Frontend {
        name: name(&frontend.name),
        refusal: frontend.refusal,
        outside,
        affinity: frontend.affinity.filter(|seconds| *seconds > 0),
        sources,
        backends,
    }
}

/// The check sum of an SCTP packet (RFC 9260 section 6.8) is over its ports, not over its addresses: only those can be
/// translated without a new one.
fn why_not_sctp(at: &FrontendAddr, frontend: &Frontend) -> Option<String> {
    let (PortMatch::Port(port), ProtoMatch::Proto(Protocol::Sctp)) = (at.port, at.proto) else { return None };
    let down = |backend: &&Backend| backend.state != BackendState::Down;
    let other = frontend.backends.iter().filter(down).find(|backend| backend.port != port)?;
    Some(format!(
        "sctp is supported by --mode ebpf only where the target port is the same: {} is not {port} (the kernel helps \
         with no check sum over sctp ports)",
        other.port
    ))
}

fn why_no_key(at: &FrontendAddr) -> String {
    match (at.port, at.proto) {
        _ if at.net.0 != 0 => "networks other than the node's own are not supported by --mode ebpf".into(),
        (PortMatch::Any, _) | (_, ProtoMatch::Any) => {
            "all ports or protocols at once are not supported by --mode ebpf".into()
        }
        (PortMatch::Port(0), _) => "port 0 is none".into(),
        _ => "an IPv4-mapped IPv6 address never stands in a packet".into(),
    }
}

/// At most [`NAME_MAX`] bytes, and never empty: that is the mark of a frontend that must be written anew.
fn name(name: &str) -> String {
    let mut name = name.replace('\0', "?");
    name.truncate(name.floor_char_boundary(NAME_MAX));
    if name.is_empty() { "?".into() } else { name }
}

/// The mapped form of an IPv4 address is that IPv4 address to the maps.
fn storable(ip: &IpAddr) -> bool {
    !matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Nodes as they can be told apart: an address belongs to the first that names it.
fn nodes(desired: &SharedMap<NodeName, ServiceNode>) -> SharedMap<NodeName, ServiceNode> {
    let mut taken = BTreeSet::new();
    let mut ranges = BTreeSet::new();
    let fits = |name: &NodeName| !name.0.is_empty() && name.0.len() <= NAME_MAX && !name.0.contains('\0');
    let nodes = desired.iter().filter(|(name, _)| fits(name)).map(|(name, node)| {
        let mut node = node.clone();
        node.addresses.retain(|ip| storable(ip) && taken.insert(*ip));
        node.node_ports.retain(|ip| node.addresses.contains(ip));
        node.underlay = node.underlay.filter(storable);
        node.overlay.retain(|ip| storable(ip) && taken.insert(*ip));
        node.ranges
            .retain(|range| storable(&range.ip()) && range.ip() == range.network() && ranges.insert(*range));
        (name.clone(), node)
    });
    nodes.collect()
}

fn backends(
    at: &FrontendAddr,
    frontend: &Frontend,
    known: impl Fn(&NodeName) -> bool,
    refuse: &mut impl FnMut(String),
) -> BTreeSet<Backend> {
    let mut kept: BTreeMap<(IpAddr, u16), Backend> = BTreeMap::new();
    for backend in frontend.backends.iter().filter(|backend| backend.state != BackendState::Down) {
        let what = if ProtoMatch::Proto(backend.proto) != at.proto {
            "another protocol than its frontend's"
        } else if backend.ip.is_ipv4() != at.ip.is_ipv4() {
            "an address of another family than its frontend's"
        } else if backend.port == 0 || !storable(&backend.ip) || backend.ip.is_unspecified() {
            "an address or port that no packet can have"
        } else {
            let node = backend.node.clone().filter(&known);
            let backend = Backend { node, ..backend.clone() };
            let first = kept.entry((backend.ip, backend.port)).or_insert_with(|| backend.clone());
            // Named twice, it is as alive as the liveliest says.
            if backend.state < first.state {
                *first = backend;
            }
            continue;
        };
        refuse(format!("backend {}: {what} is not supported by --mode ebpf", backend.ip));
    }
    // Of two with one hash, only the first can be found outside a ring, as one that drains must be. It
    // happens once in four thousand million pairs.
    let mut hashes = BTreeSet::new();
    let hash = |b: &Backend| element(b.ip, b.port, b.proto, 0).hash;
    kept.into_values().filter(|b| hashes.insert(hash(b)) || is_named(frontend, b)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use heddle_model::NetId;

    use super::*;

    fn project(table: &ServiceTable) -> (ServiceTable, Vec<Unsupported>) {
        Projector::default().project(table)
    }

    fn backend(ip: &str, port: u16, proto: Protocol, state: BackendState) -> Backend {
        Backend { ip: ip.parse().unwrap(), port, proto, node: Some(NodeName("gone".into())), state }
    }

    #[test]
    fn what_cannot_be_held_is_left_out_and_named() {
        let at = FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let backends = [
            backend("10.244.1.2", 80, Protocol::Tcp, BackendState::Active),
            backend("10.244.1.2", 80, Protocol::Tcp, BackendState::Draining),
            backend("10.244.1.3", 80, Protocol::Tcp, BackendState::Down),
            backend("10.244.1.4", 80, Protocol::Udp, BackendState::Active),
            backend("fd00::1", 80, Protocol::Tcp, BackendState::Active),
            backend("10.244.1.5", 0, Protocol::Tcp, BackendState::Active),
        ];
        let frontend = Frontend { name: "a/b:c".into(), backends: backends.into(), ..Frontend::default() };
        let sctp = FrontendAddr::new([10, 96, 0, 1].into(), 81, Protocol::Sctp);
        let other = FrontendAddr { net: NetId(7), ..at };
        let frontend = Arc::new(frontend);
        let frontends = [(at, frontend.clone()), (sctp, frontend.clone()), (other, frontend)];
        let desired = ServiceTable { frontends: frontends.into(), ..Default::default() };
        let (held, unsupported) = project(&desired);
        let wanted = Backend { node: None, ..backend("10.244.1.2", 80, Protocol::Tcp, BackendState::Active) };
        assert_eq!(held.frontends.keys().collect::<Vec<_>>(), [&at]);
        assert_eq!(held.frontends[&at].backends, [wanted].into());
        let lines: Vec<String> = unsupported.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "frontend 10.96.0.1:80/tcp: backend 10.244.1.4: another protocol than its frontend's is not supported by --mode ebpf",
                "frontend 10.96.0.1:80/tcp: backend 10.244.1.5: an address or port that no packet can have is not supported by --mode ebpf",
                "frontend 10.96.0.1:80/tcp: backend fd00::1: an address of another family than its frontend's is not supported by --mode ebpf",
                "frontend 10.96.0.1:81/sctp: sctp is supported by --mode ebpf only where the target port is the same: 80 is not 81 (the kernel helps with no check sum over sctp ports)",
                "frontend 10.96.0.1:80/tcp: networks other than the node's own are not supported by --mode ebpf",
            ]
        );
        assert_eq!(project(&held), (held, Vec::new()), "what is held is held");
    }

    #[test]
    fn an_address_belongs_to_one_node() {
        let node = |overlay: &str| ServiceNode {
            addresses: [IpAddr::from([192, 168, 77, 1])].into(),
            overlay: [overlay.parse().unwrap()].into(),
            ..ServiceNode::default()
        };
        let nodes = [("a", node("10.244.1.0")), ("b", node("10.244.2.0"))];
        let nodes = nodes.map(|(name, node)| (NodeName(name.into()), node));
        let desired = ServiceTable { nodes: nodes.into(), ..Default::default() };
        let (held, _) = project(&desired);
        assert!(held.nodes[&NodeName("b".into())].addresses.is_empty());
        assert_eq!(held.nodes[&NodeName("b".into())].overlay.len(), 1);
    }

    #[test]
    fn names_fit_and_are_never_empty() {
        assert_eq!(name(""), "?");
        assert_eq!(name(&"é".repeat(200)).len(), 254);
        assert!(storable(&Ipv6Addr::LOCALHOST.into()) && !storable(&"::ffff:1.2.3.4".parse().unwrap()));
    }
}
