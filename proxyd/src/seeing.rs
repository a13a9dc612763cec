//! Who looks at the daemon from outside: the servers, and what they are told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use heddle_model::resolve::{HealthChecks, Nodes, Rules};
use heddle_model::store::{Store, Watch};
use heddle_model::{NodeName, Snapshot};
use heddle_reconcile::Status;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::health::{Checks, Health, Probes};
use crate::http::{Listen, Server, can_ipv6};
use crate::leftovers::OtherProxy;
use crate::metrics::{Changes, Metrics, Pass, Record};
use crate::notices::Notices;

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub struct Options {
    pub node: NodeName,
    pub rules: Rules,
    pub bpf_root: PathBuf,
    pub metrics: Listen,
    pub healthz: Listen,
}

/// The servers; they end when this is dropped.
#[derive(Debug)]
pub struct Seeing {
    _servers: Vec<Server>,
    follow: JoinHandle<()>,
}

impl Seeing {
    /// Starts them. They are there before the first pass of the loop, and one that cannot listen keeps nothing up.
    /// To be called in a tokio runtime.
    pub fn start(
        options: Options,
        store: &Store,
        status: &watch::Receiver<Arc<Status>>,
        notices: &Notices,
        other: OtherProxy,
    ) -> Self {
        let (record, health) = (Record::default(), Health::default());
        let mut servers = Vec::new();
        if let Some(at) = options.metrics.0 {
            let site = Metrics::new(
                record.clone(),
                options.bpf_root.clone(),
                store.clone(),
                status.clone(),
                notices.watch(),
                other,
            );
            let hint = "name another address by --metrics-address, or off";
            servers.push(Server::start("metrics".into(), at, hint, site, notices));
        }
        if let Some(at) = options.healthz.0 {
            let site = Probes::new(health.clone(), record.clone());
            let hint =
                "name another address by --healthz-address, or off; load balancers take this node for ill";
            servers.push(Server::start("healthz".into(), at, hint, site, notices));
        }
        let checks = Checks::new(health.clone(), notices.clone());
        let follower = Follower {
            record,
            health,
            checks,
            node: options.node,
            rules: options.rules,
            wanted: HealthChecks::default(),
            answered: false,
            store: store.clone(),
            last: None,
            passes: 0,
        };
        let follow = tokio::spawn(follower.run(store.watch(), status.clone()));
        Self { _servers: servers, follow }
    }
}

impl Drop for Seeing {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

/// Tells the servers what happens.
struct Follower {
    record: Record,
    health: Health,
    checks: Checks,
    node: NodeName,
    rules: Rules,
    wanted: HealthChecks,
    /// Somebody answers at the ports that are wanted.
    answered: bool,
    store: Store,
    /// What the sources said last.
    last: Option<Arc<Snapshot>>,
    /// Passes seen.
    passes: u64,
}

impl Follower {
    async fn run(mut self, mut store: Watch, mut status: watch::Receiver<Arc<Status>>) {
        loop {
            // In this order: a pass over a snapshot counts for that one, which then is known.
            tokio::select! {
                biased;
                snapshot = store.changed() => self.told(snapshot),
                changed = status.changed() => match changed {
                    Ok(()) => {
                        let now = Arc::clone(&status.borrow_and_update());
                        self.passed(&now);
                    }
                    // The loop has ended.
                    Err(_) => return,
                },
            }
        }
    }

    /// The sources have said something.
    fn told(&mut self, snapshot: Arc<Snapshot>) {
        let before = self.last.take().unwrap_or_default();
        self.record.queued(snapshot.revision, Changes::between(&before, &snapshot));
        self.health.queued();
        let leaving = snapshot.nodes.get(&self.node).is_some_and(|node| node.leaving);
        self.health.set_node_eligible(!leaving);
        let changed = self.wanted.follow(&snapshot, &self.node, &self.rules);
        self.answered &= !changed && before.nodes == snapshot.nodes;
        let checks = self.wanted.now();
        // Nothing is closed because a source is slow to begin.
        if !self.answered && (snapshot.synced || !checks.is_empty()) {
            let addresses = if checks.is_empty() { Vec::new() } else { self.addresses(&snapshot) };
            self.checks.set(checks.clone(), &addresses);
            self.answered = snapshot.synced;
        }
        self.last = Some(snapshot);
    }

    /// Where health checks of services are answered.
    fn addresses(&self, snapshot: &Snapshot) -> Vec<IpAddr> {
        if self.rules.node_ports.is_empty() {
            let v6 = can_ipv6();
            return vec![if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }];
        }
        let nodes = Nodes::seen_from(snapshot, &self.node, &self.rules);
        let own = nodes.accepted.get(&self.node).map(|node| node.addresses.as_slice());
        self.rules.node_ports(own.unwrap_or_default()).collect()
    }

    /// The loop has worked.
    fn passed(&mut self, status: &Status) {
        let passes = status.full_passes + status.quick_passes;
        if passes == std::mem::replace(&mut self.passes, passes) {
            return;
        }
        // What concerns a single service is its own trouble, and the node's health is not in it.
        let whole = !["kernel", "devices"].iter().any(|part| status.troubles.contains_key(*part));
        let succeeded = whole && status.synced;
        let heard = if succeeded { self.store.heard_until(status.revision) } else { Vec::new() };
        self.record.passed(
            Pass { revision: status.revision, took: status.took, full: status.last_full, succeeded },
            &heard,
        );
        let known = self.last.as_ref().map_or(0, |snapshot| snapshot.revision);
        if succeeded && status.revision >= known {
            self.health.updated();
        }
    }
}
