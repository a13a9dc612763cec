//! `build-ebpf`: ebpf/programs -> target/ebpf/heddle.bpf.o.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;
use crate::root;
use crate::toolchain::Toolchain;

#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Build although the sources are unchanged
    #[arg(long)]
    force: bool,
}

/// Build the eBPF object unless it is there and was made from these very sources.
pub fn build(args: &Args) -> Result<()> {
    let object = root::bpf_object();
    let stamp = object.with_extension("stamp");
    let inputs = format!("{:016x}\n", fingerprint()?);
    if !args.force && object.exists() && fs::read_to_string(&stamp).is_ok_and(|last| last == inputs) {
        return Ok(());
    }
    let toolchain = Toolchain::choose()?;
    println!("build-ebpf: {toolchain}");
    let target = cargo_target();
    process::run(
        toolchain
            .cargo("build")
            .args(["--release", "--quiet", "--locked", "--bin", "heddle", "--target-dir"])
            .arg(&target)
            .current_dir(programs()),
    )?;
    // Cargo may be embedding the old object at this moment: replaced in one step.
    let fresh = object.with_extension("new");
    let built = target.join("bpfel-unknown-none/release/heddle");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &object).with_context(|| format!("cannot write {}", object.display()))?;
    fs::write(&stamp, inputs).with_context(|| format!("cannot write {}", stamp.display()))?;
    println!("build-ebpf: {} ({} bytes)", object.display(), fs::metadata(&object)?.len());
    Ok(())
}

/// Cargo's target directory for the eBPF programs.
pub fn cargo_target() -> PathBuf {
    root::target().join("ebpf/cargo")
}

/// The folder of the eBPF programs, a workspace of its own.
pub fn programs() -> PathBuf {
    root::dir().join("ebpf/programs")
}

/// Programs that only measure: not part of the object. See `bench`.
pub fn bench() -> PathBuf {
    root::dir().join("ebpf/bench")
}

/// The workspaces that are compiled for the BPF target.
pub fn workspaces() -> [(&'static str, PathBuf); 2] {
    [("ebpf/programs", programs()), ("ebpf/bench", bench())]
}

/// A hash of everything that the object is made from (names and contents, in a fixed order).
fn fingerprint() -> Result<u64> {
    let mut files = Vec::new();
    collect(&programs(), &mut files)?;
    collect(&root::dir().join("ebpf/common"), &mut files)?;
    files.push(root::dir().join("xtask/src/toolchain.rs"));
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(root::dir()).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" {
                collect(&entry.path(), files)?;
            }
        } else if ["rs", "toml", "lock"].iter().any(|known| entry.path().extension() == Some(known.as_ref()))
        {
            files.push(entry.path());
        }
    }
    Ok(())
}
