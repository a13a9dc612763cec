//! A short sequence that shows the same.

use anyhow::Result;

use crate::session::{Difference, Step, play};
use crate::table::Table;
use crate::world::World;

/// Leaves out what is not needed for the programs and the model to disagree.
pub fn shrink(
    world: &mut World,
    table: &Table,
    mut steps: Vec<Step>,
) -> Result<(Table, Vec<Step>, Option<Difference>)> {
    if let Some(Difference { at: Some(at), .. }) = play(world, table, &steps, true)? {
        steps.truncate(at + 1);
    }
    let mut size = steps.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < steps.len() {
            let end = (start + size).min(steps.len());
            let shorter: Vec<Step> = steps[..start].iter().chain(&steps[end..]).cloned().collect();
            if play(world, table, &shorter, true)?.is_some() {
                steps = shorter;
            } else {
                start = end;
            }
        }
        size /= 2;
    }
    let mut table = table.clone();
    for key in table.frontends.keys().copied().collect::<Vec<_>>() {
        let mut smaller = table.clone();
        smaller.frontends.remove(&key);
        if play(world, &smaller, &steps, true)?.is_some() {
            table = smaller;
        }
    }
    let difference = play(world, &table, &steps, true)?;
    Ok((table, steps, difference))
}
