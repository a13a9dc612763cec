//! The programs, packet by packet: packet in, maps, packet out (BPF_PROG_TEST_RUN), for both families.
//!
//! Node 1 is this one. Its pods are 10 and 11; nodes 2 and 3 are others; the client is outside.
#![expect(clippy::unwrap_used, reason = "tests")]

mod affinity;
mod beside;
mod dsr;
mod external;
mod forged;
mod frames;
mod from_pod;
mod host;
mod laws;
mod loopback;
mod malformed;
mod odd;
mod outside;
mod own;
mod policy;
mod reject;
mod sctp;
mod snat;
mod tunnel;
mod undefined;
mod ways;
mod world;
mod xdp;
