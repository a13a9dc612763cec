//! Leasing with everything round it: what dead pods left is freed where a range runs low.

use std::time::Duration;

use heddle_spec::Owner;

use crate::allocate::{Full, Given};
use crate::survey::{Dead, Survey};
use crate::{Allocation, Error, Locked, RangeSet, Request, Result, Store, Surroundings};

/// How often an ADD frees what dead pods left and tries again: others may be faster to what it freed.
const ATTEMPTS: usize = 3;
/// How many dead pods one ADD clears away: its own pod is waiting.
const AT_ONCE: usize = 16;

impl Store {
    /// Gives `request.owner` an address from each set, one of `request.ips` where it is in the set.
    ///
    /// Where a range runs low, interfaces whose network namespace is gone are cleared away by `clear` (which is
    /// called without the lock, frees their leases among other things, and says whether it did); where it is full, this is done before
    /// the request fails.
    ///
    /// # Errors
    /// [`Error::Exhausted`], which says who holds how many; [`Error::Taken`], [`Error::Unavailable`],
    /// [`Error::Locked`], and those of the file system.
    pub fn lease(
        &self,
        patience: Duration,
        request: &Request<'_>,
        around: &mut dyn Surroundings,
        clear: &mut dyn FnMut(&Owner) -> bool,
    ) -> Result<Vec<Allocation>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let locked = self.lock(patience)?;
            match locked.give(request, around)? {
                Given::Whole(given) => return Ok(given),
                Given::Low(given) => {
                    let mut dead = Vec::new();
                    for (n, set) in request.sets.iter().enumerate() {
                        // The addresses are given: what cannot be freed now is not worth a failure.
                        dead.extend(locked.dead_ahead(n, set, around).unwrap_or_default());
                    }
                    drop(locked);
                    self.clear(patience, &dead, clear);
                    return Ok(given);
                }
                Given::Full(full) => {
                    let (survey, exhausted) = look(&locked, request.sets, &full, around)?;
                    drop(locked);
                    let freed = survey.nobody + self.clear(patience, &survey.dead, clear);
                    if attempt >= ATTEMPTS || freed == 0 {
                        return Err(exhausted);
                    }
                }
            }
        }
    }

    /// Whether a request could be met: every set has an address, or one that a dead pod left.
    ///
    /// # Errors
    /// [`Error::Exhausted`], which says who holds how many.
    pub fn check_room(
        &self,
        patience: Duration,
        sets: &[RangeSet],
        around: &mut dyn Surroundings,
    ) -> Result<()> {
        let locked = self.lock(patience)?;
        let Some(full) = locked.full(sets, around)? else { return Ok(()) };
        let (survey, exhausted) = look(&locked, sets, &full, around)?;
        if survey.found_any() { Ok(()) } else { Err(exhausted) }
    }

    /// Clears away dead interfaces; returns how many.
    fn clear(&self, patience: Duration, dead: &[Dead], clear: &mut dyn FnMut(&Owner) -> bool) -> usize {
        let mut cleared = 0;
        for dead in dead.iter().take(AT_ONCE) {
            if self.lock(patience).is_ok_and(|locked| locked.is_still(dead)) {
                cleared += usize::from(clear(&dead.owner));
            }
        }
        cleared
    }
}

/// What a full set is full of, and what that means if nothing of it can be freed.
fn look(
    locked: &Locked<'_>,
    sets: &[RangeSet],
    full: &Full,
    around: &mut dyn Surroundings,
) -> Result<(Survey, Error)> {
    let Some(set) = sets.get(full.n) else {
        return Err(Error::config("ipam.ranges", "there is no such set"));
    };
    let survey = locked.survey(set, full, around)?;
    let held = survey.describe(locked.directory());
    Ok((survey, Error::Exhausted { ranges: set.to_string(), held }))
}
