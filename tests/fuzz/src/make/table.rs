//! Random tables, and random changes of them.

use std::ops::RangeInclusive;

use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODE_PORTS, ADDR_OVERLAY, Addr, BACKEND_ACTIVE,
    BACKEND_DOWN, BACKEND_DRAINING, BACKEND_FREE, Backend, CONFIG_OTHER_PROXY, Config, FRONTEND_DROP,
    FRONTEND_DROP_OUTSIDE, FRONTEND_EXTERNAL, FRONTEND_LOCAL, FRONTEND_SOURCES, FrontendKey, KnownAddr,
    NODE_DOWN, NODE_SELF, NODE_UP, Node, REMOTE_DSR, REMOTE_SNAT, REMOTE_TUNNEL, Routes, choice_hash,
};

use crate::dice::Dice;
use crate::place::{self, Dev};
use crate::table::{Change, Front, Table};
use crate::wire::{SCTP, TCP, UDP};

/// Node ports are 30080 and on, a service each; cluster and external addresses have port 80.
pub const NODE_PORT: u16 = 30080;
pub const PORT: u16 = 80;
/// Few, so that they run out at times.
const SNAT_PORTS: (u16, u16) = (61000, 61007);

/// Ports that are a service's or `snat`'s, on whatever node.
pub fn ports() -> impl Iterator<Item = RangeInclusive<u16>> {
    [NODE_PORT..=NODE_PORT + 5, SNAT_PORTS.0..=SNAT_PORTS.1].into_iter()
}

pub fn table(dice: &mut Dice) -> Table {
    let until = if dice.one_in(3) { 0 } else { 60 << 30 };
    let mut table = Table {
        config: config(dice),
        routes: Routes { generation: 1 + dice.number(), until },
        backends: vec![Backend::default()],
        ..Table::default()
    };
    table.nodes.push(Node::default());
    for n in 1..=place::NODES {
        // Node 4 has no overlay.
        let overlay = u8::from(n != 4);
        table.nodes.push(Node {
            state: if n != 1 && dice.one_in(8) { NODE_DOWN } else { NODE_UP },
            mac: if overlay == 1 { place::vtep_mac(n) } else { [0; 6] },
            underlay: place::node(true, n),
            overlay,
            ..Node::default()
        });
        for v4 in [true, false] {
            let known = |kind| KnownAddr { node: n.into(), kind };
            // Not every address of a node answers on node ports.
            let ports = if n == 3 { 0 } else { ADDR_NODE_PORTS };
            table.addrs.insert(place::node(v4, n), known(ADDR_NODE | ports));
            if overlay == 1 {
                table.addrs.insert(place::vtep(v4, n), known(ADDR_OVERLAY));
                table.ranges.push((place::vtep(v4, n), if v4 { 24 } else { 64 }, n.into()));
            }
        }
    }
    for i in 1..=1 + dice.below(4) as u8 {
        service(dice, &mut table, i);
    }
    table
}

fn config(dice: &mut Dice) -> Config {
    let some = |dice: &mut Dice, addr| if dice.one_in(16) { Addr::default() } else { addr };
    Config {
        remote: dice.pick(&[REMOTE_TUNNEL, REMOTE_TUNNEL, REMOTE_SNAT, REMOTE_DSR, REMOTE_DSR]),
        vxlan_ifindex: if dice.one_in(24) { 0 } else { Dev::Overlay.ifindex() },
        underlay_ifindex: Dev::Underlay.ifindex(),
        tunnel_mtu: dice.pick(&[place::TUNNEL_MTU, place::TUNNEL_MTU, place::TUNNEL_MTU, 1280]),
        overlay4: some(dice, place::vtep(true, 1)),
        overlay6: some(dice, place::vtep(false, 1)),
        underlay4: some(dice, place::node(true, 1)),
        underlay6: some(dice, place::node(false, 1)),
        snat_port_min: SNAT_PORTS.0,
        snat_port_max: SNAT_PORTS.1,
        vxlan_port: place::VXLAN_PORT,
        flags: if dice.one_in(6) { CONFIG_OTHER_PROXY } else { 0 },
        fixed_time: 5 << 30,
        fixed_random: dice.number() as u32 | 1,
        vni: place::VNI,
        settling: if dice.one_in(20) { 6 << 30 } else { 0 },
        ..Config::default()
    }
}

/// Where a backend may be: address, node, port.
fn endpoint(dice: &mut Dice, v4: bool) -> (Addr, u32, u16) {
    match dice.weighted(&[10, 8, 1, 6, 3, 4, 2, 1, 2]) {
        0 => (place::pod(v4, 1, 10), 1, 8080),
        1 => (place::pod(v4, 1, 11), 1, 8080),
        2 => (place::pod(v4, 1, 12), 1, 8080),
        3 => (place::pod(v4, 2, 20), 2, 8080),
        4 => (place::pod(v4, 3, 30), 3, 8080),
        5 => (place::node(v4, 1), 1, 9090),
        6 => (place::node(v4, 2), 2, 9090),
        7 => (place::node(v4, 4), 4, 9090),
        _ => (place::stranger(v4), 0, 9090),
    }
}

fn backend(dice: &mut Dice, index: u32, v4: bool, proto: u8) -> Backend {
    let (addr, node, mut port) = endpoint(dice, v4);
    if proto == SCTP {
        // Its ports cannot be translated.
        port = PORT;
    }
    let states =
        [BACKEND_ACTIVE, BACKEND_ACTIVE, BACKEND_ACTIVE, BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_DOWN];
    Backend {
        addr,
        generation: 100 + index,
        node,
        port: port.to_be(),
        proto,
        state: dice.pick(&states),
        hash: choice_hash(&addr, port.to_be(), proto),
    }
}

