//! Loads Heddle's eBPF programs, pins them, attaches them, and opens their maps.
//!
//! Everything that must outlive a daemon is pinned under `<bpf root>/heddle/v<LAYOUT_VERSION>/` ([`Pins`]), a
//! directory that only root may enter: `maps/<name>`, `progs/<name>`, `links/<program>-<where>`. A daemon that
//! starts adopts what is there ([`Datapath::open`]) and swaps new programs into the links in place
//! ([`Datapath::attach_tcx`], [`Datapath::attach_cgroup`]): never detach, then attach.
//!
//! The CNI plugin, which runs for milliseconds, attaches the pinned programs to a new veth ([`attach_pod`])
//! without loading anything.

mod attach;
mod error;
mod load;
mod maps;
mod object;
mod pins;
mod pod;
pub mod program;
pub mod sys;

pub use attach::{Attached, PinnedLink};
pub use error::{Error, Result};
pub use load::{Datapath, Opened, Sizes};
pub use maps::Maps;
pub use object::is_embedded;
pub use pins::Pins;
pub use pod::{attach_pod, detach_pod};
pub use program::{SocketHook, TcHook, XdpMode};
pub use sys::grace_period;
