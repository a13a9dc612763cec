//! From manifests to maps: how long a node without anything takes until every service is in its kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use heddle_bpf::{Maps, Pins};
use heddle_ebpf_common::{ChoiceKey, Frontend, FrontendKey, choice_hash};
use heddle_lab::{Lab, Node, Process, await_ready};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cpu;
use crate::mapped::{above, addr};
use crate::samples::Samples;
use crate::table::Table;

const SERVICES: [u32; 2] = [1_000, 10_000];
const BACKENDS: u32 = 10;
const ROUNDS: usize = 3;
/// Changes of one service that are awaited, one after the other.
const CHANGES: u32 = 5;
const TCP: u8 = 6;

/// What one thing took: by the clock and, where it can be told, of processor time.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Option<Duration>,
}

pub fn run() -> Result<()> {
    println!(
        "Seconds until `proxyd` is ready, on one node, by the clock and of processor time; {ROUNDS} rounds. `empty`: \
         without a service, the programs are loaded and attached. `fresh`: {BACKENDS} backends for each service, from \
         one JSON file. `adopted`: killed and started again. `change`: one service's port is changed in a file of its own, \
         until its new frontend is in the map. `bare`: the same elements written by one system call each.\n"
    );
    let mut table = Table::new(&["", "s", "min-max", "processor s", "min-max", "ratio to bare"]);
    for services in SERVICES {
        let names = ["empty", "fresh", "adopted", "change", "bare"];
        let mut wall: [Samples; 5] = Default::default();
        let mut cpu: [Samples; 5] = Default::default();
        for _ in 0..ROUNDS {
            for (at, took) in round(services)?.into_iter().enumerate() {
                wall[at].push(took.wall.as_secs_f64());
                took.cpu.into_iter().for_each(|time| cpu[at].push(time.as_secs_f64()));
            }
        }
        let none = |cells: [String; 3], there: bool| cells.map(|cell| if there { cell } else { "-".into() });
        for (at, name) in names.iter().enumerate() {
            let (median, ratio) = (cpu[at].median(), cpu[at].median() / cpu[4].median());
            let cells = [format!("{median:.3}"), cpu[at].spread(3), format!("{ratio:.1}")];
            let [time, spread, ratio] = none(cells, !median.is_nan());
            table.row([
                format!("{services} services: {name}"),
                format!("{:.3}", wall[at].median()),
                wall[at].spread(3),
                time,
                spread,
                ratio,
            ]);
        }
    }
    table.print();
    Ok(())
}

/// The figures in the order of their names.
fn round(services: u32) -> Result<[Took; 5]> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    lab.manifests().node(node)?;
    let dir = lab.manifests().dir();
    let start = || -> Result<(Process, Took)> {
        let start = Instant::now();
        let daemon = lab.start_daemon(node, "proxyd", &["--mode", "ebpf"])?;
        await_ready(node, &daemon, "proxyd")?;
        let took = Took { wall: start.elapsed(), cpu: Some(cpu::of(daemon.pid())?) };
        Ok((daemon, took))
    };
    let (daemon, empty) = start()?;
    drop(daemon);
    node.run("/bin/rm -rf /sys/fs/bpf/heddle")?;
    let items: Vec<Value> = (0..services).flat_map(|n| [service(n, 80), slice(n)]).collect();
    put(dir, "all.json", &json!({ "apiVersion": "v1", "kind": "List", "items": items }))?;
    let (daemon, fresh) = start()?;
    let maps = Maps::open(&Pins::new(&node.path("/sys/fs/bpf")))?;
    let there = maps.frontends.keys().count();
    ensure!(there == services as usize, "{there} frontends of {services} are in the map");
    daemon.signal(Signal::SIGKILL)?;
    drop(daemon);
    let (daemon, adopted) = start()?;
    let change = changes(dir, &maps, services)?;
    drop(daemon);
    Ok([empty, fresh, adopted, change, bare(node, services)?])
}

/// A file appears at once, never half written.
fn put(dir: &Path, name: &str, value: &Value) -> Result<()> {
    let new = dir.join(format!(".{name}"));
    std::fs::write(&new, value.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, dir.join(name)).with_context(|| format!("cannot write {name}"))
}

/// The address of service `n`.
fn frontend(n: u32) -> IpAddr {
    above(Ipv4Addr::new(10, 96, 0, 1).into(), n)
}

/// Backend `i` of service `n`, by turns on this node and on others.
fn backend(n: u32, i: u32) -> IpAddr {
    above(Ipv4Addr::new(10, 128, 0, 1).into(), n * BACKENDS + i)
}

fn service(n: u32, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("s{n}"), "namespace": "default" },
        "spec": {
            "type": "ClusterIP", "clusterIP": frontend(n), "clusterIPs": [frontend(n)], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": port, "targetPort": 8080 }],
        },
    })
}

fn slice(n: u32) -> Value {
    let endpoint = |i| {
        let conditions = json!({ "ready": true, "serving": true, "terminating": false });
        json!({ "addresses": [backend(n, i)], "conditions": conditions })
    };
    let name = format!("s{n}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{name}-v4"), "namespace": "default", "labels": { "kubernetes.io/service-name": name },
        },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        "endpoints": (0..BACKENDS).map(endpoint).collect::<Vec<_>>(),
    })
}

fn key(n: u32, port: u16) -> FrontendKey {
    FrontendKey { addr: addr(frontend(n)), net: 0, port: port.to_be(), proto: TCP, zero: 0 }
}

/// The median time that a change of one service takes.
fn changes(dir: &Path, maps: &Maps, services: u32) -> Result<Took> {
    put(dir, "slice.json", &slice(services))?;
    let mut samples = Samples::default();
    for change in 0..CHANGES {
        let port = 1_000 + change as u16;
        let start = Instant::now();
        put(dir, "one.json", &service(services, port))?;
        // Nothing tells when an element is written; a lookup takes less than a microsecond.
        while maps.frontends.get(&key(services, port), 0).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(20), "the change does not arrive");
            std::thread::yield_now();
        }
        samples.push(start.elapsed().as_secs_f64());
    }
    Ok(Took { wall: Duration::from_secs_f64(samples.median()), cpu: None })
}

/// As many elements as a fresh start writes, one system call each, into maps like those of `proxyd`.
fn bare(node: &Node, services: u32) -> Result<Took> {
    node.run("/bin/rm -rf /sys/fs/bpf/heddle")?;
    let write = || -> Result<Took> {
        let pins = Pins::new(Path::new("/sys/fs/bpf"));
        let mut maps = heddle_bpf::Datapath::open(pins, &heddle_bpf::Sizes::default())?.maps;
        let (start, used) = (Instant::now(), cpu::used()?);
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
            let key = key(n, 80);
            maps.frontends.insert(key, Frontend::default().sealed(&key), 0)?;
        }
        Ok(Took { wall: start.elapsed(), cpu: Some(cpu::used()? - used) })
    };
    node.enter(write)?.map_err(|error| anyhow!("bare writes: {error:#}"))
}
