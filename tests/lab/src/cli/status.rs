//! `lab status`.

use std::process::ExitCode;

use anyhow::Result;
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
