//! From a snapshot of the cluster to what this node must do. Pure, and the same on every node: nothing
//! depends on the order in which things arrived, and who wins a conflict is decided by age and name. The one
//! exception: a node's own object comes first on that node.
//!
//! All semantics of services live here, once. Dataplanes carry out the table.

mod backends;
mod nodes;
mod overlay;
mod services;
#[cfg(test)]
mod tests;

pub use nodes::{AcceptedNode, Nodes};
pub use overlay::overlay;
pub use services::services;
