//! Clients that ask on and on, from outside, as packets of a pod and as sockets of a pod.

use std::net::SocketAddr;
use std::time::Duration;

use heddle_lab::{Cmd, Load, Place, Process, Running};

use super::ensure;
use super::lateness::measured;
use super::stage::{Stage, Subject};
use crate::cluster::LIMIT;
use crate::deploy;
use crate::error::{Error, Result};

/// Questions a second, of each client.
const RATE: u32 = 50;

/// How often what went wrong may be the machine's doing.
const ATTEMPTS: usize = 4;
/// How long it may take to write that a pod leaves, of the second that the pod has.
const IN_TIME: Duration = Duration::from_millis(600);
/// What a proxyd may take from there to the kernel, in seconds, as its metric has it: ten times what it needs on a machine
/// that is not overrun (tests/scale.rs asks for that).
const PROGRAMMED: &str = "0.2";

/// Does something with the pods of `service` that no client may notice.
///
/// A service's endpoints are written by the controller manager. When its own cache is behind (many pods change at once on a
/// busy machine) it waits a second before it tries again, which is all the time that a pod has before it ends. Nobody can
/// know then that the pod is leaving: such an attempt says nothing, and another one is made; also when the machine has
/// let a proxyd wait for so long. What kube-proxy loses by itself is not judged here: its one clean attempt shows that
/// these checks can be passed.
///
/// # Errors
/// When a client noticed and all were in time; when they never are.
pub fn unnoticed(stage: &Stage, service: &str, attempt: impl Fn(usize) -> Result<Clients>) -> Result<()> {
    let cluster = &stage.cluster;
    if stage.subject == Subject::Heddle {
        deploy::await_ready(cluster.api(), cluster.nodes().len(), LIMIT)?;
    }
    let mut last = Ok(());
    for number in 1..=ATTEMPTS {
        let before = slow(stage)?;
        let (clients, late) = measured(stage, service, || attempt(number))?;
        let slow = slow(stage)? - before;
        last = clients.assert_clean();
        println!(
            "    attempt {number}: endpoints were written at most {late:?} after a pod's end had begun, {slow} of them \
             were in a kernel more than {PROGRAMMED} s later"
        );
        match &last {
            Err(e) if late > IN_TIME || slow > 0 || stage.subject == Subject::Reference => {
                println!("    and so: {e}");
            }
            _ => return last,
        }
    }
    last
}

/// How often a proxyd took longer than [`PROGRAMMED`] so far.
fn slow(stage: &Stage) -> Result<u64> {
    let mut slow = 0;
    for node in stage.cluster.nodes().iter().filter(|_| stage.subject == Subject::Heddle) {
        let metrics = node.node().run("curl --silent http://127.0.0.1:10249/metrics")?;
        let value = |name: &str| {
            let name = format!("heddle_programming_duration_seconds_{name} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<u64>().ok())
        };
        let (all, in_time) = (value("count"), value(&format!("bucket{{le=\"{PROGRAMMED}\"}}")));
        let missing = || Error::new("read the metrics of proxyd", &metrics);
        slow += all.ok_or_else(missing)? - in_time.ok_or_else(missing)?;
    }
    Ok(slow)
}

/// Clients that ask. Dropped, they stop.
#[derive(Debug)]
pub struct Clients {
    threads: Vec<(String, Running)>,
    processes: Vec<(String, Process)>,
}

impl Clients {
    pub fn new() -> Self {
        Self { threads: Vec::new(), processes: Vec::new() }
    }

    /// A connection for each question, by a thread: in a pod's network its packets are what is translated.
    pub fn connects(&mut self, place: &Place, to: SocketAddr) -> Result<()> {
        self.thread(place, to, Load::connects(to))
    }

    /// Connections that stay.
    pub fn streams(&mut self, place: &Place, to: SocketAddr) -> Result<()> {
        self.thread(place, to, Load::streams(to, 3))
    }

    /// Datagrams from one socket.
    pub fn datagrams(&mut self, place: &Place, to: SocketAddr) -> Result<()> {
        self.thread(place, to, Load::datagrams(to))
    }

    fn thread(&mut self, place: &Place, to: SocketAddr, load: Load) -> Result<()> {
        let name = format!("{} to {to}", place.name());
        self.threads.push((name, load.rate(RATE).start(place)?));
        Ok(())
    }

    /// A connection for each question, by a process: the node's socket programs see it.
    pub fn process(&mut self, stage: &Stage, place: &Place, to: SocketAddr) -> Result<()> {
        let args = ["load", "tcp", &to.to_string(), &RATE.to_string()];
        let cmd = Cmd::new(stage.cluster.inmate()).args(args);
        self.processes.push((format!("a process of {} to {to}", place.name()), place.spawn(cmd)?));
        Ok(())
    }

    /// Lets them ask for so long, by what they count.
    ///
    /// # Errors
    /// When there are not that many answers in twice the time.
    pub fn go_on(&self, time: Duration) -> Result<()> {
        let count = u64::from(RATE) * time.as_secs().max(1);
        if let Some((_, running)) = self.threads.first() {
            running.wait_for(count, time * 2 + Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// Stops them. An error tells what went wrong with each.
    ///
    /// # Errors
    /// When a question stayed without its answer.
    pub fn assert_clean(self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, running) in self.threads {
            let report = running.stop();
            if !report.is_clean() {
                let counts = report.to_string();
                let errors: Vec<_> = report.errors.iter().map(|(e, n)| format!("{e} ({n})")).collect();
                let counts = counts.split(';').next().unwrap_or_default();
                wrong.push(format!("{name}: {counts}; {}", errors.join(", ")));
            }
        }
        for (name, process) in self.processes {
            process.kill();
            let log = process.log();
            let failures: Vec<_> = log.lines().filter(|line| line.starts_with('-')).collect();
            if !failures.is_empty() || !log.lines().any(|line| line.starts_with("= ") && line != "= 0") {
                wrong.push(format!(
                    "{name}: {}",
                    if failures.is_empty() { "no answer".into() } else { failures.join(", ") }
                ));
            }
        }
        ensure(wrong.is_empty(), || wrong.join("\n    "))
    }
}
