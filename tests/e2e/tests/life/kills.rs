//! Killed at any moment.

use std::path::Path;
use std::process::{Command, Stdio};

use heddle_lab::trace::{Fate, trace};
use heddle_lab::{Error, Result, await_ready, bin, eventually};
use nix::libc;

use crate::traffic::{LIMIT, Random, Traffic, rounds, start_proxyd};
use crate::world::{Named, World, list, status, strict, tables};

/// FAULT 100: SIGKILL at random moments, of start-up too.
#[test]
fn fault_100_killed_at_any_moment() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let mut random = Random::new();
    let rounds = rounds(8);
    let before: Vec<_> = world.cluster.nodes().iter().map(|node| status(node)).collect::<Result<_>>()?;
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
    }
    for round in 0..rounds {
        let node = 1 + round % 3;
        let process = start_proxyd(&world, node, &[])?;
        traffic.moment(random.below(40))?;
        process.kill();
    }
    for node in 1..=3 {
        world.cluster.start_daemon_on(node, "proxyd")?;
    }
    traffic.wait(20)?;
    for (node, before) in world.cluster.nodes().iter().zip(&before) {
        let after = status(node)?;
        assert_eq!(tables(before), tables(&after));
        assert_eq!(list(&before["hooks"]).len(), list(&after["hooks"]).len());
    }
    println!("{rounds} kills, {} questions", traffic.stop_clean());
    Ok(())
}

/// FAULT 103: killed while it writes many services; the next one makes them whole.
#[test]
fn fault_103_killed_in_the_middle_of_many_writes() -> Result<()> {
    const MANY: u8 = 100;
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let mut random = Random::new();
    let all: Vec<Named> = (0..MANY).map(|n| Named { name: "many", number: 100 + n, target: 8080 }).collect();
    for round in 0..rounds(3).min(20) {
        let texts = all.iter().map(|named| {
            let name = format!("many-{}", named.number);
            let service = heddle_lab::Service::new(name.as_str())
                .cluster_ip(heddle_lab::addresses::cluster_ip(named.number, true))
                .port("tcp", heddle_lab::Proto::Tcp, 80, named.target);
            let endpoints =
                if round % 2 == 0 { vec![world.web1.endpoint()] } else { vec![world.web2.endpoint()] };
            format!(
                "{}---\n{}",
                service.to_yaml(),
                heddle_lab::manifests::slice_yaml(&service, &endpoints, true)
            )
        });
        let text = texts.collect::<Vec<_>>().join("---\n");
        world.cluster.lab().manifests().put("many.yaml", &text)?;
        traffic.moment(random.below(6))?;
        for node in 1..=3 {
            world.cluster.kill_daemon(node, "proxyd");
        }
        for node in 1..=3 {
            world.cluster.start_daemon_on(node, "proxyd")?;
        }
    }
    for node in world.cluster.nodes() {
        eventually("all services, whole", LIMIT, || {
            let status = status(node)?;
            let whole = list(&status["frontends"]).iter().filter(|frontend| {
                let name = frontend["name"].as_str().unwrap_or_default();
                name.starts_with("default/many-") && list(&frontend["backends"]).len() == 1
            });
            Ok(whole.count() == usize::from(MANY))
        })?;
    }
    traffic.wait(10)?;
    traffic.stop_clean();
    Ok(())
}

/// Calls that change something that others see.
fn changes(number: libc::c_long) -> bool {
    [
        libc::SYS_bpf,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        libc::SYS_rmdir,
        libc::SYS_mkdir,
        libc::SYS_mkdirat,
    ]
    .contains(&number)
}

/// What proxyd makes when it is ready.
const READY: &str = "/run/heddle/proxyd.ready";

/// Runs proxyd under the tracer until its call number `k` of those that change something; false if it was ready
/// before.
fn killed_at(world: &World, node: usize, k: usize) -> Result<bool> {
    let node = world.cluster.node(node);
    let source = format!("manifests:{}", world.cluster.lab().manifests().dir().display());
    let run = || {
        // Of one that was killed.
        let _ = std::fs::remove_file(READY);
        let mut command = Command::new(bin("proxyd"));
        command.args(["--mode", "ebpf", "--source", &source, "--node-name", node.name()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (mut seen, mut early) = (0, true);
        trace(&mut command, b"", |call| {
            if !changes(call.number) {
                return Fate::Passes;
            }
            seen += 1;
            let ready = Path::new(READY).exists();
            early &= !ready;
            if seen > k || ready { Fate::Kills } else { Fate::Passes }
        })
        .map(|_| early)
    };
    node.enter(run)?.map_err(|error| Error::Oracle(format!("cannot trace proxyd: {error}")))
}

/// FAULT 104: killed at its K-th call that changes anything, from the first to the one that says that it is ready.
/// What it leaves the next one finishes.
#[test]
fn fault_104_killed_at_every_change_of_start_up() -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let full = std::env::var("HEDDLE_SWEEP").is_ok_and(|how| how == "all");
    let mut random = Random::new();
    let mut k = 0;
    let mut moments = 0;
    world.cluster.kill_daemon(3, "proxyd");
    while killed_at(&world, 3, k)? {
        moments += 1;
        k += if full { 1 } else { 80 + random.below(80) as usize };
    }
    world.cluster.start_daemon_on(3, "proxyd")?;
    traffic.wait(10)?;
    println!("{moments} moments, {} questions", traffic.stop_clean());
    assert!(moments > 1, "it is ready after {k} changes");
    // The same from nothing, without traffic: what a first start leaves half made, the next one finishes.
    world.cluster.stop_daemon(3, "proxyd")?;
    let node = world.cluster.node(3);
    let mut k = 0;
    loop {
        node.run(heddle_lab::Cmd::new(bin("proxyd")).args(["cleanup"]))?;
        let early = killed_at(&world, 3, k)?;
        let process = start_proxyd(&world, 3, &[])?;
        await_ready(node, &process, "proxyd")?;
        let wanted = [world.web1.endpoint(), world.web2.endpoint()];
        let wanted = wanted.iter().flat_map(|e| e.ips.iter().copied()).collect();
        world.await_backends(node, crate::world::WEB, &wanted)?;
        process.kill();
        if !early {
            return Ok(());
        }
        k += if full { 1 } else { 150 + random.below(150) as usize };
    }
}
