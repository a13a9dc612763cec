//! What policies, readiness and termination make of those who could answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::addr::Protocol;
use crate::node::NodeName;
use crate::service::{Backend, BackendState, Outside, Refusal};

use super::endpoints::{Candidate, Candidates, Life};
use super::nodes::Nodes;
use super::topology::Near;

/// Those who could answer at a port of a service, of one family.
#[derive(Debug)]
pub struct Answers<'a> {
    pub proto: Protocol,
    pub candidates: Candidates<'a>,
    pub near: Near<'a>,
    pub local: &'a NodeName,
}

impl Answers<'_> {
    /// Clients may go to any node.
    pub fn cluster(&self, nodes: &Nodes) -> (BTreeSet<Backend>, Refusal) {
        (states(self.proto, &self.candidates, |candidate| self.near.takes(candidate, nodes)), Refusal::Reject)
    }

    /// Clients may go nowhere but to this node (`internalTrafficPolicy: Local`).
    pub fn local(&self) -> (BTreeSet<Backend>, Refusal) {
        let mut here = self.candidates.clone();
        here.retain(|_, candidate| candidate.node == Some(self.local));
        (states(self.proto, &here, |_| true), self.refusal())
    }

    /// Clients from outside may go nowhere but to this node (`externalTrafficPolicy: Local`).
    pub fn local_outside(&self) -> Outside {
        let here = |life: Life| -> BTreeSet<(IpAddr, u16)> {
            let those = self
                .candidates
                .iter()
                .filter(|(_, candidate)| candidate.life == life && candidate.node == Some(self.local));
            those.map(|(at, _)| *at).collect()
        };
        let ready = here(Life::Ready);
        let backends = if ready.is_empty() { here(Life::Ending) } else { ready };
        Outside::Local { backends, refusal: self.refusal() }
    }

    /// With nobody here: if there is somebody elsewhere, silence (the client is meant to try another node);
    /// if there is nobody at all, it learns that.
    fn refusal(&self) -> Refusal {
        match self.candidates.values().any(|candidate| candidate.life != Life::Deaf) {
            true => Refusal::Drop,
            false => Refusal::Reject,
        }
    }
}

/// What readiness and termination mean for flows.
///
/// - Ready: takes new flows, if it is near enough; else it keeps those that it has.
/// - Ending: keeps its flows. If nobody is ready, those that end and still serve take the new flows as
///   well, near or far (as Kubernetes does since 1.26, KEP-1669).
/// - Deaf: takes no new flows. A TCP connection to it is between the two of them and runs on; a UDP client
///   cannot notice, so its flow moves at once.
pub fn states(
    proto: Protocol,
    candidates: &Candidates<'_>,
    near: impl Fn(&Candidate<'_>) -> bool,
) -> BTreeSet<Backend> {
    let nobody_is_ready = candidates.values().all(|candidate| candidate.life != Life::Ready);
    let state = |candidate: &Candidate<'_>| match (candidate.life, proto) {
        (Life::Ready, _) if near(candidate) => BackendState::Active,
        (Life::Ending, _) if nobody_is_ready => BackendState::Active,
        (Life::Ready | Life::Ending, _) => BackendState::Draining,
        (Life::Deaf, Protocol::Udp) => BackendState::Down,
        (Life::Deaf, _) => BackendState::Draining,
    };
    let backend = |((ip, port), candidate): (&(IpAddr, u16), &Candidate<'_>)| Backend {
        ip: *ip,
        port: *port,
        proto,
        node: candidate.node.cloned(),
        state: state(candidate),
    };
    candidates.iter().map(backend).collect()
}
