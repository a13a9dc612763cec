//! `demo`, `lab`: programs of tests/, with what they need built first.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

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

/// The suite `demo`. Its last line says how many checks it made: `demo: 23 checks, 0 failed`.
pub fn suite(suite: &mut Suite, programs: &Path) -> Result<()> {
    let mut child =
        command("demo", programs)?.stdout(Stdio::piped()).spawn().context("cannot start the demo")?;
    let stdout = child.stdout.take().context("the demo has no output")?;
    let mut sum = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read from the demo")?;
        println!("{line}");
        sum = checks(&line).or(sum);
    }
    let status = child.wait()?;
    let (all, failed) = sum.unwrap_or_default();
    suite.passed += all.saturating_sub(failed);
    if failed > 0 || sum.is_none() || !status.success() {
        bail!("{failed} of {all} checks failed, {status}");
    }
    Ok(())
}

/// Checks and failures of the demo's last line.
fn checks(line: &str) -> Option<(usize, usize)> {
    let (all, failed) = line.strip_prefix("demo: ")?.strip_suffix(" failed")?.split_once(" checks, ")?;
    Some((all.parse().ok()?, failed.parse().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read() {
        assert_eq!(checks("demo: 23 checks, 1 failed"), Some((23, 1)));
        assert_eq!(checks("demo: raising three nodes"), None);
    }
}
