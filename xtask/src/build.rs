//! `build`: the programs, with the eBPF object inside.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo;
use crate::ebpf;
use crate::plugin::{self, PLUGINS};
use crate::process;
use crate::root;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build unoptimised, into target/debug
    #[arg(long)]
    dev: bool,
}

/// How the programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// The command `build`: all programs, then where they are.
pub fn run(args: &Args) -> Result<()> {
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let dir = programs(profile)?;
    for name in ["heddle", "heddle-ipam", "vxland", "proxyd", "proxyd-sockets"] {
        let program = dir.join(name);
        if program.exists() {
            println!("{}", program.display());
        }
    }
    Ok(())
}

/// Build every program of the workspace but this one. Returns the directory that holds them.
pub fn programs(profile: Profile) -> Result<PathBuf> {
    ebpf::build(&ebpf::Args::default())?;
    let mut cargo = cargo::cargo();
    cargo.args(["build", "--workspace", "--exclude", "xtask", "--bins"]);
    let dir = match profile {
        Profile::Dev => root::target().join("debug"),
        Profile::Release => {
            cargo.arg("--release");
            PLUGINS.iter().for_each(|name| _ = cargo.args(["--exclude", name]));
            root::target().join("release")
        }
    };
    process::run(&mut cargo)?;
    if profile == Profile::Release {
        plugin::build(&dir)?;
    }
    Ok(dir)
}
