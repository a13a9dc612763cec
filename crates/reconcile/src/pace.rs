//! When the loop does what. The clock is tokio's, so that tests with paused time are exact; chance is a
//! seed that is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How fast the loop is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long the first pass waits for sources that are not synced: usually they are at once, and the pass
    /// is a whole one. Nothing is lost meanwhile, what is in the kernel works on.
    pub patience: Duration,
    /// The shortest time between two passes (a long pass is followed by as long a one). What sources say then waits for no
    /// other reason: a pass costs what has changed.
    pub rest: Duration,
    /// An event of the kernel that comes after the loop has been idle for so long is answered at once.
    pub calm: Duration,
    /// Else: quiet time after an event before the loop acts, so that what comes in a burst is done together.
    pub quiet: Duration,
    /// It acts after this long even if it never becomes quiet.
    pub longest: Duration,
    /// Time between two full passes when nothing happens; more, where a pass takes longer than the 200th part of it.
    pub resync: Duration,
    /// Wait after the first failure of a part; doubled with every further one.
    pub first_retry: Duration,
    /// The longest wait between two attempts.
    pub last_retry: Duration,
    /// How long a great loss is doubted ([`guard`](crate::guard)) before it is believed. Zero: not at all.
    pub removal_delay: Duration,
    /// Time between two calls of [`Target::tend`](crate::Target::tend).
    pub tend: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(1),
            rest: Duration::from_millis(1),
            calm: Duration::from_millis(50),
            quiet: Duration::from_millis(10),
            longest: Duration::from_millis(50),
            resync: Duration::from_secs(30),
            first_retry: Duration::from_millis(100),
            last_retry: Duration::from_secs(30),
            removal_delay: Duration::from_secs(60),
            tend: Duration::from_secs(1),
        }
    }
}

/// A stream of numbers that look random (SplitMix64; for jitter and tests, not for secrets).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with a probability of `percent` in a hundred.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Something between three quarters and five quarters of `time`: nodes that failed together do not try
    /// again together.
    pub fn spread(&mut self, time: Duration) -> Duration {
        let per_mille = u32::try_from(750 + self.next() % 501).unwrap_or(1000);
        time * per_mille / 1000
    }
}

/// Which parts have failed, and when each may be tried again.
#[derive(Debug)]
pub struct Backoff<P> {
    parts: BTreeMap<P, Waiting>,
}

#[derive(Clone, Debug)]
struct Waiting {
    failures: u32,
    until: Instant,
    why: String,
}

impl<P> Default for Backoff<P> {
    fn default() -> Self {
        Self { parts: BTreeMap::new() }
    }
}

impl<P: Ord> Backoff<P> {
    /// The part has failed (again).
    pub fn failed(&mut self, part: P, why: String, now: Instant, pace: &Pace, random: &mut Random) {
        let waiting =
            self.parts.entry(part).or_insert(Waiting { failures: 0, until: now, why: String::new() });
        waiting.why = why;
        let wait = pace.first_retry.saturating_mul(1 << waiting.failures.min(20)).min(pace.last_retry);
        waiting.failures += 1;
        waiting.until = now + random.spread(wait);
    }

    /// The part is well, or gone.
    pub fn forget(&mut self, part: &P) {
        self.parts.remove(part);
    }

    /// Forgets the parts of which this is not true.
    pub fn retain(&mut self, keep: impl Fn(&P) -> bool) {
        self.parts.retain(|part, _| keep(part));
    }

    /// Why the part failed, if it must not be tried again yet.
    pub fn must_wait(&self, part: &P, now: Instant) -> Option<&str> {
        self.parts.get(part).filter(|waiting| now < waiting.until).map(|waiting| waiting.why.as_str())
    }

    /// When the next part may be tried again.
    pub fn next(&self) -> Option<Instant> {
        self.parts.values().map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_a_limit_and_are_spread() {
        let (pace, mut random, now) = (Pace::default(), Random::new(1), Instant::now());
        let mut backoff = Backoff::default();
        let mut last = Duration::ZERO;
        for failures in 0..40 {
            backoff.failed("p", failures.to_string(), now, &pace, &mut random);
            let wait = backoff.next().unwrap() - now;
            let middle = (pace.first_retry * 2u32.pow(failures.min(12))).min(pace.last_retry);
            assert!(wait >= middle * 3 / 4 && wait <= middle * 5 / 4, "{failures}: {wait:?}");
            assert!(wait != last, "spread");
            last = wait;
        }
        assert_eq!((backoff.must_wait(&"p", now), backoff.must_wait(&"q", now)), (Some("39"), None));
        assert_eq!(backoff.must_wait(&"p", now + last), None);
        backoff.forget(&"p");
        assert_eq!(backoff.next(), None);
    }
}
