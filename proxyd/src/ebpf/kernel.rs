//! The pinned maps, as [`Maps`] and [`Dump`].

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{MapData, MapError};
use heddle_bpf::{Pins, Sizes, sys};
use heddle_ebpf_common::{Name, Node, RING_BLOCK, RingBlock};
use ipnetwork::IpNetwork;
use nix::libc;

use super::compile::option_of;
use super::encode;
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
    pins: Pins,
}

impl Kernel {
    /// Over maps that are open.
    pub fn new(maps: heddle_bpf::Maps, pins: &Pins, sizes: &Sizes) -> Self {
        let limits = Limits {
            frontends: sizes.frontends,
            backends: sizes.backends,
            ring: sizes.ring.saturating_mul(RING_BLOCK),
            nodes: sizes.nodes,
        };
        Self { maps, limits, pins: pins.clone() }
    }

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
        };
        Ok(Self { maps, limits, pins: pins.clone() })
    }

    /// Reads everything.
    pub fn dump(&self) -> Result<Dump, Error> {
        let names = |entries: Vec<(u32, Name)>| {
            entries.into_iter().map(|(id, name)| (id, encode::text(&name))).collect()
        };
        let ring: Vec<(u32, RingBlock)> = self.entries("ring")?;
        let mut nodes: Vec<Node> = array(self.entries("nodes")?);
        truncate(&mut nodes);
        let mut backends = array(self.entries("backends")?);
        truncate(&mut backends);
        let ranges = self.maps.ranges.iter().map(|entry| {
            let (key, node) = entry.map_err(failed("read", "ranges"))?;
            Ok(encode::range(key.data(), key.prefix_len()).map(|range| (range, node)))
        });
        Ok(Dump {
            frontends: self.entries("frontends")?,
            ring: array(ring).into_iter().flat_map(|block| block.0).collect(),
            backends,
            choices: self.entries("choices")?,
            services: names(self.entries("services")?),
            nodes,
            node_names: names(self.entries("node_names")?),
            addrs: self.entries("addrs")?,
            ranges: ranges.filter_map(Result::transpose).collect::<Result<_, Error>>()?,
        })
    }

    /// The types must be those of the map; `Maps::open` has compared them with the object's.
    fn entries<K: aya::Pod, V: aya::Pod>(&self, map: &'static str) -> Result<Vec<(K, V)>, Error> {
        let fail = |source| Error::Map { operation: "read", map, source };
        let fd: OwnedFd = sys::get(&self.pins.map(map)).map_err(fail)?;
        sys::map_entries(fd.as_fd(), BATCH).map_err(fail)
    }
}

fn array<V>(mut entries: Vec<(u32, V)>) -> Vec<V> {
    entries.sort_by_key(|(index, _)| *index);
    entries.into_iter().map(|(_, value)| value).collect()
}

/// Cuts off what was never used.
fn truncate<V: Default + PartialEq>(values: &mut Vec<V>) {
    let used = values.iter().rposition(|value| *value != V::default()).map_or(0, |last| last + 1);
    values.truncate(used);
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
}

fn range_key(range: &IpNetwork) -> aya::maps::lpm_trie::Key<heddle_ebpf_common::Addr> {
    heddle_bpf::Maps::range_key(encode::addr(range.network()), range.prefix())
}
