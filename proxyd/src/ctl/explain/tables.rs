//! The pinned maps, as the decision reads them: the very ones that the programs decide by.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::AsFd as _;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use heddle_bpf::{Maps, Pins, sys};
use heddle_ebpf_common::decide::{Copied, Tables};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, BACKEND_FREE, Backend, ChoiceKey, Config, Flow, Frontend, FrontendKey,
    KnownAddr, NODE_FREE, Node, RING_BLOCK, RingBlock, SourceKey, Tuple,
};

use crate::dataplane::Error;
use crate::ebpf::encode::text;

/// Elements read by one system call.
const BATCH: u32 = 4096;

/// What is pinned. What was read once is not read again.
#[derive(Debug)]
pub struct Pinned {
    maps: Maps,
    pins: Pins,
    blocks: RefCell<HashMap<u32, Option<RingBlock>>>,
    backends: RefCell<HashMap<u32, Option<Backend>>>,
    nodes: RefCell<HashMap<u32, Option<Node>>>,
}

impl Pinned {
    /// `None`: nothing is pinned there.
    pub fn open(pins: Pins) -> Result<Option<Self>, Error> {
        if !pins.exist()? {
            return Ok(None);
        }
        let (blocks, backends, nodes) = Default::default();
        Ok(Some(Self { maps: Maps::open(&pins)?, pins, blocks, backends, nodes }))
    }

    pub fn config(&self) -> Result<Config, Error> {
        Ok(self.maps.config.get(&0, 0)?)
    }

    /// Whether a program is attached anywhere.
    pub fn is_attached(&self, program: &str) -> bool {
        let links = self.pins.pinned_links().unwrap_or_default();
        links.iter().any(|link| link.program == program && !link.is_dead())
    }

    pub fn service(&self, id: u32) -> String {
        self.maps.services.get(&id, 0).map(|name| text(&name)).unwrap_or_default()
    }

    pub fn node_name(&self, index: u32) -> Option<String> {
        self.maps.node_names.get(&index, 0).ok().map(|name| text(&name))
    }

    /// The node whose pods have this address.
    pub fn range_of(&self, addr: &Addr) -> Option<u32> {
        self.maps.ranges.get(&Key::new(128, *addr), 0).ok()
    }

    /// The entry of a flow under the tuple of its requests or replies.
    pub fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        let flow = self.maps.ct.get(tuple, 0).or_else(|_| self.maps.ct_new.get(tuple, 0)).ok()?;
        (flow.check == flow.sum(tuple)).then_some(flow)
    }

    /// All backends of a service, by slot.
    pub fn members(&self, service: u32) -> Result<Vec<(u32, Backend)>, Error> {
        let choices = self.entries::<ChoiceKey, u32>("choices")?;
        let slots = choices.into_iter().filter(|(key, _)| key.service == service).map(|(_, slot)| slot);
        Ok(slots.filter_map(|slot| Some((slot, *self.backend(slot)?))).collect())
    }

    /// The ports that an address has, with their protocols.
    pub fn ports(&self, addr: &Addr) -> Result<Vec<(u16, u8)>, Error> {
        let frontends = self.entries::<FrontendKey, Frontend>("frontends")?;
        let mine = frontends.into_iter().filter(|(key, _)| key.addr == *addr);
        let mut ports: Vec<_> = mine.map(|(key, _)| (u16::from_be(key.port), key.proto)).collect();
        ports.sort_unstable();
        Ok(ports)
    }

    /// The types must be those of the map.
    fn entries<K: aya::Pod, V: aya::Pod>(&self, map: &str) -> Result<Vec<(K, V)>, Error> {
        let fd = sys::get(&self.pins.map(map))?;
        Ok(sys::map_entries(fd.as_fd(), BATCH)?)
    }

    fn node(&self, index: u32) -> Option<Node> {
        *self.nodes.borrow_mut().entry(index).or_insert_with(|| known(self.maps.nodes.get(&index, 0)))
    }
}

impl Tables for &Pinned {
    type Backend = Box<Backend>;

    fn frontend(self, key: &FrontendKey, copy: &mut Frontend) -> Copied {
        // A writer is done after a few instructions.
        for _ in 0..100 {
            let Some(value) = known(self.maps.frontends.get(key, 0)) else { return Copied::Absent };
            *copy = value;
            if value.check == value.sum(key) {
                return Copied::Whole;
            }
        }
        Copied::Torn
    }

    fn addr(self, addr: &Addr) -> KnownAddr {
        known(self.maps.addrs.get(addr, 0)).unwrap_or_default()
    }

    fn slot(self, slot: u32) -> u32 {
        let block = slot / RING_BLOCK;
        let mut blocks = self.blocks.borrow_mut();
        let block = blocks.entry(block).or_insert_with(|| known(self.maps.ring.get(&block, 0)));
        block.map_or(0, |block| block.0[(slot % RING_BLOCK) as usize])
    }

    fn backend(self, index: u32) -> Option<Box<Backend>> {
        let mut backends = self.backends.borrow_mut();
        let backend = backends.entry(index).or_insert_with(|| known(self.maps.backends.get(&index, 0)));
        backend.filter(|backend| backend.state != BACKEND_FREE).map(Box::new)
    }

    fn node_state(self, index: u32) -> u32 {
        self.node(index).map_or(NODE_FREE, |node| node.state)
    }

    fn has_overlay(self, index: u32) -> bool {
        self.node(index).is_some_and(|node| node.overlay != 0)
    }

    fn choice(self, key: ChoiceKey) -> Option<u32> {
        known(self.maps.choices.get(&key, 0))
    }

    fn affinity(self, key: &AffinityKey) -> Option<Affinity> {
        known(self.maps.affinity.get(key, 0)).filter(|affinity| affinity.check == affinity.sum(key))
    }

    fn allows(self, service: u32, client: &Addr) -> bool {
        self.maps.sources.get(&Key::new(32 + 128, SourceKey { service, addr: client.0 }), 0).is_ok()
    }
}

/// What cannot be read is not there, as for the programs.
fn known<V>(read: Result<V, MapError>) -> Option<V> {
    read.ok()
}
