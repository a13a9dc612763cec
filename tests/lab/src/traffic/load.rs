//! Clients that ask at a fixed rate, and count.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::place::Place;
use crate::process::lock;
use crate::traffic::client::Client;
use crate::traffic::report::Report;

/// How a load asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A TCP connection for every question.
    Connects,
    /// TCP connections that stay.
    Streams(usize),
    /// Numbered datagrams from a connected socket.
    Datagrams,
    /// The same from a socket that is not connected.
    UnconnectedDatagrams,
}

/// A continuous client, described; [`start`](Self::start) lets it run.
#[derive(Clone, Debug)]
pub struct Load {
    pub(super) kind: Kind,
    pub(super) to: SocketAddr,
    pub(super) rate: u32,
    pub(super) limit: Duration,
    pub(super) padding: usize,
    expected: BTreeSet<String>,
}

impl Load {
    fn new(kind: Kind, to: impl Into<SocketAddr>) -> Self {
        let (to, limit) = (to.into(), Duration::from_secs(2));
        Self { kind, to, rate: 100, limit, padding: 0, expected: BTreeSet::new() }
    }

    /// Connects, asks, closes, again and again.
    pub fn connects(to: impl Into<SocketAddr>) -> Self {
        Self::new(Kind::Connects, to)
    }

    /// Keeps `count` connections and asks over each; one that breaks is counted and made again.
    pub fn streams(to: impl Into<SocketAddr>, count: usize) -> Self {
        Self::new(Kind::Streams(count), to)
    }

    /// Sends numbered datagrams from one connected socket.
    pub fn datagrams(to: impl Into<SocketAddr>) -> Self {
        Self::new(Kind::Datagrams, to)
    }

    /// Sends numbered datagrams from one socket that is not connected; an answer from another address than
    /// it asked is misdelivered.
    pub fn unconnected_datagrams(to: impl Into<SocketAddr>) -> Self {
        Self::new(Kind::UnconnectedDatagrams, to)
    }

    /// Questions a second (of each stream); 100 unless told.
    #[must_use]
    pub fn rate(mut self, rate: u32) -> Self {
        self.rate = rate.max(1);
        self
    }

    /// How long an answer may take; 2 s unless told.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Makes questions so many bytes longer.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Who may answer; anyone unless told. [`Running::expect`] changes it.
    #[must_use]
    pub fn expect<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.expected = servers.into_iter().map(Into::into).collect();
        self
    }

    /// Starts it in `place`.
    ///
    /// # Errors
    /// When the place cannot be entered.
    pub fn start(self, place: &Place) -> Result<Running> {
        let state = State {
            report: Report::default(),
            last: Instant::now(),
            expected: self.expected.clone(),
            stop: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let threads = if let Kind::Streams(count) = self.kind { count } else { 1 };
        let start = |_| {
            let client = Client { load: self.clone(), shared: Arc::clone(&shared) };
            place.thread("load", move || client.run())
        };
        let threads = (0..threads).map(start).collect::<Result<_>>()?;
        Ok(Running { shared, threads })
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) report: Report,
    /// When the last right answer came.
    pub(super) last: Instant,
    pub(super) expected: BTreeSet<String>,
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// A load that runs. Dropped, it stops.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Option<()>>>,
}

impl Running {
    /// What it has seen so far.
    pub fn report(&self) -> Report {
        let state = lock(&self.shared.state);
        let mut report = state.report.clone();
        report.max_gap = report.max_gap.max(state.last.elapsed());
        report
    }

    /// Who may answer from now on.
    pub fn expect<S: Into<String>>(&self, servers: impl IntoIterator<Item = S>) {
        lock(&self.shared.state).expected = servers.into_iter().map(Into::into).collect();
    }

    /// Waits until `done` of the report, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the report.
    pub fn wait_until(&self, limit: Duration, mut done: impl FnMut(&Report) -> bool) -> Result<Report> {
        let state = lock(&self.shared.state);
        let (state, outcome) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !done(&state.report))
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if outcome.timed_out() {
            let detail = format!(": {}", state.report);
            return Err(Error::Timeout { what: "what the traffic was to see".into(), waited: limit, detail });
        }
        Ok(state.report.clone())
    }

    /// Waits for `count` more right answers.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the report.
    pub fn wait_for(&self, count: u64, limit: Duration) -> Result<Report> {
        let goal = lock(&self.shared.state).report.received + count;
        self.wait_until(limit, |report| report.received >= goal)
    }

    /// Stops it. Questions under way get their time to be answered.
    pub fn stop(mut self) -> Report {
        self.halt();
        lock(&self.shared.state).report.clone()
    }

    fn halt(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}
