//! What the eBPF programs and user space agree on: map names, keys, values, and the arithmetic that
//! both must do alike. One definition, compiled for both sides, `no_std`.
//!
//! Every type here is `#[repr(C)]` without padding (tested), so that a value can be compared, hashed
//! and dumped byte by byte. A change to any of them, or to a map's size or kind, is a new
//! [`LAYOUT_VERSION`]: the maps of another version are never opened.
#![cfg_attr(not(test), no_std)]

mod counter;
pub mod decide;
mod event;
mod layout;
mod mesh;

pub use counter::*;
pub use event::*;
pub use layout::*;
pub use mesh::*;
