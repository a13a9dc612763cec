//! The frontends of one service, as if it were alone but for the addresses that others have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::addr::FrontendAddr;
use crate::cluster::{Created, Endpoints, Service, ServicePort, TrafficPolicy};
use crate::problem::{Object, Problem, What};
use crate::service::{Frontend, Outside};

use super::Context;
use super::endpoints::Pool;
use super::holders::{self, Kind};
use super::policy::Answers;
use super::topology::Near;

/// What a service asks of this node.
#[derive(Debug, Default)]
pub struct Asked {
    pub created: Created,
    /// In order.
    pub frontends: Box<[(FrontendAddr, Arc<Frontend>)]>,
    pub problems: Box<[Problem]>,
}

impl Asked {
    pub fn get(&self, at: &FrontendAddr) -> Option<&Arc<Frontend>> {
        let place = self.frontends.binary_search_by_key(at, |(at, _)| *at).ok()?;
        Some(&self.frontends[place].1)
    }
}

/// How a frontend is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    At(Kind),
    AtNodes,
}

/// `before`: what it asked last time; a frontend that is the same is the very same.
pub fn asked<'a>(
    service: &Service,
    lists: impl Iterator<Item = &'a Endpoints>,
    context: &Context<'a>,
    before: Option<&Asked>,
) -> Asked {
    let mut problems = Vec::new();
    let mut say = |what| problems.push(Problem::new(Object::Service(service.name.clone()), what));
    service.refused.iter().for_each(|what| say(What::Said(what.clone())));
    let addresses = addresses(service, context, &mut say);
    let pool = Pool::new(service, lists, context, &mut problems);
    let mut frontends: BTreeMap<FrontendAddr, Arc<Frontend>> = BTreeMap::new();
    let mut ports: Vec<&ServicePort> = service.ports.iter().collect();
    ports.sort();
    for port in ports {
        for v4 in [true, false] {
            let here = addresses.iter().filter(|(ip, _)| ip.is_ipv4() == v4);
            let mut met: Vec<_> = here.map(|(ip, kind)| (*ip, port.port, Met::At(*kind))).collect();
            if let Some(number) = port.node_port.filter(|_| has(service, v4)) {
                let any: IpAddr =
                    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                met.push((any, number, Met::AtNodes));
            }
            if met.is_empty() {
                continue;
            }
            let candidates = pool.candidates(port, v4);
            let near = Near::of(&candidates, service.distribution, context.local, context.nodes);
            let answers = Answers { proto: port.proto, candidates, near, local: context.local };
            for (ip, number, met) in met {
                let at = FrontendAddr::new(ip, number, port.proto);
                if frontends.contains_key(&at) {
                    let what = What::Conflict { frontend: at, winner: service.name.clone() };
                    problems.push(Problem::new(Object::Service(service.name.clone()), what));
                    continue;
                }
                let frontend = frontend(service, port, v4, met, &answers, context);
                let same = before.and_then(|before| before.get(&at)).filter(|old| ***old == frontend);
                frontends.insert(at, same.map_or_else(|| Arc::new(frontend), Arc::clone));
            }
        }
    }
    Asked {
        created: service.created,
        frontends: frontends.into_iter().collect(),
        problems: problems.into_boxed_slice(),
    }
}

const fn has(service: &Service, v4: bool) -> bool {
    if v4 { service.families.v4 } else { service.families.v6 }
}

/// Those of its addresses that it has.
fn addresses(service: &Service, context: &Context<'_>, say: &mut impl FnMut(What)) -> Vec<(IpAddr, Kind)> {
    let mut kept = Vec::new();
    for (ip, kind) in holders::named(service) {
        let refused = holders::refused(ip, kind, context.nodes, context.rules)
            .or_else(|| context.holders.refuse(ip, kind, &service.name));
        match refused {
            Some(what) => say(what),
            // The address of its load balancer, where the ranges of sources count.
            None if kind == Kind::External && kept.contains(&(ip, Kind::Balancer)) => {}
            None => kept.push((ip, kind)),
        }
    }
    if let Some(ranges) = &service.source_ranges {
        for (ip, _) in kept.iter().filter(|(_, kind)| *kind == Kind::Balancer) {
            if !ranges.iter().any(|range| range.is_ipv4() == ip.is_ipv4()) {
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                say(What::Said(format!(
                    "nobody is admitted at {ip}: loadBalancerSourceRanges has no range of {family}"
                )));
            }
        }
    }
    kept
}

fn frontend(
    service: &Service,
    port: &ServicePort,
    v4: bool,
    met: Met,
    answers: &Answers<'_>,
    context: &Context<'_>,
) -> Frontend {
    let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
    // A pod or a node that uses an address of the outside is no client from outside: what `externalTrafficPolicy`
    // wants, the client's address, it has anyway. And `internalTrafficPolicy` is for ClusterIPs.
    let (backends, refusal) = match (met, service.internal_policy) {
        (Met::At(Kind::Cluster), TrafficPolicy::Local) => answers.local(),
        _ => answers.cluster(context.nodes),
    };
    let outside = match (met, service.external_policy) {
        (Met::At(Kind::Cluster), _) => None,
        (_, TrafficPolicy::Cluster) => Some(Outside::Cluster),
        (_, TrafficPolicy::Local) => Some(answers.local_outside()),
    };
    let of_family = |ranges: &std::collections::BTreeSet<IpNetwork>| {
        ranges.iter().copied().filter(|range| range.is_ipv4() == v4).collect()
    };
    let sources = service.source_ranges.as_ref().filter(|_| met == Met::At(Kind::Balancer)).map(of_family);
    Frontend {
        name: format!("{}:{label}", service.name),
        backends,
        refusal,
        outside,
        affinity: service.affinity,
        sources,
    }
}
