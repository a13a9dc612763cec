//! `vm`: tests on another kernel than this machine's, in a VM; and the suite `kernels`.
//!
//! Tests are built here, as always, and run there: the VM sees this machine's files. All tests of a kernel share one
//! boot. Where there is no KVM the VM is emulated, 10 to 20 times slower than the machine.

mod initrd;
mod kernel;
mod machine;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::libtest::{self, TestBinary};
use crate::suite::{self, Suite};
use initrd::quoted;
pub use kernel::KERNELS;
use kernel::Kernel;
use machine::Machine;

/// How many times longer than usual the laboratory waits in there (`HEDDLE_PATIENCE`).
const PATIENCE: u32 = 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Debian's kernel: 6.1 or 6.12
    #[arg(value_name = "KERNEL", value_parser = KERNELS)]
    kernel: String,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// Parts of the names of tests, as for `test`; without any, the set of the suite `kernels`
    #[arg(value_name = "TEST", last = true)]
    tests: Vec<String>,
}

/// The command `vm`. Returns whether nothing failed.
pub fn run(args: &Args) -> Result<bool> {
    let mut built = None;
    let mut suites = vec![Suite::run("build", |_| {
        built = Some((build::programs(Profile::Dev)?, libtest::build()?));
        Ok(())
    })];
    if let Some((programs, binaries)) = &built {
        let limit = Duration::from_secs(args.limit);
        let tests = if args.tests.is_empty() { chosen(&args.kernel) } else { args.tests.clone() };
        suites.push(Suite::run(name(&args.kernel), |suite| {
            tests_on(suite, &args.kernel, binaries, &tests, programs, limit)
        }));
    }
    Ok(suite::report(&suites, false))
}

/// The suite `kernels`: on every kernel its chosen set, and on the newest also what this machine had to skip.
pub fn suites(before: &[Suite], binaries: &[TestBinary], programs: &Path) -> Vec<Suite> {
    let skipped_here: Vec<String> = before
        .iter()
        // A cluster is too much for an emulated machine.
        .filter(|suite| suite.name != "kubernetes")
        .flat_map(|suite| &suite.skipped)
        .filter_map(|skipped| Some(skipped.name.split_once("::")?.1.to_owned()))
        .collect();
    let newest = KERNELS[KERNELS.len() - 1];
    KERNELS
        .iter()
        .map(|kernel| {
            let mut tests = chosen(kernel);
            if *kernel == newest {
                tests.extend(skipped_here.iter().cloned());
            }
            Suite::run(name(kernel), |suite| {
                tests_on(suite, kernel, binaries, &tests, programs, Duration::from_secs(900))
            })
        })
        .collect()
}

/// The suite's line in the table.
fn name(kernel: &str) -> &'static str {
    match kernel {
        "6.1" => "linux-6.1",
        _ => "linux-6.12",
    }
}

/// What is run on a kernel every time: what differs from kernel to kernel, in a few minutes.
fn chosen(kernel: &str) -> Vec<String> {
    let everywhere = [
        "ipvlan::wiring::",
        "ipvlan::faults::",
        "ipvlan::spoofing::",
        "ptp::a_pod_",
        "bridge::the_owners_",
        "bridge::both_families_",
        "bridge::a_pod_on_a_bridge_",
        "bridge_keys::an_address_that_is_anothers_",
        "masquerade::others_see_",
        "hostport::ptp_a_port_is_reached_",
        "bandwidth::a_check_compares_",
        "with_the_loose_reverse_path_filter",
        "packets_are_those_of_flannel",
    ];
    // There is no tcx in 6.1 (it came with 6.6), so no proxyd. All of proxyd's scenarios take too long here.
    let newest = ["links_can_be_slow_", "heddle-e2e/sockets"];
    let more = if kernel == KERNELS[0] { &[][..] } else { &newest };
    everywhere.iter().chain(more).map(|&name| name.to_owned()).collect()
}

