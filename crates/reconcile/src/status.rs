//! What the loop knows of its own success.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::ser::Serializer;
use tokio::time::Instant;

/// The state of the loop after a pass.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Of the snapshot that was worked on.
    pub revision: u64,
    /// All sources had told everything.
    pub synced: bool,
    /// A full pass has succeeded since the start: what is in the kernel was as desired, then at least.
    pub ready: bool,
    /// Passes that asked the kernel, and those that relied on the pass before.
    pub full_passes: u64,
    pub quick_passes: u64,
    /// How long the last pass took, and whether it asked the kernel.
    #[serde(skip)]
    pub took: Duration,
    #[serde(skip)]
    pub last_full: bool,
    /// How long the last observation took.
    #[serde(rename = "observeMicros", serialize_with = "micros")]
    pub observe: Duration,
    /// The longest time that the steps of one pass took.
    #[serde(rename = "longestApplyMicros", serialize_with = "micros")]
    pub longest_apply: Duration,
    /// Steps that were done, and that failed.
    pub done: u64,
    pub failed: u64,
    /// What is wrong now, by what it is wrong with.
    pub troubles: BTreeMap<String, Trouble>,
}

/// Lines of the log that one pass may write about troubles, and about those that are over.
const MOST_LINES: usize = 50;

/// What is wrong with one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    pub what: String,
    /// Since when it is, in these words; printed as seconds that have passed.
    #[serde(rename = "seconds", serialize_with = "seconds_ago")]
    pub since: Instant,
}

fn seconds_ago<S: Serializer>(since: &Instant, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(since.elapsed().as_secs())
}

fn micros<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

impl Status {
    /// Takes the troubles of a pass over. What is new is logged once, and so is what is over.
    pub(crate) fn report(&mut self, troubles: BTreeMap<String, String>, now: Instant) {
        let before = std::mem::take(&mut self.troubles);
        let over: Vec<_> = before.keys().filter(|object| !troubles.contains_key(*object)).collect();
        for object in over.iter().take(MOST_LINES) {
            tracing::info!("{object}: no longer: {}", before[*object].what);
        }
        let mut new = 0;
        for (object, what) in troubles {
            let trouble = match before.get(&object) {
                Some(known) if known.what == what => known.clone(),
                _ => {
                    new += 1;
                    if new <= MOST_LINES {
                        tracing::warn!("{object}: {what}");
                    }
                    Trouble { what, since: now }
                }
            };
            self.troubles.insert(object, trouble);
        }
        if let Some(more) = new.checked_sub(MOST_LINES).filter(|more| *more > 0) {
            tracing::warn!("and {more} more troubles (`status` shows them)");
        }
        if let Some(more) = over.len().checked_sub(MOST_LINES).filter(|more| *more > 0) {
            tracing::info!("and {more} more troubles are over");
        }
    }
}
