//! A real Kubernetes, in the Lab: etcd, API server, controller manager, scheduler, kubelets and containerd, as they are
//! released, on network namespaces of this machine.
//!
//! The programs are built from Go modules by `./x test --kubernetes` (tests/kubernetes/programs).
#![forbid(unsafe_code)]

pub mod api;
pub mod checks;
pub mod cluster;
pub mod control_plane;
pub mod deploy;
pub mod dns;
mod error;
pub mod fault_proxy;
pub mod kubeconfig;
pub mod node;
pub mod pki;
pub mod pods;
pub mod programs;
pub mod reference;

pub use api::Api;
pub use cluster::Cluster;
pub use control_plane::{ControlPlane, Options};
pub use error::{Error, Result};
pub use node::KubeNode;
pub use programs::program;
