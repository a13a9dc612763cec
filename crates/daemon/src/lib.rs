//! What both daemons do alike, and nothing of what they are for.
//!
//! - [`config`]: flag, then `HEDDLE_*` in the environment, then the TOML file, then the default. Every
//!   option of the command line is known to all three, because the layers are made from it.
//! - [`http`]: small servers for probes and metrics.
//! - [`log`]: tracing, for people or as JSON.
//! - [`signal`]: SIGTERM and SIGINT end the program, and leave the kernel as it is.
//! - [`run_dir`]: one instance at a time; the file that says "ready".
//! - [`exit`]: exit codes, and errors printed with their causes.
//! - [`output`]: `-o text|json`.
#![forbid(unsafe_code)]

pub mod config;
pub mod exit;
pub mod http;
pub mod log;
pub mod output;
pub mod run_dir;
pub mod signal;

pub use config::Common;
pub use exit::Failure;
pub use output::Output;
