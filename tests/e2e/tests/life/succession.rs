//! Maps of another size, another layout, another's pins: new maps follow the old ones under traffic.

use heddle_lab::{Cmd, Result, await_ready};

use crate::traffic::{Traffic, start_proxyd};
use crate::world::{World, list, status, strict};

/// The layout of this build.
const LAYOUT: u32 = heddle_ebpf_common::LAYOUT_VERSION;

/// Does something to the pins of every node while no daemon runs, then starts the daemons with `args`: connections
/// that stand go on, and every hook leads to the new programs.
fn follow(pins: &str, args: &[&str]) -> Result<()> {
    let mut world = World::start(strict())?;
    let traffic = Traffic::start(&world)?;
    let hooks: Vec<_> = world
        .cluster
        .nodes()
        .iter()
        .map(|node| Ok(list(&status(node)?["hooks"]).len()))
        .collect::<Result<_>>()?;
    let mut running = Vec::new();
    for node in 1..=3 {
        world.cluster.kill_daemon(node, "proxyd");
        world
            .cluster
            .node(node)
            .run(Cmd::new("sh").args(["-ec", &format!("cd /sys/fs/bpf/heddle; {pins}")]))?;
        traffic.wait(3)?;
        let process = start_proxyd(&world, node, args)?;
        await_ready(world.cluster.node(node), &process, "proxyd")?;
        traffic.wait(5)?;
        running.push(process);
    }
    traffic.wait(10)?;
    for ((node, process), hooks) in world.cluster.nodes().iter().zip(&running).zip(&hooks) {
        assert!(process.log().contains("our programs have followed others"), "{}", process.log());
        let layouts = node.run("ls /sys/fs/bpf/heddle")?;
        assert_eq!(layouts.split_whitespace().collect::<Vec<_>>(), [format!("v{LAYOUT}")], "{}", node.name());
        assert_eq!(list(&status(node)?["hooks"]).len(), *hooks);
    }
    traffic.stop_clean();
    Ok(())
}

/// FAULT 105: a later layout was here, which describes itself: a downgrade.
#[test]
fn fault_105_after_a_later_layout() -> Result<()> {
    follow(&format!("mv v{LAYOUT} v{}", LAYOUT + 7), &[])
}

/// FAULT 105: maps of another size.
#[test]
fn fault_105_with_other_sizes() -> Result<()> {
    follow("true", &["--max-flows", "4096", "--max-frontends", "2048", "--max-backends", "1024"])
}

/// FAULT 107, S16: pins that somebody could have changed are not used, and connections go on all the same.
#[test]
fn fault_107_s16_foreign_pins_under_traffic() -> Result<()> {
    follow(
        &format!("chmod 777 v{LAYOUT}/maps; chmod 666 v{LAYOUT}/maps/frontends; rm v{LAYOUT}/progs/pod"),
        &[],
    )
}
