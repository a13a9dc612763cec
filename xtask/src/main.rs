//! Build, test, demo and bench commands behind `./x`.
//!
//! Everything that needs more than `cargo` itself is here, in Rust, so that `./x` stays a short script that
//! only installs what is missing. `./x help` lists the commands.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod cargo;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod kubernetes;
mod libtest;
mod linker;
mod lint;
mod plugin;
mod process;
mod root;
mod rules;
mod suite;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

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
    /// Three nodes on this machine, pods, a service, real packets
    Demo(demo::Args),
    /// Everything that is tested
    Test(test::Args),
    /// The programs, with the eBPF object inside
    Build(build::Args),
    /// The container image of deploy/kubernetes, without a container engine
    Image(image::Args),
    /// Figures, each next to a reference measured in the same run
    Bench(bench::Args),
    /// Random packets over random services: the eBPF programs against a model
    Fuzz(fuzz::Args),
    /// Tests on another kernel, in a VM
    Vm(vm::Args),
    /// Formatting, clippy, and the rules of the house
    Lint,
    /// The laboratory of network namespaces: up, a shell in any node, down
    Lab(demo::Args),
    /// Build the eBPF object into target/ebpf/ (does nothing when its sources are unchanged)
    BuildEbpf(ebpf::Args),
    /// Build the programs of Kubernetes into target/kubernetes/bin, with Go (does nothing when they are there)
    BuildKubernetes,
    /// Show which compiler and bpf-linker build the eBPF object (bpf-linker is built if none fits)
    EbpfToolchain,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("x: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything is well; an error is said by the caller.
fn run() -> Result<bool> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run("demo", &args)?,
        Command::Test(args) => return test::run(&args),
        Command::Build(args) => build::run(&args)?,
        Command::Image(args) => image::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Fuzz(args) => fuzz::run(&args)?,
        Command::Vm(args) => return vm::run(&args),
        Command::Lint => return lint::run(),
        Command::Lab(args) => demo::run("lab", &args)?,
        Command::BuildEbpf(args) => ebpf::build(&args)?,
        Command::BuildKubernetes => kubernetes::build()?,
        Command::EbpfToolchain => println!("{}", toolchain::Toolchain::choose()?),
    }
    Ok(true)
}
