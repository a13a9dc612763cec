//! bpf-linker: which ones are there, and one of our own where none fits.

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::root;

const VERSION: &str = "0.13.0";

/// The LLVM versions for which bpf-linker [`VERSION`] has a feature.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;

/// A bpf-linker and the LLVM that it was built with, if that can be seen.
#[derive(Debug, Clone)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// Major version; `None` where LLVM is linked in statically.
    pub llvm: Option<u32>,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.llvm {
            Some(llvm) => write!(f, "{path} (LLVM {llvm})"),
            None => write!(f, "{path} (LLVM linked in, version not visible)"),
        }
    }
}

/// Every bpf-linker that starts and is new enough: the one of our own, then those in PATH and in cargo's directory.
pub fn find() -> Vec<Linker> {
    let mut places = vec![own().join("bin")];
    places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    places.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin")));
    let mut found: Vec<Linker> = Vec::new();
    for path in places.into_iter().map(|place| place.join("bpf-linker")) {
        let known = found.iter().any(|linker| linker.path == path);
        if path.is_file() && !known && new_enough(&path) {
            found.push(Linker { llvm: linked_llvm(&path), path });
        }
    }
    found
}

/// Whether it is at least [`VERSION`], up to the patch level: `bpf-linker 0.13.0`.
fn new_enough(linker: &Path) -> bool {
    let numbers = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.trim().split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let printed = process::stdout(Command::new(linker).arg("--version")).unwrap_or_default();
    let version = printed.rsplit(' ').next().and_then(numbers);
    version.is_some() && version >= numbers(VERSION)
}

/// Build a bpf-linker with `cargo` into the target directory, against `library`: the LLVM that the compiler itself uses,
/// so that the two cannot differ and no LLVM need be installed.
pub fn build(mut cargo: Command, library: &Path, llvm: u32) -> Result<Linker> {
    println!("build-ebpf: building bpf-linker {VERSION} against {} (about a minute)", library.display());
    let prefix = own().join("llvm");
    let lib = prefix.join("lib");
    let _ = fs::remove_dir_all(&prefix);
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    // By the name that `-lLLVM` looks for, and by the library's own, under which the program will look for it.
    let name = library.file_name().with_context(|| format!("{} has no file name", library.display()))?;
    symlink(library, lib.join("libLLVM.so")).context("cannot link libLLVM.so")?;
    symlink(library, lib.join(name)).context("cannot link the LLVM library")?;
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--quiet", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(own())
        .arg("--target-dir")
        .arg(own().join("cargo"))
        .env("LLVM_PREFIX", &prefix);
    process::run(&mut cargo)?;
    // Only the program is needed again.
    let _ = fs::remove_dir_all(own().join("cargo"));
    Ok(Linker { path: own().join("bin/bpf-linker"), llvm: Some(llvm) })
}

fn own() -> PathBuf {
    root::target().join("tools")
}

/// The major version of the shared LLVM that a program names (`libLLVM.so.22.1`, `libLLVM-14.so.1`).
fn linked_llvm(program: &Path) -> Option<u32> {
    let bytes = fs::read(program).ok()?;
    let name = b"libLLVM";
    let mut places = bytes.windows(name.len()).enumerate().filter(|(_, window)| window == name);
    places.find_map(|(at, _)| {
        let rest = bytes[at + name.len()..].iter().take(24).take_while(|byte| **byte != 0);
        let rest: String = rest.map(|byte| char::from(*byte)).collect();
        let digits = rest.strip_prefix(".so.").or_else(|| rest.strip_prefix('-'))?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}
