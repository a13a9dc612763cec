//! The daemon: sources, loop, events, readiness.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_control::HostPorts;
use heddle_control::source::Settings;
use heddle_daemon::Failure;
use heddle_daemon::run_dir::Instance;
use heddle_daemon::signal::Stop;
use heddle_model::NodeName;
use heddle_model::store::Store;
use heddle_netlink::Socket;
use heddle_netlink::monitor::Monitor;
use heddle_reconcile::{Pace, Runner, Status};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::cli::{Cli, Mode};
use crate::dataplane::Dataplane;
use crate::devices::Wanted;
use crate::ebpf::{self, Ebpf};
use crate::events;
use crate::leftovers::{Following, OtherProxy};
use crate::notices::Notices;
use crate::seeing::Seeing;
use crate::sockets::{self, Helper};
use crate::target::{Finder, Services};

/// Runs until SIGTERM or SIGINT. The datapath in the kernel goes on.
///
/// # Errors
/// [`Failure::Usage`] for what is missing on the command line, [`Failure::Unsupported`] for what the kernel
/// lacks, or this program.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    let Some(node) = cli.node_name.as_deref().map(|name| NodeName(name.into())) else {
        return Err(Failure::usage("--node-name is missing: this node's name, as the sources spell it"));
    };
    if cli.source.is_empty() {
        return Err(Failure::usage(
            "--source is missing: where services are read from, as in kubernetes or manifests:DIR",
        ));
    }
    if cli.mode == Mode::Ipvs {
        return Err(Failure::unsupported(
            "mode ipvs is not built yet (use --mode ebpf; it needs Linux 6.6 or newer)",
        ));
    }
    ebpf::heap::one_for_all();
    heddle_daemon::log::init(&cli.common);
    // The loop blocks its thread while the kernel works; sources and events need another.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Before anything of the kernel's is opened: the instance before us may be writing there.
    let instance = Instance::take(&cli.common.run_dir, "proxyd", || {
        tracing::info!("another proxyd runs on this node: waiting for it to end");
    })?;
    let notices = Notices::default();
    let following = Following {
        bpf_root: cli.bpf_root.clone(),
        notices: notices.clone(),
        other: OtherProxy::default(),
        remove: cli.remove_kube_proxy_rules,
    };
    following.begin();
    let dataplane = Ebpf::open(&ebpf::Options {
        bpf_root: cli.bpf_root.clone(),
        cgroup_root: cli.cgroup_root.clone(),
        remote: cli.remote,
        xdp: cli.xdp,
        vni: cli.vni,
        vxlan_port: cli.port,
        sizes: cli.sizes,
        first: ebpf::Options::default().first,
        other: following.other.clone(),
        helper: Some(Helper { path: sockets::socket(&cli.common.run_dir), notices: notices.clone() }),
    })?;
    runtime.block_on(serve(cli, node, dataplane, following, instance))
}

async fn serve<D: Dataplane + Debug>(
    cli: &Cli,
    node: NodeName,
    dataplane: D,
    following: Following,
    instance: Instance,
) -> Result<(), Failure> {
    let notices = following.notices.clone();
    let mut stop = Stop::listen()?;
    let store = Store::new();
    let settings = Settings { kube_api: cli.kube_api.clone(), ..Settings::default() };
    for source in &cli.source {
        source.start(&store, &settings);
    }
    // What is published here and may be used here: a record of another network namespace is none of ours.
    let netns = Socket::open().and_then(|socket| socket.namespace_cookie()).ok();
    heddle_control::source::start(HostPorts::new(&cli.common.run_dir, netns), &store);
    let wake = Arc::new(Notify::new());
    // Listening begins before the first look: nothing can happen in between.
    let monitor = Monitor::open()?;
    let events = tokio::spawn({
        let wake = Arc::clone(&wake);
        async move { events::listen(monitor, &wake).await }
    });
    tracing::info!(%node, mode = ?cli.mode, "started");
    let wanted = Wanted { underlay: cli.underlay.clone(), overlay: format!("heddle.{}", cli.vni) };
    let services = Services::new(dataplane, finder(wanted, Socket::open()?), node.clone(), cli.rules());
    let pace = Pace { removal_delay: Duration::from_secs(cli.removal_delay.into()), ..Pace::default() };
    let runner = Runner::new(services, pace, u64::from(std::process::id()));
    let seeing =
        Seeing::start(cli.seeing(&node), &store, &runner.status(), &notices, following.other.clone());
    let followed = following.start(runner.status())?;
    let announced = tokio::spawn(announce(runner.status(), notices, instance));
    let end = async {
        let signal = stop.wait().await;
        tracing::info!("{signal}: ending, the datapath stays as it is");
    };
    runner.run(store.watch(), &wake, end).await;
    events.abort();
    drop((seeing, followed));
    // Takes the ready file with it.
    announced.abort();
    let _ = announced.await;
    Ok(())
}

/// Tells the world how it goes: the ready file once, the status whenever it changes (once a second).
async fn announce(mut status: watch::Receiver<Arc<Status>>, notices: Notices, instance: Instance) {
    let mut notices = notices.watch();
    let mut ready = false;
    loop {
        let now = Arc::clone(&status.borrow_and_update());
        if now.ready && !ready {
            match instance.ready() {
                Ok(()) => tracing::info!("ready"),
                Err(error) => tracing::error!("{error}"),
            }
            ready = true;
        }
        let mut told = Status::clone(&now);
        told.troubles.extend(notices.borrow_and_update().clone());
        if let Err(error) = instance.publish(&told) {
            tracing::debug!("{error}");
        }
        // Readiness is not kept back.
        if ready {
            sleep(Duration::from_secs(1)).await;
        }
        let ended = tokio::select! {
            changed = status.changed() => changed.is_err(),
            changed = notices.changed() => changed.is_err(),
        };
        if ended {
            // The loop has ended, and with it, soon, the program; the lock is held until then.
            std::future::pending::<()>().await;
        }
    }
}

fn finder(wanted: Wanted, mut socket: Socket) -> Finder {
    Box::new(move |node: &[IpAddr]| match wanted.find(&mut socket, node) {
        Ok(found) => found,
        Err(error) => Err(error.to_string()),
    })
}
