//! Build, test, demo and bench commands behind `./x`.
//!
//! Everything that needs more than `cargo` itself is here, in Rust, so that `./x` stays a short script that
//! only installs what is missing. `./x help` lists the commands.
#![forbid(unsafe_code)]

mod ebpf;
mod linker;
mod process;
mod root;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test and try Heddle.
#[derive(Debug, Parser)]
#[command(name = "x", bin_name = "./x", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the eBPF object into target/ebpf/ (does nothing when its sources are unchanged)
    BuildEbpf(ebpf::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::BuildEbpf(args) => ebpf::build(&args),
    }
}
