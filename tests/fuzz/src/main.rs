//! `heddle-fuzz`: random packets, as many as one likes. Started by `./x fuzz`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use heddle_fuzz::world::World;
use heddle_fuzz::{PACKETS, case};

#[derive(Debug, Parser)]
struct Args {
    /// How many packets
    #[arg(long, default_value_t = 100_000_000)]
    packets: u64,
    /// Where the random cases begin: the same seed is the same case
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads; all processors unless given
    #[arg(long)]
    threads: Option<usize>,
    /// Another object than the built one
    #[arg(long)]
    object: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let threads = args.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let cases = args.packets.div_ceil(PACKETS as u64);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    let end = args.minutes.map(|minutes| started + Duration::from_secs_f64(60.0 * minutes));
    let results: Vec<Result<Option<String>>> = thread::scope(|scope| {
        let work = || {
            let mut world = World::new(args.object.as_deref())?;
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let late = end.is_some_and(|end| Instant::now() >= end);
                if at >= cases || late || stop.load(Ordering::Relaxed) {
                    next.fetch_sub(1, Ordering::Relaxed);
                    return Ok(None);
                }
                let found = case(&mut world, args.seed.wrapping_add(at));
                if !matches!(found, Ok(None)) {
                    stop.store(true, Ordering::Relaxed);
                    return found;
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let packets = next.load(Ordering::Relaxed) * PACKETS as u64;
    let seconds = started.elapsed().as_secs_f64();
    let mut clean = true;
    for result in results {
        if let Some(report) = result? {
            println!("{report}");
            clean = false;
        }
    }
    println!(
        "{packets} packets in {seconds:.1} s ({:.0}/s on {threads} threads), seed {}: {}",
        packets as f64 / seconds,
        args.seed,
        if clean { "no difference" } else { "a difference" }
    );
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
