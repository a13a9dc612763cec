//! Which compiler and which linker build the eBPF object.
//!
//! bpf-linker reads the bitcode that the compiler writes, so its LLVM must be at least as new as the
//! compiler's. An older one fails with an unhelpful message (or not at all), hence the versions are compared here.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::root;

/// How `core` for the BPF target is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    /// A nightly with the component rust-src: cargo compiles it (`-Z build-std=core`).
    FromSource,
    /// Debian's `libstd-rust-web-dev-bpf`: it is there, and RUSTC_BOOTSTRAP=1 admits the unstable target.
    Ready,
}

/// A Rust toolchain that can compile for `bpfel-unknown-none`.
#[derive(Debug, Clone)]
pub struct Compiler {
    name: String,
    rustc: PathBuf,
    cargo: PathBuf,
    core: Core,
    llvm: u32,
}

/// A bpf-linker and the LLVM that it was built with, if that can be seen.
#[derive(Debug, Clone)]
pub struct Linker {
    path: PathBuf,
    llvm: Option<u32>,
}

/// What builds the eBPF object.
#[derive(Debug)]
pub struct Toolchain {
    compiler: Compiler,
    linker: Linker,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compiler, linker } = self;
        write!(f, "{} (LLVM {}), {} ({linker})", compiler.name, compiler.llvm, linker.path.display())
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.llvm {
            Some(llvm) => write!(f, "LLVM {llvm}"),
            None => write!(f, "LLVM linked in, version not visible"),
        }
    }
}

impl Toolchain {
    /// The first compiler for which there is a linker; else an error that says of each why it does not fit.
    pub fn choose() -> Result<Self> {
        let linkers = linkers();
        let compilers = compilers();
        for compiler in &compilers {
            // A linker whose LLVM cannot be seen may fit; one that is known to fit comes first.
            let known = linkers.iter().find(|linker| linker.llvm.is_some_and(|llvm| llvm >= compiler.llvm));
            if let Some(linker) = known.or_else(|| linkers.iter().find(|linker| linker.llvm.is_none())) {
                return Ok(Self { compiler: compiler.clone(), linker: linker.clone() });
            }
        }
        bail!("{}", misfit(&compilers, &linkers))
    }

    /// `cargo` for the BPF target, its compiler and linker set, its arguments still to be added.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let Self { compiler, linker } = self;
        let mut cargo = process::clean(&compiler.cargo);
        let bin = compiler.rustc.parent().unwrap_or(Path::new("/usr/bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([bin.to_path_buf()].into_iter().chain(env::split_paths(&path)));
        if let Ok(path) = path {
            cargo.env("PATH", path);
        }
        cargo.env("RUSTC", &compiler.rustc);
        // Debug information becomes BTF; the separator is cargo's own, so that paths may hold blanks.
        let flags = [
            format!("-Clinker={}", linker.path.display()),
            "-Clink-arg=--btf".into(),
            "-Cdebuginfo=2".into(),
        ];
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo.args([subcommand, "--target", "bpfel-unknown-none"]);
        match compiler.core {
            Core::FromSource => cargo.args(["-Z", "build-std=core"]),
            Core::Ready => cargo.env("RUSTC_BOOTSTRAP", "1"),
        };
        cargo
    }
}

fn misfit(compilers: &[Compiler], linkers: &[Linker]) -> String {
    let mut text = String::from("no compiler and linker that fit each other for the eBPF object");
    for compiler in compilers {
        text += &format!("\n  compiler {}: LLVM {}", compiler.name, compiler.llvm);
    }
    if compilers.is_empty() {
        text += "\n  no compiler: neither a nightly with rust-src nor Debian's rustc-web with libstd-rust-web-dev-bpf";
    }
    for linker in linkers {
        text += &format!("\n  {}: {linker}", linker.path.display());
    }
    if linkers.is_empty() {
        text += "\n  no bpf-linker";
    }
    text + "\nbpf-linker's LLVM must be at least as new as the compiler's; `./x build` installs a pair that fits"
}

/// Nightlies that rustup holds (newest LLVM last: an older one is likelier to fit), then Debian's compiler.
fn compilers() -> Vec<Compiler> {
    let mut found: Vec<Compiler> = rustup_homes()
        .iter()
        .filter_map(|home| fs::read_dir(home.join("toolchains")).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            compiler(name, entry.path(), Core::FromSource)
        })
        .collect();
    found.sort_by(|a, b| (a.llvm, &a.name).cmp(&(b.llvm, &b.name)));
    found.extend(compiler("/usr".into(), "/usr".into(), Core::Ready));
    found
}

fn rustup_homes() -> Vec<PathBuf> {
    let named = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let usual = env::var_os("HOME").map(|home| Path::new(&home).join(".rustup"));
    named.or(usual).into_iter().collect()
}

/// The toolchain below `prefix`, if it can compile for BPF.
fn compiler(name: String, prefix: PathBuf, core: Core) -> Option<Compiler> {
    let (rustc, cargo) = (prefix.join("bin/rustc"), prefix.join("bin/cargo"));
    let needed = match core {
        Core::FromSource => prefix.join("lib/rustlib/src/rust/library/core/Cargo.toml"),
        Core::Ready => prefix.join("lib/rustlib/bpfel-unknown-none/lib"),
    };
    if !needed.exists() || !cargo.exists() {
        return None;
    }
    let version = process::stdout(process::clean(&rustc).arg("-vV"))?;
    let field = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let release = field("release:")?;
    if core == Core::FromSource && !release.contains("nightly") {
        return None;
    }
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Compiler { name: format!("rustc {release} of {name}"), rustc, cargo, core, llvm })
}

/// Every bpf-linker: the one that `./x` installed, then those in PATH and cargo's own directory.
fn linkers() -> Vec<Linker> {
    let mut places = vec![root::target().join("tools/bin")];
    places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    places.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin")));
    let mut found: Vec<Linker> = Vec::new();
    for path in places.into_iter().map(|place| place.join("bpf-linker")) {
        if path.is_file() && found.iter().all(|linker| linker.path != path) {
            found.push(Linker { llvm: linked_llvm(&path), path });
        }
    }
    found
}

/// The major version of the shared LLVM that a program names (`libLLVM.so.22.1`, `libLLVM-14.so.1`).
fn linked_llvm(program: &Path) -> Option<u32> {
    let bytes = fs::read(program).ok()?;
    let name = b"libLLVM";
    let mut names = bytes.windows(name.len()).enumerate().filter(|(_, window)| window == name);
    names.find_map(|(at, _)| {
        let rest: String = bytes[at + name.len()..]
            .iter()
            .take(24)
            .take_while(|b| **b != 0)
            .map(|b| char::from(*b))
            .collect();
        let digits = rest.strip_prefix(".so.").or_else(|| rest.strip_prefix('-'))?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}
