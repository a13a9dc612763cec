//! The pinned maps, as [`Maps`] and [`Dump`].

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{MapData, MapError};
use heddle_bpf::{Pins, batch, sys};
use heddle_daemon::exit::Failure;
use heddle_ebpf_common::{Addr, Name, PORTS_LEN, RING_BLOCK, RingBlock, SourceKey};
use ipnetwork::IpNetwork;
use nix::libc;

use super::compile::option_of;
use super::encode;
use super::read::Probable;
use super::state::State;
use super::write::{Dump, Limits, Maps, Write};

/// Elements read by one system call.
const BATCH: u32 = 4096;

/// Why a map could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bpf(#[from] heddle_bpf::Error),
    #[error("cannot {operation} map {map}: {source}{}", hint(map, source))]
    Map { operation: &'static str, map: &'static str, source: std::io::Error },
}

impl Error {
    /// What it means for whoever starts the daemon.
    pub fn failure(self) -> Failure {
        match self {
            Self::Bpf(error) => super::place::failure(error),
            error => Failure::runtime(error),
        }
    }
}

fn hint(map: &str, source: &std::io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG) => option_of(map),
        Some(libc::EPERM) => " (are CAP_BPF and CAP_NET_ADMIN there?)",
        _ => "",
    }
}

/// The maps of this node.
#[derive(Debug)]
pub struct Kernel {
    pub maps: heddle_bpf::Maps,
    pub limits: Limits,
    batches: Batches,
}

/// Those maps that are written or read many elements at a time.
#[derive(Debug)]
struct Batches {
    frontends: OwnedFd,
    ring: OwnedFd,
    backends: OwnedFd,
    conns: OwnedFd,
    choices: OwnedFd,
    services: OwnedFd,
    addrs: OwnedFd,
    ports: OwnedFd,
    nodes: OwnedFd,
    node_names: OwnedFd,
}

impl Batches {
    fn open(pins: &Pins) -> Result<Self, Error> {
        let open = |map| {
            let fail = |source| Error::Map { operation: "open", map, source };
            sys::get(&pins.map(map)).map_err(fail)
        };
        Ok(Self {
            frontends: open("frontends")?,
            ring: open("ring")?,
            backends: open("backends")?,
            conns: open("conns")?,
            choices: open("choices")?,
            services: open("services")?,
            addrs: open("addrs")?,
            ports: open("ports")?,
            nodes: open("nodes")?,
            node_names: open("node_names")?,
        })
    }
}

