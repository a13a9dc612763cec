//! The daemon keeps an eye on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heddle_reconcile::Status;
use tokio::sync::watch;

use super::remove::{self, Options};
use super::{Found, look};
use crate::notices::Notices;
use crate::worker::Worker;

/// How often it is looked for while there is something, and while there is nothing.
const OFTEN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(60);
/// While there are rules, connections are counted for metrics alone, each time that it has been looked so often: the kernel
/// walks through all that it tracks.
const COUNTED: u32 = 12;
const OBJECT: &str = "kube-proxy";

/// Shared with those who tell of it, and with the dataplane.
#[derive(Clone, Debug, Default)]
pub struct OtherProxy(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    there: AtomicBool,
    counts: Mutex<Counts>,
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub running: bool,
    /// Chains, tables, devices, sets.
    pub rules: usize,
    pub connections: usize,
}

impl OtherProxy {
    /// May the kernel know connections to services that the programs do not know?
    pub fn is_there(&self) -> bool {
        self.0.there.load(Ordering::Relaxed)
    }

    pub fn counts(&self) -> Counts {
        *self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `counted`: its connections too.
    fn note(&self, found: &Found, counted: bool) {
        self.0.there.store(!found.is_empty(), Ordering::Relaxed);
        let chains = found.iptables.values().chain(found.iptables_legacy.values()).map(Vec::len);
        let rules = chains.sum::<usize>()
            + found.nft.len()
            + usize::from(found.ipvs_device)
            + found.ipvs_services
            + found.ipsets.len();
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = if counted { found.connections } else { counts.connections };
        *counts = Counts { running: found.running.is_some(), rules, connections };
    }
}

/// Looks again and again, in a thread of its own; ends when it is dropped.
#[derive(Debug)]
pub struct Follow {
    _worker: Worker<Sender<()>>,
}

/// What it needs.
#[derive(Clone, Debug)]
pub struct Following {
    pub bpf_root: PathBuf,
    pub notices: Notices,
    pub other: OtherProxy,
    /// `--remove-kube-proxy-rules`.
    pub remove: bool,
}

impl Following {
    /// The first look, before any program is attached.
    pub fn begin(&self) {
        self.once(true);
    }

    /// Looks, and tells. `None`: it cannot be told.
    fn once(&self, mut connections: bool) -> Option<Found> {
        let mut found = look(&self.bpf_root, connections);
        if !connections && self.other.is_there() && found.as_ref().is_ok_and(Found::is_empty) {
            // The rules went just now: whether anything goes on without them must be known before it is told.
            connections = true;
            found = look(&self.bpf_root, connections);
        }
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                // As it was: whether there is another proxy is not known.
                self.notices.set(OBJECT, format!("cannot look for what it has left: {error}"));
                return None;
            }
        };
        self.other.note(&found, connections);
        match (&found.running, found.has_rules()) {
            (Some(by), _) => self.notices.set(
                OBJECT,
                format!(
                    "it runs beside proxyd ({by}): new connections are proxyd's, those that it made go on ({})",
                    found.advice()
                ),
            ),
            (None, true) => {
                // Without what changes all the time: each new word is a line in the log.
                let told = Found { connections: 0, ..found.clone() };
                self.notices.set(OBJECT, format!("it has left {} ({})", told.summary(), found.advice()));
            }
            (None, false) => self.notices.clear(OBJECT),
        }
        Some(found)
    }

    /// Starts. `status`: nothing is taken away before the datapath has been as it must be.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(self, status: watch::Receiver<Arc<Status>>) -> std::io::Result<Follow> {
        let (end, ended) = mpsc::channel::<()>();
        let work = move || {
            // How often in a row rules were seen and kube-proxy not.
            let mut alone = 0;
            let mut looks = 0u32;
            loop {
                let wait = if self.other.is_there() { OFTEN } else { SELDOM };
                if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                // Connections are left only where there was something; as long as that is there, nothing depends on them.
                looks = looks.wrapping_add(1);
                let depends = self.other.counts().rules == 0 || looks.is_multiple_of(COUNTED);
                let Some(found) = self.once(self.other.is_there() && depends) else { continue };
                if found.is_empty()
                    && let Err(error) = remove::end_keeping()
                {
                    tracing::warn!("{error}");
                }
                alone = if found.running.is_none() && found.has_rules() { alone + 1 } else { 0 };
                // Not in the moment in which it is replaced by a newer one.
                if self.remove
                    && alone >= 2
                    && status.borrow().ready
                    && let Some(found) = self.once(true)
                {
                    match remove::remove(&found, Options::default()) {
                        Ok(()) => tracing::info!("removed what kube-proxy has left: {}", found.summary()),
                        Err(error) => tracing::warn!("cannot remove what kube-proxy has left: {error}"),
                    }
                    self.once(true);
                    alone = 0;
                }
            }
        };
        Ok(Follow { _worker: Worker::start("leftovers", end, work)? })
    }
}
