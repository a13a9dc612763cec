//! What the daemon remembers of its own work, for metrics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use heddle_model::Snapshot;
use heddle_model::shared_map::changed;
use heddle_model::store::Revision;

use super::text::{Histogram, Page};
use crate::wall_clock;

/// Buckets, in milliseconds.
const PROGRAMMING: [f64; 21] = [
    0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1e3,
    5e3, 2e4, 6e4,
];

/// Shared by those who tell and those who ask.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    last_sync: Option<SystemTime>,
    last_queued: Option<SystemTime>,
    services: u64,
    endpoints: u64,
    /// Snapshots that the loop has not worked on yet.
    pending: VecDeque<Queued>,
    failed: u64,
    healthz: BTreeMap<u16, u64>,
    livez: BTreeMap<u16, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    revision: Revision,
    changes: Changes,
}

/// Objects that differ between two snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub services: u64,
    pub endpoints: u64,
}

impl Changes {
    /// What is new, other or gone in `now`.
    pub fn between(before: &Snapshot, now: &Snapshot) -> Self {
        Self {
            services: changed(&before.services, &now.services).len() as u64,
            endpoints: changed(&before.endpoints, &now.endpoints).len() as u64,
        }
    }
}

/// A pass of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Of the snapshot that it worked on.
    pub revision: Revision,
    pub took: Duration,
    /// It asked the kernel, and did not rely on the pass before.
    pub full: bool,
    /// The kernel is as it must be, as far as it can.
    pub succeeded: bool,
}

impl Default for Inner {
    fn default() -> Self {
        // kube-proxy's buckets: 1 ms, doubled 14 times.
        let sync = || Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)));
        let programming = Histogram::new(PROGRAMMING.into_iter().map(|millis| millis / 1e3));
        Self {
            sync: sync(),
            full: sync(),
            partial: sync(),
            programming,
            last_sync: None,
            last_queued: None,
            services: 0,
            endpoints: 0,
            pending: VecDeque::new(),
            failed: 0,
            healthz: BTreeMap::new(),
            livez: BTreeMap::new(),
        }
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sources have said something.
    pub fn queued(&self, revision: Revision, changes: Changes) {
        let mut inner = self.lock();
        inner.last_queued = Some(wall_clock::now());
        inner.services += changes.services;
        inner.endpoints += changes.endpoints;
        inner.pending.push_back(Queued { revision, changes });
    }

    /// The loop has worked. `heard`: when the events reached their source that the kernel now knows of.
    pub fn passed(&self, pass: Pass, heard: &[Instant]) {
        let mut inner = self.lock();
        let took = pass.took.as_secs_f64();
        inner.sync.add(took);
        if pass.full { &mut inner.full } else { &mut inner.partial }.add(took);
        if !pass.succeeded {
            inner.failed += 1;
            return;
        }
        inner.last_sync = Some(wall_clock::now());
        while inner.pending.front().is_some_and(|queued| queued.revision <= pass.revision) {
            inner.pending.pop_front();
        }
        heard.iter().for_each(|at| inner.programming.add(at.elapsed().as_secs_f64()));
    }

    /// A probe of /healthz (`livez`: of /livez) was answered with this status.
    pub fn probed(&self, livez: bool, status: u16) {
        let mut inner = self.lock();
        *if livez { &mut inner.livez } else { &mut inner.healthz }.entry(status).or_default() += 1;
    }

    /// The metrics of kube-proxy that mean the same here, and what else the loop knows of itself.
    pub fn write(&self, page: &mut Page) {
        let inner = self.lock();
        let prefix = "Time of a pass of the loop, in seconds";
        page.histogram("kubeproxy_sync_proxy_rules_duration_seconds", prefix, &inner.sync);
        page.histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Time of a pass that compared the kernel with what must be, in seconds",
            &inner.full,
        );
        page.histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Time of a pass that did only what had changed, in seconds",
            &inner.partial,
        );
        page.histogram(
            "heddle_programming_duration_seconds",
            "Time from the moment an event reached its source until the kernel has what follows from it, in seconds",
            &inner.programming,
        );
        page.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a pass last succeeded")
            .is(seconds(inner.last_sync));
        page.gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When a source last told a change",
        )
        .is(seconds(inner.last_queued));
        page.counter(
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "Services that changed, came or went",
        )
        .is(inner.services);
        page.counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "EndpointSlices that changed, came or went",
        )
        .is(inner.endpoints);
        let pending = inner.pending.iter().map(|queued| queued.changes);
        let pending = pending.fold(Changes::default(), |sum, changes| Changes {
            services: sum.services + changes.services,
            endpoints: sum.endpoints + changes.endpoints,
        });
        page.gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Those that no pass has done yet")
            .is(pending.services);
        page.gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Those that no pass has done yet")
            .is(pending.endpoints);
        page.counter("heddle_sync_failures_total", "Passes after which the kernel was not as it must be")
            .is(inner.failed);
        for (name, help, probes) in [
            ("kubeproxy_proxy_healthz_total", "Answers to /healthz, by status", &inner.healthz),
            ("kubeproxy_proxy_livez_total", "Answers to /livez, by status", &inner.livez),
        ] {
            let mut family = page.counter(name, help);
            for (status, count) in probes {
                family.of(&[("code", &status.to_string())], count);
            }
        }
    }
}

fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_pending_until_a_pass_has_done_them() {
        let record = Record::default();
        let value = |name: &str| {
            let mut page = Page::default();
            record.write(&mut page);
            let text = page.into_string();
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        let pending = || value("kubeproxy_sync_proxy_rules_endpoint_changes_pending");
        let pass =
            |revision, succeeded| Pass { revision, took: Duration::from_millis(2), full: true, succeeded };
        record.queued(3, Changes { services: 1, endpoints: 2 });
        record.queued(4, Changes { services: 0, endpoints: 5 });
        assert_eq!(pending(), 7.0);
        record.passed(pass(3, true), &[Instant::now(); 2]);
        assert_eq!(pending(), 5.0);
        let last = value("kubeproxy_sync_proxy_rules_last_timestamp_seconds");
        assert!(last > 1e9);
        record.passed(pass(4, false), &[]);
        assert_eq!((pending(), value("heddle_sync_failures_total")), (5.0, 1.0));
        record.passed(pass(4, true), &[]);
        assert_eq!(pending(), 0.0);
        assert_eq!(value("kubeproxy_sync_proxy_rules_endpoint_changes_total"), 7.0);
        assert_eq!(value("kubeproxy_sync_proxy_rules_duration_seconds_count"), 3.0);
        assert_eq!(value("heddle_programming_duration_seconds_count"), 2.0);
    }
}