impl Kernel {
    /// Over what is pinned: nothing is loaded, nothing is written.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let maps = heddle_bpf::Maps::open(pins)?;
        let entries = |map: &'static str| {
            let info = MapData::from_pin(pins.map(map)).and_then(|map| map.info());
            info.map(|info| info.max_entries())
                .map_err(|source| heddle_bpf::Error::Map { name: map, source: Box::new(source) })
        };
        let limits = Limits {
            frontends: entries("frontends")?,
            backends: entries("backends")?,
            ring: entries("ring")?.saturating_mul(RING_BLOCK),
            nodes: entries("nodes")?,
            addrs: entries("addrs")?,
            sources: entries("sources")?,
        };
        Ok(Self { maps, limits, batches: Batches::open(pins)? })
    }

    /// Reads everything. `before`: what this process knew, if it is the one that writes; `probable`: what it wants there.
    pub fn read(&mut self, before: Option<&State>, probable: &Probable) -> Result<State, Error> {
        let dump = self.dump()?;
        State::read(dump, self.limits, before, probable, self)
    }

    /// Everything but the lists.
    pub fn dump(&self) -> Result<Dump, Error> {
        let ranges = self.maps.ranges.iter().map(|entry| {
            let (key, node) = entry.map_err(failed("read", "ranges"))?;
            Ok(encode::range(key.data(), key.prefix_len()).map(|range| (range, node)))
        });
        let sources = self.maps.sources.iter().map(|entry| {
            let (key, _) = entry.map_err(failed("read", "sources"))?;
            let SourceKey { service, addr } = key.data();
            let range = key.prefix_len().checked_sub(32).and_then(|len| encode::range(Addr(addr), len));
            Ok(range.map(|range| (service, range)))
        });
        let config = self.maps.config.get(&0, 0).map_err(failed("read", "config"))?;
        let fds = &self.batches;
        Ok(Dump {
            frontends: entries(&fds.frontends, "frontends")?,
            backends: self.array(&fds.backends, "backends", self.limits.backends)?,
            choices: entries(&fds.choices, "choices")?,
            services: names(&fds.services, "services")?,
            sources: sources.filter_map(Result::transpose).collect::<Result<_, Error>>()?,
            nodes: self.array(&fds.nodes, "nodes", self.limits.nodes)?,
            node_names: names(&fds.node_names, "node_names")?,
            addrs: entries(&fds.addrs, "addrs")?,
            ranges: ranges.filter_map(Result::transpose).collect::<Result<_, Error>>()?,
            ports: self.array(&fds.ports, "ports", PORTS_LEN)?,
            snat_ports: (config.snat_port_min, config.snat_port_max),
        })
    }

    /// The whole of an array, without what was never used at its end.
    fn array<V: aya::Pod + Default + PartialEq>(
        &self,
        map: &OwnedFd,
        name: &'static str,
        len: u32,
    ) -> Result<Vec<V>, Error> {
        let fail = |source| Error::Map { operation: "read", map: name, source };
        let mut values: Vec<V> = Vec::new();
        let mut used = 0;
        for start in (0..len).step_by(BATCH as usize) {
            batch::read_array(map.as_fd(), start, BATCH.min(len - start), &mut values).map_err(fail)?;
            if let Some(last) = values.iter().rposition(|value| *value != V::default()) {
                used = start as usize + 1 + last;
            }
        }
        values.truncate(used);
        values.shrink_to_fit();
        Ok(values)
    }

    /// Writes of one kind, which differ in their elements. How many were done before a failure.
    fn write_run(&mut self, writes: &[&Write]) -> Result<(), (usize, Error)> {
        macro_rules! run {
            ($map:ident, $pattern:pat => $key:expr, $value:expr) => {{
                let (mut keys, mut values) =
                    (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
                for write in writes {
                    if let $pattern = write {
                        keys.push($key);
                        values.push($value);
                    }
                }
                let fail =
                    |(done, source)| (done, Error::Map { operation: "write", map: stringify!($map), source });
                batch::update(self.batches.$map.as_fd(), &keys, &values).map_err(fail)
            }};
        }
        match writes[0] {
            Write::Backend(..) => run!(backends, Write::Backend(slot, value) => *slot, *value),
            Write::Unused(..) => run!(conns, Write::Unused(slot) => *slot, 0u64),
            Write::Choice(..) => run!(choices, Write::Choice(key, Some(slot)) => *key, *slot),
            Write::Service(..) => run!(services, Write::Service(id, Some(name)) => *id, encode::name(name)),
            Write::Frontend(..) => run!(frontends, Write::Frontend(key, Some(value)) => *key, *value),
            Write::KnownAddr(..) => run!(addrs, Write::KnownAddr(addr, Some(at)) => *addr, *at),
            Write::Ports(..) => run!(ports, Write::Ports(index, word) => *index, *word),
            Write::Ring(..) => self.write_lists(writes),
            _ => writes
                .iter()
                .enumerate()
                .try_for_each(|(done, write)| self.write(write).map_err(|error| (done, error))),
        }
    }

    fn write_lists(&mut self, writes: &[&Write]) -> Result<(), (usize, Error)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for write in writes {
            let Write::Ring(start, slots) = write else { continue };
            for (block, slots) in (start / RING_BLOCK..).zip(slots.chunks(RING_BLOCK as usize)) {
                let mut value = RingBlock::default();
                value.0[..slots.len()].copy_from_slice(slots);
                keys.push(block);
                values.push(value);
            }
        }
        // Which of them were done does not matter: nobody looks there before all are.
        let fail = |(_, source)| (0, Error::Map { operation: "write", map: "ring", source });
        batch::update(self.batches.ring.as_fd(), &keys, &values).map_err(fail)
    }
}

/// All elements of a hash. The types must be those of the map; `Maps::open` has compared them with the object's.
fn entries<K: aya::Pod, V: aya::Pod>(map: &OwnedFd, name: &'static str) -> Result<Vec<(K, V)>, Error> {
    let fail = |source| Error::Map { operation: "read", map: name, source };
    let mut found = Vec::new();
    let each = |keys: &[K], values: &[V]| found.extend(keys.iter().copied().zip(values.iter().copied()));
    batch::read(map.as_fd(), BATCH, each).map_err(fail)?;
    Ok(found)
}

