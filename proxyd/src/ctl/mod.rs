//! `proxyd status` and `proxyd cleanup`: what the kernel holds, with or without a daemon.

pub mod doctor;
pub mod explain;
mod filter;
pub mod monitor;
mod status;
pub(crate) mod table;

pub use filter::Filter;
pub use status::{Status, status};

use std::path::Path;

use crate::dataplane::Error;
use crate::ebpf;

/// Detaches and unpins everything that proxyd has below `bpf_root`, and what the CNI plugin has attached
/// of it. Connections that are translated packet by packet end; those that were translated at connect go on.
/// True if there was something.
///
/// The caller holds the lock of the running daemon: nothing may write there meanwhile.
pub fn cleanup(bpf_root: &Path) -> Result<bool, Error> {
    ebpf::remove(bpf_root)
}
