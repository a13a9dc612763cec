//! What the product's programs cost a packet, by where it is met and what it is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::SchedClassifier;
use aya::{Ebpf, TestRun, TestRunOptions};
use heddle_bpf::TcHook;
use heddle_ebpf_common::{MESH_REPLY, MESH_REQUEST};
use heddle_lab::Lab;

use crate::samples::{Case, Samples, interleaved};
use crate::stage::{Stage, Where, asker, backend, choice, client, cluster, far, node_ip, node_port};
use crate::table::Table;
use crate::{cpu, object, packet, stage};

const ROUNDS: usize = 15;
/// Packets of a round, each of another flow.
const RUNS: u32 = 4_000;
/// The first port of the clients.
const SPORT: u32 = 1_024;

const REDIRECT: u32 = 7;
/// TC_ACT_UNSPEC.
const PASS: u32 = u32::MAX;

pub fn run() -> Result<()> {
    println!(
        "Nanoseconds per packet, net of an empty program in the same round; {ROUNDS} interleaved rounds of {RUNS} \
         packets, each of another flow, one BPF_PROG_TEST_RUN each; 64-byte TCP; 10,000 frontends, 100,000 flows \
         beside those measured. `new` runs over a table of unanswered flows that is full.\n"
    );
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    let mut stage = Stage::build(node)?;
    stage.add_flows()?;
    node.enter(|| cpu::pinned(|| measure(&stage)))?
}

/// One line of the table.
struct Line {
    label: &'static str,
    hook: TcHook,
    device: u32,
    verdict: u32,
    packets: Packets,
}

enum Packets {
    /// The same in every round.
    Known(Vec<Vec<u8>>),
    /// Of flows that were never seen: made from a number.
    New(Box<dyn Fn(u32) -> Result<Vec<u8>> + Sync>),
}

fn measure(stage: &Stage) -> Result<()> {
    let mut empty = object::load("bench.bpf.o")?;
    object::classifier(&mut empty, "empty")?;
    let empty = loaded(&empty, "empty")?;
    let mut table = Table::new(&["hook", "packet", "IPv4", "min-max", "IPv6", "min-max", "IPv6 : IPv4"]);
    let lines: Vec<Line> = [lines(stage, true)?, lines(stage, false)?].into_iter().flatten().collect();
    let mut cases = Vec::new();
    for line in &lines {
        let program = stage.program(line.hook)?;
        let mut round = 0;
        cases.push(Case::new(move || {
            let made;
            let packets = match &line.packets {
                Packets::Known(packets) => packets,
                Packets::New(make) => {
                    made = (0..RUNS).map(|n| make(round * RUNS + n)).collect::<Result<Vec<_>>>()?;
                    round += 1;
                    &made
                }
            };
            let base = time(empty, line.device, packets)?;
            let ours = time(&program, line.device, packets)?;
            Ok((ours - base) / f64::from(RUNS))
        }));
    }
    let samples = interleaved(ROUNDS, &mut cases)?;
    let half = lines.len() / 2;
    for ((line, four), six) in lines.iter().zip(&samples[..half]).zip(&samples[half..]) {
        row(&mut table, line.hook, line.label, four, six);
    }
    table.print();
    println!("\nThe same packet again and again, which no program changes: everything is in the cache.\n");
    again(stage, empty, &lines)
}

/// What passes unchanged can be run over many times in one system call.
fn again(stage: &Stage, empty: &SchedClassifier, lines: &[Line]) -> Result<()> {
    let mut table = Table::new(&["hook", "packet", "IPv4", "min-max", "IPv6", "min-max", "IPv6 : IPv4"]);
    let passed = lines.iter().filter(|line| line.verdict == PASS);
    let mut cases = Vec::new();
    let mut labels = Vec::new();
    for line in passed {
        let Packets::Known(packets) = &line.packets else { continue };
        let program = stage.program(line.hook)?;
        labels.push((line.hook, line.label));
        cases.push(Case::new(move || {
            let base = repeated(empty, line.device, &packets[0])?;
            Ok(repeated(&program, line.device, &packets[0])? - base)
        }));
    }
    let samples = interleaved(ROUNDS, &mut cases)?;
    let half = labels.len() / 2;
    for (((hook, label), four), six) in labels.iter().zip(&samples[..half]).zip(&samples[half..]) {
        row(&mut table, *hook, label, four, six);
    }
    table.print();
    Ok(())
}

fn row(table: &mut Table, hook: TcHook, label: &str, four: &Samples, six: &Samples) {
    table.row([
        hook.name().into(),
        label.into(),
        format!("{:.0}", four.median()),
        four.spread(0),
        format!("{:.0}", six.median()),
        six.spread(0),
        // Of next to nothing there is no ratio.
        if four.median() < 5.0 { "-".into() } else { format!("{:.2}", six.median() / four.median()) },
    ]);
}

