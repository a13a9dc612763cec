//! The daemon: sources, loop, events, readiness.

use std::sync::Arc;
use std::time::Duration;

use heddle_control::kubernetes::api::OwnNode;
use heddle_daemon::Failure;
use heddle_daemon::run_dir::Instance;
use heddle_daemon::signal::Stop;
use heddle_model::NodeName;
use heddle_model::store::Store;
use heddle_netlink::monitor::Monitor;
use heddle_netlink::{Socket, link};
use heddle_reconcile::{Pace, Runner, Status};
use tokio::sync::{Notify, watch};

use crate::agent::{Options, Overlay};
use crate::announce::Facts;
use crate::cli::Cli;
use crate::desired::Settings;
use crate::edge::{self, Edge};
use crate::events::Filter;
use crate::flannel;
use crate::health::Health;
use crate::kernel;

/// Runs until SIGTERM or SIGINT. What stands in the kernel then, stands.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    let Some(node) = cli.node_name.as_deref().map(|name| NodeName(name.into())) else {
        return Err(Failure::usage("--node-name is missing: this node's name, as the sources spell it"));
    };
    if cli.source.is_empty() {
        return Err(Failure::usage("--source is missing: where nodes are read from, as in manifests:DIR"));
    }
    heddle_daemon::log::init(&cli.common);
    let options = Options {
        settings: Settings {
            node,
            vni: cli.vni,
            service_ranges: cli.service_range.clone(),
            port: cli.port,
            mtu: cli.mtu,
            direct_routing: cli.direct_routing,
            network: cli.network.clone(),
            replace_flannel: cli.replace_flannel,
        },
        underlay: cli.underlay.clone(),
        cni_conf_dir: cli.cni_conf_dir.clone(),
        run_dir: cli.common.run_dir.clone(),
    };
    // The loop blocks its thread while the kernel works; sources and events need another.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))?;
    let instance = Instance::take(&options.run_dir, "vxland", || {
        tracing::info!("another vxland runs on this node: waiting for it to end");
    })?;
    runtime.block_on(serve(cli, options, instance))
}

async fn serve(cli: &Cli, options: Options, instance: Instance) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let at_edge = edge::Settings {
        masquerade: cli.masquerade,
        unmasqueraded: cli.no_masquerade.iter().copied().collect(),
        checksums: cli.checksum_offload,
    };
    let store = Store::new();
    // Nothing else is needed here, and nobody need give rights to more.
    let settings = heddle_control::source::Settings { kube_api: cli.kube_api.clone(), nodes_only: true };
    for source in &cli.source {
        source.start(&store, &settings);
    }
    let wake = Arc::new(Wake::default());
    let device = kernel::device_name(options.settings.vni);
    // Listening begins before the first look: nothing can happen in between.
    let monitor = Monitor::open()?;
    let links = link::list(&mut Socket::open()?)?;
    tokio::spawn(listen(monitor, Filter::new(device, &links), Arc::clone(&wake)));

    tracing::info!(node = %options.settings.node, vni = options.settings.vni, "started");
    let edge = Edge::new(options.settings.clone(), at_edge, &options.run_dir)?;
    let (replace_flannel, conf_dir) = (options.settings.replace_flannel, options.cni_conf_dir.clone());
    let overlay = Overlay::new(options)?;
    let mut unsupported = overlay.unsupported();
    let node = overlay.node().clone();
    let accesses: Vec<_> = cli.source.iter().filter_map(|source| source.access(&settings)).collect();
    for access in accesses {
        let writer = OwnNode::start(access, node.clone());
        tokio::spawn(tell(writer, overlay.announced(), store.watch(), node.clone()));
    }
    let pace = Pace { removal_delay: Duration::from_secs(cli.removal_delay.into()), ..Pace::default() };
    let runner = Runner::new(overlay, pace, u64::from(std::process::id()));
    let mut status = runner.status();
    let _health = Health::start(cli.healthz_address, &status);
    let probe = edge.probe(Arc::clone(&wake.edge));
    let edge = Runner::new(edge, pace, u64::from(std::process::id()) + 1);
    let mut edge_status = edge.status();
    let probe = tokio::spawn(probe);
    let announced = tokio::spawn(async move {
        // What cannot be had at the edge is told; the overlay works without it.
        let tried = |status: &Arc<Status>| status.ready || status.synced && status.full_passes > 0;
        if status.wait_for(|status| status.ready).await.is_ok() && edge_status.wait_for(tried).await.is_ok() {
            match replace_flannel {
                true => flannel::replace_rest(&conf_dir),
                false => flannel::tell(&conf_dir),
            }
            match instance.ready() {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::error!("{error}"),
            }
        }
        // Held for as long as the program runs.
        std::future::pending::<()>().await;
        drop(instance);
    });
    let mut failure = None;
    let end = async {
        tokio::select! {
            signal = stop.wait() => tracing::info!("{signal}: ending, the overlay stays as it is"),
            lacking = unsupported.wait_for(Option::is_some) => failure = lacking.ok().and_then(|why| why.clone()),
        }
    };
    let over = Notify::new();
    let overlay = async {
        runner.run(store.watch(), &wake.overlay, end).await;
        over.notify_one();
    };
    tokio::join!(overlay, edge.run(store.watch(), &wake.edge.0, over.notified()));
    // Takes the ready file with it.
    probe.abort();
    announced.abort();
    let _ = announced.await;
    match failure {
        None => Ok(()),
        Some(why) => {
            Err(Failure::unsupported(format!("{why}; the kernel needs CONFIG_VXLAN (module vxlan)")))
        }
    }
}

