//! The CNI specification: what comes in, what goes out, in every version of it.

mod env;
mod error;
pub mod json;
mod result;
mod version;

pub use env::{Command, Environment};
pub use error::{Failure, code};
pub use result::{Interface, Ip, Success};
pub use version::{SUPPORTED, Version};
