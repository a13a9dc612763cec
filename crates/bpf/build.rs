//! Embeds the eBPF object, if it has been built: `HEDDLE_BPF_OBJECT`, else `<target>/ebpf/heddle.bpf.o`, else an
//! empty file. So `cargo check` and the unit tests need no eBPF toolchain; a program with the empty file says
//! so when it is asked to load it.
//!
//! Plain `cargo build` therefore embeds whatever object is there, which may be older than its sources;
//! `./x build` makes the object first.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=HEDDLE_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = env::var_os("HEDDLE_BPF_OBJECT").map(PathBuf::from).or_else(|| built(&out));
    let bytes = match &object {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(path).unwrap_or_default()
        }
        None => Vec::new(),
    };
    fs::write(out.join("heddle.bpf.o"), bytes).expect("OUT_DIR can be written");
}

/// `<target>/ebpf/heddle.bpf.o`: OUT_DIR is `<target>[/<triple>]/<profile>/build/<package>/out`.
fn built(out: &Path) -> Option<PathBuf> {
    let mut dirs = out.ancestors();
    dirs.find(|dir| dir.ends_with("build"))?;
    let profile = dirs.next()?;
    // One level more where a target triple is named.
    [profile.parent()?, profile.parent()?.parent()?]
        .into_iter()
        .map(|target| target.join("ebpf/heddle.bpf.o"))
        .max_by_key(|p| p.exists())
}
