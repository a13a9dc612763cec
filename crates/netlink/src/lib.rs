//! Typed kernel I/O over netlink: links, addresses, routes, neighbours, queues, nf_tables,
//! connection tracking, sockets, namespaces, sysctls.
//!
//! Every function says what it does to which object of the network namespace that its [`Socket`] was
//! opened in, and does just that: nothing is remembered, nothing retried, nothing added that was not
//! asked for. Errors name the operation, the object and the kernel's own words.
//!
//! The sockets are synchronous: the kernel answers a request before `send` returns, so there is
//! nothing to wait for. What happens on its own accord is told by the `monitor` (feature `monitor`).

pub mod addr;
pub mod bridge;
pub mod conntrack;
mod error;
pub mod fdb;
pub mod ipset;
pub mod ipvlan;
pub mod ipvs;
pub mod link;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod packet;
pub mod route;
pub mod sock_diag;
mod socket;
pub mod sysctl;
pub mod tc;
pub mod vxlan;
mod watch;
mod wire;
pub mod xtables;

pub use error::{Absent, Error, Result};
pub use netns::NetNs;
pub use socket::Socket;
pub use watch::Watch;

/// An Ethernet address.
pub type MacAddr = [u8; 6];

/// An Ethernet address as people write it.
#[derive(Clone, Copy, Debug)]
pub struct DisplayMac(pub MacAddr);

impl std::fmt::Display for DisplayMac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
