//! From pod to pod through a service, against directly; beside it the rules that kube-proxy would load.

mod fleet;
mod rules;
mod traffic;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use heddle_bpf::{Maps, Pins};
use heddle_lab::{Cluster, Cmd, Lab, Node, Plan, Pod, Process, await_ready, eventually};

use crate::connections::{Server, one, rate};
use crate::outside::outside;
use crate::samples::{Case, Samples, interleaved};
use crate::table::Table;

use fleet::Fleet;
use traffic::Peer;

const SERVICES: [u32; 2] = [10, 10_000];
/// Rounds of all cases of one kind.
const ROUNDS: usize = 40;
/// Ports of the two servers of a backend.
const PORT: u16 = 8080;
const PEER: u16 = 8081;
/// The pods of all nodes.
const PODS: &str = "10.244.0.0/16";
const NODES: [&str; 3] = ["heddle", "nftables", "iptables"];
/// Loading of rules is awaited so long.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run() -> Result<()> {
    println!(
        "From pod to pod of one node, on three nodes of one lab: `proxyd`, kube-proxy's rules in nftables, the same in \
         iptables ({}). The service that is asked has one backend and stands in the middle of the others, which have {} \
         each; one in five has a node port. {ROUNDS} interleaved rounds of all cases; a ratio is the median of the \
         ratios to direct traffic on the same node within a round. `hook`: translated by the socket hook; `tcx`: by \
         the programs on the devices.\n",
        version()?,
        fleet::BACKENDS
    );
    for services in SERVICES {
        let mut loads = Table::new(&["services", "", "all rules, s", "one endpoint, ms"]);
        let mut through = Table::new(&["services", "", "", "direct", "through", "min-max", "ratio"]);
        size(services, &mut loads, &mut through)?;
        println!("{services} services. Rules loaded by their own tools (`proxyd`: see `programming`):\n");
        loads.print();
        println!(
            "\nTraffic (connections a second; requests a second on one connection; MiB/s of one stream):\n"
        );
        through.print();
        println!();
    }
    Ok(())
}

fn version() -> Result<String> {
    let output = std::process::Command::new("iptables").arg("--version").output();
    let output = output.context("iptables is not installed")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A node with a client and what it asks.
struct Site<'a> {
    node: &'a Node,
    client: Pod,
    unhooked: Pod,
    backend: Ipv4Addr,
    _servers: (Pod, Server, Peer),
}

impl<'a> Site<'a> {
    fn new(cluster: &'a Cluster, index: usize) -> Result<Self> {
        let pod = |name: &str| cluster.pod(index, &format!("{name}-{index}"));
        let backend = pod("backend")?;
        let Some(IpAddr::V4(ip)) = backend.ip(true) else { bail!("the pod lacks an address") };
        let servers = (Server::start(&backend)?, Peer::start(&backend, PEER)?);
        let site = Self {
            node: cluster.node(index),
            client: pod("client")?,
            unhooked: pod("unhooked")?,
            backend: ip,
            _servers: (backend, servers.0, servers.1),
        };
        ensure!(
            site.client.place().cgroup().is_threaded(),
            "no thread can be put into the cgroup of a pod here"
        );
        Ok(site)
    }

    fn fleet(&self, services: u32, port: u16) -> Fleet {
        Fleet::new(services, self.backend, port)
    }
}

fn size(services: u32, loads: &mut Table, through: &mut Table) -> Result<()> {
    // Not threaded pods' cgroups on the others: only the first has hooks.
    let mut cluster = Cluster::start_with(Lab::builder().nodes(NODES.len()).clients(0), Plan::overlay())?;
    // It has wired the nodes, and would read all manifests on all of them.
    for node in 1..=NODES.len() {
        cluster.stop_daemon(node, "vxland")?;
    }
    let cluster = &cluster;
    let sites: Vec<Site<'_>> = (1..=NODES.len()).map(|at| Site::new(cluster, at)).collect::<Result<_>>()?;
    // Each port of the backend is a round of its own: a service leads to one.
    for (port, kinds) in [(PORT, &["connections"][..]), (PEER, &["requests", "stream"])] {
        let fleets: Vec<Fleet> = sites.iter().map(|site| site.fleet(services, port)).collect();
        let text = fleets[0].manifest().to_string();
        cluster.manifests().put("fleet.json", &text)?;
        let daemon = proxyd(cluster, sites[0].node)?;
        let nft = load(sites[1].node, "nft", &["-f", "-"], &rules::nftables(&fleets[1], PODS))?;
        let ipt = load(sites[2].node, "iptables-restore", &[], &rules::iptables(&fleets[2], PODS))?;
        if port == PORT {
            let changed = Ipv4Addr::new(10, 200, 0, 1);
            // Of a service that is not asked.
            let other = (&fleets[1].services[0], &fleets[2].services[0]);
            let nft_one =
                load(sites[1].node, "nft", &["-f", "-"], &rules::nftables_change(other.0, 3, changed))?;
            let ipt_one = load(
                sites[2].node,
                "iptables-restore",
                &["--noflush"],
                &rules::iptables_change(other.1, 3, changed),
            )?;
            for (name, all, one) in [("nftables", nft, nft_one), ("iptables", ipt, ipt_one)] {
                loads.row([
                    services.to_string(),
                    name.into(),
                    format!("{:.2}", all.as_secs_f64()),
                    format!("{:.1}", one.as_secs_f64() * 1e3),
                ]);
            }
        }
        for kind in kinds {
            measure(kind, services, &sites, &fleets, port, through).with_context(|| (*kind).to_owned())?;
        }
        drop(daemon);
    }
    Ok(())
}

