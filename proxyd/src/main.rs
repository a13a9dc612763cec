//! The service proxy and routing mesh.

fn main() {}
