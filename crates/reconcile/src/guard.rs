//! Doubt about a great loss.
//!
//! Sources that suddenly say far less than the kernel has may be mistaken: a list that came back empty, rights that
//! were taken away, a directory that is being filled anew. What they say that is new counts at once; what they do not
//! say any more is only let go when they have not said it for a while. A source that is right loses nothing by that
//! but the time, one that is not costs nobody his connections.

use std::time::Duration;

use tokio::time::Instant;

/// Fewer are never doubted.
pub const FEWEST: usize = 10;

/// Since when there is doubt.
#[derive(Debug, Default)]
pub struct Guard {
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Guard {
    /// Whether the loss of so many parts out of so many is to be held back. It is while more than half of them would
    /// go, for as long as the delay; whenever the sources say enough of them again, there is no doubt left.
    pub fn holds(&mut self, lost: usize, had: usize, delay: Duration, now: Instant) -> bool {
        if lost < FEWEST || lost * 2 <= had {
            *self = Self::default();
            return false;
        }
        let until = *self.since.get_or_insert(now) + delay;
        self.until = Some(until).filter(|until| now < *until);
        self.until.is_some()
    }

    /// When the loss will be believed.
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_great_loss_is_believed_when_it_lasts() {
        let delay = Duration::from_secs(60);
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let mut guard = Guard::default();
        assert!(!guard.holds(9, 9, delay, now) && !guard.holds(50, 100, delay, now), "few, or not most");
        assert!(guard.holds(51, 100, delay, now));
        assert_eq!(guard.until(), Some(at(60)));
        assert!(guard.holds(100, 100, delay, at(59)));
        assert_eq!(guard.until(), Some(at(60)), "more of it begins nothing anew");
        assert!(!guard.holds(100, 100, delay, at(60)));
        assert_eq!(guard.until(), None);
        assert!(!guard.holds(80, 80, delay, at(61)), "and what failed then may be tried again");
        assert!(!guard.holds(3, 80, delay, at(62)));
        assert!(guard.holds(80, 80, delay, at(63)), "the next is doubted again");
        assert!(!guard.holds(100, 100, Duration::ZERO, at(64)), "without delay there is no doubt");
    }
}
