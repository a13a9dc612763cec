//! The maps, typed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, ChoiceKey, Config, Counter, Flow, Frontend, FrontendKey, KnownAddr,
    Name, Node, RING_BLOCK, RingBlock, Routes, SockChoice, SockKey, SockPeer, SourceKey, Tuple,
};

use crate::{Error, Pins, Result, sys};

macro_rules! typed_maps { ($($(#[$doc:meta])* $name:ident: $kind:ident<$($param:ty),*> as $variant:ident,)*) => {
    /// The pinned maps that user space reads or writes.
    pub struct Maps {
        $($(#[$doc])* pub $name: $kind<MapData, $($param),*>,)*
        /// `ct_new` and `ct` once more, to be read in batches.
        flows: [OwnedFd; 2],
    }

    impl Maps {
        /// Opens what is pinned, without loading anything: for `status`, and for whoever else looks on.
        pub fn open(pins: &Pins) -> Result<Self> {
            Ok(Self {
                $($name: open(&pins.map(stringify!($name)), stringify!($name), Map::$variant)?,)*
                flows: [again(&pins.map("ct_new"))?, again(&pins.map("ct"))?],
            })
        }
    }
} }

typed_maps! {
    frontends: HashMap<FrontendKey, Frontend> as HashMap,
    ring: Array<RingBlock> as Array,
    backends: Array<Backend> as Array,
    /// New flows and sockets that each backend (by slot) was given.
    conns: Array<u64> as Array,
    nodes: Array<Node> as Array,
    addrs: HashMap<Addr, KnownAddr> as HashMap,
    /// Bits of ports, and at `PORTS_EXTERNAL` the number of external addresses.
    ports: Array<u64> as Array,
    routes: Array<Routes> as Array,
    /// Pod ranges of the nodes (prefix length counts from the first bit of the mapped form: an IPv4 /24 is
    /// 120) -> index into `nodes`.
    ranges: LpmTrie<Addr, u32> as LpmTrie,
    affinity: HashMap<AffinityKey, Affinity> as LruHashMap,
    sources: LpmTrie<SourceKey, u32> as LpmTrie,
    choices: HashMap<ChoiceKey, u32> as HashMap,
    ct_new: HashMap<Tuple, Flow> as LruHashMap,
    ct: HashMap<Tuple, Flow> as HashMap,
    sock_rev: HashMap<SockKey, SockPeer> as LruHashMap,
    sock_udp: HashMap<SockKey, SockChoice> as LruHashMap,
    services: HashMap<u32, Name> as HashMap,
    node_names: HashMap<u32, Name> as HashMap,
    counters: PerCpuArray<u64> as PerCpuArray,
    config: Array<Config> as Array,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

fn again(path: &Path) -> Result<OwnedFd> {
    sys::get(path).map_err(|source| Error::Pin { operation: "open", path: path.to_owned(), source })
}

fn open<T: TryFrom<Map, Error = MapError>>(
    path: &Path,
    name: &'static str,
    kind: fn(MapData) -> Map,
) -> Result<T> {
    let fail = |source| Error::Map { name, source: Box::new(source) };
    T::try_from(kind(MapData::from_pin(path).map_err(fail)?)).map_err(fail)
}

impl Pins {
    /// Opens the map `routes` alone.
    pub fn routes(&self) -> Result<Array<MapData, Routes>> {
        open(&self.map("routes"), "routes", Map::Array)
    }
}

/// Flows read at once.
const BATCH: u32 = 4096;

impl Maps {
    /// Writes an extent of `ring` that no frontend names: whole blocks, the last filled up with 0.
    /// `start` is a slot, a multiple of [`RING_BLOCK`].
    pub fn write_ring(&mut self, start: u32, backends: &[u32]) -> Result<()> {
        debug_assert_eq!(start % RING_BLOCK, 0);
        for (block, slots) in (start / RING_BLOCK..).zip(backends.chunks(RING_BLOCK as usize)) {
            let mut value = RingBlock::default();
            value.0[..slots.len()].copy_from_slice(slots);
            self.ring
                .set(block, value, 0)
                .map_err(|source| Error::Map { name: "ring", source: Box::new(source) })?;
        }
        Ok(())
    }

    /// Reads `len` slots of `ring` from slot `start` on.
    pub fn read_ring(&self, start: u32, len: u32) -> Result<Vec<u32>> {
        let mut slots = Vec::with_capacity(len as usize);
        for block in start / RING_BLOCK..(start + len).div_ceil(RING_BLOCK) {
            let value = self
                .ring
                .get(&block, 0)
                .map_err(|source| Error::Map { name: "ring", source: Box::new(source) })?;
            slots.extend_from_slice(&value.0);
        }
        slots.truncate(len as usize);
        Ok(slots)
    }

    /// All answered flows.
    pub fn flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        entries("ct", &self.flows[1])
    }

    /// All flows whose backend has not answered yet.
    pub fn new_flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        entries("ct_new", &self.flows[0])
    }

    /// The sum over all processors.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let values = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(|source| Error::Map { name: "counters", source: Box::new(source) })?;
        Ok(values.iter().sum())
    }

    /// The key of `ranges` for a prefix; `len` as people write it for the family.
    pub fn range_key(addr: Addr, len: u8) -> Key<Addr> {
        let len = if addr.is_v4() { u32::from(len) + 96 } else { u32::from(len) };
        Key::new(len, addr)
    }
}

fn entries(name: &'static str, map: &OwnedFd) -> Result<Vec<(Tuple, Flow)>> {
    sys::map_entries(map.as_fd(), BATCH).map_err(|source| Error::Pin {
        operation: "read map",
        path: name.into(),
        source,
    })
}
