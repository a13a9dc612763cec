//! The service proxy and routing mesh.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use heddle_daemon::run_dir::Instance;
use heddle_daemon::{Failure, Output};
use proxyd::cli::{Cli, Command};
use proxyd::report::Report;
use proxyd::{ctl, leftovers, run};

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
        Some(Command::KubeProxy { remove, end_connections, output }) => {
            kube_proxy(cli, *remove, *end_connections, *output)
        }
        Some(Command::Cleanup(output)) => cleanup(cli, *output),
    }
}

fn kube_proxy(cli: &Cli, remove: bool, connections: bool, output: Output) -> Result<(), Failure> {
    let found = leftovers::look(&cli.bpf_root, true).map_err(failure)?;
    if !remove {
        return Ok(output.print(&found, leftovers::Found::text)?);
    }
    if let Some(by) = &found.running {
        return Err(Failure::usage(format!(
            "kube-proxy runs on this node ({by}) and would make it all again: stop it first (kubectl -n kube-system \
             delete daemonset kube-proxy)"
        )));
    }
    leftovers::remove(&found, leftovers::Options { connections })?;
    let left = leftovers::look(&cli.bpf_root, true).map_err(failure)?;
    output.print(&left, |left| match found.has_rules() {
        true => format!("removed: {}\n{}", found.summary(), left.text()),
        false => left.text(),
    })?;
    Ok(())
}

fn failure(error: proxyd::dataplane::Error) -> Failure {
    Failure::runtime(heddle_daemon::exit::chain(error.as_ref()))
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
