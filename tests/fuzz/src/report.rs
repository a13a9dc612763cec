//! A difference as a person can read it, and repeat it.

use std::fmt::Write;

use heddle_ebpf_common::{Backend, FrontendKey};

use crate::model::{Model, Stimulus, Verdict};
use crate::place::{end, ip};
use crate::session::{Difference, Step};
use crate::table::{Change, Table};
use crate::wire::{Kind, Seen, TCP, UDP, read};
use crate::world::ROOM;

/// What a frame is, and its bytes.
pub fn text(frame: &[u8]) -> String {
    let mut text = summary(frame);
    text.push_str("\n      ");
    for (i, byte) in frame.iter().take(200).enumerate() {
        let _ = write!(text, "{}{byte:02x}", if i > 0 && i % 4 == 0 { " " } else { "" });
    }
    if frame.len() > 200 {
        let _ = write!(text, " ... ({} bytes)", frame.len());
    }
    text
}

fn proto(proto: u8) -> String {
    match proto {
        TCP => "tcp".into(),
        UDP => "udp".into(),
        other => format!("protocol {other}"),
    }
}

fn summary(frame: &[u8]) -> String {
    if frame.len() < 14 {
        return format!("{} bytes", frame.len());
    }
    match read(frame, false, |_| Some([0, 0])) {
        Seen::Foreign => "no flow's".into(),
        Seen::Malformed => "malformed".into(),
        Seen::Protocol(packet) => {
            format!("protocol {} {} > {}", packet.tuple.proto, ip(packet.tuple.src), ip(packet.tuple.dst))
        }
        Seen::Flow(packet) => {
            let tuple = &packet.tuple;
            let mut text = format!(
                "{} {} > {} ttl {} {} bytes",
                proto(tuple.proto),
                end(tuple.src, tuple.sport),
                end(tuple.dst, tuple.dport),
                packet.ttl,
                packet.size()
            );
            let flags = "FSRPAU".chars().enumerate().filter(|(bit, _)| packet.flags >> bit & 1 != 0);
            let flags: String = flags.map(|(_, flag)| flag).collect();
            let _ = match packet.kind {
                Kind::Whole => write!(text, " [{flags}]"),
                Kind::First => write!(text, " [{flags}] first fragment {}", packet.frag_id),
                Kind::Later => write!(text, " other fragment {}", packet.frag_id),
                Kind::Error { .. } => write!(text, " (an ICMP error in this direction)"),
            };
            text
        }
    }
}

fn frontend(key: &FrontendKey) -> String {
    format!("{} {}", proto(key.proto), end(key.addr, key.port))
}

fn backend(backend: &Backend) -> String {
    let state = ["free", "active", "draining", "down"][usize::from(backend.state) % 4];
    format!(
        "{} on node {}, {state}, generation {}, hash {:08x}",
        end(backend.addr, backend.port),
        backend.node,
        backend.generation,
        backend.hash
    )
}

fn table(text: &mut String, table: &Table) {
    let config = &table.config;
    let _ = writeln!(
        text,
        "  remote {} vxlan {} mtu {} random {:#x} snat {}-{} overlay {} {} underlay {} {}",
        config.remote,
        config.vxlan_ifindex,
        config.tunnel_mtu,
        config.fixed_random,
        config.snat_port_min,
        config.snat_port_max,
        ip(config.overlay4),
        ip(config.overlay6),
        ip(config.underlay4),
        ip(config.underlay6),
    );
    for (index, node) in table.nodes.iter().enumerate().skip(1) {
        let _ = writeln!(text, "  node {index}: state {} overlay {}", node.state, node.overlay);
    }
    for (key, front) in &table.frontends {
        let _ = writeln!(
            text,
            "  {}: service {} flags {:#x} affinity {} ring {:?} outside {:?}",
            frontend(key),
            front.service,
            front.flags,
            front.affinity,
            front.ring,
            front.outside
        );
    }
    for (index, of) in table.backends.iter().enumerate().skip(1) {
        let _ = writeln!(text, "  backend {index}: {}", backend(of));
    }
    for (service, range, bits) in &table.sources {
        let _ = writeln!(text, "  sources of {service}: {}/{bits}", ip(*range));
    }
    for ((service, hash), index) in &table.choices {
        let _ = writeln!(text, "  choice {service} {hash:08x}: {index}");
    }
}

fn change(of: &Change) -> String {
    match of {
        Change::Backend(index, of) => format!("backend {index}: {}", backend(of)),
        Change::Frontend(key, Some(front)) => format!("{}: {front:?}", frontend(key)),
        Change::Frontend(key, None) => format!("{} is removed", frontend(key)),
        Change::Node(index, node) => format!("node {index}: state {} overlay {}", node.state, node.overlay),
        other => format!("{other:?}"),
    }
}

fn packet(text: &mut String, stimulus: &Stimulus, model: &mut Model) {
    let before = model.counted;
    let outcome = model.packet(stimulus);
    let _ = writeln!(
        text,
        "{} on {}{}{}: {}",
        stimulus.hook.name(),
        stimulus.dev.name(),
        if stimulus.gso == 0 { String::new() } else { format!(", segments of {}", stimulus.gso) },
        match stimulus.xdp {
            Some(mode) => format!(", {} first", mode.name()),
            None if stimulus.done => ", done".to_owned(),
            None => String::new(),
        },
        self::text(&stimulus.frame)
    );
    let counted: Vec<&str> = heddle_ebpf_common::Counter::ALL
        .iter()
        .filter(|(counter, _)| model.counted[*counter as usize] != before[*counter as usize])
        .map(|(_, name)| *name)
        .collect();
    let _ = match outcome.verdict {
        Verdict::Drop => writeln!(text, "   -> model: drop, {counted:?}"),
        verdict => writeln!(
            text,
            "   -> model: {verdict:?} mark {:#x} {counted:?} {}",
            outcome.mark,
            summary(&outcome.frame.bytes)
        ),
    };
}

/// The table, the steps with what the model says of each, and the difference.
pub fn case(seed: u64, of: &Table, steps: &[Step], difference: &Difference) -> String {
    let mut text = format!("a difference (seed {seed}); the table:\n");
    table(&mut text, of);
    let mut model = Model::new(of.clone(), ROOM as usize);
    text.push_str("what happens:\n");
    for (i, step) in steps.iter().enumerate() {
        let _ = write!(text, "  {i}. ");
        match step {
            Step::Change(of) => {
                model.change(of);
                let _ = writeln!(text, "change: {}", change(of));
            }
            Step::Packet(stimulus) => packet(&mut text, stimulus, &mut model),
        }
    }
    let _ = match difference.at {
        Some(at) => writeln!(text, "the programs at step {at}: {}", difference.what),
        None => writeln!(text, "the programs at the end: {}", difference.what),
    };
    text
}
