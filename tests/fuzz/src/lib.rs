//! Random packets over random service tables: what the eBPF programs make of them (BPF_PROG_TEST_RUN), against a
//! [model](model) of what they must become.
//!
//! A *case* is a table and a sequence of packets and changes over it, all from one seed. After each packet verdict,
//! device, mark and every byte are compared; after the sequence the flows, the fragments and the counters. What
//! differs is made [short](shrink) and printed as a [table](report).
#![forbid(unsafe_code)]

pub mod dice;
pub mod make;
pub mod model;
pub mod place;
pub mod report;
pub mod rewrite;
pub mod session;
pub mod shrink;
pub mod table;
pub mod wire;
pub mod world;

use anyhow::Result;

use dice::Dice;
use session::{Session, Step};
use world::World;

/// Packets of one case.
pub const PACKETS: usize = 400;
/// A change of the table among so many packets.
const CHANGES: usize = 24;

/// One case; `Some`: what is wrong, as a report.
pub fn case(world: &mut World, seed: u64) -> Result<Option<String>> {
    let mut dice = Dice::new(seed);
    let table = make::table(&mut dice);
    let mut steps = Vec::with_capacity(PACKETS);
    let mut found = false;
    let mut session = Session::begin(world, &table)?;
    for _ in 0..PACKETS {
        if dice.one_in(CHANGES)
            && let Some(change) = make::change(&mut dice, &session.model.table)
        {
            let step = Step::Change(change);
            session.step(&step)?;
            steps.push(step);
        }
        let step = Step::Packet(make::stimulus(&mut dice, &session.model));
        let difference = session.step(&step)?;
        steps.push(step);
        if difference.is_some() {
            found = true;
            break;
        }
    }
    if session.end()?.is_none() && !found {
        return Ok(None);
    }
    let (table, steps, difference) = shrink::shrink(world, &table, steps)?;
    Ok(Some(match difference {
        Some(difference) => report::case(seed, &table, &steps, &difference),
        None => format!("a difference that does not repeat (seed {seed})"),
    }))
}
