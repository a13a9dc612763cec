//! `lint`: formatting, clippy with warnings denied, and the rules of the house.

use anyhow::Result;

use crate::cargo;
use crate::ebpf;
use crate::process;
use crate::rules;
use crate::suite::{self, Suite};
use crate::toolchain;

/// The command `lint`.
pub fn run() -> Result<bool> {
    let suites = [Suite::run("lint", lint), Suite::run("rules", rules::check)];
    Ok(suite::report(&suites, false))
}

/// The suite `lint`.
pub fn lint(suite: &mut Suite) -> Result<()> {
    suite.check("fmt", process::run(cargo::cargo().args(["fmt", "--all", "--check"])));
    let format_ebpf = process::run(cargo::cargo().args(["fmt", "--check"]).current_dir(ebpf::programs()));
    suite.check("fmt of ebpf/programs", format_ebpf);
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    suite.check("clippy", process::run(cargo::cargo().args(clippy)));
    match toolchain::clippy() {
        Some(mut clippy) => {
            clippy.args(["--release", "--quiet", "--locked", "--target-dir"]);
            clippy.arg(ebpf::cargo_target()).args(["--", "-D", "warnings"]).current_dir(ebpf::programs());
            suite.check("clippy of ebpf/programs", process::run(&mut clippy));
        }
        None => {
            println!("clippy of ebpf/programs: no toolchain here has both clippy and core for the BPF target")
        }
    }
    Ok(())
}
