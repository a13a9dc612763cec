//! New TCP connections from a pod through a service, against connections to its backend directly.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_bpf::{Maps, Pins};
use heddle_lab::addresses::cluster_ip;
use heddle_lab::{Cluster, Endpoint, Lab, Node, Place, Plan, Pod, Proto, Service, eventually};
use nix::libc;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};

use crate::outside::outside;
use crate::samples::{Case, Samples, interleaved};
use crate::table::Table;

const ROUNDS: usize = 100;
const CONNECTIONS: u32 = 100;
const LIMIT: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;

pub fn run() -> Result<()> {
    println!(
        "TCP connections a second of one client, one after the other: connect, read to the end (the server closes at \
         once), reset. Two nodes on this machine; {ROUNDS} interleaved rounds of {CONNECTIONS} connections. `hook`: \
         translated by the socket hook; `tcx`: by the programs on the devices, for a client whose sockets no hook \
         sees. A ratio is the median of the ratios within a round.\n"
    );
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::default())?;
    // Two, so that no port is used for both kinds of connection.
    let clients = [cluster.pod(1, "hooked")?, cluster.pod(1, "unhooked")?];
    let [client, unhooked] = &clients;
    ensure!(client.place().cgroup().is_threaded(), "no thread can be put into the cgroup of a pod here");
    let mut table = Table::new(&[
        "backend", "", "direct", "min-max", "hook", "min-max", "ratio", "tcx", "min-max", "ratio",
    ]);
    for (number, node, label) in [(10, 1, "same node"), (11, 2, "another node")] {
        let name = format!("web-{node}");
        let backend = cluster.pod(node, &name)?;
        let _server = Server::start(&backend)?;
        let mut service = Service::new(name).port("http", Proto::Tcp, 80, PORT);
        for v4 in [true, false] {
            service = service.cluster_ip(cluster_ip(number, v4));
        }
        cluster.publish(&service, &[Endpoint::pod(&backend)])?;
        for v4 in [true, false] {
            let direct = (backend.ip(v4).context("the pod lacks an address")?, PORT).into();
            let through = (cluster_ip(number, v4), 80).into();
            let samples = measure(cluster.node(1), [client.place(), unhooked.place()], direct, through)?;
            row(&mut table, label, if v4 { "IPv4" } else { "IPv6" }, &samples);
        }
    }
    table.print();
    Ok(())
}

fn row(table: &mut Table, label: &str, family: &str, samples: &[Samples]) {
    let mut cells = vec![label.to_owned(), family.to_owned()];
    for (at, sample) in samples.iter().enumerate() {
        cells.push(format!("{:.0}", sample.median()));
        cells.push(sample.spread(0));
        if at > 0 {
            cells.push(format!("{:.2}", sample.over(&samples[0]).median()));
        }
    }
    table.row(cells);
}

fn measure(
    node: &Node,
    [client, unhooked]: [&Place; 2],
    direct: SocketAddr,
    through: SocketAddr,
) -> Result<Vec<Samples>> {
    eventually("the service", Duration::from_secs(20), || Ok(outside(unhooked, || one(through)).is_ok()))?;
    let flows = || -> Result<usize> {
        let maps = Maps::open(&Pins::new(&node.path("/sys/fs/bpf")))?;
        Ok(maps.flows()?.len() + maps.new_flows()?.len())
    };
    // That each case is what it says: only the programs on the devices keep flows.
    let before = flows()?;
    client.enter(|| one(through))?.context("by the socket hook")?;
    ensure!(flows()? == before, "a connection of the socket hook made a flow");
    outside(unhooked, || one(through)).context("by the programs on the devices")?;
    ensure!(flows()? > before, "a connection that no hook saw made no flow");
    let mut cases = [
        Case::new(|| client.enter(|| rate(direct))?),
        Case::new(|| client.enter(|| rate(through))?.context("by the socket hook")),
        Case::new(|| outside(unhooked, || rate(through)).context("by the programs on the devices")),
    ];
    interleaved(ROUNDS, &mut cases)
}

/// Ends with a reset, so that no connection is left in TIME_WAIT for a client port to come upon again.
pub fn one(to: SocketAddr) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.read(&mut [0; 16]).with_context(|| format!("{to} does not close"))?;
    Ok(())
}

/// Connections a second.
pub fn rate(to: SocketAddr) -> Result<f64> {
    let start = Instant::now();
    for n in 0..CONNECTIONS {
        one(to).with_context(|| format!("connection {n}"))?;
    }
    Ok(f64::from(CONNECTIONS) / start.elapsed().as_secs_f64())
}

/// Accepts and closes in a pod, until it is dropped.
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Server {
    pub fn start(pod: &Pod) -> Result<Self> {
        let listener = pod.enter(|| TcpListener::bind(("::", PORT)))?.context("cannot listen in the pod")?;
        let accepting = listener.try_clone()?;
        // Ends with the first error: the listener's being shut down.
        let thread = pod.thread("server", move || while accepting.accept().is_ok() {})?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