/// Has the node's object say what the others are to know, whenever that changes, or the object.
async fn tell(
    writer: OwnNode,
    mut facts: watch::Receiver<Option<Facts>>,
    mut store: heddle_model::store::Watch,
    node: NodeName,
) {
    let mut trouble = writer.trouble();
    let mut object = None;
    loop {
        tokio::select! {
            changed = facts.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(facts) = facts.borrow_and_update().as_ref() {
                    writer.wish(facts.wish());
                }
            }
            snapshot = store.changed() => {
                let newer = snapshot.nodes.get(&node).cloned();
                if newer != object {
                    object = newer;
                    writer.nudge();
                }
            }
            changed = trouble.changed() => {
                if changed.is_err() {
                    return;
                }
                match trouble.borrow_and_update().as_deref() {
                    Some(why) => tracing::warn!("the other nodes are not told of this one: {why}"),
                    None => tracing::info!("the other nodes are told of this one"),
                }
            }
        }
    }
}

/// Wakes the loops.
#[derive(Debug, Default)]
struct Wake {
    overlay: Notify,
    edge: Arc<edge::Wake>,
}

/// Wakes a loop when something happens to what is its own.
async fn listen(mut monitor: Monitor, mut filter: Filter, wake: Arc<Wake>) {
    loop {
        match monitor.next().await {
            Ok(event) => {
                if edge::concerns(&event) {
                    wake.edge.0.notify_one();
                }
                if filter.concerns(&event) {
                    tracing::trace!(?event, "the kernel's state changed");
                    wake.overlay.notify_one();
                }
            }
            Err(error) => {
                tracing::error!("events of the kernel are not heard: {error}");
                monitor = reopen().await;
                tracing::info!("events of the kernel are heard again");
                // Whatever happened meanwhile.
                wake.overlay.notify_one();
                wake.edge.0.notify_one();
            }
        }
    }
}

/// Listens again, as soon as the kernel lets us. Until then the regular look goes on.
async fn reopen() -> Monitor {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match Monitor::open() {
            Ok(monitor) => return monitor,
            Err(error) => tracing::debug!("{error}"),
        }
    }
}