fn names(map: &OwnedFd, name: &'static str) -> Result<Vec<(u32, String)>, Error> {
    let fail = |source| Error::Map { operation: "read", map: name, source };
    let mut found = Vec::new();
    let each = |keys: &[u32], values: &[Name]| {
        found.extend(keys.iter().copied().zip(values.iter().map(encode::text)));
    };
    batch::read(map.as_fd(), BATCH / 4, each).map_err(fail)?;
    Ok(found)
}

fn failed(operation: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |error| {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            other => std::io::Error::other(other),
        };
        Error::Map { operation, map, source }
    }
}

/// What is gone already needs no deleting.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

macro_rules! set {
    ($self:ident.$map:ident, $key:expr, $value:expr) => {
        match $value {
            Some(value) => $self.maps.$map.insert($key, value, 0).map_err(failed("write", stringify!($map))),
            None => gone($self.maps.$map.remove($key)).map_err(failed("delete from", stringify!($map))),
        }
    };
}

impl Maps for Kernel {
    type Error = Error;

    fn write(&mut self, write: &Write) -> Result<(), Error> {
        match write {
            Write::Backend(slot, backend) => {
                self.maps.backends.set(*slot, backend, 0).map_err(failed("write", "backends"))
            }
            Write::Source(service, range, there) => {
                let value = there.then_some(1u32);
                set!(self.sources, &source_key(*service, range), value)
            }
            Write::Ports(index, word) => {
                self.maps.ports.set(*index, *word, 0).map_err(failed("write", "ports"))
            }
            Write::Unused(slot) => self.maps.conns.set(*slot, 0, 0).map_err(failed("write", "conns")),
            Write::Service(id, name) => set!(self.services, id, name.as_deref().map(encode::name)),
            Write::Choice(key, slot) => set!(self.choices, key, slot),
            Write::Ring(start, slots) => Ok(self.maps.write_ring(*start, slots)?),
            Write::Frontend(key, value) => set!(self.frontends, key, value),
            Write::Node(index, node) => {
                self.maps.nodes.set(*index, node, 0).map_err(failed("write", "nodes"))
            }
            Write::NodeName(index, name) => set!(self.node_names, index, name.as_deref().map(encode::name)),
            Write::KnownAddr(addr, at) => set!(self.addrs, addr, at),
            Write::Range(range, node) => set!(self.ranges, &range_key(range), node),
            Write::Grace => Ok(heddle_bpf::grace_period()?),
        }
    }

    fn write_all(&mut self, writes: &[&Write]) -> Result<(), (usize, Error)> {
        let mut done = 0;
        let deletes = |write: &Write| {
            matches!(
                write,
                Write::Service(_, None)
                    | Write::Choice(_, None)
                    | Write::Frontend(_, None)
                    | Write::KnownAddr(_, None)
            )
        };
        let run = |a: &&Write, b: &&Write| a.kind() == b.kind() && !deletes(a) && !deletes(b);
        for run in writes.chunk_by(run) {
            let result = match run {
                [write] => self.write(write).map_err(|error| (0, error)),
                _ => self.write_run(run),
            };
            result.map_err(|(more, error)| (done + more, error))?;
            done += run.len();
        }
        Ok(())
    }

    fn read_list(&mut self, start: u32, len: u32) -> Result<Vec<u32>, Error> {
        let fail = |source| Error::Map { operation: "read", map: "ring", source };
        let mut blocks: Vec<RingBlock> = Vec::new();
        let (first, end) = (start / RING_BLOCK, (start + len).div_ceil(RING_BLOCK));
        batch::read_array(self.batches.ring.as_fd(), first, end - first, &mut blocks).map_err(fail)?;
        let mut slots: Vec<u32> = blocks.into_iter().flat_map(|block| block.0).collect();
        slots.truncate(len as usize);
        Ok(slots)
    }
}

fn source_key(service: u32, range: &IpNetwork) -> Key<SourceKey> {
    let range = range_key(range);
    Key::new(range.prefix_len() + 32, SourceKey { service, addr: range.data().0 })
}

fn range_key(range: &IpNetwork) -> Key<Addr> {
    heddle_bpf::Maps::range_key(encode::addr(range.network()), range.prefix())
}
