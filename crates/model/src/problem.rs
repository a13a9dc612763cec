//! What is wrong with an object, for people. A problem never stops the rest: the object it names is left
//! out, as little of it as possible, and everything else stands.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::addr::FrontendAddr;
use crate::cluster::{EndpointsName, ServiceName};
use crate::node::NodeName;

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Object {
    Node(NodeName),
    Service(ServiceName),
    Endpoints(EndpointsName),
    /// A place in what a source reads, as the source names it (`services.yaml:12:3`).
    Input(String),
    /// A part of what this node does.
    Frontend(FrontendAddr),
    /// The ranges that the configuration keeps for services.
    ServiceRanges,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Endpoints(name) => write!(f, "endpoints {name}"),
            Self::Input(place) => f.write_str(place),
            Self::Frontend(at) => write!(f, "frontend {at}"),
            Self::ServiceRanges => f.write_str("the service ranges"),
        }
    }
}

/// An object and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    pub object: Object,
    pub what: What,
}

impl Problem {
    pub const fn new(object: Object, what: What) -> Self {
        Self { object, what }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.what)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// An address that nothing may be sent to or claim: loopback, link-local, multicast, ...
    Hostile { address: IpAddr, kind: &'static str },
    /// A pod range that is no range of pods: too wide, or of addresses that cannot be used.
    BadRange { range: IpNetwork, why: &'static str },
    /// A second pod range of one family.
    SecondRange { range: IpNetwork },
    /// A pod range that overlaps what another object had first.
    Overlap { range: IpNetwork, with: IpNetwork, of: Box<Object> },
    /// An address that another object had first.
    Taken { address: IpAddr, by: Box<Object> },
    /// An external address that the configuration does not allow.
    NotAllowed { address: IpAddr },
    /// A frontend that another service had first.
    Conflict { frontend: FrontendAddr, winner: ServiceName },
    /// The node has no address of the family that the overlay runs over.
    NoUnderlayAddress { family: &'static str },
    /// Two sources, or two files, describe one object; what the `loser` says of it does not count.
    Duplicate { loser: String, winner: String },
    /// In a source's or a dataplane's own words.
    Said(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostile { address, kind } => write!(f, "address {address} refused: {kind}"),
            Self::BadRange { range, why } => write!(f, "pod range {range} refused: {why}"),
            Self::SecondRange { range } => {
                write!(f, "pod range {range} ignored: the node has one of this family already")
            }
            Self::Overlap { range, with, of } => {
                write!(f, "pod range {range} refused: it overlaps {with} of {of}")
            }
            Self::Taken { address, by } => write!(f, "address {address} refused: it belongs to {by}"),
            Self::NotAllowed { address } => {
                write!(f, "external address {address} refused: no range of --external-range holds it")
            }
            Self::Conflict { frontend, winner } => {
                write!(f, "frontend {frontend} refused: it belongs to service {winner}, which had it first")
            }
            Self::NoUnderlayAddress { family } => {
                write!(
                    f,
                    "not reached by the overlay: the node has no {family} address, and the overlay runs over {family}"
                )
            }
            Self::Duplicate { loser, winner } => {
                write!(f, "{loser} ignored: {winner} describes the same object")
            }
            Self::Said(text) => f.write_str(text),
        }
    }
}
