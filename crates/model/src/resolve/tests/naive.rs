//! The rules once more, in the plainest words, slowly: what [`services`] says must be this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::resolve::{Nodes, Rules};
use crate::*;

/// Who takes new flows, who keeps old ones, what else happens; of one frontend.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    pub active: BTreeSet<(IpAddr, u16)>,
    pub known: BTreeSet<(IpAddr, u16)>,
    pub refusal: Refusal,
    pub outside: Option<(BTreeSet<(IpAddr, u16)>, Refusal)>,
    pub affinity: Option<u32>,
    pub sources: Option<BTreeSet<String>>,
}

/// An endpoint, with everything that is known of it.
#[derive(Clone)]
struct End {
    at: (IpAddr, u16),
    /// 0: ready, 1: ending, 2: deaf.
    life: u8,
    node: Option<String>,
    zone: Option<String>,
    home: Option<String>,
    for_zones: BTreeSet<String>,
    for_nodes: BTreeSet<String>,
}

pub fn meanings(snapshot: &Snapshot, local: &NodeName, rules: &Rules) -> BTreeMap<FrontendAddr, Meaning> {
    let nodes = Nodes::seen_from(snapshot, local, rules);
    let mut by_age: Vec<&Service> = snapshot.services.values().map(AsRef::as_ref).collect();
    by_age.sort_by_key(|service| (service.created, &service.name));
    let mut all = BTreeMap::new();
    for service in by_age {
        let mut ports = service.ports.clone();
        ports.sort();
        for port in ports {
            let mut met = Vec::new();
            for ip in &service.addresses {
                if free(*ip, &nodes) {
                    met.push((*ip, port.port, 'c'));
                }
            }
            for ip in &service.balancer_ips {
                if free(*ip, &nodes) && !in_service_range(*ip, rules) && !is_cluster_ip(*ip, snapshot) {
                    met.push((*ip, port.port, 'b'));
                }
            }
            for ip in &service.external_ips {
                let allowed = rules.external_ranges.iter().any(|range| range.contains(*ip));
                let balanced = snapshot.services.values().any(|other| other.balancer_ips.contains(ip));
                if allowed
                    && free(*ip, &nodes)
                    && !in_service_range(*ip, rules)
                    && !is_cluster_ip(*ip, snapshot)
                    && !balanced
                {
                    met.push((*ip, port.port, 'e'));
                }
            }
            for (has, any) in [(service.families.v4, "0.0.0.0"), (service.families.v6, "::")] {
                if let Some(number) = port.node_port.filter(|_| has) {
                    met.push((any.parse().unwrap(), number, 'n'));
                }
            }
            for (ip, number, kind) in met {
                let at = FrontendAddr::new(ip, number, port.proto);
                all.entry(at).or_insert_with(|| {
                    meaning(service, &port, ip.is_ipv4(), kind, snapshot, local, rules, &nodes)
                });
            }
        }
    }
    all
}

fn free(ip: IpAddr, nodes: &Nodes) -> bool {
    subnet::hostile(ip).is_none() && nodes.owner(ip).is_none()
}

fn in_service_range(ip: IpAddr, rules: &Rules) -> bool {
    rules.service_ranges.iter().any(|range| range.contains(ip))
}

fn is_cluster_ip(ip: IpAddr, snapshot: &Snapshot) -> bool {
    snapshot.services.values().any(|service| service.addresses.contains(&ip))
}

/// Whether a service answers at this address, which is no node's.
fn answers(ip: IpAddr, snapshot: &Snapshot, rules: &Rules) -> bool {
    let external = |service: &Service| {
        service.balancer_ips.contains(&ip)
            || service.external_ips.contains(&ip)
                && rules.external_ranges.iter().any(|range| range.contains(ip))
    };
    is_cluster_ip(ip, snapshot)
        || !in_service_range(ip, rules) && snapshot.services.values().any(|service| external(service))
}

fn ends(
    service: &Service,
    port: &ServicePort,
    v4: bool,
    snapshot: &Snapshot,
    rules: &Rules,
    nodes: &Nodes,
) -> Vec<End> {
    let mut ends: Vec<End> = Vec::new();
    for list in snapshot.endpoints.values().filter(|list| list.name.service == service.name) {
        for number in
            list.ports.iter().filter(|p| p.name == port.name && p.proto == port.proto && p.port != 0)
        {
            for endpoint in &list.endpoints {
                let ip = endpoint.ip;
                let mine = nodes.owner(ip).is_some();
                if ip.is_ipv4() != v4
                    || subnet::hostile(ip).is_some()
                    || !mine && answers(ip, snapshot, rules)
                {
                    continue;
                }
                let life = match (endpoint.serving, endpoint.terminating) {
                    _ if service.publish_not_ready => 0,
                    (true, false) => 0,
                    (true, true) => 1,
                    _ => 2,
                };
                let node = nodes.owner(ip).map(|node| node.0.to_string());
                ends.push(End {
                    at: (ip, number.port),
                    life,
                    home: node.clone().or_else(|| endpoint.node.as_ref().map(|node| node.0.to_string())),
                    node,
                    zone: endpoint.zone.as_deref().map(str::to_owned),
                    for_zones: endpoint
                        .hints
                        .iter()
                        .flat_map(|hints| &hints.zones)
                        .map(ToString::to_string)
                        .collect(),
                    for_nodes: endpoint
                        .hints
                        .iter()
                        .flat_map(|hints| &hints.nodes)
                        .map(ToString::to_string)
                        .collect(),
                });
            }
        }
    }
    // The more alive counts; of equals, what all of them say together.
    let mut merged: BTreeMap<(IpAddr, u16), End> = BTreeMap::new();
    for end in ends {
        match merged.get_mut(&end.at) {
            Some(known) if known.life < end.life => {}
            Some(known) if known.life == end.life => {
                known.for_zones.extend(end.for_zones);
                known.for_nodes.extend(end.for_nodes);
                known.zone = [known.zone.take(), end.zone].into_iter().flatten().min();
                known.home = [known.home.take(), end.home].into_iter().flatten().min();
            }
            _ => drop(merged.insert(end.at, end)),
        }
    }
    for end in merged.values_mut() {
        let of_node =
            || nodes.accepted.get(&NodeName(end.home.as_deref()?.into()))?.zone.as_deref().map(str::to_owned);
        end.zone = end.zone.clone().or_else(of_node);
    }
    merged.into_values().collect()
}

