//! The VXLAN overlay agent.

fn main() {}
