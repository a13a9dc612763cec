//! The time of day: for people, and for what is told others.

use std::time::{SystemTime, UNIX_EPOCH};

use heddle_model::Created;

/// Now, as the machine's clock has it.
#[expect(clippy::disallowed_methods, reason = "nothing is measured by it")]
pub fn now() -> Created {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Created(i64::try_from(seconds).unwrap_or(i64::MAX))
}
