//! Loads Heddle's eBPF programs, pins them, attaches them, and opens their maps.
//!
//! Everything that must outlive a daemon is pinned under `<bpf root>/heddle/v<LAYOUT_VERSION>/` ([`Pins`]), a
//! directory that only root may enter: `maps/<name>`, `progs/<name>`, `links/<program>-<where>`. A daemon that
//! starts adopts what is there ([`Datapath::open`]) and swaps new programs into the links in place
//! ([`Datapath::attach_tcx`], [`Datapath::attach_cgroup`]): never detach, then attach.
//!
//! Where maps of another size or layout are in use, new ones are made and filled beside them, and the links are swapped
//! only then ([`Datapath::take_over`]).
//!
//! The CNI plugin, which runs for milliseconds, attaches the pinned programs to a new veth ([`attach_pod`])
//! without loading anything.

mod attach;
pub mod batch;
mod carry;
mod describe;
mod error;
mod kept;
mod layout1;
mod load;
mod maps;
mod object;
mod pins;
mod pod;
pub mod program;
mod raw;
mod succession;
pub mod sys;

pub use attach::{Attached, PinnedLink};
pub use carry::Carried;
pub use error::{Error, Result};
pub use load::{Datapath, Opened, Sizes};
pub use maps::Maps;
pub use object::{is_embedded, object};
pub use pins::Pins;
pub use pod::{attach_pod, detach_pod};
pub use program::{SocketHook, TcHook, XdpMode};
pub use sys::grace_period;
