//! Where other people's programs are.

use std::env;
use std::fs;
use std::path::PathBuf;

/// Where `./x` has unpacked the packages that it fetched for the tests: target/runtime, beside target/debug.
fn fetched() -> PathBuf {
    heddle_lab::bin_dir().join("../runtime")
}

/// The program `name`: of those that were fetched, else of the machine's own. `None`: neither has it.
pub fn program(name: &str) -> Option<PathBuf> {
    let own = ["usr/bin", "usr/sbin"].map(|dir| fetched().join(dir));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = own.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(name));
    candidates.find_map(|file| file.is_file().then(|| file.canonicalize().ok()).flatten())
}

/// Why a test that needs all of `names` cannot run here.
pub(crate) fn missing(names: &[&str]) -> Option<String> {
    let missing: Vec<_> = names.iter().copied().filter(|name| program(name).is_none()).collect();
    (!missing.is_empty()).then(|| format!("not installed, nor fetched by ./x: {}", missing.join(", ")))
}

/// The libraries that were fetched with the programs, as LD_LIBRARY_PATH.
pub(crate) fn libraries() -> String {
    let of =
        |lib| fs::read_dir(fetched().join(lib)).into_iter().flatten().flatten().map(|entry| entry.path());
    let dirs = of("lib").chain(of("usr/lib")).filter_map(|dir| dir.canonicalize().ok());
    let dirs = dirs.filter(|dir| dir.to_string_lossy().ends_with("-linux-gnu"));
    dirs.map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
}