/// Runs the tests whose names contain one of `filters` on `kernel`, counting them in `suite`.
fn tests_on(
    suite: &mut Suite,
    kernel: &str,
    binaries: &[TestBinary],
    filters: &[String],
    programs: &Path,
    limit: Duration,
) -> Result<()> {
    let mut job = format!(
        "export RUSTC_BOOTSTRAP=1 HEDDLE_PATIENCE={PATIENCE} HEDDLE_BIN_DIR={}\n",
        quoted(&programs.display().to_string())
    );
    let mut awaited = Vec::new();
    for binary in binaries.iter().filter(|binary| binary.package != "heddle-kubernetes") {
        let names = binary.names(filters)?;
        if names.is_empty() {
            continue;
        }
        awaited.extend(names);
        let dir = quoted(&binary.dir().display().to_string());
        let line: Vec<_> = binary.line(filters).iter().map(|word| quoted(word)).collect();
        job.push_str(&format!("export CARGO_MANIFEST_DIR={dir}\n"));
        job.push_str(&format!("run {} {dir} {}\n", quoted(&binary.label()), line.join(" ")));
    }
    // A test that was renamed must not drop out unseen.
    if let Some(lost) =
        filters.iter().find(|filter| !awaited.iter().any(|name| name.contains(filter.as_str())))
    {
        bail!("no test has {lost} in its name");
    }
    println!("{} tests on Linux {kernel}", awaited.len());
    let kernel = Kernel::prepare(kernel)?;
    let mut machine = Machine::start(&kernel, &job)?;
    let ended = read(&mut machine, suite, limit);
    // A test that is not heard of has not passed.
    for name in awaited {
        let known = suite.ran.contains(&name)
            || suite.failed.contains(&name)
            || suite.skipped.iter().any(|skipped| skipped.name == name);
        if !known {
            println!("FAILED {name}: no word of it");
            suite.failed.push(name);
        }
    }
    ended.with_context(|| format!("the VM's console:\n{}", machine.console()))
}

/// Reads what the VM says until it ends.
fn read(machine: &mut Machine, suite: &mut Suite, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let stderr = machine.qemu.stderr.take().context("no stderr")?;
    let skipped = thread::spawn(move || {
        let (mut label, mut skipped) = (String::new(), Vec::new());
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            match line.strip_prefix("@begin ") {
                Some(begun) => label = begun.to_owned(),
                None => skipped.extend(
                    libtest::said_skipped(&line).map(|(name, reason)| (format!("{label}::{name}"), reason)),
                ),
            }
        }
        skipped
    });
    let stdout = machine.qemu.stdout.take().context("no stdout")?;
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|text| line.send(text))
    });
    let mut counted = Count::default();
    let ended = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => counted.line(&line, suite),
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                drop(machine.qemu.kill());
                break Err(anyhow::anyhow!("it took more than {} s", limit.as_secs()));
            }
        }
    };
    for (name, reason) in skipped.join().unwrap_or_default() {
        suite.skip(name, reason);
    }
    ended?;
    let status = machine.qemu.wait()?;
    if !status.success() || counted.running {
        bail!("it ended before its tests did ({status})");
    }
    Ok(())
}

/// Where in the output of the job we are.
#[derive(Default)]
struct Count {
    label: String,
    running: bool,
    passed: usize,
    failed: usize,
    begun: Option<Instant>,
}

impl Count {
    fn line(&mut self, line: &str, suite: &mut Suite) {
        if let Some(label) = line.strip_prefix("@begin ") {
            let (passed, failed) = (suite.passed, suite.failed.len());
            *self = Self { label: label.into(), running: true, passed, failed, begun: Some(Instant::now()) };
        } else if let Some(status) = line.strip_prefix("@end ") {
            self.running = false;
            if status != "0" && suite.failed.len() == self.failed {
                println!("{}: exit status {status}", self.label);
                suite.failed.push(format!("{} (exit status {status})", self.label));
            }
            println!(
                "{}: {} passed, {} failed in {:.1} s",
                self.label,
                suite.passed - self.passed,
                suite.failed.len() - self.failed,
                self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64())
            );
        } else {
            libtest::read_line(line, &self.label, suite);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_several_binaries_is_told_apart() {
        let suite = Suite::run("vm", |suite| {
            let mut count = Count::default();
            for line in [
                "@begin one",
                "test a ... ok <0.1s>",
                "test b ... FAILED <0.1s>",
                "@end 101",
                "@begin two",
                "test a ... ok <0.1s>",
                "@end 139",
            ] {
                count.line(line, suite);
            }
            assert!(!count.running);
            Ok(())
        });
        assert_eq!(suite.passed, 2);
        assert_eq!(suite.failed, ["one::b", "two (exit status 139)"]);
    }
}
