//! `bench`: builds what is measured, optimised, then hands over to tests/e2e/benches/figures.

use std::fs;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::cargo;
use crate::ebpf;
use crate::process;
use crate::root;
use crate::toolchain::Toolchain;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sections to measure: all if none is named
    names: Vec<String>,
    /// Show the sections and what they measure
    #[arg(long)]
    list: bool,
}

/// Sections that run eBPF programs of their own only.
const WITHOUT_PROGRAMS: &[&str] = &["addresses"];

/// The command `bench`.
pub fn run(args: &Args) -> Result<()> {
    let mut bench = cargo::cargo();
    bench.args(["bench", "--quiet", "--package", "heddle-e2e", "--bench", "figures", "--"]);
    if args.list {
        return process::run(bench.arg("--list"));
    }
    objects()?;
    let all = args.names.is_empty();
    if all || args.names.iter().any(|name| !WITHOUT_PROGRAMS.contains(&name.as_str())) {
        bench.env("HEDDLE_BIN_DIR", build::programs(Profile::Release)?);
    }
    process::run(bench.args(&args.names))
}

/// ebpf/bench -> target/ebpf/{bench,wrap}.bpf.o.
fn objects() -> Result<()> {
    let mut cargo = Toolchain::choose()?.cargo("build");
    cargo.args(["--release", "--quiet", "--locked", "--bins", "--target-dir"]);
    process::run(cargo.arg(ebpf::cargo_target()).current_dir(ebpf::bench()))?;
    for name in ["bench", "wrap"] {
        let built = ebpf::cargo_target().join("bpfel-unknown-none/release").join(name);
        let object = root::target().join(format!("ebpf/{name}.bpf.o"));
        fs::copy(&built, &object).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    Ok(())
}
