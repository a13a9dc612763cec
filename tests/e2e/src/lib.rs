//! Scenarios that run the real programs in the Lab.
//!
//! The scenarios are in `tests/`, one file a subject; each builds a [`Cluster`](heddle_lab::Cluster), or a bare
//! [`Lab`](heddle_lab::Lab) when it is about one program alone.
#![forbid(unsafe_code)]

pub use heddle_lab::*;
