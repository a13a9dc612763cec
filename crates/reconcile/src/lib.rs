//! The loop that makes kernel state follow desired state.
#![forbid(unsafe_code)]

pub mod target;

pub use target::{Error, Outcome, Target};
