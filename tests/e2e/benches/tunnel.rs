//! Two ways to tell a VXLAN device where a packet goes, side by side: by its FDB, or by `encap` in the route
//! (an `external` device). Figures for the decision record "FDB-based VXLAN device"; medians of interleaved
//! rounds, so that ratios hold where absolute figures do not.
//!
//! `cargo bench -p heddle-e2e --bench tunnel`, as root.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use heddle_lab::{Cmd, Lab, Node};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const ROUNDS: usize = 7;
const DATAGRAMS: u32 = 100_000;
const ECHOES: u32 = 5_000;
const STREAM: Duration = Duration::from_millis(500);
const NODES: u32 = 5_000;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Fdb,
    External,
}

/// What a remote node takes in the kernel, as commands of `ip` (and of `bridge`, for the FDB).
fn remote(
    mode: Mode,
    gateway: &str,
    range: &str,
    source: &str,
    mac: &str,
    outer: (&str, &str),
) -> (String, String) {
    let (from, to) = outer;
    let neigh = format!("neigh replace {gateway} lladdr {mac} dev vx0 nud permanent\n");
    match mode {
        Mode::Fdb => (
            format!("{neigh}route replace {range} via {gateway} dev vx0 onlink src {source}\n"),
            format!("fdb replace {mac} dev vx0 dst {to} self permanent\n"),
        ),
        Mode::External => (
            format!(
                "{neigh}route replace {range} encap ip id 1 src {from} dst {to} via {gateway} dev vx0 onlink src {source}\n"
            ),
            String::new(),
        ),
    }
}

fn batch(node: &Node, program: &str, commands: &str) -> Result<()> {
    if !commands.is_empty() {
        node.run(Cmd::new(program).args(["-batch", "-"]).stdin(commands))?;
    }
    Ok(())
}

/// Two nodes with an overlay between them.
fn raise(mode: Mode) -> Result<Lab> {
    let lab = Lab::builder().nodes(2).clients(0).build()?;
    for (node, own, other) in [(lab.node(1), 1, 2), (lab.node(2), 2, 1)] {
        let kind = match mode {
            Mode::Fdb => format!("id 1 local 192.168.77.{own} dev eth0"),
            Mode::External => "external".to_owned(),
        };
        let base = format!(
            "link add vx0 address 02:00:00:00:00:0{own} type vxlan {kind} dstport 8472 nolearning\n\
             link set vx0 mtu 1450 up\n\
             addr add 10.244.{own}.0/32 scope link dev vx0\n"
        );
        let (from, to) = (format!("192.168.77.{own}"), format!("192.168.77.{other}"));
        let (ip, bridge) = remote(
            mode,
            &format!("10.244.{other}.0"),
            &format!("10.244.{other}.0/24"),
            &format!("10.244.{own}.0"),
            &format!("02:00:00:00:00:0{other}"),
            (&from, &to),
        );
        batch(node, "ip", &(base + &ip))?;
        batch(node, "bridge", &bridge)?;
    }
    Ok(lab)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Nanoseconds for one datagram from the sender's `send` into the receiver's socket: everything happens on
/// the one processor that the sender is bound to.
fn datagram(lab: &Lab) -> Result<f64> {
    let sink = lab.node(2).enter(|| UdpSocket::bind("10.244.2.0:9"))??;
    let elapsed = lab.node(1).enter(|| -> Result<Duration> {
        pin(0)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.244.2.0:9")?;
        let begin = Instant::now();
        for _ in 0..DATAGRAMS {
            socket.send(&[0; 64])?;
        }
        Ok(begin.elapsed())
    })??;
    drop(sink);
    Ok(elapsed.as_nanos() as f64 / f64::from(DATAGRAMS))
}

/// Microseconds for a question and its answer.
fn echo(lab: &Lab) -> Result<f64> {
    let server = lab.node(2).enter(|| UdpSocket::bind("10.244.2.0:7"))??;
    let thread = std::thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 64];
        loop {
            let (length, peer) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..length], peer)?;
            if length == 1 {
                return Ok(());
            }
        }
    });
    let elapsed = lab.node(1).enter(|| -> Result<Duration> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.244.2.0:7")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut buffer = [0; 64];
        let begin = Instant::now();
        for _ in 0..ECHOES {
            socket.send(&[0; 64])?;
            socket.recv(&mut buffer)?;
        }
        let elapsed = begin.elapsed();
        socket.send(&[0])?;
        Ok(elapsed)
    })??;
    thread.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(elapsed.as_micros() as f64 / f64::from(ECHOES))
}

/// Gbit/s of one TCP stream.
fn stream(lab: &Lab) -> Result<f64> {
    use std::io::{Read as _, Write as _};
    let listener = lab.node(2).enter(|| TcpListener::bind("10.244.2.0:5001"))??;
    let (tell, total) = mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 256 * 1024];
        let (mut sum, begin) = (0u64, Instant::now());
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                tell.send(sum as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)?;
                return Ok(());
            }
            sum += read as u64;
        }
    });
    lab.node(1).enter(|| -> Result<()> {
        let mut stream = TcpStream::connect("10.244.2.0:5001".parse::<SocketAddr>()?)?;
        let (buffer, begin) = (vec![0; 256 * 1024], Instant::now());
        while begin.elapsed() < STREAM {
            stream.write_all(&buffer)?;
        }
        Ok(())
    })??;
    total.recv_timeout(Duration::from_secs(10)).context("the stream did not end")
}

/// Milliseconds until the kernel knows [`NODES`] remote nodes with an IPv4 range each.
fn program(mode: Mode) -> Result<f64> {
    let lab = raise(mode)?;
    let (mut ip, mut bridge) = (String::new(), String::new());
    for n in 0..NODES {
        let [_, _, high, low] = n.to_be_bytes();
        let range = format!("10.{}.{low}.0", 16 + high);
        let mac = format!("02:01:00:00:{high:02x}:{low:02x}");
        let to = format!("172.16.{high}.{low}");
        let (a, b) = remote(mode, &range, &format!("{range}/24"), "10.244.1.0", &mac, ("192.168.77.1", &to));
        ip += &a;
        bridge += &b;
    }
    let begin = Instant::now();
    batch(lab.node(1), "bridge", &bridge)?;
    batch(lab.node(1), "ip", &ip)?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let labs = [raise(Mode::Fdb)?, raise(Mode::External)?];
    type Measure = fn(&Lab) -> Result<f64>;
    let measures: [(&str, Measure); 3] = [
        ("UDP, 64 bytes, one way, one processor: ns per packet", datagram),
        ("UDP echo: microseconds per round trip", echo),
        ("TCP, one stream: Gbit/s", stream),
    ];
    let mut table = format!("{:<60} {:>10} {:>10} {:>8}\n", "", "FDB", "external", "ratio");
    let mut line = |what: &str, fdb: f64, external: f64| {
        let _ = writeln!(table, "{what:<60} {fdb:>10.1} {external:>10.1} {:>8.3}", external / fdb);
    };
    for (what, measure) in measures {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (lab, figures) in labs.iter().zip(&mut figures) {
                figures.push(measure(lab)?);
            }
        }
        let [fdb, external] = figures.map(median);
        line(what, fdb, external);
    }
    let fdb = median((0..3).map(|_| program(Mode::Fdb)).collect::<Result<_>>()?);
    let external = median((0..3).map(|_| program(Mode::External)).collect::<Result<_>>()?);
    line(&format!("{NODES} nodes into the kernel: ms"), fdb, external);
    println!("{table}");
    Ok(())
}
