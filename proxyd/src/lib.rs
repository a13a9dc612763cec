//! The service proxy and routing mesh: every service address reaches a living backend, from every node.
//!
//! A [`dataplane::Dataplane`] is a kernel mechanism that can do that; the rest of this crate makes one
//! follow the cluster.
// `forbid` everywhere but in `ebpf`, which allows it for itself.
#![deny(unsafe_code)]

pub mod cli;
pub mod ctl;
pub mod dataplane;
pub mod devices;
pub mod ebpf;
mod events;
#[cfg(test)]
mod fake;
pub mod health;
pub mod http;
pub mod leftovers;
#[cfg(test)]
mod loop_tests;
pub mod metrics;
pub mod notices;
pub mod report;
pub mod run;
pub mod seeing;
pub mod sockets;
pub mod target;
pub mod wall_clock;
pub mod worker;
