//! The VXLAN overlay agent: nodes in, kernel out.
//!
//! The nodes of the sources become an overlay table ([`heddle_model::resolve`]), the table and what the
//! underlay is like become the desired state ([`desired`]), the difference to the observed state becomes a
//! plan ([`plan`]), and the plan is taken step by step ([`kernel`]). [`agent`] is all that as a target of the
//! reconcile loop; [`events`] wakes the loop when somebody else changes what is ours.
#![forbid(unsafe_code)]

mod agent;
mod announce;
mod cleanup;
mod cli;
mod desired;
mod edge;
mod events;
#[cfg(test)]
mod fake;
mod firewall;
mod flannel;
mod forwarding;
mod handoff;
mod health;
mod kernel;
mod mtu;
mod plan;
mod report;
mod run;
mod state;
mod status;

use std::process::ExitCode;

use heddle_daemon::Failure;

use cli::{Cli, Command};
use status::Places;

fn main() -> ExitCode {
    let cli = heddle_daemon::config::parse::<Cli>();
    heddle_daemon::exit::report("vxland", act(&cli))
}

fn act(cli: &Cli) -> Result<(), Failure> {
    let places = Places {
        vni: cli.vni,
        underlay: cli.underlay.clone(),
        run_dir: cli.common.run_dir.clone(),
        cni_conf_dir: cli.cni_conf_dir.clone(),
    };
    match &cli.command {
        None => run::run(cli),
        Some(Command::Status(output)) => {
            let status = status::status(&places).map_err(Failure::runtime)?;
            output.print(&status, status::text)?;
            match status.wrong.as_slice() {
                [] => Ok(()),
                [one] => Err(Failure::runtime(one.clone())),
                [first, rest @ ..] => {
                    Err(Failure::runtime(format!("{first} (and {} more; see above)", rest.len())))
                }
            }
        }
        Some(Command::Cleanup(output)) => {
            if heddle_daemon::run_dir::is_running(&places.run_dir, "vxland")? {
                return Err(Failure::usage(
                    "vxland runs on this node and would make it all again: stop it first",
                ));
            }
            let done = cleanup::cleanup(&places);
            output.print(&done, cleanup::text)?;
            match done.failed.as_slice() {
                [] => Ok(()),
                failed => Err(Failure::runtime(failed.join("; "))),
            }
        }
    }
}
