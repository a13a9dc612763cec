//! Where things are in the source tree.

use std::env;
use std::path::{Path, PathBuf};

/// The top of the source tree.
pub fn dir() -> PathBuf {
    let manifest = env!("CARGO_MANIFEST_DIR");
    Path::new(manifest).parent().expect("xtask/ lies in the source tree").to_path_buf()
}

/// Cargo's target directory of the workspace.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(named) => dir().join(named),
        None => dir().join("target"),
    }
}

/// The eBPF object, as `crates/bpf/build.rs` looks for it.
pub fn bpf_object() -> PathBuf {
    target().join("ebpf/heddle.bpf.o")
}
