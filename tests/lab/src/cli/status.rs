//! `lab status`, and which lab the other commands mean.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use heddle_lab::description::Description;

pub fn run() -> Result<ExitCode> {
    let labs = Description::standing();
    if labs.is_empty() {
        println!("no lab stands; raise one with `lab up`");
        return Ok(ExitCode::SUCCESS);
    }
    labs.iter().for_each(show);
    Ok(ExitCode::SUCCESS)
}

/// The places of a lab, and how to get there.
pub fn show(lab: &Description) {
    println!("lab of process {}, files in {}", lab.pid, lab.dir.display());
    for door in &lab.places {
        println!("  {:<14} {}", door.name, door.addresses.join("  "));
    }
    println!("enter with `lab shell NAME`, end with `lab down`");
}

/// The lab of process `pid`; the only one that stands, when none is named.
pub fn pick(pid: Option<u32>) -> Result<Description> {
    let mut labs = Description::standing();
    if let Some(pid) = pid {
        labs.retain(|lab| lab.pid == pid);
        return labs.pop().ok_or_else(|| anyhow!("there is no lab of process {pid}"));
    }
    if labs.len() > 1 {
        let pids: Vec<_> = labs.iter().map(|lab| lab.pid.to_string()).collect();
        bail!("several labs stand, of the processes {}: name one with --lab", pids.join(", "));
    }
    labs.pop().ok_or_else(|| anyhow!("no lab stands; raise one with `lab up`"))
}
