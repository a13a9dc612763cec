//! What a node must do, as plain data, and how it follows from what the cluster says.
//!
//! Nothing here does I/O, waits, reads a clock or knows the kernel: every function is a function of
//! its arguments. [`resolve`](service) turns the cluster's objects into the two tables of this node,
//! [`ServiceTable`] and [`OverlayTable`]; `diff` turns two tables into a plan.
#![forbid(unsafe_code)]

pub mod addr;
pub mod node;
pub mod service;

pub use addr::{FrontendAddr, NetId, PortMatch, ProtoMatch, Protocol};
pub use node::{Mac, Node, NodeName, OverlayTable, RemoteNode};
pub use service::{Backend, BackendState, Frontend, ServiceNode, ServiceTable};
