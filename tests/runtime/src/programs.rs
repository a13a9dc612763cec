//! Where other people's programs are.

use std::env;
use std::path::PathBuf;

/// The program `name`: of those that `./x` fetched for the tests (target/runtime, beside target/debug), else of
/// the machine's own. `None`: neither has it.
pub fn program(name: &str) -> Option<PathBuf> {
    let bin_dir = heddle_lab::bin_dir();
    let fetched = ["usr/bin", "usr/sbin"].map(|dir| bin_dir.join("../runtime").join(dir));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = fetched.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(name));
    candidates.find_map(|file| file.is_file().then(|| file.canonicalize().ok()).flatten())
}
