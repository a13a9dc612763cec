//! The CNI plugins as they are released: each one file that needs nothing of the machine but its kernel.
//!
//! They are copied onto nodes of any distribution, also into initramfs and distroless ones, and are started for every
//! pod: without a dynamic linker, and with everything inlined that can be, an ADD takes half the processor time.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::process;
use crate::root;

/// The programs, and the packages that they are of.
pub const PLUGINS: [&str; 2] = ["heddle", "heddle-ipam"];
/// `[profile.plugin]` of Cargo.toml.
const PROFILE: &str = "plugin";
/// No libraries at run time, and none of the relocations at each start that a position-independent program has.
const FLAGS: &str = r#"["-Ctarget-feature=+crt-static", "-Crelocation-model=static"]"#;

/// Program headers that a static program does not have (elf.h).
const DYNAMIC: [(u32, &str); 2] = [(2, "a dynamic section"), (3, "an interpreter")];

/// Builds the plugins into `dir`.
pub fn build(dir: &Path) -> Result<()> {
    statically(dir, PROFILE, &PLUGINS, &PLUGINS)
}

/// Builds `programs`, which are of `packages`, into `dir`, each as one file that needs nothing of the machine.
pub fn statically(dir: &Path, profile: &str, packages: &[&str], programs: &[&str]) -> Result<()> {
    let target = target()?;
    let mut cargo = cargo::cargo();
    // With a target that is named, the flags are for the programs and not for procedural macros.
    cargo.args(["build", "--profile", profile, "--target", &target, "--bins"]);
    cargo.args(["--config", &format!("target.{target}.rustflags={FLAGS}")]);
    packages.iter().for_each(|name| _ = cargo.args(["--package", name]));
    process::run(&mut cargo)?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for name in programs {
        let built = root::target().join(&target).join(profile).join(name);
        let program = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        check_static(&program).with_context(|| format!("{} is not one static file", built.display()))?;
        // Not written over: somebody may be running it.
        let place = dir.join(name);
        let new = dir.join(format!("{name}.new"));
        fs::copy(&built, &new)
            .and_then(|_| fs::rename(&new, &place))
            .with_context(|| format!("cannot copy {name} to {}", place.display()))?;
    }
    Ok(())
}

/// The compiler's own machine, with musl if there is a standard library for it (`rustup target add`): before `main`, the
/// GNU library asks the processor some forty times what it can do, and in a virtual machine each answer takes as
/// long as a system call on a file.
fn target() -> Result<String> {
    let host = ask(&["-vV"])?;
    let host =
        host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let musl = host.replace("-gnu", "-musl");
    let library = ask(&["--print", "target-libdir", "--target", &musl])?;
    if Path::new(library.trim()).is_dir() {
        return Ok(musl);
    }
    println!(
        "no standard library for {musl} (rustup target add {musl}): static programs start slower in virtual machines"
    );
    Ok(host.to_owned())
}

/// What the compiler says of itself.
fn ask(what: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(what).output().context("cannot start rustc")?;
    ensure!(output.status.success(), "rustc {}: {}", what.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Refuses an ELF file (64 bits, little-endian) that asks for anything at run time.
fn check_static(program: &[u8]) -> Result<()> {
    let bytes = |at: usize, length: usize| program.get(at..at + length).context("it is cut off");
    let half = |at| anyhow::Ok(u16::from_le_bytes(bytes(at, 2)?.try_into()?) as usize);
    ensure!(bytes(0, 6)? == b"\x7fELF\x02\x01", "it is no ELF file of 64 bits");
    let table = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into()?))?;
    let (size, count) = (half(54)?, half(56)?);
    for header in 0..count {
        let kind = u32::from_le_bytes(bytes(table + header * size, 4)?.try_into()?);
        if let Some((_, what)) = DYNAMIC.iter().find(|(dynamic, _)| *dynamic == kind) {
            bail!("it has {what}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_refused() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let refused = check_static(&own).unwrap_err().to_string();
        assert!(refused.contains("interpreter") || refused.contains("dynamic section"), "{refused}");
        assert!(check_static(b"#!/bin/sh\n").is_err());
        // One program header: PT_LOAD.
        let mut small = vec![0; 64 + 56];
        small[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (small[32], small[54], small[56], small[64]) = (64, 56, 1, 1);
        assert!(check_static(&small).is_ok());
        small[64] = 3;
        assert!(check_static(&small).is_err());
    }
}