/// Nanoseconds of processor time a run.
fn repeated(program: &SchedClassifier, device: u32, packet: &[u8]) -> Result<f64> {
    const REPEAT: u32 = 50_000;
    let context = object::context(device);
    let options = TestRunOptions {
        data_in: Some(packet),
        ctx_in: Some(&context),
        repeat: REPEAT,
        ..TestRunOptions::new()
    };
    let start = cpu::used()?;
    program.test_run(options)?;
    Ok((cpu::used()? - start).as_nanos() as f64 / f64::from(REPEAT))
}

fn loaded<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    Ok(ebpf.program(name).ok_or_else(|| anyhow!("the object has no program {name}"))?.try_into()?)
}

fn one(program: &SchedClassifier, device: u32, packet: &[u8]) -> Result<u32> {
    let context = object::context(device);
    let options = TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::new() };
    Ok(program.test_run(options)?.return_value)
}

/// Nanoseconds of processor time for all packets together.
fn time(program: &SchedClassifier, device: u32, packets: &[Vec<u8>]) -> Result<f64> {
    let start = cpu::used()?;
    for packet in packets {
        one(program, device, packet)?;
    }
    Ok((cpu::used()? - start).as_nanos() as f64)
}

/// A client's port; [`RUNS`] of them are in use at a time.
fn port(n: u32) -> u16 {
    (SPORT + n % 64_000) as u16
}

fn segments(flags: packet::Flags, ends: impl Fn(u32) -> (SocketAddr, SocketAddr)) -> Result<Vec<Vec<u8>>> {
    (0..RUNS).map(ends).map(|(src, dst)| packet::tcp(src, dst, flags)).collect()
}

