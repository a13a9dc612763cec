//! What a node must do, as plain data, and how it follows from what the cluster says.
//!
//! Nothing here does I/O, reads a clock or knows the kernel: every function is a function of its
//! arguments. Sources put the cluster's objects ([`cluster`], [`node`]) into the [`store`];
//! [`resolve`](mod@resolve) turns a snapshot of it into the two tables of this node, [`ServiceTable`] and
//! [`OverlayTable`]; [`diff`](diff()) turns two tables into a [`Plan`]. What is wrong on the way is a
//! [`Problem`].
#![forbid(unsafe_code)]

pub mod addr;
pub mod cluster;
pub mod contact;
pub mod diff;
pub mod host_port;
pub mod node;
pub mod problem;
pub mod resolve;
pub mod service;
pub mod shared_map;
pub mod store;
pub mod subnet;

pub use addr::{FrontendAddr, NetId, PortMatch, ProtoMatch, Protocol};
pub use cluster::{
    Created, Distribution, Endpoint, EndpointPort, Endpoints, EndpointsName, Families, Hints, Service,
    ServiceName, ServicePort, TrafficPolicy,
};
pub use diff::{Effect, Part, Plan, Step, diff};
pub use host_port::HostPort;
pub use node::{Announced, Beside, Mac, Node, NodeName, OverlayTable, RemoteNode, Vtep};
pub use problem::{Object, Problem, What};
pub use service::{Backend, BackendState, Frontend, Outside, Refusal, ServiceNode, ServiceTable};
pub use shared_map::SharedMap;
pub use store::{Slice, Snapshot, Store};
