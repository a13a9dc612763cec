//! `lab demo`: what people do with a cluster in their first hour, on three nodes on this machine.

mod curl;
mod show;
mod stage;
mod story;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use self::show::Show;

#[derive(Debug, Args)]
pub struct Demo {
    /// How proxyd reaches backends on other nodes.
    #[arg(long, default_value = "tunnel", value_parser = ["tunnel", "snat"])]
    remote: String,
}

impl Demo {
    pub fn run(self) -> Result<ExitCode> {
        println!("Heddle: 3 nodes, 2 pods on each, IPv4 and IPv6, on this machine");
        let mut show = Show::new();
        if let Err(error) = story::tell(&mut show, &self.remote) {
            show.check(format!("the demo goes on: {error:#}"), false);
        }
        Ok(if show.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