fn lines(stage: &Stage, v4: bool) -> Result<Vec<Line>> {
    use TcHook::{OverlayIn, Pod, PodOut, UnderlayIn, UnderlayOut};
    use packet::Flags::{Ack, Syn, SynAck};
    let devices = &stage.devices;
    let known = |label, hook, device, verdict, packets: Vec<Vec<u8>>| -> Result<Line> {
        let program = stage.program(hook)?;
        for packet in &packets {
            let got = one(&program, device, packet)?;
            ensure!(got == verdict, "{} {label}: verdict {got}, not {verdict}", hook.name());
        }
        Ok(Line { label, hook, device, verdict, packets: Packets::Known(packets) })
    };
    // Lets programs see packets that make flows what they are to be.
    let seen = |hook, device, packets: Vec<Vec<u8>>| known("", hook, device, REDIRECT, packets).map(drop);
    let outside = |n| SocketAddr::new(client(v4, 0), port(n));
    let through = |kind| SocketAddr::new(node_ip(v4, 1), node_port(kind));
    let other = |n| SocketAddr::new(client(v4, 1), port(n));
    let entry = SocketAddr::new(node_ip(v4, 2), node_port(Where::Here));
    let pod = |n| SocketAddr::new(asker(v4), port(n));
    let mark = |packets: Vec<Vec<u8>>, kind: [u8; 2], hash: u32| -> Vec<Vec<u8>> {
        packets.into_iter().map(|packet| packet::from_mac(packet, kind, hash)).collect()
    };

    // Flows that have been answered.
    seen(UnderlayIn, devices.underlay, segments(Syn, |n| (outside(n), through(Where::Here)))?)?;
    seen(Pod, devices.backend, segments(SynAck, |n| (backend(v4), outside(n)))?)?;
    seen(UnderlayIn, devices.underlay, segments(Syn, |n| (outside(n), through(Where::Elsewhere)))?)?;
    let mesh_reply = mark(segments(Ack, |n| (through(Where::Elsewhere), outside(n)))?, MESH_REPLY, 0);
    let first = segments(SynAck, |n| (through(Where::Elsewhere), outside(n)))?;
    seen(OverlayIn, devices.vxlan, mark(first, MESH_REPLY, 0))?;
    let mesh_syn = mark(segments(Syn, |n| (other(n), entry))?, MESH_REQUEST, choice(v4));
    seen(OverlayIn, devices.vxlan, mesh_syn)?;
    seen(Pod, devices.backend, segments(SynAck, |n| (backend(v4), other(n)))?)?;
    seen(Pod, devices.asker, segments(Syn, |n| (pod(n), cluster(v4, Where::Here)))?)?;
    seen(Pod, devices.backend, segments(SynAck, |n| (backend(v4), pod(n)))?)?;

    let mut lines = vec![known(
        "not ours",
        UnderlayIn,
        devices.underlay,
        PASS,
        segments(Ack, |n| (outside(n), (node_ip(v4, 1), 22).into()))?,
    )?];
    let fresh = |label, hook, device, verdict, make: Box<dyn Fn(u32) -> Result<Vec<u8>> + Sync>| Line {
        label,
        hook,
        device,
        verdict,
        packets: Packets::New(make),
    };
    let stranger = move |n: u32| -> SocketAddr {
        let base: IpAddr =
            if v4 { [10, 251, 0, 0].into() } else { [0xfd00, 0x10, 0x251, 0, 0, 0, 0, 0].into() };
        (crate::mapped::above(base, n), 40_000).into()
    };
    for (kind, new, established) in [
        (Where::Here, "node port, new, backend here", "node port, established, backend here"),
        (Where::Elsewhere, "node port, new, into the tunnel", "node port, established, into the tunnel"),
    ] {
        let to = through(kind);
        let make = move |n| packet::tcp(stranger(n), to, Syn);
        lines.push(fresh(new, UnderlayIn, devices.underlay, REDIRECT, Box::new(make)));
        let packets = segments(Ack, |n| (outside(n), to))?;
        lines.push(known(established, UnderlayIn, devices.underlay, REDIRECT, packets)?);
    }
    let inner = segments(Ack, |n| ((far(v4).ip(), port(n)).into(), backend(v4)))?;
    let outer = |inner: &Vec<u8>| packet::vxlan(node_ip(v4, 2), node_ip(v4, 1), stage::VXLAN_PORT, inner);
    let wrapped = inner.iter().map(outer).collect::<Result<_>>()?;
    lines.push(known("VXLAN of another node, checked", UnderlayIn, devices.underlay, PASS, wrapped)?);
    let to_client = segments(Ack, |n| ((node_ip(v4, 1), 22).into(), outside(n)))?;
    lines.push(known("not ours", UnderlayOut, devices.underlay, PASS, to_client)?);

    let elsewhere = segments(Ack, |n| (pod(n), far(v4)))?;
    lines.push(known("not ours", Pod, devices.asker, PASS, elsewhere)?);
    let asker = asker(v4);
    let to = cluster(v4, Where::Here);
    let base = RUNS;
    let make = move |n: u32| packet::tcp((asker, port(base + n)).into(), to, Syn);
    lines.push(fresh("cluster IP, new", Pod, devices.asker, REDIRECT, Box::new(make)));
    let packets = segments(Ack, |n| (pod(n), to))?;
    lines.push(known("cluster IP, established", Pod, devices.asker, REDIRECT, packets)?);
    let packets = segments(Ack, |n| (backend(v4), outside(n)))?;
    lines.push(known("reply to a client outside", Pod, devices.backend, REDIRECT, packets)?);
    let packets = segments(Ack, |n| (backend(v4), other(n)))?;
    lines.push(known("reply into the tunnel", Pod, devices.backend, REDIRECT, packets)?);
    let packets = segments(Ack, |n| ((node_ip(v4, 1), port(n)).into(), backend(v4)))?;
    lines.push(known("not ours", PodOut, devices.backend, PASS, packets)?);

    lines.push(known("not ours: pod to pod", OverlayIn, devices.vxlan, PASS, inner)?);
    let make = move |n| {
        let syn = packet::tcp(stranger(n), entry, Syn)?;
        Ok(packet::from_mac(syn, MESH_REQUEST, choice(v4)))
    };
    lines.push(fresh("of another node's port, new", OverlayIn, devices.vxlan, REDIRECT, Box::new(make)));
    let packets = mark(segments(Ack, |n| (other(n), entry))?, MESH_REQUEST, choice(v4));
    lines.push(known("of another node's port, established", OverlayIn, devices.vxlan, REDIRECT, packets)?);
    lines.push(known("reply for our own node port", OverlayIn, devices.vxlan, REDIRECT, mesh_reply)?);
    check_new(stage, &lines)?;
    Ok(lines)
}

/// New flows, too, must go where they belong.
fn check_new(stage: &Stage, lines: &[Line]) -> Result<()> {
    for line in lines {
        if let Packets::New(make) = &line.packets {
            // A number that no round reaches.
            let packet = make(ROUNDS as u32 * RUNS)?;
            let got = one(&stage.program(line.hook)?, line.device, &packet).context(line.label)?;
            ensure!(
                got == line.verdict,
                "{} {}: verdict {got}, not {}",
                line.hook.name(),
                line.label,
                line.verdict
            );
        }
    }
    Ok(())
}
