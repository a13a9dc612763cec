//! Leasing with everything round it: what dead pods left is freed where a range runs low.

use std::time::Duration;

use heddle_spec::Owner;

use crate::survey::Dead;
use crate::{Allocation, Error, RangeSet, Request, Result, Store, Surroundings};

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
            match locked.give(request, around) {
                Ok((given, false)) => return Ok(given),
                Ok((given, true)) => {
                    let mut dead = Vec::new();
                    for (n, set) in request.sets.iter().enumerate() {
                        // The addresses are given: what cannot be freed now is not worth a failure.
                        dead.extend(locked.dead_ahead(n, set, around).unwrap_or_default());
                    }
                    drop(locked);
                    self.clear(patience, &dead, clear);
                    return Ok(given);
                }
                Err(Error::Exhausted { ranges, held }) => {
                    let (freed, dead) = match full(&locked, &ranges, request.sets, around)? {
                        Full::Of(text) => {
                            return Err(Error::Exhausted { ranges, held: text.unwrap_or(held) });
                        }
                        Full::Freed(freed, dead) => (freed, dead),
                    };
                    drop(locked);
                    let cleared = self.clear(patience, &dead, clear);
                    if attempt >= ATTEMPTS || freed + cleared == 0 {
                        return Err(Error::Exhausted { ranges, held });
                    }
                }
                Err(error) => return Err(error),
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
        match locked.room(sets, around) {
            Err(Error::Exhausted { ranges, held }) => match full(&locked, &ranges, sets, around)? {
                Full::Of(text) => Err(Error::Exhausted { ranges, held: text.unwrap_or(held) }),
                Full::Freed(..) => Ok(()),
            },
            other => other,
        }
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

/// What a full set is full of.
enum Full {
    /// Nothing that can be freed.
    Of(Option<String>),
    /// So many leases of nobody, which are freed by now, and these.
    Freed(usize, Vec<Dead>),
}

fn full(
    locked: &crate::Locked<'_>,
    ranges: &str,
    sets: &[RangeSet],
    around: &mut dyn Surroundings,
) -> Result<Full> {
    let Some(set) = sets.iter().find(|set| set.to_string() == ranges) else { return Ok(Full::Of(None)) };
    let survey = locked.survey(set, around)?;
    if survey.found_any() {
        return Ok(Full::Freed(survey.nobody, survey.dead));
    }
    Ok(Full::Of(Some(survey.describe(locked.directory()))))
}
