//! `lab up`: a lab that stands until somebody ends it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use heddle_lab::description::Description;
use heddle_lab::{Ask, Cluster, Endpoint, Lab, Pod, Proto, Service, addresses::cluster_ip};
use nix::sys::signal::{SigSet, Signal};

#[derive(Debug, Args)]
pub struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many outside clients.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Nodes and nothing on them: no daemons, no pods.
    #[arg(long)]
    bare: bool,
    /// Stay here, and take it down on Ctrl-C.
    #[arg(long)]
    foreground: bool,
}

impl Up {
    pub fn run(self) -> Result<ExitCode> {
        if !self.foreground {
            return self.run_behind();
        }
        // Before any other thread is there, so that all of them leave these to us.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().context("cannot block signals")?;
        let lab = Lab::builder().nodes(self.nodes).clients(self.clients);
        if self.bare {
            let lab = lab.build().context("cannot raise a lab")?;
            return hold(&Description::publish(&lab, &[])?, &signals);
        }
        let cluster = Cluster::start(lab).context(
            "cannot raise a lab with Heddle on it (`lab up --bare` raises one without; is everything built?)",
        )?;
        let web = Service::new("web")
            .cluster_ip(cluster_ip(10, true))
            .cluster_ip(cluster_ip(10, false))
            .port("http", Proto::Tcp, 80, 8080)
            .node_port(30080);
        let mut backends = Vec::new();
        for number in 1..=2 * self.nodes {
            backends.push(cluster.backend((number - 1) % self.nodes + 1, &format!("web-{number}"), 8080)?);
        }
        let endpoints: Vec<Endpoint> = backends.iter().map(|backend| backend.endpoint()).collect();
        cluster.publish(&web, &endpoints)?;
        for node in cluster.nodes() {
            cluster.await_answer(cluster.client(), Ask::new((node.ip4(), 30080)))?;
        }
        let pods: Vec<&Pod> = backends.iter().map(|backend| backend.pod()).collect();
        hold(&Description::publish(&cluster, &pods)?, &signals)
    }

    /// Starts the same again, in a session of its own, and waits until it stands.
    fn run_behind(self) -> Result<ExitCode> {
        let labs = Description::standing();
        if let Some(lab) = labs.first() {
            super::status::show(lab);
            bail!("a lab stands already");
        }
        let mut command = Command::new(std::env::current_exe().context("cannot find the lab program")?);
        command.args(["up", "--foreground"]).args(["--nodes", &self.nodes.to_string()]);
        command.args(["--clients", &self.clients.to_string()]).args(self.bare.then_some("--bare"));
        let (output, theirs) = std::io::pipe().context("cannot make a pipe")?;
        command.stdin(Stdio::null()).stdout(theirs.try_clone().context("cannot duplicate a pipe")?);
        command.stderr(theirs).process_group(0);
        let mut child = command.spawn().context("cannot start the process that holds the lab")?;
        // It holds the other end of the pipe.
        drop(command);
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read from the process that holds the lab")?;
            println!("{line}");
            if line.starts_with(READY) {
                return Ok(ExitCode::SUCCESS);
            }
        }
        child.wait().context("cannot wait for the process that holds the lab")?;
        bail!("the lab does not stand");
    }
}

const READY: &str = "enter with";

/// Says that it stands, and waits for a signal.
fn hold(lab: &Description, signals: &SigSet) -> Result<ExitCode> {
    super::status::show(lab);
    // Nobody may be left to read it; the lab stands all the same.
    let _ = std::io::stdout().flush();
    signals.wait().context("cannot wait for a signal")?;
    Ok(ExitCode::SUCCESS)
}
