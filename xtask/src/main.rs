//! Build, test, demo and bench commands behind ./x.

fn main() {}
