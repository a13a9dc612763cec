//! ADD and DEL of `heddle`, against the plugins of the reference.

mod contender;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_lab::{bin_dir, usage};
use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::{NetNs, Socket, Watch};
use serde_json::json;

use crate::samples::Samples;
use crate::table::Table;
use contender::{Contender, Pod, Verb};

/// Of Debian's containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// How often each is called, alone.
const ROUNDS: usize = 50;
/// The same where the reference takes a while.
const SLOW_ROUNDS: usize = 15;
const AT_ONCE: usize = 16;
/// Pods of each plugin in the crowd.
const CROWD: usize = 96;
const LEASES: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run() -> Result<()> {
    for program in [bin_dir().join("heddle"), Path::new(REFERENCE).join("ptp")] {
        ensure!(program.is_file(), "there is no {}", program.display());
    }
    println!(
        "Milliseconds: `p50`, `p99` from the start of the plugin's process to its end, `CPU` the mean of its processor time \
         (user and kernel, with the programs that it starts). {ROUNDS} pods of each plugin, pod by pod in turn, on one \
         host, the leases on a real disk. `memory`: the most that the plugin's own process has at once (KiB). Reference: \
         the plugins in {REFERENCE} with host-local.\n"
    );
    let leases = scratch()?;
    let host = NetNs::create()?;
    let result = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            host.enter()?;
            measure(&leases)
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    fs::remove_dir_all(&leases).with_context(|| format!("cannot remove {}", leases.display()))?;
    result
}

/// A directory that is not in memory.
fn scratch() -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("leases-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn measure(leases: &Path) -> Result<()> {
    let (none, masquerade) = (json!({}), json!({ "ipMasq": true }));
    let bridge = |name: &str| json!({ "bridge": name, "isGateway": true });
    let contenders = [
        Contender::heddle("heddle, ptp", 101, leases, &none),
        Contender::reference("ptp", "reference ptp", 102, leases, &none),
        Contender::heddle("heddle, ptp, durable", 103, leases, &none).durable(),
        Contender::heddle(
            "heddle, ptp, withNamespace",
            104,
            leases,
            &json!({"deleteInterface": "withNamespace"}),
        ),
        Contender::heddle("heddle, bridge", 105, leases, &bridge("br5")),
        Contender::reference("bridge", "reference bridge", 106, leases, &bridge("br6")),
        Contender::heddle("heddle, ptp, ipMasq", 107, leases, &masquerade),
        Contender::reference("ptp", "reference ptp, ipMasq", 108, leases, &masquerade),
    ];
    let (alone, bare) = in_turn(&contenders, ROUNDS)?;
    println!("\nAlone, no other leases:\n");
    show(&contenders, &alone);
    println!(
        "\nRTM_DELLINK of a veth that is up and has an address, in the same rounds: p50 {:.2}, p99 {:.2}.",
        bare.median(),
        bare.percentile(99.0)
    );
    start(&bin_dir().join("heddle"))?;

    fill(leases, &[109, 110])?;
    let full = [
        Contender::heddle("heddle, ptp", 109, leases, &none),
        Contender::reference("ptp", "reference ptp", 110, leases, &none),
        // For the ratio, in the same rounds.
        Contender::heddle("heddle, ptp, no leases", 111, leases, &none),
    ];
    let (filled, _) = in_turn(&full, SLOW_ROUNDS)?;
    println!("\nWith {LEASES} leases:\n");
    show(&full, &filled);

    let crowds = [
        Contender::heddle("heddle, ptp", 112, leases, &none),
        Contender::reference("ptp", "reference ptp", 113, leases, &none),
    ];
    let rates = crowds.iter().map(crowd).collect::<Result<Vec<_>>>()?;
    println!("\n{AT_ONCE} at once, pods a second:\n");
    let mut table = Table::new(&["", "ADD", "DEL"]);
    for (contender, rate) in crowds.iter().zip(&rates) {
        table.row([contender.label.clone(), format!("{:.0}", rate[0]), format!("{:.0}", rate[1])]);
    }
    table.print();
    goals(&alone, &bare, &filled, &rates);
    Ok(())
}

