//! `demo`, `lab`: programs of tests/, with what they need built first.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::process;
use crate::suite::Suite;

/// Arguments that are the program's own.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Handed over as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// The commands `demo` and `lab`: build, then hand over to `lab`.
pub fn run(name: &str, args: &Args) -> Result<()> {
    let programs = build::programs(Profile::Dev)?;
    process::run(command(name, &programs)?.args(&args.args))
}

/// The suite `demo`. Its own last line says how many checks it made.
pub fn suite(suite: &mut Suite, programs: &Path) -> Result<()> {
    suite.check("demo", process::run(&mut command("demo", programs)?));
    Ok(())
}

/// `lab`, or its story `lab demo`.
fn command(name: &str, programs: &Path) -> Result<Command> {
    let program = programs.join("lab");
    if !program.exists() {
        bail!("there is no program {}", program.display());
    }
    let program = program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?;
    let mut command = Command::new(program);
    command.env("HEDDLE_BIN_DIR", programs).args((name == "demo").then_some("demo"));
    Ok(command)
}
