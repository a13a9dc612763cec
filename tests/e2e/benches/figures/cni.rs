//! ADD and DEL of `heddle`, against `ptp` with `host-local` of the reference plugins.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use heddle_lab::{Lab, Node, Pod, bin_dir};
use serde_json::{Value, json};

use crate::samples::Samples;
use crate::table::Table;

/// Of Debian's containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// Pods of each plugin.
const PODS: usize = 200;
/// Pods of each plugin with both families: the reference waits a second or more for each.
const DUAL_STACK: usize = 10;
const AT_ONCE: usize = 8;

pub fn run() -> Result<()> {
    for program in [bin_dir().join("heddle"), Path::new(REFERENCE).join("ptp")] {
        ensure!(program.is_file(), "there is no {}", program.display());
    }
    println!(
        "Milliseconds from the start of the plugin's process to its end, one node, the leases on a real disk. \
         {PODS} pods of each plugin, in turn (pod by pod the other first); then {AT_ONCE} at a time; then \
         {DUAL_STACK} with both families. Reference: ptp with host-local.\n"
    );
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let leases = scratch()?;
    let result = measure(lab.node(1), &leases);
    std::fs::remove_dir_all(&leases).with_context(|| format!("cannot remove {}", leases.display()))?;
    result
}

/// A directory that is not in memory.
fn scratch() -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("leases-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn measure(node: &Node, leases: &Path) -> Result<()> {
    let mut table = Table::new(&["", "heddle p50", "p99", "reference p50", "p99", "p50 ratio"]);
    let pods = |count| -> Result<[Vec<Pod>; 2]> {
        let make = |plugin: &'static str| {
            (0..count).map(move |n| Ok(node.pod(&format!("{plugin}-{n}"))?)).collect::<Result<Vec<_>>>()
        };
        Ok([make("heddle")?, make("ptp")?])
    };
    let both = pods(PODS)?;
    let plugins = Plugin::pair(leases, false);
    let version = (0..PODS).map(|n| (Verb::Version, n));
    table.row(row("VERSION: a process starts and ends", &in_turn(node, &plugins, &both, version)?));
    for verb in [Verb::Add, Verb::Del] {
        let samples = in_turn(node, &plugins, &both, (0..PODS).map(|n| (verb, n)))?;
        table.row(row(verb.word(), &samples));
    }
    for verb in [Verb::Add, Verb::Del] {
        let (samples, took) = at_once(node, &plugins, &both, verb)?;
        let rate = took.map(|took| PODS as f64 / took.as_secs_f64());
        table.row(row(&format!("{}, {AT_ONCE} at once", verb.word()), &samples));
        table.row([
            format!("{}, {AT_ONCE} at once: a second", verb.word()),
            format!("{:.0}", rate[0]),
            String::new(),
            format!("{:.0}", rate[1]),
            String::new(),
            format!("{:.3}", rate[0] / rate[1]),
        ]);
    }
    drop(both);
    let both = pods(DUAL_STACK)?;
    let plugins = Plugin::pair(leases, true);
    for verb in [Verb::Add, Verb::Del] {
        let samples = in_turn(node, &plugins, &both, (0..DUAL_STACK).map(|n| (verb, n)))?;
        table.row(row(&format!("{}, IPv4 and IPv6", verb.word()), &samples));
    }
    table.print();
    Ok(())
}

fn row(label: &str, [heddle, reference]: &[Samples; 2]) -> Vec<String> {
    let cell = |value: f64| format!("{value:.2}");
    vec![
        label.into(),
        cell(heddle.median()),
        cell(heddle.percentile(99.0)),
        cell(reference.median()),
        cell(reference.percentile(99.0)),
        format!("{:.3}", heddle.median() / reference.median()),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Version,
    Add,
    Del,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

struct Plugin {
    program: PathBuf,
    config: Value,
}

impl Plugin {
    /// `heddle` and the reference, configured alike but for their ranges.
    fn pair(leases: &Path, dual_stack: bool) -> [Self; 2] {
        let name = if dual_stack { "dual-stack" } else { "ipv4" };
        [("heddle", bin_dir(), 1), ("ptp", REFERENCE.into(), 2)].map(|(kind, dir, net)| {
            let mut ranges = vec![json!([{ "subnet": format!("10.244.{net}.0/24") }])];
            if dual_stack {
                ranges.push(json!([{ "subnet": format!("fd00:10:244:{net}::/64") }]));
            }
            let config = json!({
                "cniVersion": "1.0.0", "name": format!("{name}-{kind}"), "type": kind,
                "ipam": { "type": "host-local", "dataDir": leases, "ranges": ranges },
            });
            Self { program: dir.join(kind), config }
        })
    }

    /// Milliseconds of one call, in the node that the calling thread is in.
    fn call(&self, verb: Verb, pod: &Pod) -> Result<f64> {
        let input = self.config.to_string();
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb.word())
            .env("CNI_CONTAINERID", pod.container_id())
            .env("CNI_NETNS", pod.netns_path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        // Dropped at the end of the statement: end of file. For VERSION a plugin need not read it.
        let written = child.stdin.take().context("it has no standard input")?.write_all(input.as_bytes());
        written.or_else(|error| if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
        let output = child.wait_with_output()?;
        let took = start.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{} {} of {}: {}", self.program.display(), verb.word(), pod.place().name(), text.trim());
        }
        if verb == Verb::Add {
            let answer: Value = serde_json::from_str(&text).context("ADD answered no JSON")?;
            ensure!(answer["ips"][0]["address"].is_string(), "ADD answered no address: {answer}");
        }
        Ok(took.as_secs_f64() * 1e3)
    }
}

/// Both plugins in turn, pod after pod; at every other pod the second one first.
fn in_turn(
    node: &Node,
    plugins: &[Plugin; 2],
    pods: &[Vec<Pod>; 2],
    calls: impl Iterator<Item = (Verb, usize)> + Send,
) -> Result<[Samples; 2]> {
    node.enter(|| {
        let mut samples = [Samples::default(), Samples::default()];
        for (verb, n) in calls {
            for which in if n % 2 == 0 { [0, 1] } else { [1, 0] } {
                samples[which].push(plugins[which].call(verb, &pods[which][n])?);
            }
        }
        Ok(samples)
    })?
}

/// All pods of one plugin by [`AT_ONCE`] threads, a quarter of them before it is the other one's turn.
/// Also the time that it took for all.
fn at_once(
    node: &Node,
    plugins: &[Plugin; 2],
    pods: &[Vec<Pod>; 2],
    verb: Verb,
) -> Result<([Samples; 2], [Duration; 2])> {
    let mut samples = [Samples::default(), Samples::default()];
    let mut took = [Duration::ZERO; 2];
    for (quarter, parts) in pods[0].chunks(PODS / 4).zip(pods[1].chunks(PODS / 4)).enumerate() {
        for which in if quarter % 2 == 0 { [0, 1] } else { [1, 0] } {
            let part = [parts.0, parts.1][which];
            let start = Instant::now();
            crowd(node, &plugins[which], part, verb)?
                .into_iter()
                .for_each(|sample| samples[which].push(sample));
            took[which] += start.elapsed();
        }
    }
    Ok((samples, took))
}

fn crowd(node: &Node, plugin: &Plugin, pods: &[Pod], verb: Verb) -> Result<Vec<f64>> {
    let next = AtomicUsize::new(0);
    let samples = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
            let sample = plugin.call(verb, pod)?;
            samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(sample);
        }
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| node.enter(work)?)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(samples.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}
