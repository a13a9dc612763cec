//! From manifests to maps: how long a node without anything takes until every service is in its kernel, what one change
//! costs after that, and what all of it weighs.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use heddle_bpf::{Maps, Pins, batch, sys};
use heddle_ebpf_common::{ChoiceKey, Frontend, FrontendKey, choice_hash};
use heddle_lab::{Lab, Node, Process, await_ready};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cpu;
use crate::mapped::{above, addr};
use crate::samples::Samples;
use crate::table::Table;

const SERVICES: [u32; 2] = [10, 10_000];
const BACKENDS: u32 = 10;
/// One service in so many has a node port.
const NODE_PORTS: u32 = 5;
const FIRST_NODE_PORT: u32 = 30_000;
const ROUNDS: usize = 3;
/// Changes of one endpoint that are awaited, one after the other.
const CHANGES: u32 = 20;
const TCP: u8 = 6;

/// The figures, in the order in which they are shown.
const FIGURES: [(&str, &str); 11] = [
    ("empty: from the start to ready, without a service", "s"),
    ("fresh: the same with all services, from one JSON file", "s"),
    ("fresh: of it, from the resolved table into empty maps", "ms"),
    ("adopted: killed and started again, from the start to ready", "s"),
    ("adopted: of it, the maps read", "ms"),
    ("one endpoint: from its manifest's event to the kernel, median", "ms"),
    ("one endpoint: the slowest", "ms"),
    ("bare: as many elements, one system call each", "ms"),
    ("memory of proxyd (VmRSS), after all that", "MiB"),
    ("memory of all maps in the kernel", "MiB"),
    ("memory of those maps that grow with services", "MiB"),
];

