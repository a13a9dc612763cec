//! What `proxyd explain` says.

use std::net::IpAddr;

use serde::Serialize;

use super::Destination;

/// The answer, for programs; [`text`](super::text) is for people.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub client: Client,
    /// `10.96.0.1:80/tcp`.
    pub asked: String,
    pub verdict: Verdict,
    pub frontend: Option<FrontendFound>,
    /// Why the backend is the one that it is: `random`, `clientHash`, `addressHash`, `affinity`.
    pub by: Option<&'static str>,
    /// `socket`: once, when the connection is made; `packets`: each packet.
    pub translated_by: Option<&'static str>,
    /// Every backend of the frontend.
    pub candidates: Vec<Candidate>,
    /// The flow that there is already from the client's port.
    pub flow: Option<FlowFound>,
    /// Ports that the address has, where the one that was asked for is none of them.
    pub ports: Vec<String>,
    /// In words.
    pub why: Vec<String>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// A new flow to one of the candidates.
    Backend,
    /// A flow that there is goes on.
    Flow,
    /// The client learns at once that there is nobody.
    Reject,
    Drop,
    /// Nothing of ours: the stack goes on with it.
    NotAService,
}

/// Who asks.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// `None`: any of this node's.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub place: Place,
    /// The node that it is or is on.
    pub node: Option<String>,
    /// The host side of its interface.
    pub device: Option<String>,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A process of this node.
    Host,
    /// A pod of this node.
    Pod,
    /// A process, a pod of another node.
    OtherNode,
    OtherPod,
    /// Outside the cluster.
    Outside,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendFound {
    /// `namespace/name:port`.
    pub name: String,
    /// Reached from outside.
    pub external: bool,
    /// externalTrafficPolicy Local.
    pub local: bool,
    /// Only some clients may use it.
    pub sources: bool,
    /// Session affinity, in seconds.
    pub affinity: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub address: String,
    /// `active` or `draining`.
    pub state: &'static str,
    pub node: Option<String>,
    /// The part of new flows that it gets, 0 to 1.
    pub share: f64,
    /// Why it gets none.
    pub why_not: Option<&'static str>,
    /// How this node would send packets there: `pod`, `hairpin`, `host`, `overlay`, `tunnel`, `dsr`, `snat`,
    /// `snat (overlay)`.
    pub way: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowFound {
    /// `None`: it is gone.
    pub backend: Option<String>,
    pub answered: bool,
    /// Its backend is gone.
    pub stale: bool,
    /// Since the last packet.
    pub idle_seconds: u64,
}

impl Answer {
    pub(super) fn new(client: Client, to: Destination) -> Self {
        let port = to.port.map_or_else(String::new, |port| format!(":{port}"));
        let ip = match to.ip {
            IpAddr::V6(ip) if to.port.is_some() => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        Self {
            client,
            asked: format!("{ip}{port}/{}", to.proto),
            verdict: Verdict::NotAService,
            frontend: None,
            by: None,
            translated_by: None,
            candidates: Vec::new(),
            flow: None,
            ports: Vec::new(),
            why: Vec::new(),
        }
    }

    pub(super) fn say(&mut self, why: String) {
        self.why.push(why);
    }
}
