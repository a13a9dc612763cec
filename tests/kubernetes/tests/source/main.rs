//! The source `kubernetes` before the real API server, with a proxy in between that does what networks, load balancers
//! and API servers do on bad days.
//!
//! One API server serves all of these tests, one after the other.

#![expect(clippy::unwrap_used, reason = "what a test needs and has not, fails it")]

mod faults;
mod lists;
mod own_node;
mod storm;
mod trust;
mod world;
