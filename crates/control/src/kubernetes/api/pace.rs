//! How long to wait before the next attempt.
//!
//! Short, whatever happened before: an API server that comes back after hours is noticed at once. To ask whether
//! somebody answers at an address costs both sides little (one packet, refused or lost); what costs the API server more,
//! because it does answer, is asked for less and less often.

use std::time::Duration;

use super::failure::Failure;

const FIRST: Duration = Duration::from_millis(50);
/// Nobody there, or not ready.
const LONGEST: Duration = Duration::from_millis(700);
/// It is there and says no: that takes a person.
const LONGEST_NO: Duration = Duration::from_secs(5);
/// The longest that we wait because we were asked to.
const LONGEST_ASKED: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Pace {
    failures: u32,
    last: &'static str,
    random: u64,
}

impl Pace {
    /// `seed`: two nodes do not do the same at the same time.
    pub const fn new(seed: u64) -> Self {
        Self { failures: 0, last: "", random: seed | 1 }
    }

    /// All is well.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// A number below `limit` that looks random (xorshift; no secret).
    pub const fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % if limit == 0 { 1 } else { limit }
    }

    /// Between half of a time and all of it.
    pub fn spread(&mut self, time: Duration) -> Duration {
        let half = u64::try_from(time.as_micros() / 2).unwrap_or(u64::MAX / 2);
        Duration::from_micros(half + self.random(half))
    }

    /// How long to wait after this.
    pub fn after(&mut self, failure: &Failure) -> Duration {
        // Another kind of failure is news: it is not what was waited for.
        if self.last != failure.reason() {
            (self.last, self.failures) = (failure.reason(), 0);
        }
        let longest = match failure {
            Failure::Denied { .. } | Failure::Refused { .. } | Failure::Malformed(_) | Failure::Access(_) => {
                LONGEST_NO
            }
            _ => LONGEST,
        };
        let wait = (FIRST * 2u32.pow(self.failures.min(10))).min(longest);
        self.failures += 1;
        let wait = self.spread(wait);
        match failure {
            // Not all at the same time.
            Failure::Busy { after: Some(asked), .. } => {
                let asked = (*asked).min(LONGEST_ASKED);
                wait.max(asked + self.spread(asked / 4))
            }
            _ => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_spread_and_never_lie_far_apart() {
        let refused = Failure::Connect { to: "x".into(), why: "y".into() };
        let (mut one, mut other) = (Pace::new(1), Pace::new(2));
        let waits: Vec<_> = (0..10_000).map(|_| one.after(&refused)).collect();
        // Back in touch within two seconds, with the connection still to be made.
        assert!(waits[0] <= FIRST && waits.iter().all(|wait| *wait <= Duration::from_millis(700)));
        assert!(waits[9_999] >= LONGEST / 2);
        assert_ne!(waits, (0..10_000).map(|_| other.after(&refused)).collect::<Vec<_>>());
        let denied = Failure::Denied { code: 403, message: String::new() };
        assert!(one.after(&denied) <= FIRST, "another failure begins anew");
        let busy = |seconds| Failure::Busy {
            code: 429,
            message: String::new(),
            after: Some(Duration::from_secs(seconds)),
        };
        let wait = one.after(&busy(7));
        assert!(wait >= Duration::from_secs(7) && wait < Duration::from_secs(9), "{wait:?}");
        assert!(one.after(&busy(86_400)) < Duration::from_secs(40));
    }
}
