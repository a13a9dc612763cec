//! The figures behind docs/decisions: one set of maps with 16-byte addresses, or two sets?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, anyhow, ensure};
use aya::maps::{Array, HashMap};
use aya::{Ebpf, Pod};
use heddle_ebpf_common::{Addr, FrontendKey, Tuple};

use crate::mapped::{above, addr};
use crate::samples::{Case, Samples, interleaved};
use crate::table::Table;
use crate::{cpu, object, packet};

const OBJECT: &str = "bench.bpf.o";
const FRONTENDS: u32 = 10_000;
const FLOWS: u32 = 100_000;
/// Flows of a service.
const SHARE: u32 = FLOWS / FRONTENDS;
const ROUNDS: usize = 15;
const RUNS: u32 = 100_000;
const TCP: u8 = 6;
const SPORT: u16 = 40_000;
const DPORT: u16 = 80;
const NO_SERVICE: u16 = 81;

/// What is compared: the label, the step's program, the destination port, and what it must answer.
const STEPS: &[(&str, &str, u16, u32)] = &[
    ("parse, build the keys", "parse", DPORT, 0),
    ("+ frontend, hit", "frontend", DPORT, 1),
    ("+ frontend, miss", "frontend", NO_SERVICE, 0),
    ("+ conntrack, hit", "flow", DPORT, 2),
    ("+ conntrack, miss", "flow", NO_SERVICE, 0),
    ("+ frontend and conntrack, hit", "both", DPORT, 3),
    ("+ frontend and conntrack, miss", "both", NO_SERVICE, 0),
];

pub fn run() -> Result<()> {
    println!(
        "Nanoseconds per packet, net of an empty program; {FRONTENDS} frontends and {FLOWS} flows of one family; \
         {ROUNDS} interleaved rounds of {RUNS} runs. `hot`: always the same flow; `all`: all flows in turn. \
         `one`: one set of maps, keys of {} and {} bytes; `two`: IPv4 keys of 12 and 16 bytes.\n",
        size_of::<FrontendKey>(),
        size_of::<Tuple>(),
    );
    cpu::pinned(lookups)?;
    println!();
    sizes()
}

fn lookups() -> Result<()> {
    let mut table = Table::new(&["", "one", "min-max", "two", "min-max", "one - two", "one : two"]);
    for v4 in [true, false] {
        let mut ebpf = object::load(OBJECT)?;
        fill(&mut ebpf, v4)?;
        for (heat, flows) in [("hot", 1), ("all", FLOWS)] {
            let mut options: Array<_, [u32; 2]> = Array::try_from(map(&mut ebpf, "options")?)?;
            options.set(0, [flows, SHARE], 0)?;
            measure(&mut ebpf, v4, heat, &mut table)?;
        }
    }
    table.print();
    Ok(())
}

fn measure(ebpf: &mut Ebpf, v4: bool, heat: &str, table: &mut Table) -> Result<()> {
    let packets = |port| packet::tcp(client(v4), service(v4, port), packet::Flags::Ack);
    let (known, unknown) = (packets(DPORT)?, packets(NO_SERVICE)?);
    let designs = ["one", "two"];
    let names = STEPS.iter().flat_map(|(_, step, ..)| designs.map(|design| format!("{design}_{step}")));
    for name in names.chain(["empty".into()]) {
        object::classifier(ebpf, &name)?;
    }
    let ebpf = &*ebpf;
    let program = |name: &str| {
        let program = ebpf.program(name).ok_or_else(|| anyhow!("the object has no program {name}"))?;
        Ok::<_, anyhow::Error>(TryInto::<&aya::programs::SchedClassifier>::try_into(program)?)
    };
    let empty = program("empty")?;
    let mut cases = vec![Case::new(|| object::nanoseconds(empty, &known, RUNS))];
    for (label, step, port, answer) in STEPS {
        let packet = if *port == DPORT { &known } else { &unknown };
        for design in designs {
            let program = program(&format!("{design}_{step}"))?;
            let found = object::once(program, packet)?;
            ensure!(found == *answer, "{design} {label} answers {found}, not {answer}");
            cases.push(Case::new(move || object::nanoseconds(program, packet, RUNS)));
        }
    }
    let samples = interleaved(ROUNDS, &mut cases)?;
    let (empty, rest) = samples.split_first().ok_or_else(|| anyhow!("nothing was measured"))?;
    let family = if v4 { "IPv4" } else { "IPv6" };
    for ((label, ..), pair) in STEPS.iter().zip(rest.chunks_exact(2)) {
        let [one, two] = [&pair[0], &pair[1]].map(|samples| samples.minus(empty));
        row(table, format!("{family} {heat}: {label}"), &one, &two);
    }
    Ok(())
}

