//! The CNI specification: what comes in, what goes out, in every version of it. Shared by the plugin `heddle` and
//! the IPAM plugin `heddle-ipam`.
#![forbid(unsafe_code)]

mod attachments;
mod capabilities;
mod dns;
mod env;
mod error;
pub mod json;
pub mod mac;
mod name;
pub mod program;
mod read;
mod result;
mod route;
mod version;

pub use attachments::valid_attachments;
pub use dns::Dns;
pub use env::{Command, Environment};
pub use error::{Failure, code, invalid};
pub use name::{InvalidName, Network, Owner};
pub use result::{Interface, Ip, Success};
pub use route::Route;
pub use version::{SUPPORTED, Version};
