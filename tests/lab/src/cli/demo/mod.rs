//! `lab demo`: what people do with a cluster in their first hour, on three nodes on this machine.

mod curl;
mod show;
mod stage;
mod story;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use heddle_lab::{Firewall, Lab};

use self::show::Show;

#[derive(Debug, Args)]
pub struct Demo {
    /// The nodes' reverse path filter: 0 none, 1 strict, 2 loose.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    rp_filter: u8,
    /// The nodes have a packet filter: policy DROP in FORWARD, invalid packets dropped.
    #[arg(long)]
    strict: bool,
    /// The nodes have no default route.
    #[arg(long)]
    no_default_route: bool,
}

impl Demo {
    pub fn run(self) -> Result<ExitCode> {
        println!("Heddle: 3 nodes, 2 pods on each, IPv4 and IPv6, on this machine");
        let lab = Lab::builder()
            .nodes(3)
            .rp_filter(self.rp_filter)
            .firewall(if self.strict { Firewall::Strict } else { Firewall::Open })
            .default_route(!self.no_default_route);
        let mut show = Show::new();
        if let Err(error) = story::tell(&mut show, lab) {
            show.check(format!("the demo goes on: {error:#}"), false);
        }
        Ok(if show.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