/// What one plugin's calls of one kind took.
#[derive(Default)]
struct Figures {
    wall: Samples,
    cpu: Samples,
    peak: u64,
}

/// All of them for a pod each, every round, ADD and then DEL. And what the kernel alone takes to delete a veth.
fn in_turn(contenders: &[Contender], rounds: usize) -> Result<(Vec<[Figures; 2]>, Samples)> {
    let mut figures: Vec<[Figures; 2]> = contenders.iter().map(|_| Default::default()).collect();
    let mut bare = Samples::default();
    // They stay until all is measured: while the kernel deletes a namespace, everybody else waits for its lock.
    let mut pods = Vec::new();
    for round in 0..=rounds {
        for step in 0..contenders.len() {
            let at = if round % 2 == 0 { step } else { contenders.len() - 1 - step };
            let pod = Pod::new(format!("round-{round}-{at}"))?;
            for (verb, figures) in Verb::BOTH.into_iter().zip(&mut figures[at]) {
                // The first round warms up, and is looked at more closely.
                if round == 0 {
                    figures.peak = contenders[at].peak(verb, &pod)?;
                    continue;
                }
                let used = contenders[at].call(verb, &pod)?;
                figures.wall.push(used.wall.as_secs_f64() * 1e3);
                figures.cpu.push(used.cpu.as_secs_f64() * 1e3);
            }
            pods.push(pod);
        }
        let pod = Pod::new("bare".into())?;
        bare.push(delete_bare(&pod)?.as_secs_f64() * 1e3);
        pods.push(pod);
    }
    settle(pods)?;
    Ok((figures, bare))
}

/// Waits until the kernel has deleted the namespaces of `pods`, which it does in the order in which they go.
fn settle(pods: Vec<Pod>) -> Result<()> {
    let last = Pod::new("last".into())?;
    let mut socket = Socket::open()?;
    let near = VethEnd { name: "canary", ..VethEnd::default() };
    link::create_veth(
        &mut socket,
        &near,
        &VethEnd { name: "eth0", ns: Some(&last.ns), ..VethEnd::default() },
    )?;
    drop(pods);
    drop(last);
    let gone = Watch::open()?.until(PATIENCE, || Ok(link::by_name(&mut socket, "canary")?.is_none()))?;
    ensure!(gone, "the kernel does not delete namespaces");
    Ok(())
}

fn delete_bare(pod: &Pod) -> Result<Duration> {
    let mut socket = Socket::open()?;
    let near = VethEnd { name: "bare", ..VethEnd::default() };
    link::create_veth(
        &mut socket,
        &near,
        &VethEnd { name: "eth0", ns: Some(&pod.ns), ..VethEnd::default() },
    )?;
    let near = link::by_name(&mut socket, "bare")?.context("the veth is gone")?;
    let mut inside = Socket::open_in(&pod.ns)?;
    let far = link::by_name(&mut inside, "eth0")?.context("its peer is gone")?;
    for (socket, link, ip) in [(&mut socket, &near, "10.100.0.1/32"), (&mut inside, &far, "10.100.0.2/32")] {
        let ip = ip.parse().context("an address")?;
        heddle_netlink::addr::add(socket, &heddle_netlink::addr::Addr::new(link.index, ip))?;
        link::set_up(socket, link.index)?;
    }
    let start = Instant::now();
    link::delete(&mut socket, near.index)?;
    Ok(start.elapsed())
}

fn show(contenders: &[Contender], figures: &[[Figures; 2]]) {
    let mut table = Table::new(&["", "ADD p50", "p99", "CPU", "memory", "DEL p50", "p99", "CPU", "memory"]);
    for (contender, both) in contenders.iter().zip(figures) {
        let mut row = vec![contender.label.clone()];
        for one in both {
            let times = [one.wall.median(), one.wall.percentile(99.0), one.cpu.mean()];
            row.extend(times.map(|time| format!("{time:.2}")));
            row.push(one.peak.to_string());
        }
        table.row(row);
    }
    table.print();
}