fn proxyd(cluster: &Cluster, node: &Node) -> Result<Process> {
    let daemon = cluster.lab().start_daemon(node, "proxyd", &["--mode", "ebpf"])?;
    await_ready(node, &daemon, "proxyd")?;
    Ok(daemon)
}

/// How long the tool takes.
fn load(node: &Node, program: &str, args: &[&str], text: &str) -> Result<Duration> {
    let cmd = Cmd::new(program).args(args).stdin(text.as_bytes().to_vec());
    let start = Instant::now();
    node.run(cmd).with_context(|| format!("{program} on {}", node.name()))?;
    let took = start.elapsed();
    ensure!(took < PATIENCE, "{program} took {took:?}");
    Ok(took)
}

/// What one sample is.
fn sampler(kind: &str) -> fn(SocketAddr) -> Result<f64> {
    match kind {
        "connections" => rate,
        "requests" => traffic::requests,
        _ => |to| traffic::stream(to).map(|bytes| bytes / f64::from(1 << 20)),
    }
}

fn measure(
    kind: &str,
    services: u32,
    sites: &[Site<'_>],
    fleets: &[Fleet],
    port: u16,
    table: &mut Table,
) -> Result<()> {
    let sample = sampler(kind);
    let through: Vec<SocketAddr> = fleets.iter().map(|fleet| (fleet.asked().ip, 80).into()).collect();
    let direct: Vec<SocketAddr> = sites.iter().map(|site| (site.backend, port).into()).collect();
    // That each case is what it says.
    for (site, to) in sites.iter().zip(&through) {
        let reachable = || Ok(outside(site.unhooked.place(), || sample(*to)).is_ok());
        eventually("the service", Duration::from_secs(20), reachable)?;
    }
    if kind == "connections" {
        hooked(&sites[0], through[0])?;
    }
    let inside = |at: usize, to: SocketAddr| {
        let place = sites[at].client.place();
        move || place.enter(|| sample(to))?
    };
    let unseen = |at: usize, to: SocketAddr| {
        let place = sites[at].unhooked.place();
        move || outside(place, || sample(to))
    };
    let mut cases = [
        Case::new(inside(0, direct[0])),
        Case::new(inside(0, through[0])),
        Case::new(unseen(0, direct[0])),
        Case::new(unseen(0, through[0])),
        Case::new(inside(1, direct[1])),
        Case::new(inside(1, through[1])),
        Case::new(inside(2, direct[2])),
        Case::new(inside(2, through[2])),
    ];
    let samples = interleaved(ROUNDS, &mut cases)?;
    for (at, label) in ["heddle, hook", "heddle, tcx", "nftables", "iptables"].into_iter().enumerate() {
        let (direct, through): (&Samples, &Samples) = (&samples[at * 2], &samples[at * 2 + 1]);
        table.row([
            services.to_string(),
            kind.to_owned(),
            label.to_owned(),
            format!("{:.0}", direct.median()),
            format!("{:.0}", through.median()),
            through.spread(0),
            format!("{:.3}", through.over(direct).median()),
        ]);
    }
    Ok(())
}

/// Only the programs on the devices keep flows: a connection of the hook makes none.
fn hooked(site: &Site<'_>, to: SocketAddr) -> Result<()> {
    let flows = || -> Result<usize> {
        let maps = Maps::open(&Pins::new(&site.node.path("/sys/fs/bpf")))?;
        Ok(maps.flows()?.len() + maps.new_flows()?.len())
    };
    let before = flows()?;
    site.client.enter(|| one(to))??;
    ensure!(flows()? == before, "a connection of the socket hook made a flow");
    outside(site.unhooked.place(), || one(to))?;
    ensure!(flows()? > before, "a connection that no hook saw made no flow");
    Ok(())
}