fn row(table: &mut Table, label: String, one: &Samples, two: &Samples) {
    table.row([
        label,
        format!("{:.1}", one.median()),
        one.spread(1),
        format!("{:.1}", two.median()),
        two.spread(1),
        format!("{:+.1}", one.minus(two).median()),
        format!("{:.2}", one.median() / two.median()),
    ]);
}

/// What the designs take of memory and of program.
fn sizes() -> Result<()> {
    let mut ebpf = object::load(OBJECT)?;
    let mut table = Table::new(&["", "one", "two", "one : two"]);
    let mut add = |label: &str, one: f64, two: f64, digits: usize| {
        table.row([
            label.into(),
            format!("{one:.digits$}"),
            format!("{two:.digits$}"),
            format!("{:.2}", one / two),
        ]);
    };
    let mib = |map: &str| object::memory(&ebpf, map).map(|bytes| bytes as f64 / f64::from(1 << 20));
    let (one, two4, two6) = (mib("one_flows")?, mib("two_flows4")?, mib("two_flows6")?);
    add("MiB of conntrack for 131,072 flows, IPv4 only", one, two4, 1);
    add("MiB of conntrack for 131,072 flows of any mixture", one, two4 + two6, 1);
    let (one, two4, two6) = (mib("one_frontends")?, mib("two_frontends4")?, mib("two_frontends6")?);
    add("MiB of 16,384 frontends, IPv4 only", one, two4, 2);
    add("MiB of 16,384 frontends of any mixture", one, two4 + two6, 2);
    let mut program = |name: &str| {
        let info = object::classifier(&mut ebpf, name)?.info()?;
        Ok::<_, anyhow::Error>((
            f64::from(info.size_translated().unwrap_or(0) / 8),
            f64::from(info.verified_instruction_count().unwrap_or(0)),
        ))
    };
    let (one, two) = (program("one_both")?, program("two_both")?);
    add("instructions of the program with both lookups", one.0, two.0, 0);
    add("instructions that the verifier walked", one.1, two.1, 0);
    table.print();
    Ok(())
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).ok_or_else(|| anyhow!("the object has no map {name}"))
}

/// The client of flow 0.
fn client(v4: bool) -> SocketAddr {
    let ip: IpAddr = if v4 { Ipv4Addr::new(10, 244, 0, 0).into() } else { base6(0x10_0244).into() };
    (ip, SPORT).into()
}

/// Service 0.
fn service(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 { Ipv4Addr::new(10, 96, 0, 0).into() } else { base6(0x10_0096).into() };
    (ip, port).into()
}

fn base6(net: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(net) << 64)
}

/// Every service and every flow, into the maps of both designs. A value is zero but for the bit that tells
/// the programs that they found it.
fn fill(ebpf: &mut Ebpf, v4: bool) -> Result<()> {
    let service = service(v4, DPORT);
    let port = DPORT.to_be();
    let frontends = || (0..FRONTENDS).map(|n| addr(above(service.ip(), n)));
    let key = |addr| FrontendKey { addr, net: 0, port, proto: TCP, zero: 0 };
    let value: [u32; 10] = marked(0, 1);
    insert(ebpf, "one_frontends", frontends().map(|addr| (key(addr), value)))?;
    let flow = |n: u32| Tuple {
        src: addr(above(client(v4).ip(), n)),
        dst: addr(above(service.ip(), n / SHARE)),
        sport: SPORT.to_be(),
        dport: port,
        proto: TCP,
        zero: [0; 3],
    };
    let value: [u32; 20] = marked(10, 2);
    insert(ebpf, "one_flows", (0..FLOWS).map(|n| (flow(n), value)))?;
    if !v4 {
        insert(ebpf, "two_frontends6", frontends().map(|addr| (key(addr), marked::<10>(0, 1))))?;
        return insert(ebpf, "two_flows6", (0..FLOWS).map(|n| (flow(n), value)));
    }
    let last = u32::from(port) | u32::from(TCP) << 16;
    let key = |addr: Addr| [addr.as_v4(), 0, last];
    insert(ebpf, "two_frontends4", frontends().map(|addr| (key(addr), marked::<10>(0, 1))))?;
    let small = |flow: Tuple| {
        let ports = u32::from(flow.sport) | u32::from(flow.dport) << 16;
        [flow.src.as_v4(), flow.dst.as_v4(), ports, u32::from(flow.proto)]
    };
    insert(ebpf, "two_flows4", (0..FLOWS).map(|n| (small(flow(n)), marked::<14>(4, 2))))
}

fn marked<const WORDS: usize>(at: usize, bit: u32) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    words[at] = bit;
    words
}

fn insert<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str, entries: impl Iterator<Item = (K, V)>) -> Result<()> {
    let mut map: HashMap<_, K, V> = HashMap::try_from(map(ebpf, name)?)?;
    for (key, value) in entries {
        map.insert(key, value, 0)?;
    }
    Ok(())
}
