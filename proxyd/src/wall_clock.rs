//! The date, for those who read it: probes, metrics, lines of `proxyd monitor`. Nothing is decided by it.

use std::time::SystemTime;

/// Now, as this machine's clock has it.
#[expect(clippy::disallowed_methods, reason = "it is shown, and no interval is measured by it")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
