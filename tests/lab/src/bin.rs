//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

/// The directory of the programs under test: `HEDDLE_BIN_DIR`, else `target/debug` (the directory that the
/// running test or program is in, less `deps`).
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = env::var_os("HEDDLE_BIN_DIR") {
        return PathBuf::from(dir);
    }
    let own = env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("."));
    if dir.ends_with("deps") || dir.ends_with("examples") { dir.parent().unwrap_or(dir) } else { dir }
        .to_owned()
}

/// The program `name`, e.g. `proxyd`. Whether it is built is seen when it is started.
pub fn bin(name: &str) -> PathBuf {
    bin_dir().join(name)
}
