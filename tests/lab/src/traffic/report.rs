//! What a load saw.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Counts of a load, from its start on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Questions: connections tried, lines or datagrams sent.
    pub sent: u64,
    /// Right answers.
    pub received: u64,
    /// Questions without an answer in time. Those under way are not among them.
    pub lost: u64,
    /// Answers `connection refused` (RST to a SYN, ICMP port unreachable).
    pub refused: u64,
    /// Connections that broke after they stood: reset, or closed by the other end.
    pub resets: u64,
    /// Answers from a server that is none of the expected ones, or to another question.
    pub misdelivered: u64,
    /// Answers that came twice.
    pub duplicated: u64,
    /// The longest time without a right answer.
    pub max_gap: Duration,
    /// Right answers by server.
    pub by_backend: BTreeMap<String, u64>,
    /// Right answers by the address that the server saw.
    pub by_client: BTreeMap<IpAddr, u64>,
    /// What went wrong, in the kernel's words.
    pub errors: BTreeMap<String, u64>,
}

impl Report {
    /// Everything that should not have happened.
    pub fn failures(&self) -> u64 {
        self.lost + self.refused + self.resets + self.misdelivered + self.duplicated
    }

    /// Whether something was answered and nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.received > 0 && self.failures() == 0
    }

    /// Fails the test unless [`is_clean`](Self::is_clean).
    ///
    /// # Panics
    /// With the report.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "traffic went wrong: {self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} answered, {} lost, {} refused, {} reset, {} misdelivered, {} duplicated, max gap {:?}",
            self.sent,
            self.received,
            self.lost,
            self.refused,
            self.resets,
            self.misdelivered,
            self.duplicated,
            self.max_gap
        )?;
        let mut tally = |what: &str, entries: Vec<String>| match entries.is_empty() {
            true => Ok(()),
            false => write!(f, "; {what} {}", entries.join(", ")),
        };
        tally("by", self.by_backend.iter().map(|(name, n)| format!("{name} {n}")).collect())?;
        tally("seen as", self.by_client.iter().map(|(ip, n)| format!("{ip} {n}")).collect())?;
        tally("errors:", self.errors.iter().map(|(e, n)| format!("{e} ({n})")).collect())
    }
}