/// Size, and what it takes to start and end.
fn start(program: &Path) -> Result<()> {
    let size = fs::metadata(program).with_context(|| format!("cannot read {}", program.display()))?.len();
    let (mut wall, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let mut command = Command::new(program);
        let used = usage::measure(command.env_clear().env("CNI_COMMAND", "VERSION"), b"{}")?;
        ensure!(used.status.success(), "VERSION failed");
        wall.push(used.wall.as_secs_f64() * 1e3);
        cpu.push(used.cpu.as_secs_f64() * 1e3);
    }
    println!(
        "\n`heddle` has {:.1} MiB; VERSION, which is its start and end: p50 {:.2}, CPU {:.2}.",
        size as f64 / 1024.0 / 1024.0,
        wall.median(),
        cpu.mean()
    );
    Ok(())
}

/// Leases as host-local writes them, of pods that are somewhere else.
fn fill(leases: &Path, ranges: &[u8]) -> Result<()> {
    for range in ranges {
        let dir = leases.join(format!("net-{range}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let name = |n: u32| format!("10.{range}.{}.{}", n / 250 + 1, n % 250 + 2);
        for n in 0..LEASES {
            fs::write(dir.join(name(n)), format!("idle-{n}\r\neth0")).context("cannot write a lease")?;
        }
        fs::write(dir.join("last_reserved_ip.0"), name(LEASES - 1))
            .context("cannot write the last address")?;
    }
    Ok(())
}

/// ADDs and DELs a second.
fn crowd(contender: &Contender) -> Result<[f64; 2]> {
    let pods: Vec<Pod> = (0..CROWD).map(|n| Pod::new(format!("crowd-{n}"))).collect::<Result<_>>()?;
    let mut rates = [0.0; 2];
    let home = NetNs::current()?;
    for (verb, rate) in Verb::BOTH.into_iter().zip(&mut rates) {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            home.enter()?;
            while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                contender.call(verb, pod)?;
            }
            Ok(())
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        *rate = CROWD as f64 / start.elapsed().as_secs_f64();
    }
    settle(pods)?;
    Ok(rates)
}

/// What was promised, and what came of it.
fn goals(alone: &[[Figures; 2]], bare: &Samples, filled: &[[Figures; 2]], rates: &[[f64; 2]]) {
    println!("\nGoals:\n");
    let mut table = Table::new(&["", "measured", "goal", ""]);
    let mut goal = |what: &str, measured: f64, goal: f64, at_least: bool| {
        let met = if at_least { measured >= goal } else { measured <= goal };
        let sign = if at_least { ">=" } else { "<=" };
        let verdict = if met { "met" } else { "missed" };
        table.row([
            what.to_owned(),
            format!("{measured:.3}"),
            format!("{sign} {goal:.3}"),
            verdict.to_owned(),
        ]);
    };
    let [ours, reference, durable, left] = [0, 1, 2, 3].map(|at| &alone[at]);
    let cpu = |at: usize| ours[at].cpu.mean() / reference[at].cpu.mean();
    let wall = |one: &[Figures; 2], at: usize| one[at].wall.median() / reference[at].wall.median();
    goal("CPU of ADD : reference ptp", cpu(0), 0.2, false);
    goal("CPU of DEL : reference ptp", cpu(1), 0.2, false);
    goal("ADD p50 : reference ptp", wall(ours, 0), 0.4, false);
    goal("ADD p50, durable : reference ptp", wall(durable, 0), 1.0, false);
    goal("DEL p50, ms (RTM_DELLINK + 2)", ours[1].wall.median(), bare.median() + 2.0, false);
    goal("DEL p50, withNamespace : reference ptp", wall(left, 1), 0.3, false);
    for (at, verb) in Verb::BOTH.into_iter().enumerate() {
        let label = format!("{} a second, {AT_ONCE} at once : reference ptp", verb.word());
        goal(&label, rates[0][at] / rates[1][at], 3.0, true);
        let label = format!("{} p50, {LEASES} leases : none", verb.word());
        goal(&label, filled[0][at].wall.median() / filled[2][at].wall.median(), 1.1, false);
    }
    table.print();
}