fn near(ready: &[End], service: &Service, local: &str, zone: Option<&str>) -> Vec<End> {
    let keep =
        |wanted: &dyn Fn(&End) -> bool| ready.iter().filter(|end| wanted(end)).cloned().collect::<Vec<_>>();
    let to_node = keep(&|end| end.for_nodes.contains(local));
    if ready.iter().all(|end| !end.for_nodes.is_empty()) && !to_node.is_empty() {
        return to_node;
    }
    let to_zone = keep(&|end| zone.is_some_and(|zone| end.for_zones.contains(zone)));
    if ready.iter().all(|end| !end.for_zones.is_empty()) && !to_zone.is_empty() {
        return to_zone;
    }
    if ready.iter().any(|end| !end.for_nodes.is_empty() || !end.for_zones.is_empty()) {
        return ready.to_vec();
    }
    let here = keep(&|end| end.home.as_deref() == Some(local));
    let known = ready.iter().all(|end| end.home.is_some());
    if service.distribution == Some(Distribution::SameNode) && known && !here.is_empty() {
        return here;
    }
    let close = keep(&|end| zone.is_some() && end.zone.as_deref() == zone);
    if service.distribution.is_some() && ready.iter().all(|end| end.zone.is_some()) && !close.is_empty() {
        return close;
    }
    ready.to_vec()
}

#[expect(clippy::too_many_arguments, reason = "a restatement: everything that it depends on")]
fn meaning(
    service: &Service,
    port: &ServicePort,
    v4: bool,
    kind: char,
    snapshot: &Snapshot,
    local: &NodeName,
    rules: &Rules,
    nodes: &Nodes,
) -> Meaning {
    let ends = ends(service, port, v4, snapshot, rules, nodes);
    let of = |life: u8, here: bool| -> Vec<End> {
        let those =
            ends.iter().filter(|end| end.life == life && (!here || end.node.as_deref() == Some(&*local.0)));
        those.cloned().collect()
    };
    let somebody = ends.iter().any(|end| end.life < 2);
    let at = |ends: &[End]| ends.iter().map(|end| end.at).collect::<BTreeSet<_>>();
    let best = |here: bool| if of(0, here).is_empty() { of(1, here) } else { of(0, here) };
    let only_here = kind == 'c' && service.internal_policy == TrafficPolicy::Local;
    let zone = nodes.accepted.get(local).and_then(|node| node.zone.as_deref());
    let active = match (only_here, of(0, false).is_empty()) {
        (true, _) => at(&best(true)),
        (false, true) => at(&of(1, false)),
        (false, false) => at(&near(&of(0, false), service, &local.0, zone)),
    };
    let known = ends.iter().filter(|end| !only_here || end.node.as_deref() == Some(&*local.0));
    let silent = if somebody { Refusal::Drop } else { Refusal::Reject };
    let outside =
        (kind != 'c' && service.external_policy == TrafficPolicy::Local).then(|| (at(&best(true)), silent));
    let ranges = service.source_ranges.as_ref().filter(|_| kind == 'b');
    Meaning {
        active,
        known: known.map(|end| end.at).collect(),
        refusal: if only_here { silent } else { Refusal::Reject },
        outside,
        affinity: service.affinity,
        sources: ranges
            .map(|all| all.iter().filter(|r| r.is_ipv4() == v4).map(ToString::to_string).collect()),
    }
}

/// The same, read from a table.
pub fn read(frontend: &Frontend) -> Meaning {
    let at = |of: &dyn Fn(&Backend) -> bool| -> BTreeSet<(IpAddr, u16)> {
        frontend.backends.iter().filter(|b| of(b)).map(|b| (b.ip, b.port)).collect()
    };
    Meaning {
        active: at(&|b| b.state == BackendState::Active),
        known: at(&|_| true),
        refusal: frontend.refusal,
        outside: match &frontend.outside {
            Some(Outside::Local { backends, refusal }) => Some((backends.clone(), *refusal)),
            _ => None,
        },
        affinity: frontend.affinity,
        sources: frontend.sources.as_ref().map(|all| all.iter().map(ToString::to_string).collect()),
    }
}
