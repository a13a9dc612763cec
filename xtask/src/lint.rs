//! `lint`: formatting, clippy with warnings denied, and the rules of the house.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

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

/// All scripts of the house.
fn shellcheck() -> Result<()> {
    let mut scripts = ["x", ".ci/run", "xtask/src/vm/init.sh"].map(PathBuf::from).to_vec();
    let dir = root::dir().join("deploy/vagrant");
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        scripts.extend(path.extension().is_some_and(|kind| kind == "sh").then_some(path));
    }
    process::run(Command::new("shellcheck").args(["-s", "sh"]).args(scripts).current_dir(root::dir()))
}

/// The units of systemd, where it is there to ask: copies, as the programs are not installed here.
fn units() -> Result<()> {
    if process::stdout(Command::new("systemd-analyze").arg("--version")).is_none() {
        println!("no systemd-analyze here: the units of deploy/systemd are not verified");
        return Ok(());
    }
    let dir = root::target().join("units");
    fs::create_dir_all(&dir)?;
    let mut copies = Vec::new();
    for entry in fs::read_dir(root::dir().join("deploy/systemd"))? {
        let entry = entry?;
        let copy = dir.join(entry.file_name());
        let text = fs::read_to_string(entry.path())?;
        let program = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
        ensure!(program.is_some(), "{} starts nothing of ours", entry.path().display());
        let starts =
            |line: &str| if line.starts_with("ExecStart=") { "ExecStart=/bin/true" } else { line }.to_owned();
        fs::write(&copy, text.lines().map(starts).collect::<Vec<_>>().join("\n") + "\n")?;
        copies.push(copy);
    }
    // Warnings do not change its exit status.
    let output = Command::new("systemd-analyze").arg("verify").args(copies).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "systemd-analyze verify: {said}");
    Ok(())
}

/// The Vagrantfile in both variants, without a provider of machines.
fn vagrantfile(suite: &mut Suite) {
    let home = root::target().join("vagrant");
    let vagrant = || {
        let mut vagrant = Command::new("vagrant");
        vagrant.env("VAGRANT_HOME", &home).env("VAGRANT_DOTFILE_PATH", home.join("here"));
        vagrant.current_dir(root::dir());
        vagrant
    };
    if process::stdout(vagrant().arg("--version")).is_none() {
        println!("vagrant is not installed: the Vagrantfile is not validated");
        return;
    }
    for variant in ["kubernetes", "swarm"] {
        let mut validate = vagrant();
        validate.args(["validate", "--ignore-provider"]).env("HEDDLE_VARIANT", variant);
        suite.check(&format!("Vagrantfile, {variant}"), process::run(&mut validate));
    }
}

/// The suite `lint`.
pub fn lint(suite: &mut Suite) -> Result<()> {
    suite.check("fmt", process::run(cargo::cargo().args(["fmt", "--all", "--check"])));
    suite.check("shellcheck", shellcheck());
    suite.check("units", units());
    vagrantfile(suite);
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
