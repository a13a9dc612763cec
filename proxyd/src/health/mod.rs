//! Is this node's service proxy well? For load balancers and kubelets, with kube-proxy's meaning.

mod proxy;
mod services;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::wall_clock;
pub use proxy::Probes;
pub use services::Checks;

/// What the sources say must be in the kernel within this time; else something is wrong (kube-proxy's: twice its
/// resync period of 30 s).
pub const LATE: Duration = Duration::from_secs(60);

/// Shared by those who tell and those who ask.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// Since when something waits to be done.
    pending: Option<Instant>,
    last_updated: Option<SystemTime>,
    node_eligible: bool,
}

/// What is known at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The kernel has what the sources say, or not for long enough not to have it.
    pub healthy: bool,
    /// The node is not about to be removed.
    pub node_eligible: bool,
    /// When the kernel last had everything; at the latest now, if it is well.
    pub last_updated: SystemTime,
    pub now: SystemTime,
}

impl Default for Health {
    /// A daemon that starts is well: what an earlier one left works on.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { pending: None, last_updated: None, node_eligible: true })))
    }
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sources have said something that is to be done.
    pub fn queued(&self) {
        self.lock().pending.get_or_insert_with(Instant::now);
    }

    /// Everything that the sources have said is done.
    pub fn updated(&self) {
        let mut inner = self.lock();
        inner.pending = None;
        inner.last_updated = Some(wall_clock::now());
    }

    /// Whether load balancers may send this node something new.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.lock().node_eligible = eligible;
    }

    pub fn state(&self) -> State {
        let inner = self.lock();
        let now = wall_clock::now();
        let healthy = inner.pending.is_none_or(|since| since.elapsed() < LATE);
        State {
            healthy,
            node_eligible: inner.node_eligible,
            last_updated: if healthy { now } else { inner.last_updated.unwrap_or(UNIX_EPOCH) },
            now,
        }
    }
}

/// As RFC 3339 writes it, in UTC, to the microsecond.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day, so many days after 1970-01-01 (the proleptic Gregorian calendar; years begin in March, so
/// that the leap day is the last of one).
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, after) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + after, month, day)
}

#[cfg(test)]
mod tests;
