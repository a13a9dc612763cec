//! Continuous clients, and moments that nobody chose.

use std::time::Duration;

use heddle_lab::{Load, Process, Report, Result, Running};

use crate::world::{WEB, World};

pub const LIMIT: Duration = Duration::from_secs(60);

/// `HEDDLE_ROUNDS`, or `few`.
pub fn rounds(few: usize) -> usize {
    std::env::var("HEDDLE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// New connections from outside through every node and from a pod, connections that stay, and datagrams.
pub struct Traffic(Vec<Running>);

impl Traffic {
    pub fn start(world: &World) -> Result<Self> {
        let client = world.cluster.client();
        let full = rounds(0) >= 100;
        let connects = |to| Load::connects(to).rate(if full { 250 } else { 60 }).expect(["web-1", "web-2"]);
        let streams = |to, count| Load::streams(to, count).rate(if full { 20 } else { 10 });
        let many = if full { 13 } else { 3 };
        let mut loads = Vec::new();
        for node in world.cluster.nodes() {
            loads.push(connects(WEB.published(node.ip4())).start(client)?);
            loads.push(streams(WEB.published(node.ip4()), many).start(client)?);
            if full {
                loads.push(connects(WEB.published(node.ip6())).start(client)?);
            }
        }
        loads.push(connects(WEB.cluster(true)).start(&world.visitor)?);
        if full {
            loads.push(connects(WEB.cluster(false)).start(&world.visitor)?);
        }
        loads.push(streams(WEB.cluster(false), many).start(&world.visitor)?);
        loads.push(Load::datagrams(WEB.published(world.cluster.node(3).ip6())).rate(20).start(client)?);
        loads.push(Load::unconnected_datagrams(WEB.cluster(true)).rate(20).start(&world.visitor)?);
        let traffic = Self(loads);
        traffic.wait(10)?;
        Ok(traffic)
    }

    /// Waits for so many more answers of every load.
    pub fn wait(&self, answers: u64) -> Result<()> {
        self.0.iter().try_for_each(|load| load.wait_for(answers, LIMIT).map(drop))
    }

    /// Waits for so many more answers of the first load: a moment of the traffic's own.
    pub fn moment(&self, answers: u64) -> Result<()> {
        self.0.first().map_or(Ok(()), |load| load.wait_for(answers, LIMIT).map(drop))
    }

    /// Nothing may have gone wrong until the end. Returns how many questions were asked.
    #[track_caller]
    pub fn stop_clean(self) -> u64 {
        let reports: Vec<Report> = self.0.into_iter().map(Running::stop).collect();
        reports.iter().for_each(Report::assert_clean);
        reports.iter().map(|report| report.sent).sum()
    }
}

/// Numbers that look random, from a seed that a failure shows.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        Self(seed)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Starts proxyd on a node without waiting for anything.
pub fn start_proxyd(world: &World, node: usize, args: &[&str]) -> Result<Process> {
    let args: Vec<_> = ["--mode", "ebpf"].iter().chain(args).collect();
    world.cluster.lab().start_daemon(world.cluster.node(node), "proxyd", &args)
}