pub fn run() -> Result<()> {
    println!(
        "One node; {ROUNDS} rounds, medians (lowest-highest). {BACKENDS} backends for each service, one service in \
         {NODE_PORTS} with a node port, on {} other nodes. The event of a manifest is its renaming into the directory; \
         the kernel has it when the frontend's element has changed.\n",
        NODES - 1
    );
    let heads: Vec<String> = SERVICES.iter().map(|services| format!("{services} services")).collect();
    let mut table = Table::new(
        &[&["", "unit"], heads.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat(),
    );
    let mut all = Vec::new();
    for services in SERVICES {
        let mut samples: [Samples; FIGURES.len()] = Default::default();
        for _ in 0..ROUNDS {
            for (at, value) in round(services)?.into_iter().enumerate() {
                samples[at].push(value);
            }
        }
        all.push(samples);
    }
    for (at, (name, unit)) in FIGURES.into_iter().enumerate() {
        let mut row = vec![name.to_owned(), unit.to_owned()];
        for samples in &mut all {
            row.push(format!("{:.3} ({})", samples[at].median(), samples[at].spread(3)));
        }
        table.row(row);
    }
    table.print();
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The figures in the order of their names.
fn round(services: u32) -> Result<[f64; FIGURES.len()]> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    lab.manifests().node(node)?;
    let dir = lab.manifests().dir();
    let start = || -> Result<(Process, Duration)> {
        let start = Instant::now();
        let daemon = lab.start_daemon(node, "proxyd", &["--mode", "ebpf"])?;
        await_ready(node, &daemon, "proxyd")?;
        Ok((daemon, start.elapsed()))
    };
    let (daemon, empty) = start()?;
    drop(daemon);
    node.run("/bin/rm -rf /sys/fs/bpf/heddle")?;
    let nodes = (1..NODES).map(other_node);
    let items: Vec<Value> = nodes.chain((0..services).flat_map(|n| [service(n), slice(n, 0)])).collect();
    put(dir, "all.json", &json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
    let (daemon, fresh) = start()?;
    let applied = told(node, "longestApplyMicros")?;
    let maps = Maps::open(&Pins::new(&node.path("/sys/fs/bpf")))?;
    let (there, wanted) = (maps.frontends.keys().count(), services + services.div_ceil(NODE_PORTS));
    ensure!(there == wanted as usize, "{there} frontends of {wanted} are in the map");
    daemon.signal(Signal::SIGKILL)?;
    drop(daemon);
    std::fs::remove_file(node.path(STATUS))?;
    let (daemon, adopted) = start()?;
    let observed = told(node, "observeMicros")?;
    let changes = changes(dir, &maps, services)?;
    let resident = resident(daemon.pid())?;
    let (all, services_only) = memory(&Pins::new(&node.path("/sys/fs/bpf")))?;
    drop(daemon);
    let bare = bare(node, services)?;
    Ok([
        empty.as_secs_f64(),
        fresh.as_secs_f64(),
        applied / 1e3,
        adopted.as_secs_f64(),
        observed / 1e3,
        changes.median(),
        changes.percentile(100.0),
        millis(bare),
        resident,
        all,
        services_only,
    ])
}

/// Where the daemon tells of itself.
const STATUS: &str = "/run/heddle/proxyd.status";

/// A figure that the daemon tells of itself, as soon as it does.
fn told(node: &Node, name: &str) -> Result<f64> {
    let (path, start) = (node.path(STATUS), Instant::now());
    loop {
        let status =
            std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        match status {
            Some(status) if status["ready"] == json!(true) => {
                return status[name].as_f64().with_context(|| format!("{name} is not in {status}"));
            }
            _ => ensure!(start.elapsed() < Duration::from_secs(20), "{} does not come", path.display()),
        }
        std::thread::yield_now();
    }
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Memory of all maps, and of those whose use grows with services, in MiB.
fn memory(pins: &Pins) -> Result<(f64, f64)> {
    const OF_SERVICES: [&str; 8] =
        ["frontends", "ring", "backends", "conns", "choices", "services", "addrs", "sources"];
    let (mut all, mut services) = (0, 0);
    for entry in std::fs::read_dir(pins.dir().join("maps"))? {
        let entry = entry?;
        let bytes = batch::memory(sys::get(&entry.path())?.as_fd())?;
        all += bytes;
        if OF_SERVICES.iter().any(|name| entry.file_name() == *name) {
            services += bytes;
        }
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok((mib(all), mib(services)))
}

/// A file appears at once, never half written; the moment at which it does.
fn put(dir: &Path, name: &str, value: &Value) -> Result<Instant> {
    let new = dir.join(format!(".{name}"));
    std::fs::write(&new, value.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
    let event = Instant::now();
    std::fs::rename(&new, dir.join(name)).with_context(|| format!("cannot write {name}"))?;
    Ok(event)
}

/// Nodes of the cluster, the Lab's among them.
const NODES: u32 = 60;
/// Addresses for pods of each.
const RANGE: u32 = 2048;

fn node_name(n: u32) -> String {
    format!("far-{n}")
}

fn other_node(n: u32) -> Value {
    let range = format!("{}/21", above(PODS, (n - 1) * RANGE));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node_name(n) },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [{ "type": "InternalIP", "address": above(Ipv4Addr::new(172, 30, 0, 0).into(), n) }] },
    })
}

/// The first of the pods' addresses.
const PODS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 192, 0, 0));

/// Its number among them.
fn pod(n: u32, i: u32) -> u32 {
    1 + n * (BACKENDS + 1) + i
}

/// The address of service `n`.
fn frontend(n: u32) -> IpAddr {
    above(Ipv4Addr::new(10, 96, 0, 1).into(), n)
}

/// Backend `i` of service `n`.
fn backend(n: u32, i: u32) -> IpAddr {
    above(PODS, pod(n, i))
}

fn service(n: u32) -> Value {
    let mut port = json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 });
    let mut kind = "ClusterIP";
    if n.is_multiple_of(NODE_PORTS) {
        port["nodePort"] = json!(FIRST_NODE_PORT + n / NODE_PORTS);
        kind = "NodePort";
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("s{n}"), "namespace": "default" },
        "spec": {
            "type": kind, "clusterIP": frontend(n), "clusterIPs": [frontend(n)], "ipFamilies": ["IPv4"],
            "ports": [port],
        },
    })
}

