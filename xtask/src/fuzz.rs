//! `fuzz`: random packets over random tables, the programs against the model in tests/fuzz.

use anyhow::Result;

use crate::cargo;
use crate::ebpf;
use crate::process;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many packets
    #[arg(long, default_value_t = 100_000_000)]
    packets: u64,
    /// Where the random cases begin: the same seed is the same case
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
}

/// The command `fuzz`.
pub fn run(args: &Args) -> Result<()> {
    ebpf::build(&ebpf::Args::default())?;
    let mut fuzz = cargo::cargo();
    // Optimised in this profile, too; most of the time is the kernel's.
    fuzz.args(["run", "--quiet", "--package", "heddle-fuzz", "--bin", "heddle-fuzz", "--"]);
    fuzz.args(["--packets", &args.packets.to_string()]);
    if let Some(seed) = args.seed {
        fuzz.args(["--seed", &seed.to_string()]);
    }
    if let Some(minutes) = args.minutes {
        fuzz.args(["--minutes", &minutes.to_string()]);
    }
    process::run(&mut fuzz)
}
