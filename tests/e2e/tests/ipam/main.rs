//! `heddle-ipam` as the plugin that calls it meets it, beside the reference `host-local` of the distribution.
//!
//! Every test has a host of its own, which is a network namespace and a directory for leases. Items of the fault
//! catalogue are named by their number.
#![expect(clippy::unwrap_used, reason = "tests")]

mod answers;
mod bench;
mod crowd;
mod limits;
mod reclaim;
mod takeover;
