//! Traffic: servers that say who they are and whom they saw, and clients that count what they get.
//!
//! A [`Server`] answers TCP, HTTP and UDP on one port, each answer beginning with `NAME CLIENT`: its own name
//! and the address and port that it saw the client come from. A [`Load`] asks at a fixed rate and keeps a
//! [`Report`]. Both are threads of this process in a place of the lab.

mod ask;
mod client;
mod load;
mod report;
mod server;

pub use ask::{Ask, Reply, connect, datagram_socket, raw_socket};
pub use load::{Load, Running};
pub use report::Report;
pub use server::Server;
