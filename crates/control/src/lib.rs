//! Sources of desired state. A source owns its slice of the store and says "synced" once.
//!
//! - [`manifests`]: a directory of Kubernetes manifests, watched.
//! - [`kubernetes`]: what Kubernetes objects mean in the words of the model. Those words end here.
#![forbid(unsafe_code)]

pub mod kubernetes;
pub mod manifests;
pub mod source;
mod tree;

pub use source::{Source, Spec};
