//! What is tried: random tables, random packets over them, weighted towards what is hard.

mod frame;
mod packet;
mod table;

pub use frame::Draft;
pub use packet::{can_be_run, mutate, stimulus};
pub use table::{change, ports, table};
