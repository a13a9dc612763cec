//! Host-local address management: which address of this node's ranges belongs to which interface of
//! which container, kept in files.
//!
//! The files are those of the CNI reference plugin `host-local`, so that either program can take over
//! from the other on a living node:
//!
//! | `<dataDir>/<network>/` | |
//! |---|---|
//! | `<address>` | a lease; holds `containerID\r\nifname` |
//! | `last_reserved_ip.<n>` | the address that range set `n` gave last: the next one is looked for after it |
//! | `lock` | locked by `flock(2)` while anything here changes |
//! | `.heddle/` | ours; the reference plugin reads these files too (it looks for a container's id in every file below its directory), but finds no container in them |
//! | `.heddle/boot` | the boot that our leases belong to |
//! | `.heddle/<hash>` | a note: which addresses an interface holds, so that nobody has to read all leases, and in which network namespace it is |
//! | `.heddle/turns`, `.heddle/surveyed` | who works on which interface; how far a large range was read |
//!
//! The directory's own time of modification says whether all leases in it are noted (docs/decisions/0006).
//!
//! What is guaranteed:
//! - An address is given to one interface at a time, whatever dies when. A lease appears with its
//!   content or not at all (`O_TMPFILE`, then `linkat`); an empty lease, which the reference plugin leaves
//!   behind when it is killed at the wrong moment and never frees, cannot come from us and is reclaimed.
//! - Nothing of a pod survives a reboot, so no lease does: our leases have mode 0400, the reference
//!   plugin's are writable, and when the boot changes ours are swept. Theirs are left to their owners.
//! - Giving and taking back an address costs the same whether ten or 60,000 are leased.
//! - Addresses go round: one that was given back comes last.
//! - An address that the node itself has, or routes to somebody alone, is given to nobody.
//! - Where a range runs low, leases of interfaces are freed whose network namespace is gone for certain: it is not at
//!   its path, nobody that `/proc` shows holds it, and the node has no route to an address of theirs.
//! - File names come from parsed addresses and hashes, never from text that somebody sent.
#![forbid(unsafe_code)]

mod allocate;
mod collect;
mod config;
mod error;
mod file;
mod holders;
mod lease;
mod lock;
mod namespace;
mod note;
mod range;
pub mod resolv;
mod store;
mod surroundings;
mod survey;
mod turn;

pub use allocate::{Allocation, Request};
pub use config::{Config, DEFAULT_DATA_DIR, Pool};
pub use error::{Error, Result};
pub use namespace::{Namespace, namespaces};
pub use range::{Range, RangeConfig, RangeSet};
pub use store::{Locked, Store, boot_id};
pub use surroundings::{Machine, Surroundings, Use};
pub use turn::Turn;
