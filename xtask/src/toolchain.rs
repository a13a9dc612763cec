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

use crate::linker::{self, Linker};
use crate::process;

/// How `core` for the BPF target is had. Both need RUSTC_BOOTSTRAP=1 where the compiler is no nightly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    /// The component rust-src: cargo compiles it (`-Z build-std=core`).
    FromSource,
    /// Debian's `libstd-rust-web-dev-bpf`: it is there.
    Ready,
}

/// A Rust toolchain that can compile for `bpfel-unknown-none`.
#[derive(Debug, Clone)]
struct Compiler {
    name: String,
    prefix: PathBuf,
    core: Core,
    llvm: u32,
}

/// What builds the eBPF object.
#[derive(Debug)]
pub struct Toolchain {
    compiler: Compiler,
    linker: Linker,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (LLVM {}), {}", self.compiler.name, self.compiler.llvm, self.linker)
    }
}

impl Toolchain {
    /// The first compiler for which there is a linker; else a linker is built for the first one that can have one;
    /// else an error that says of each why it does not fit.
    pub fn choose() -> Result<Self> {
        let linkers = linker::find();
        let compilers = compilers();
        for compiler in &compilers {
            // A linker whose LLVM cannot be seen may fit; one that is known to fit comes first.
            let known = linkers.iter().find(|linker| linker.llvm.is_some_and(|llvm| llvm >= compiler.llvm));
            if let Some(linker) = known.or_else(|| linkers.iter().find(|linker| linker.llvm.is_none())) {
                return Ok(Self { compiler: compiler.clone(), linker: linker.clone() });
            }
        }
        for linker in &linkers {
            println!("build-ebpf: {linker} is older than the LLVM of every compiler here");
        }
        for compiler in compilers.iter().filter(|compiler| linker::SUPPORTED.contains(&compiler.llvm)) {
            if let Some(library) = compiler.llvm_library() {
                let linker = linker::build(compiler.cargo(), &library, compiler.llvm)?;
                return Ok(Self { compiler: compiler.clone(), linker });
            }
        }
        bail!("{}", misfit(&compilers, &linkers))
    }

    /// `cargo` for the BPF target, its compiler and linker set, its arguments still to be added.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.compiler.cargo_for_bpf(subcommand);
        // Debug information becomes BTF; the separator is cargo's own, so that paths may hold blanks.
        let linker = format!("-Clinker={}", self.linker.path.display());
        let flags = [linker.as_str(), "-Clink-arg=--btf", "-Cdebuginfo=2"];
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo
    }
}

/// `cargo clippy` for the BPF target, from any toolchain that has it: nothing is linked, so no linker need fit.
pub fn clippy() -> Option<Command> {
    let compilers = compilers();
    compilers
        .iter()
        .find(|compiler| compiler.bin("cargo-clippy").exists())
        .map(|compiler| compiler.cargo_for_bpf("clippy"))
}

impl Compiler {
    /// The toolchain below `prefix`, if it can compile for BPF.
    fn at(name: String, prefix: PathBuf, core: Core) -> Option<Self> {
        let needed = match core {
            Core::FromSource => prefix.join("lib/rustlib/src/rust/library/core/Cargo.toml"),
            Core::Ready => prefix.join("lib/rustlib/bpfel-unknown-none/lib"),
        };
        if !needed.exists() || !prefix.join("bin/cargo").exists() {
            return None;
        }
        let version = process::stdout(process::clean(prefix.join("bin/rustc")).arg("-vV"))?;
        let field = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let name = format!("rustc {} of {name}", field("release:")?);
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some(Self { name, prefix, core, llvm })
    }

    fn bin(&self, program: &str) -> PathBuf {
        self.prefix.join("bin").join(program)
    }

    /// This toolchain's cargo, for this machine.
    fn cargo(&self) -> Command {
        let mut cargo = process::clean(self.bin("cargo"));
        cargo.env("PATH", process::path_with(&self.prefix.join("bin")));
        cargo.env("RUSTC", self.bin("rustc"));
        cargo
    }

    /// The same for the BPF target.
    fn cargo_for_bpf(&self, subcommand: &str) -> Command {
        let mut cargo = self.cargo();
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.args([subcommand, "--target", "bpfel-unknown-none"]);
        if self.core == Core::FromSource {
            cargo.args(["-Z", "build-std=core"]);
        }
        cargo
    }

    /// The shared LLVM that this compiler itself uses: its toolchain's own, or the distribution's.
    fn llvm_library(&self) -> Option<PathBuf> {
        let wanted = format!("libLLVM.so.{}.", self.llvm);
        let multiarch = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
        [self.prefix.join("lib"), multiarch.into(), format!("/usr/lib/llvm-{}/lib", self.llvm).into()]
            .iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flat_map(|entries| entries.flatten())
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
            .and_then(|entry| fs::canonicalize(entry.path()).ok())
    }
}

/// What rustup holds, then the distribution's compiler; the oldest LLVM first, as it is likelier to have a linker.
fn compilers() -> Vec<Compiler> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".rustup"));
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from).or(home);
    let entries = rustup.and_then(|rustup| fs::read_dir(rustup.join("toolchains")).ok());
    let mut found: Vec<Compiler> = entries
        .into_iter()
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| {
            Compiler::at(entry.file_name().to_string_lossy().into_owned(), entry.path(), Core::FromSource)
        })
        .collect();
    found.extend(Compiler::at("/usr".into(), "/usr".into(), Core::Ready));
    found.sort_by(|a, b| (a.llvm, &a.name).cmp(&(b.llvm, &b.name)));
    found
}

fn misfit(compilers: &[Compiler], linkers: &[Linker]) -> String {
    let mut text = String::from("no compiler and bpf-linker that fit each other for the eBPF object");
    for compiler in compilers {
        text += &format!("\n  {}: LLVM {}", compiler.name, compiler.llvm);
    }
    if compilers.is_empty() {
        text += "\n  no compiler: neither a rustup toolchain with rust-src nor Debian's rustc-web with libstd-rust-web-dev-bpf";
    }
    for linker in linkers {
        text += &format!("\n  {linker}");
    }
    if linkers.is_empty() {
        text += "\n  no bpf-linker";
    }
    let (oldest, newest) = (linker::SUPPORTED.start(), linker::SUPPORTED.end());
    text += "\nbpf-linker's LLVM must be at least as new as the compiler's; ";
    text + &format!(
        "one can be built here for a compiler of LLVM {oldest} to {newest}: `./x build` installs one"
    )
}
