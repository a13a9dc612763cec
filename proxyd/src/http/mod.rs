//! Small HTTP servers for whoever watches this node, as both daemons have them.

mod server;

pub use heddle_daemon::http::{Answer, Listen, Site, can_ipv6};
pub use server::Server;
