//! `lab demo`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub struct Demo {}

impl Demo {
    pub fn run(self) -> Result<ExitCode> {
        bail!("not yet")
    }
}
