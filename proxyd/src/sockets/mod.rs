//! Sockets that hold on to a backend that is gone.
//!
//! A socket hook gives a connection its backend once; its packets then name the backend itself and meet no service
//! any more. When the backend is removed the socket must end: a TCP connection by a RST, a connected UDP socket by
//! an error of its next call, after which the application asks anew. The kernel ends sockets only from inside
//! their network namespace, and to enter those of pods takes more rights than all else that proxyd does. So this is
//! a program of its own, `proxyd-sockets`, which can do that and nothing else:
//!
//! ```text
//! proxyd: Sweeper  - which sockets (cookies) have which backend, that no service has any more -> proxyd-sockets
//! ```
//!
//! What is stale is read from the maps and never remembered, so that it does not matter who was dead when a backend
//! went: a socket is stale if the hook has noted it (`sock_rev`) with a service's address and a backend that this
//! service does not have, or one on a node that is down. A backend that merely drains is one that it has.
//! Sockets are named by their cookies, which are never given twice, so no pod that gets the address of another can be
//! confused with it; who has a socket of no service, or one that is not connected, is never touched.

pub mod ask;
pub mod cli;
mod destroy;
mod places;
mod protocol;
pub mod serve;
mod stale;
mod sweep;

use std::path::{Path, PathBuf};

pub use protocol::{Answer, Gone, Transport};
pub use sweep::Sweeper;

use crate::notices::Notices;

/// The name of the program.
pub const PROGRAM: &str = "proxyd-sockets";

/// The helper as proxyd knows it.
#[derive(Clone, Debug)]
pub struct Helper {
    /// Where it listens, or will.
    pub path: PathBuf,
    /// Where it is said that it is missed.
    pub notices: Notices,
}

/// Where it listens, below the run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(PROGRAM).with_extension("sock")
}