/// The endpoints of service `n`, from `first` on.
fn slice(n: u32, first: u32) -> Value {
    let endpoint = |i| {
        let conditions = json!({ "ready": true, "serving": true, "terminating": false });
        json!({
            "addresses": [backend(n, i)], "conditions": conditions, "nodeName": node_name(1 + pod(n, i) / RANGE),
        })
    };
    let name = format!("s{n}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{name}-v4"), "namespace": "default", "labels": { "kubernetes.io/service-name": name },
        },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        "endpoints": (first..first + BACKENDS).map(endpoint).collect::<Vec<_>>(),
    })
}

fn key(n: u32) -> FrontendKey {
    FrontendKey { addr: addr(frontend(n)), net: 0, port: 80u16.to_be(), proto: TCP, zero: 0 }
}

/// How long the kernel takes to know of one other endpoint, in milliseconds.
fn changes(dir: &Path, maps: &Maps, services: u32) -> Result<Samples> {
    // A service of its own, whose slice is a file of its own.
    put(dir, "one.json", &service(services))?;
    put(dir, "slice.json", &slice(services, 0))?;
    let key = key(services);
    let list = || maps.frontends.get(&key, 0).ok().map(|value| value.ring);
    let arrive = |from: Instant, before: Option<u32>| -> Result<()> {
        // Nothing tells when an element is written; a lookup takes less than a microsecond.
        while list() == before || list().is_none() {
            ensure!(from.elapsed() < Duration::from_secs(20), "the change does not arrive");
            std::thread::yield_now();
        }
        Ok(())
    };
    arrive(Instant::now(), None)?;
    let mut samples = Samples::default();
    for change in 0..CHANGES {
        // Each comes alone, when the loop has been idle for a while.
        idle(maps, &key);
        let before = list();
        let event = put(dir, "slice.json", &slice(services, 1 - change % 2))?;
        arrive(event, before)?;
        samples.push(millis(event.elapsed()));
    }
    Ok(samples)
}

/// Waits until nothing was written for a tenth of a second.
fn idle(maps: &Maps, key: &FrontendKey) {
    let value = || maps.frontends.get(key, 0).ok().map(|value| value.check);
    let (mut since, mut last) = (Instant::now(), value());
    while since.elapsed() < Duration::from_millis(100) {
        if value() != last {
            (since, last) = (Instant::now(), value());
        }
        std::thread::yield_now();
    }
}

/// As many elements as a fresh start writes for ClusterIPs, one system call each, into maps like those of `proxyd`.
fn bare(node: &Node, services: u32) -> Result<Duration> {
    node.run("/bin/rm -rf /sys/fs/bpf/heddle")?;
    let write = || -> Result<Duration> {
        let pins = Pins::new(Path::new("/sys/fs/bpf"));
        let mut maps = heddle_bpf::Datapath::open(pins, &heddle_bpf::Sizes::default())?.maps;
        let used = cpu::used()?;
        for n in 0..services {
            let first = 1 + n * BACKENDS;
            for i in 0..BACKENDS {
                let ip = addr(backend(n, i));
                let hash = choice_hash(&ip, 8080u16.to_be(), TCP);
                let value = heddle_ebpf_common::Backend { addr: ip, hash, ..Default::default() };
                maps.backends.set(first + i, value, 0)?;
                maps.choices.insert(ChoiceKey { service: n + 1, hash }, first + i, 0)?;
            }
            let slots: Vec<u32> = (first..first + BACKENDS).collect();
            maps.write_ring(n * heddle_ebpf_common::RING_BLOCK, &slots)?;
            let name = heddle_ebpf_common::Name([0; 256]);
            maps.services.insert(n + 1, name, 0)?;
            let key = key(n);
            maps.frontends.insert(key, Frontend::default().sealed(&key), 0)?;
        }
        Ok(cpu::used()? - used)
    };
    node.enter(write)?.map_err(|error| anyhow!("bare writes: {error:#}"))
}
