//! The service proxy and routing mesh.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use heddle_daemon::run_dir::Instance;
use heddle_daemon::{Failure, Output};
use proxyd::cli::{Cli, Command};
use proxyd::report::Report;
use proxyd::{ctl, run};

fn main() -> ExitCode {
    let cli = heddle_daemon::config::parse::<Cli>();
    heddle_daemon::exit::report("proxyd", act(&cli))
}

fn act(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        None => run::run(cli),
        Some(Command::Status { service, output }) => {
            let report = Report::read(&cli.bpf_root, &cli.common.run_dir, service.as_ref())?;
            output.print(&report, Report::text)?;
            Ok(())
        }
        Some(Command::Explain { from, to, output }) => {
            match ctl::explain::explain(&cli.bpf_root, *from, *to)? {
                Some(answer) => Ok(output.print(&answer, ctl::explain::Answer::text)?),
                None => Err(Failure::runtime(
                    "no datapath is there: proxyd has not run on this node since it started",
                )),
            }
        }
        Some(Command::Monitor { options, output }) => {
            Ok(ctl::monitor::monitor(&cli.bpf_root, &cli.common.run_dir, options, output.format)?)
        }
        Some(Command::Doctor(output)) => {
            let diagnosis = ctl::doctor::examine(&cli.bpf_root, &cli.common.run_dir)?;
            output.print(&diagnosis, ctl::doctor::Diagnosis::text)?;
            match diagnosis.verdict() {
                ctl::doctor::Verdict::Failure => Err(Failure::runtime("something does not work (see above)")),
                _ => Ok(()),
            }
        }
        Some(Command::Cleanup(output)) => cleanup(cli, *output),
    }
}

fn cleanup(cli: &Cli, output: Output) -> Result<(), Failure> {
    // Held until the end, so that none is started meanwhile.
    let Some(_instance) = Instance::try_take(&cli.common.run_dir, "proxyd")? else {
        return Err(Failure::usage("proxyd runs on this node and would make it all again: stop it first"));
    };
    let removed = ctl::cleanup(&cli.bpf_root)?;
    let text = |removed: &Removed| match removed.removed {
        true => "removed".to_owned(),
        false => "there was nothing to remove".to_owned(),
    };
    Ok(output.print(&Removed { removed }, text)?)
}

#[derive(serde::Serialize)]
struct Removed {
    removed: bool,
}
