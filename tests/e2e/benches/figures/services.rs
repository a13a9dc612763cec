//! What a packet of a service costs, flow by flow.
//!
//! BPF_PROG_TEST_RUN with `repeat` runs a program many times in one system call, but does not restore the packet in
//! between. So the kernel is given a wrapper (ebpf/bench/src/wrap.rs), which writes the packet anew with the next
//! flow's port and tail-calls the product's program; the same wrapper around a program that does nothing is what is
//! subtracted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, TestRun, TestRunOptions};
use heddle_bpf::TcHook;
use heddle_ebpf_common::Counter;
use heddle_lab::Lab;

use crate::mapped::above;
use crate::packet::Flags;
use crate::samples::{Case, Samples, interleaved};
use crate::stage::{self, CROWD_PORT, FLOWS, Stage};
use crate::table::Table;
use crate::{cpu, object, packet};

const ROUNDS: usize = 15;
/// Packets of a round.
const RUNS: u32 = 100_000;
/// Flows of one address, and their first port: as the wrapper has them.
const PORTS: u32 = 50_000;
const FIRST_PORT: u32 = 1_024;
const REDIRECT: u32 = 7;
/// TC_ACT_UNSPEC.
const PASS: u32 = u32::MAX;

/// What is compared with the goal of each hook, in nanoseconds.
const GOALS: &[(&str, [f64; 2])] = &[
    ("1 established flow", [250.0, 250.0]),
    ("100,000 established flows", [500.0, 500.0]),
    ("new flow every packet", [1_100.0, 1_100.0]),
    ("not a service", [75.0, 45.0]),
];

/// The wrapper's `Plan`.
#[derive(Clone, Copy)]
struct Plan {
    frame: [u64; 10],
    flows: u32,
    next: u32,
    replies: u32,
    destinations: u32,
}

impl Plan {
    /// As it lies in the wrapper's map.
    fn words(&self) -> [u64; 12] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut words = [0; 12];
        words[..10].copy_from_slice(&self.frame);
        words[10] = pair(self.flows, self.next);
        words[11] = pair(self.replies, self.destinations);
        words
    }
}

pub fn run() -> Result<()> {
    println!(
        "Nanoseconds per packet, net of the wrapper around a program that does nothing, in the same round; {ROUNDS} \
         interleaved rounds of {RUNS} packets in one BPF_PROG_TEST_RUN; 64-byte TCP; 10,000 frontends, 100 backends. \
         `new` runs over a table of unanswered flows that is full.\n"
    );
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    let mut stage = Stage::build(node)?;
    node.enter(|| cpu::pinned(|| measure(&mut stage)))?
}

/// A hook, and the packets that it meets.
#[derive(Clone, Copy)]
struct Hook {
    tc: TcHook,
    device: u32,
    label: &'static str,
}

impl Hook {
    fn all(stage: &Stage) -> [Self; 2] {
        [
            Self { tc: TcHook::Pod, device: stage.devices.asker, label: "pod veth (tc)" },
            Self { tc: TcHook::UnderlayIn, device: stage.devices.underlay, label: "underlay (tc)" },
        ]
    }

    fn is_pod(self) -> bool {
        self.tc == TcHook::Pod
    }

    /// The ends of flow `n`. One pod asks many services, many clients ask one.
    fn ends(self, v4: bool, new: bool, n: u32) -> (SocketAddr, SocketAddr) {
        let port = (FIRST_PORT + n % PORTS) as u16;
        if self.is_pod() {
            let service = stage::others(v4);
            let to = SocketAddr::new(above(service.ip(), n / PORTS), service.port());
            return ((stage::asker(v4), port).into(), to);
        }
        let stranger: IpAddr =
            if v4 { [10, 251, 0, 0].into() } else { [0xfd00, 0x10, 0x251, 0, 0, 0, 0, 0].into() };
        let client = if new { stranger } else { stage::client(v4, 0) };
        ((above(client, n / PORTS), port).into(), (stage::node_ip(v4, 1), CROWD_PORT).into())
    }

    fn stranger(self, v4: bool) -> (SocketAddr, SocketAddr) {
        if self.is_pod() {
            ((stage::asker(v4), 40_000).into(), stage::far(v4))
        } else {
            ((stage::client(v4, 0), 40_000).into(), (stage::node_ip(v4, 1), 22).into())
        }
    }
}

