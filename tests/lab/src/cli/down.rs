//! `lab down`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use heddle_lab::eventually;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[derive(Debug, Args)]
pub struct Down {
    /// The process that holds it, where several stand.
    #[arg(long, value_name = "PID")]
    lab: Option<u32>,
}

impl Down {
    pub fn run(self) -> Result<ExitCode> {
        let lab = super::status::pick(self.lab)?;
        let pid = Pid::from_raw(i32::try_from(lab.pid).context("its process id is none")?);
        match kill(pid, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => bail!("cannot end process {pid}: {e}"),
        }
        // Its last act is to remove its directory.
        eventually("the end of the lab", Duration::from_secs(30), || Ok(!lab.dir.exists()))?;
        println!("lab of process {pid} is down");
        Ok(ExitCode::SUCCESS)
    }
}
