//! The CNI plugin as a container runtime meets it: a program with an environment, an input and an output.
//!
//! Every test has a host of its own, which is a network namespace and a directory for leases; pods are
//! further namespaces, given to the plugin as `/proc/PID/fd/N`. Items of the fault catalogue are named by
//! their number.
#![expect(clippy::unwrap_used, reason = "tests")]

mod addresses;
mod around;
mod bandwidth;
mod bench;
mod bridge;
mod bridge_keys;
mod bridge_vlan;
mod check;
mod documents;
mod hostport;
mod input;
mod ipvlan;
mod masquerade;
mod ptp;
mod raw;
mod reference;
mod sctp;
mod spec;
mod spoof;
mod surroundings;
mod tuning;