/// A line of the table, for one hook.
struct Row {
    hook: Hook,
    label: &'static str,
    plan: Plan,
    verdict: u32,
    /// Whether each packet begins a flow.
    new: bool,
}

fn rows(hook: Hook, v4: bool) -> Result<Vec<Row>> {
    let plan = |(src, dst), flags, flows| -> Result<Plan> {
        let mut bytes = packet::tcp(src, dst, flags)?;
        // As long as what is restored: what is behind the IP packet is padding.
        bytes.resize(80, 0);
        let (words, _) = bytes.as_chunks::<8>();
        let frame = std::array::from_fn(|at| words.get(at).copied().map_or(0, u64::from_ne_bytes));
        Ok(Plan { frame, flows, next: 0, replies: 0, destinations: hook.is_pod().into() })
    };
    let row = |label, plan, verdict| Row { hook, label, plan, verdict, new: false };
    let [one, all, new, none] = [0, 1, 2, 3].map(|row| GOALS[row].0);
    let known = hook.ends(v4, false, 0);
    let fresh = plan(hook.ends(v4, true, 0), Flags::Syn, u32::MAX)?;
    Ok(vec![
        row(one, plan(known, Flags::Ack, 1)?, REDIRECT),
        row(all, plan(known, Flags::Ack, FLOWS)?, REDIRECT),
        // Behind those that are known.
        Row { new: true, ..row(new, Plan { next: FLOWS, ..fresh }, REDIRECT) },
        row(none, plan(hook.stranger(v4), Flags::Ack, 1)?, PASS),
    ])
}

/// The wrapper in the kernel.
struct Wrapper {
    ebpf: Ebpf,
    plan: Array<aya::maps::MapData, [u64; 12]>,
    target: ProgramArray<aya::maps::MapData>,
}

impl Wrapper {
    fn load() -> Result<Self> {
        let mut ebpf = object::load("wrap.bpf.o")?;
        object::classifier(&mut ebpf, "wrap")?;
        object::classifier(&mut ebpf, "nothing")?;
        let mut map = |name| ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        let plan = Array::try_from(map("plan")?)?;
        let target = ProgramArray::try_from(map("target")?)?;
        Ok(Self { ebpf, plan, target })
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(name).ok_or_else(|| anyhow!("the object has no program {name}"))?.try_into()?)
    }

    /// Nanoseconds of processor time for a packet, and the verdict on the last; `None`: of the wrapper itself.
    fn time(
        &mut self,
        plan: Plan,
        target: Option<&SchedClassifier>,
        device: u32,
        v4: bool,
    ) -> Result<(f64, u32)> {
        let fd = match target {
            Some(program) => program.fd()?.try_clone()?,
            None => self.program("nothing")?.fd()?.try_clone()?,
        };
        self.target.set(0, &fd, 0)?;
        self.plan.set(0, plan.words(), 0)?;
        let packet = plan.frame.map(u64::to_ne_bytes);
        let context = object::context(device);
        let options = TestRunOptions {
            data_in: Some(&packet.as_flattened()[..if v4 { 64 } else { 80 }]),
            ctx_in: Some(&context),
            repeat: RUNS,
            ..TestRunOptions::new()
        };
        let wrap = self.program("wrap")?;
        let start = cpu::used()?;
        let result = wrap.test_run(options)?;
        Ok(((cpu::used()? - start).as_nanos() as f64 / f64::from(RUNS), result.return_value))
    }
}

fn measure(stage: &mut Stage) -> Result<()> {
    for v4 in [true, false] {
        println!("{}\n", if v4 { "IPv4:" } else { "\nIPv6:" });
        let mut table = Table::new(&["", "pod veth (tc)", "min-max", "underlay (tc)", "min-max"]);
        let mut columns = Vec::new();
        for hook in Hook::all(stage) {
            establish(stage, hook, v4)?;
            columns.push(column(stage, hook, v4)?);
        }
        let figures: Vec<[f64; 2]> = columns[0]
            .iter()
            .zip(&columns[1])
            .map(|(pod, outside)| [pod.median(), outside.median()])
            .collect();
        for (row, (label, _)) in GOALS.iter().enumerate() {
            let cells = columns.iter().flat_map(|column: &Vec<Samples>| {
                [format!("{:.0}", column[row].median()), column[row].spread(0)]
            });
            table.row(std::iter::once((*label).to_owned()).chain(cells));
        }
        table.print();
        if v4 {
            goals(&figures);
        }
    }
    println!("\nInstructions:\n");
    instructions(stage)
}

