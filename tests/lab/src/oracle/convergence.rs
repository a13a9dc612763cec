//! The kernel holds what a pure function of the inputs says.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::owner::poll_until;

/// Waits until `dump` equals `expected`, at most `limit`.
///
/// # Errors
/// [`Error::Oracle`] with both, and how long it was waited; an error of `dump` counts as "not yet".
pub fn converges<T: PartialEq + Debug>(
    what: &str,
    limit: Duration,
    expected: &T,
    mut dump: impl FnMut() -> Result<T>,
) -> Result<()> {
    let begun = Instant::now();
    let mut last = dump();
    let done = poll_until(limit, || {
        last = dump();
        last.as_ref().is_ok_and(|found| found == expected)
    });
    if done {
        return Ok(());
    }
    let found = match last {
        Ok(found) => format!("{found:#?}"),
        Err(e) => format!("nothing: {e}"),
    };
    Err(Error::Oracle(format!(
        "{what} has not converged after {:?}\nexpected {expected:#?}\nfound {found}",
        begun.elapsed()
    )))
}
