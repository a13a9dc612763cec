//! The page that Prometheus reads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_model::Store;
use heddle_reconcile::{Status, Trouble};
use hyper::StatusCode;
use tokio::sync::{Mutex, watch};

use super::gauge::Gauges;
use super::text::{CONTENT_TYPE, Page};
use super::{Record, kernel};
use crate::http::{Answer, Site};
use crate::leftovers::OtherProxy;

/// A page is good for this long: reading the maps costs the kernel something, whoever asks.
const FRESH: Duration = Duration::from_secs(1);

/// `/metrics`, and `/proxyMode` as kube-proxy has it.
#[derive(Debug)]
pub struct Metrics {
    record: Record,
    bpf_root: PathBuf,
    store: Store,
    status: watch::Receiver<Arc<Status>>,
    notices: watch::Receiver<BTreeMap<String, Trouble>>,
    other: OtherProxy,
    last: Mutex<Option<(Instant, Answer)>>,
}

impl Metrics {
    pub fn new(
        record: Record,
        bpf_root: PathBuf,
        store: Store,
        status: watch::Receiver<Arc<Status>>,
        notices: watch::Receiver<BTreeMap<String, Trouble>>,
        other: OtherProxy,
    ) -> Arc<Self> {
        Arc::new(Self { record, bpf_root, store, status, notices, other, last: Mutex::default() })
    }

    /// One page at a time: who asks meanwhile gets the same one.
    async fn page(&self) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let bpf_root = self.bpf_root.clone();
        let gauges =
            tokio::task::spawn_blocking(move || Gauges::read(&bpf_root).map_err(|error| error.to_string()));
        let mut page = Page::default();
        self.record.write(&mut page);
        self.write_state(&mut page);
        self.write_contacts(&mut page);
        match gauges.await {
            Ok(Ok(gauges)) => kernel::write(&mut page, &gauges.unwrap_or_default()),
            // While a daemon of another layout takes over, or memory is short: the rest is worth having.
            Ok(Err(error)) => tracing::warn!("metrics: cannot read the maps: {error}"),
            Err(error) => tracing::error!("metrics: {error}"),
        }
        let answer =
            Answer { content_type: CONTENT_TYPE, ..Answer::text(StatusCode::OK, page.into_string()) };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    fn write_state(&self, page: &mut Page) {
        let status = Arc::clone(&self.status.borrow());
        let troubles = status.troubles.len() + self.notices.borrow().len();
        page.gauge("heddle_troubles", "What is wrong now (proxyd status says what)").is(troubles);
        page.gauge("heddle_ready", "1 once everything has been as it must be").is(u8::from(status.ready));
        page.gauge("heddle_sources_synced", "1 if every source has told all").is(u8::from(status.synced));
        page.counter(
            "heddle_sync_steps_total",
            "Changes of services and nodes that were written to the kernel",
        )
        .is(status.done);
        page.counter("heddle_sync_failed_steps_total", "Changes that failed and are tried again")
            .is(status.failed);
        let other = self.other.counts();
        page.gauge("heddle_kube_proxy_running", "1 while kube-proxy runs on this node")
            .is(u8::from(other.running));
        page.gauge(
            "heddle_kube_proxy_leftovers",
            "Chains, tables, devices and sets that kube-proxy has left",
        )
        .is(other.rules);
        page.gauge(
            "heddle_kube_proxy_connections",
            "Living connections to services through the kernel's address translation, not ours",
        )
        .is(other.connections);
        page.gauge("heddle_build_info", "1; the version in its label")
            .of(&[("version", env!("CARGO_PKG_VERSION")), ("mode", "ebpf")], 1);
    }
}

impl Metrics {
    /// How the sources are in touch with those whom they ask.
    fn write_contacts(&self, page: &mut Page) {
        let contacts = self.store.contacts();
        if contacts.is_empty() {
            return;
        }
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs_f64());
        let mut heard = page
            .gauge("heddle_source_heard_seconds", "How long ago the other side of a source said anything");
        for contact in &contacts {
            if let Some(ago) = ago(contact.heard) {
                heard.of(&[("source", &contact.source)], ago);
            }
        }
        let mut away = page
            .gauge("heddle_source_away_seconds", "How long a source has not been told everything; 0: it is");
        for contact in &contacts {
            away.of(&[("source", &contact.source)], ago(contact.away).unwrap_or(0.0));
        }
        let mut version =
            page.gauge("heddle_source_version", "The resource version up to which all is known");
        for contact in &contacts {
            // Others than numbers are not for computing.
            let known =
                contact.versions.iter().filter_map(|(kind, text)| Some((kind, text.parse::<u64>().ok()?)));
            for (kind, known) in known {
                version.of(&[("source", &contact.source), ("kind", kind)], known);
            }
        }
        let mut retries =
            page.counter("heddle_source_retries_total", "What a source had to ask anew, by reason");
        for contact in &contacts {
            for (reason, count) in &contact.reconnects {
                retries.of(&[("source", &contact.source), ("reason", reason)], count);
            }
        }
    }
}

impl Site for Metrics {
    async fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => self.page().await,
            "/proxyMode" => Answer::text(StatusCode::OK, "ebpf"),
            _ => Answer::not_found(),
        }
    }
}