fn goals(figures: &[[f64; 2]]) {
    println!("\nGoals (100,000 flows: at most twice one):\n");
    let mut table = Table::new(&["", "hook", "measured", "goal", ""]);
    for (row, (label, goals)) in GOALS.iter().enumerate() {
        for (hook, name) in ["pod veth", "underlay"].iter().enumerate() {
            let goal = if row == 1 { 2.0 * figures[0][hook] } else { goals[hook] };
            let measured = figures[row][hook];
            table.row([
                (*label).into(),
                (*name).into(),
                format!("{measured:.0}"),
                format!("<= {goal:.0}"),
                if measured <= goal { "met" } else { "missed" }.into(),
            ]);
        }
    }
    table.print();
}

/// The rows of one hook, each in every round.
fn column(stage: &Stage, hook: Hook, v4: bool) -> Result<Vec<Samples>> {
    let program = stage.program(hook.tc)?;
    let rows = rows(hook, v4)?;
    let wrapper = std::cell::RefCell::new(Wrapper::load()?);
    let mut cases = Vec::new();
    for row in &rows {
        let (wrapper, program) = (&wrapper, &program);
        let mut plan = row.plan;
        cases.push(Case::new(move || {
            let mut wrapper = wrapper.borrow_mut();
            let flows = stage.datapath.maps.counter(Counter::FlowNew)?;
            let (base, _) = wrapper.time(plan, None, hook.device, v4)?;
            let (ours, verdict) = wrapper.time(plan, Some(program), hook.device, v4)?;
            // The next round's new flows are others.
            plan.next = (plan.next + RUNS) % plan.flows;
            ensure!(verdict == row.verdict, "{} {}: verdict {verdict}", row.hook.label, row.label);
            let made = stage.datapath.maps.counter(Counter::FlowNew)? - flows;
            let expected = if row.new { u64::from(RUNS) } else { 0 };
            ensure!(made == expected, "{} {}: {made} new flows", row.hook.label, row.label);
            Ok(ours - base)
        }));
    }
    interleaved(ROUNDS, &mut cases)
}

/// [`FLOWS`] flows that have been answered, and no other.
fn establish(stage: &mut Stage, hook: Hook, v4: bool) -> Result<()> {
    let old = stage.datapath.maps.flows()?;
    old.iter().try_for_each(|(tuple, _)| stage.datapath.maps.ct.remove(tuple))?;
    let (ours, pods) = (stage.program(hook.tc)?, stage.program(TcHook::Pod)?);
    for n in 0..FLOWS {
        let (src, dst) = hook.ends(v4, false, n);
        let request = packet::tcp(src, dst, Flags::Syn)?;
        let sent = through(&ours, hook.device, &request)?;
        // (The client's port may be another one: two services can choose one backend for one port.)
        let (client, backend) = packet::ends(&sent)?;
        through(&pods, stage.devices.backend, &packet::tcp(backend, client, Flags::SynAck)?)?;
    }
    Ok(())
}

/// The packet as it is redirected.
fn through(program: &SchedClassifier, device: u32, packet: &[u8]) -> Result<Vec<u8>> {
    let context = object::context(device);
    let mut out = vec![0; packet.len()];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options)?;
    ensure!(result.return_value == REDIRECT, "verdict {}", result.return_value);
    Ok(out)
}

fn instructions(stage: &Stage) -> Result<()> {
    let mut table =
        Table::new(&["program", "instructions", "bytes of machine code", "walked by the verifier"]);
    for hook in TcHook::ALL {
        let info = stage.program(hook)?.info().context("the kernel tells nothing about a program")?;
        table.row([
            hook.name().into(),
            (info.size_translated().unwrap_or(0) / 8).to_string(),
            info.size_jitted().to_string(),
            info.verified_instruction_count().unwrap_or(0).to_string(),
        ]);
    }
    table.print();
    Ok(())
}