fn service(dice: &mut Dice, table: &mut Table, i: u8) {
    let (v4, proto) = (dice.one_in(2), dice.pick(&[TCP, TCP, UDP, UDP, SCTP]));
    let mut indices = Vec::new();
    for _ in 0..dice.pick(&[0, 1, 1, 2, 2, 3, 4]) {
        let index = table.backends.len() as u32;
        let backend = backend(dice, index, v4, proto);
        if backend.node == NODE_SELF {
            table.choices.insert((i.into(), backend.hash), index);
        }
        table.backends.push(backend);
        indices.push(index);
    }
    let local = dice.one_in(4);
    let mut front = Front { service: i.into(), ..lists(dice, table, &indices, local) };
    front.flags |= if dice.one_in(4) { FRONTEND_DROP } else { 0 };
    front.affinity = dice.pick(&[0, 0, 0, 10, 60]);
    let key = |addr, port: u16| FrontendKey { addr, net: 0, port: port.to_be(), proto, zero: 0 };
    let (cluster, external) = (place::cluster_ip(v4, i), place::external_ip(v4, i));
    let any = if v4 { Addr::ANY4 } else { Addr::ANY6 };
    table.addrs.insert(cluster, KnownAddr { node: 0, kind: ADDR_CLUSTER_IP });
    table.frontends.insert(key(cluster, PORT), front.clone());
    front.flags |= FRONTEND_EXTERNAL;
    front.flags |= if local { FRONTEND_LOCAL } else { 0 };
    front.flags |= if local && dice.one_in(2) { FRONTEND_DROP_OUTSIDE } else { 0 };
    table.frontends.insert(key(any, NODE_PORT + u16::from(i)), front.clone());
    if dice.one_in(2) {
        if dice.one_in(3) {
            front.flags |= FRONTEND_SOURCES;
            let range = dice.pick(&[
                (place::client(v4, 1), if v4 { 32 } else { 128 }),
                (place::node(v4, 0), if v4 { 24 } else { 64 }),
                (place::pod(v4, 1, 0), if v4 { 28 } else { 124 }),
                (if v4 { Addr::ANY4 } else { Addr::ANY6 }, 0),
            ]);
            table.sources.push((i.into(), range.0, range.1));
        }
        table.addrs.insert(external, KnownAddr { node: 0, kind: ADDR_EXTERNAL });
        table.frontends.insert(key(external, PORT), front);
    }
}

/// A dense list, and one such as Maglev makes (each backend many times), or one of this node's backends.
fn lists(dice: &mut Dice, table: &Table, indices: &[u32], local: bool) -> Front {
    let here = |index: &u32| table.backends[*index as usize].node == NODE_SELF;
    let outside = if local {
        indices.iter().copied().filter(here).collect()
    } else if indices.is_empty() {
        Vec::new()
    } else {
        (0..13).map(|_| dice.pick(indices)).collect()
    };
    Front { ring: indices.to_vec(), outside, ..Front::default() }
}

/// A change that user space may make.
pub fn change(dice: &mut Dice, table: &Table) -> Option<Change> {
    match dice.weighted(&[6, 3, 3, 2, 2, 8, 4]) {
        0 => {
            // A slot is given up, its next owner is another generation.
            let index = 1 + dice.below(table.backends.len().saturating_sub(1).max(1));
            let old = table.backends.get(index)?;
            let mut new = *old;
            match dice.below(5) {
                0 => new.state = BACKEND_FREE,
                1 => {
                    new =
                        Backend { generation: old.generation + 1, state: BACKEND_FREE, ..Backend::default() }
                }
                2 => {
                    new = backend(dice, index as u32, old.addr.is_v4(), old.proto);
                    new.generation = old.generation + 1;
                }
                _ => new.state = dice.pick(&[BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_DOWN]),
            }
            Some(Change::Backend(index as u32, new))
        }
        1 => {
            let key = *table.frontends.keys().nth(dice.below(table.frontends.len().max(1)))?;
            let front = table.frontends[&key].clone();
            if dice.one_in(4) {
                return Some(Change::Frontend(key, None));
            }
            let mut indices = front.ring.clone();
            if !indices.is_empty() {
                indices.remove(dice.below(indices.len()));
            }
            let lists = lists(dice, table, &indices, front.flags & FRONTEND_LOCAL != 0);
            Some(Change::Frontend(key, Some(Front { ring: lists.ring, outside: lists.outside, ..front })))
        }
        2 => {
            let index = 2 + dice.below(table.nodes.len() - 2);
            let mut node = table.nodes[index];
            if dice.one_in(3) {
                node.overlay ^= u8::from(node.mac != [0; 6]);
            } else {
                node.state = dice.pick(&[NODE_UP, NODE_UP, NODE_DOWN]);
            }
            Some(Change::Node(index as u32, node))
        }
        3 => {
            let (service, hash) = *table.choices.keys().nth(dice.below(table.choices.len().max(1)))?;
            let other = dice.below(table.backends.len()) as u32;
            Some(Change::Choice(service, hash, (!dice.one_in(2)).then_some(other)))
        }
        4 => {
            let again = config(dice);
            let config = Config {
                fixed_time: table.config.fixed_time,
                fixed_random: table.config.fixed_random,
                ..again
            };
            Some(Change::Config(Box::new(config)))
        }
        5 => {
            Some(Change::Config(Box::new(Config { fixed_random: dice.number() as u32 | 1, ..table.config })))
        }
        _ => {
            let later = dice.pick(&[1_000_000, 1 << 30, 40 << 30]);
            Some(Change::Config(Box::new(Config {
                fixed_time: table.config.fixed_time + later,
                ..table.config
            })))
        }
    }
}
