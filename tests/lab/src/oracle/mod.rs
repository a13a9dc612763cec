//! What must be true after every test, whatever it was about.
//!
//! - **leaks**: [`Snapshot`] of everything that the network of a lab consists of, and of this machine;
//! - **traffic**: [`Report::assert_clean`](crate::Report::assert_clean);
//! - **convergence**: [`converges`] to what a pure function says, and then [`Watch`] sees no more writes.

pub(crate) mod bpf;
mod convergence;
mod snapshot;
mod watch;

pub use bpf::{BpfObjects, bpf_objects};
pub use convergence::converges;
pub use snapshot::Snapshot;
pub use watch::Watch;
