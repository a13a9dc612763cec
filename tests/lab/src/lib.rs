//! The Lab: nodes, pods and outside clients on one machine, real packets, real programs.
//!
//! A [`Lab`] is a handful of network namespaces, one for every node, pod and client, and one for the switch
//! between the nodes. A node also has its own mount namespace (its own `/run`, `/var/lib`, `/etc/cni/net.d`,
//! `/sys/fs/bpf`), its own cgroup as `/sys/fs/cgroup`, and its own processes, so that the programs under test
//! run on it as on a real machine. Nothing of it has a name outside: labs run side by side, and whatever
//! becomes of the process that built one, nothing of it stays behind.
//!
//! ```no_run
//! # fn main() -> heddle_lab::Result<()> {
//! let lab = heddle_lab::Lab::builder().nodes(3).build()?;
//! lab.node(1).run("ping -c1 192.168.77.2")?;
//! lab.switch().cut("n2")?;
//! # Ok(()) }
//! ```
//!
//! It wants root, and `ip` and `nft` in PATH.

pub mod addresses;
mod bin;
mod builder;
mod cgroup;
mod cluster;
mod cmd;
mod cni;
mod confine;
mod daemon;
pub mod description;
mod driver;
mod error;
mod filesystem;
mod firewall;
mod lab;
pub mod manifests;
mod namespace;
mod node;
pub mod oracle;
mod owner;
mod place;
mod pod;
mod process;
mod spawner;
mod switch;
mod tools;
pub mod trace;
pub mod traffic;
pub mod usage;

pub use bin::{bin, bin_dir};
pub use builder::{Builder, Families};
pub use cgroup::Cgroup;
pub use cluster::{Backend, Cluster, Plan, eventually};
pub use cmd::Cmd;
pub use cni::CniResult;
pub use confine::{Capability, shipped};
pub use daemon::{READY_LIMIT, await_ready};
pub use error::{Error, Result, skip};
pub use firewall::Firewall;
pub use lab::Lab;
pub use manifests::{Condition, Endpoint, Manifests, Proto, Service};
pub use namespace::NetNs;
pub use node::{Client, Node};
pub use oracle::{Snapshot, Watch};
pub use owner::{patient, remains};
pub use place::{Place, RUN_LIMIT};
pub use pod::Pod;
pub use process::{Output, Process};
pub use switch::Switch;
pub use traffic::{Ask, Load, Reply, Report, Running, Server};
