//! The thread of proxyd that looks for stale sockets.
//!
//! It is woken when something may have been removed, and looks now and then by itself. It reads what the hook has
//! noted first and what services have second: a backend that came in between is then one that the service has. One
//! that is missing is looked at again before its sockets are ended, as a service that changes is written in steps.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::MapError;
use heddle_bpf::{Pins, sys};
use heddle_ebpf_common::{Backend, ChoiceKey, FrontendKey, SockKey, SockPeer};

use super::stale::{self, Maps, Why};
use super::{Helper, PROGRAM, ask};
use crate::worker::Worker;

/// Elements read by one system call.
const BATCH: u32 = 4096;
/// Between two looks at one pair of service and backend: steps of a writer are microseconds apart.
const AGAIN: Duration = Duration::from_millis(20);
/// Between two passes: what is removed in a crowd is asked for together.
const PACE: Duration = Duration::from_millis(100);
/// A socket that was on its way to be connected when it was looked for is there now.
const SOON: Duration = Duration::from_millis(500);
/// One that is not there after this long is closed, or not connected.
const LATE: Duration = Duration::from_secs(10);
/// Between two looks at connections to a node that is down.
const STALLED: Duration = Duration::from_secs(1);
/// Until a helper that did not answer is asked again.
const MISSED: Duration = Duration::from_secs(2);
/// Between two passes when nothing is left over.
const SELDOM: Duration = Duration::from_secs(30);

/// What the thread tells.
#[derive(Debug, Default)]
struct Shared {
    destroyed: AtomicU64,
    left: AtomicU64,
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Sweeper {
    worker: Worker<mpsc::SyncSender<()>>,
    shared: Arc<Shared>,
}

impl Sweeper {
    /// Starts it over the pinned maps.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(pins: &Pins, helper: &Helper) -> Result<Self, heddle_bpf::Error> {
        let shared = Arc::new(Shared::default());
        let (wake, woken) = mpsc::sync_channel(1);
        let mut pass = Pass {
            pins: pins.clone(),
            helper: helper.clone(),
            shared: Arc::clone(&shared),
            asked: HashMap::new(),
        };
        let work = move || {
            let mut wait = Duration::ZERO;
            while woken.recv_timeout(wait) != Err(RecvTimeoutError::Disconnected) {
                wait = pass.run();
                pause(PACE);
            }
        };
        let worker = Worker::start("sockets", wake, work).map_err(|source| heddle_bpf::Error::Pin {
            operation: "start the thread that looks for stale sockets of",
            path: pins.dir(),
            source,
        })?;
        Ok(Self { worker, shared })
    }

    /// Something may have been removed.
    pub fn wake(&self) {
        match self.worker.end().map(|wake| wake.try_send(())) {
            // It is awake, or ends.
            None | Some(Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) => {}
        }
    }

    /// Sockets destroyed since the start.
    pub fn destroyed(&self) -> u64 {
        self.shared.destroyed.load(Ordering::Relaxed)
    }

    /// Sockets noted with a backend that is gone, at the last look: those that nobody could destroy, and some that are
    /// closed, of which the kernel does not tell.
    pub fn left(&self) -> u64 {
        self.shared.left.load(Ordering::Relaxed)
    }
}

struct Pass {
    pins: Pins,
    helper: Helper,
    shared: Arc<Shared>,
    /// When the helper was first asked for a socket that it did not find.
    asked: HashMap<SockKey, Instant>,
}

impl Pass {
    /// One look, and what follows from it. Returns how long the next one has time.
    fn run(&mut self) -> Duration {
        match self.look() {
            Ok(wait) => {
                self.helper.notices.clear(PROGRAM);
                wait
            }
            Err(error) => {
                self.helper.notices.set(PROGRAM, format!("sockets of removed backends are left: {error}"));
                MISSED
            }
        }
    }

    fn look(&mut self) -> Result<Duration, Error> {
        let mut maps = heddle_bpf::Maps::open(&self.pins)?;
        let mut found = stale::find(&self.noted()?, &maps);
        if !found.is_empty() {
            pause(AGAIN);
            let still = stale::find(&self.noted()?, &maps);
            found.retain(|key, why| still.get(key) == Some(why));
        }
        self.shared.left.store(found.len() as u64, Ordering::Relaxed);
        self.asked.retain(|key, _| found.contains_key(key));
        if found.is_empty() {
            return Ok(SELDOM);
        }
        let answer = ask::destroy(&self.helper.path, stale::requests(&found))?;
        self.shared.destroyed.fetch_add(answer.destroyed.len() as u64, Ordering::Relaxed);
        if let Some(problem) = answer.problems.into_iter().next() {
            return Err(Error::Helper(problem));
        }
        let now = Instant::now();
        let mut wait = SELDOM;
        let mut left = 0;
        for (key, why) in found {
            let first = *self.asked.entry(key).or_insert(now);
            let late = why == Why::Gone && now.duration_since(first) > LATE;
            if late || answer.destroyed.contains(&key.cookie) {
                // Nobody needs it any more: the socket is gone, or gets no more answers from there.
                let _ = maps.sock_rev.remove(&key);
                self.asked.remove(&key);
                continue;
            }
            left += 1;
            let next = match why {
                Why::NodeDown => STALLED,
                Why::Gone if now.duration_since(first) < SOON => SOON,
                Why::Gone => LATE,
            };
            wait = wait.min(next);
        }
        self.shared.left.store(left, Ordering::Relaxed);
        Ok(wait)
    }

    fn noted(&self) -> Result<Vec<(SockKey, SockPeer)>, Error> {
        let read = || {
            let map = sys::get(&self.pins.map("sock_rev"))?;
            sys::map_entries(map.as_fd(), BATCH)
        };
        read().map_err(Error::Read)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "time itself is awaited: a writer is done with its steps by then"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// Why stale sockets are left.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Maps(#[from] heddle_bpf::Error),
    #[error("cannot read map sock_rev: {0}")]
    Read(std::io::Error),
    #[error(transparent)]
    Ask(#[from] ask::Error),
    #[error("{0}")]
    Helper(String),
}

/// `Ok(None)` for what is not there.
fn there<T>(found: Result<T, MapError>) -> Result<Option<T>, ()> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(_) => Err(()),
    }
}

impl Maps for heddle_bpf::Maps {
    fn service(&self, key: &FrontendKey) -> Result<Option<u32>, ()> {
        match there(self.frontends.get(key, 0))? {
            // Read while it was written.
            Some(frontend) if frontend.check != frontend.sum(key) => Err(()),
            found => Ok(found.map(|frontend| frontend.service)),
        }
    }

    fn choice(&self, key: &ChoiceKey) -> Result<Option<u32>, ()> {
        there(self.choices.get(key, 0))
    }

    fn backend(&self, slot: u32) -> Result<Backend, ()> {
        self.backends.get(&slot, 0).map_err(drop)
    }

    fn node_state(&self, index: u32) -> Result<u32, ()> {
        self.nodes.get(&index, 0).map(|node| node.state).map_err(drop)
    }
}
