//! `lint`: formatting, clippy with warnings denied, and the rules of the house.

use std::process::Command;

use anyhow::Result;

use crate::cargo;
use crate::ebpf;
use crate::process;
use crate::root;
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
    let scripts = ["x", ".ci/run", "xtask/src/vm/init.sh"];
    let shellcheck =
        process::run(Command::new("shellcheck").args(["-s", "sh"]).args(scripts).current_dir(root::dir()));
    suite.check("shellcheck", shellcheck);
    for (name, folder) in ebpf::workspaces() {
        let format = process::run(cargo::cargo().args(["fmt", "--check"]).current_dir(folder));
        suite.check(&format!("fmt of {name}"), format);
    }
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    suite.check("clippy", process::run(cargo::cargo().args(clippy)));
    for (name, folder) in ebpf::workspaces() {
        let Some(mut clippy) = toolchain::clippy() else {
            println!("clippy of {name}: no toolchain here has both clippy and core for the BPF target");
            continue;
        };
        clippy.args(["--release", "--quiet", "--locked", "--target-dir"]);
        clippy.arg(ebpf::cargo_target()).args(["--", "-D", "warnings"]).current_dir(folder);
        suite.check(&format!("clippy of {name}"), process::run(&mut clippy));
    }
    Ok(())
}
