//! The loop that makes kernel state follow desired state: observe, diff, apply, for as long as it runs.
//!
//! A [`Target`] is a piece of kernel state; the [`Runner`] drives it by the [`Pace`], and its [`Status`] says
//! what is wrong and since when. [`fault`] is for tests.
#![forbid(unsafe_code)]

pub mod fault;
pub mod guard;
pub mod pace;
pub mod runner;
pub mod status;
pub mod target;

pub use pace::Pace;
pub use runner::Runner;
pub use status::{Status, Trouble};
pub use target::{Error, Outcome, Target};
