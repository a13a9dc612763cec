//! Sources of desired state. A source owns its slice of the store and says "synced" once.
//!
//! - [`manifests`]: a directory of Kubernetes manifests, watched.
//! - [`host_ports`]: what pods of this node publish, as the CNI plugin `heddle` has noted it.
//! - [`kubernetes`]: what Kubernetes objects mean in the words of the model. Those words end here.
#![forbid(unsafe_code)]

mod directory;
pub mod host_ports;
pub mod kubernetes;
pub mod manifests;
pub mod source;
mod tree;
mod watch;

pub use host_ports::HostPorts;
pub use source::{Source, Spec};
