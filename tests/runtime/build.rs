//! Compiles what runs in containers, src/inmate.rs, into one static file: an image made of nothing else has no
//! libraries.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/inmate.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = Path::new(&variable("OUT_DIR")).join("inmate");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-type=bin", "-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "--target", &variable("TARGET"), "src/inmate.rs", "-o"])
        .arg(&out)
        .status()
        .expect("the compiler can be started");
    assert!(status.success(), "src/inmate.rs was not compiled: {status}");
}
