//! Real container runtimes, in the Lab, that call the CNI plugin.
//!
//! A runtime is other people's program: containerd, driven over the CRI as kubelet drives it, and podman. `./x`
//! fetches Debian's packages into target/runtime and installs nothing; each test starts a runtime of its own on
//! a node of the Lab, with its own root, state, socket and configuration, and with an image made of one static
//! program of ours. A containerd that the machine runs is never met.
#![forbid(unsafe_code)]

pub mod containerd;
pub mod cri;
mod error;
mod etc;
pub mod image;
mod plugins;
pub mod pod;
pub mod podman;
mod programs;

pub use containerd::Containerd;
pub use error::{Error, Result};
pub use pod::{Plan, Pod};
pub use podman::Podman;
pub use programs::program;
