//! Carries over what programs that are attached remember: flows, affinity, translated sockets.
//!
//! Numbers of services, backends and nodes differ from one set of maps to another. They are translated by what they
//! stand for: a service by its frontend, a backend by service, address and port, a node by the Ethernet address of its
//! VXLAN device. TCP flows of backends that are no more are kept as stale ones, so that they are reset; others of
//! them are forgotten, so that they find another backend.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use aya::maps::MapError;
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, BACKEND_ACTIVE, BACKEND_DRAINING, CT_OWN, ChoiceKey, Flow, FrontendKey,
    SockChoice, SockKey, SockPeer, Tuple, choice_hash,
};

use crate::describe::{Layout, Record};
use crate::raw::{Entries, RawMap};
use crate::{Error, Maps, Result};

const TCP: u8 = 6;
/// No element of `backends` has this number: a flow of it is stale.
const NOBODY: u32 = u32::MAX;
/// For `affinity` and the sockets' maps: what is newer is there already.
const NOEXIST: u64 = crate::raw::NOEXIST;

/// What was carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Entries of flows; a flow has two.
    pub flows: usize,
    /// Of those: of backends that are no more.
    pub stale: usize,
    /// Clients with affinity.
    pub clients: usize,
    /// Translated sockets.
    pub sockets: usize,
    /// What found no room.
    pub lost: usize,
}

/// Maps by their names.
pub(crate) type ByName = BTreeMap<String, Vec<RawMap>>;

/// The maps of programs that are attached.
#[derive(Debug)]
pub(crate) struct Source {
    pub layout: Layout,
    /// By name. Of what programs remember there may be several: where a succession was broken off.
    pub maps: ByName,
}

impl Source {
    /// The map of this name, of which there is one.
    fn map(&self, name: &str) -> Option<&RawMap> {
        self.maps.get(name).and_then(|maps| maps.first())
    }

    /// The elements of an array that are in use.
    fn array(&self, map: &'static str) -> Result<HashMap<u32, Vec<u8>>> {
        let Some(found) = self.map(map) else { return Ok(HashMap::new()) };
        let entries = read(found)?;
        let indices = entries.keys.as_chunks::<4>().0.iter().map(|key| u32::from_ne_bytes(*key));
        let values = entries.values.chunks(found.shape.value as usize);
        let used = indices.zip(values).filter(|(_, value)| value.iter().any(|byte| *byte != 0));
        Ok(used.map(|(index, value)| (index, value.to_vec())).collect())
    }
}

fn read(map: &RawMap) -> Result<Entries> {
    let fail = |source| Error::Pin {
        operation: "read the map of an earlier program,",
        path: (&map.name).into(),
        source,
    };
    map.entries().map_err(fail)
}

/// Keys and values, in pairs.
fn pairs<'a>(map: &RawMap, entries: &'a Entries) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    let keys = entries.keys.chunks(map.shape.key as usize);
    keys.zip(entries.values.chunks(map.shape.value as usize))
}

/// Where a backend is.
type Place = (Addr, u16, u8);

/// From the numbers of one set of maps to ours.
#[derive(Debug)]
struct Numbers {
    /// Service to ours.
    services: HashMap<u32, u32>,
    /// Backend to its generation and place, if it takes packets.
    backends: HashMap<u32, (u32, Place)>,
    /// Node to ours.
    nodes: HashMap<u32, u32>,
    /// Ours, by place: the ones that take packets.
    places: HashMap<Place, u32>,
    ours: HashMap<u32, (u32, Place)>,
    choices: HashMap<ChoiceKey, u32>,
}

fn alive(state: u8) -> bool {
    matches!(state, BACKEND_ACTIVE | BACKEND_DRAINING)
}

impl Numbers {
    fn new(source: &Source, own: &Source, maps: &Maps) -> Result<Self> {
        let mut services = HashMap::new();
        let frontends = source.map("frontends").map(|map| Ok::<_, Error>((map, read(map)?))).transpose()?;
        for (key, value) in frontends.iter().flat_map(|(map, entries)| pairs(map, entries)) {
            let (key, value) =
                (source.layout.record("frontends key", key), source.layout.record("frontends value", value));
            let key = FrontendKey {
                addr: key.addr("addr"),
                net: key.u32("net"),
                port: key.u16("port"),
                proto: key.u8("proto"),
                zero: 0,
            };
            if let Ok(ours) = maps.frontends.get(&key, 0) {
                services.insert(value.u32("service"), ours.service);
            }
        }
        let mut backends = HashMap::new();
        for (slot, value) in source.array("backends")? {
            let value = source.layout.record("backends value", &value);
            if alive(value.u8("state")) {
                let place = (value.addr("addr"), value.u16("port"), value.u8("proto"));
                backends.insert(slot, (value.u32("generation"), place));
            }
        }
        let mut ours = HashMap::new();
        let mut places = HashMap::new();
        for (slot, value) in own.array("backends")? {
            let value = own.layout.record("backends value", &value);
            if alive(value.u8("state")) {
                let place = (value.addr("addr"), value.u16("port"), value.u8("proto"));
                places.insert(place, slot);
                ours.insert(slot, (value.u32("generation"), place));
            }
        }
        let mut macs = HashMap::new();
        for (index, value) in own.array("nodes")? {
            let value = own.layout.record("nodes value", &value);
            if value.u8("overlay") != 0 {
                macs.insert(value.bytes::<6>("mac"), index);
            }
        }
        let mut nodes = HashMap::new();
        for (index, value) in source.array("nodes")? {
            let value = source.layout.record("nodes value", &value);
            if value.u8("overlay") != 0
                && let Some(ours) = macs.get(&value.bytes::<6>("mac"))
            {
                nodes.insert(index, *ours);
            }
        }
        let choices = maps.choices.iter().collect::<Result<_, _>>();
        let choices = choices.map_err(|source| Error::Map { name: "choices", source: Box::new(source) })?;
        Ok(Self { services, backends, nodes, places, ours, choices })
    }

    fn service(&self, service: u32) -> u32 {
        self.services.get(&service).copied().unwrap_or(0)
    }

    /// The number and generation of a backend. `None`: it is no more.
    fn backend(&self, service: u32, slot: u32, generation: u32) -> Option<(u32, u32)> {
        let (theirs, place) = self.backends.get(&slot)?;
        if *theirs != generation {
            return None;
        }
        let (addr, port, proto) = place;
        let key = ChoiceKey { service: self.service(service), hash: choice_hash(addr, *port, *proto) };
        let is_it = |slot: &&u32| self.ours.get(*slot).is_some_and(|(_, ours)| ours == place);
        let slot = self.choices.get(&key).filter(is_it).or_else(|| self.places.get(place))?;
        Some((*slot, self.ours.get(slot)?.0))
    }
}

/// One transfer, of several passes: what the first has brought and what has not changed since, the second leaves
/// alone.
#[derive(Debug)]
pub(crate) struct Carry {
    /// Of a map: key to a hash of the value.
    seen: HashMap<u32, HashMap<Vec<u8>, u64>>,
    /// Of a source. Whoever wrote these maps is gone: they do not change any more.
    numbers: Vec<Numbers>,
}

/// Flows; answered ones first: what is left of them among the others is older.
pub(crate) const FLOWS: &[Remembered] = &[("ct", ["ct key", "ct value"]), ("ct_new", ["ct key", "ct value"])];
/// The rest, for which nobody has to wait.
pub(crate) const OTHERS: &[Remembered] = &[
    ("affinity", ["affinity key", "affinity value"]),
    ("sock_rev", ["sock_rev key", "sock_rev value"]),
    ("sock_udp", ["sock_udp key", "sock_udp value"]),
];

/// A map, and what its keys and values are called in descriptions.
pub(crate) type Remembered = (&'static str, [&'static str; 2]);

impl Carry {
    /// Looks at who is who.
    pub fn new(sources: &[Source], own: &Source, maps: &Maps) -> Result<Self> {
        let numbers = sources.iter().map(|source| Numbers::new(source, own, maps)).collect::<Result<_>>()?;
        Ok(Self { seen: HashMap::new(), numbers })
    }

    /// Carries over what of these maps has changed since the last pass.
    pub fn pass(
        &mut self,
        sources: &[Source],
        own: &Source,
        maps: &mut Maps,
        remembered: &[Remembered],
    ) -> Result<Carried> {
        let mut carried = Carried::default();
        for (source, numbers) in sources.iter().zip(&self.numbers) {
            let mut into = Into { numbers, maps, carried: &mut carried };
            for (name, what) in remembered {
                let is_own = |map: &RawMap| own.map(name).is_some_and(|own| own.id == map.id);
                for map in source.maps.get(*name).into_iter().flatten().filter(|map| !is_own(map)) {
                    let seen = self.seen.entry(map.id).or_default();
                    for (key, value) in pairs(map, &read(map)?) {
                        let mut hasher = DefaultHasher::new();
                        value.hash(&mut hasher);
                        let hash = hasher.finish();
                        if seen.insert(key.to_vec(), hash) != Some(hash) {
                            let record = |what, bytes| source.layout.record(what, bytes);
                            into.entry(name, &record(what[0], key), &record(what[1], value))?;
                        }
                    }
                }
            }
        }
        Ok(carried)
    }
}

/// Where everything goes.
struct Into<'a> {
    numbers: &'a Numbers,
    maps: &'a mut Maps,
    carried: &'a mut Carried,
}

impl Into<'_> {
    fn entry(&mut self, map: &'static str, key: &Record<'_>, value: &Record<'_>) -> Result<()> {
        match map {
            "ct" => self.flow(key, value, true),
            "ct_new" => self.flow(key, value, false),
            "affinity" => self.client(key, value),
            "sock_rev" => self.peer(key, value),
            _ => self.choice(key, value),
        }
    }

    /// One entry of a flow.
    fn flow(&mut self, key: &Record<'_>, value: &Record<'_>, answered: bool) -> Result<()> {
        let key = tuple(key, ["src", "dst", "sport", "dport", "proto"]);
        let service = value.u32("service");
        let (backend, generation) = match value.u32("backend") {
            // A pod's own connection.
            0 => (0, 0),
            slot => match self.numbers.backend(service, slot, value.u32("generation")) {
                Some(found) => found,
                None if key.proto == TCP => {
                    self.carried.stale += 1;
                    (NOBODY, 0)
                }
                None => return Ok(()),
            },
        };
        let flags = value.u32("flags");
        let node = match value.u32("node") {
            // An interface, not a node.
            node if flags & CT_OWN != 0 => node,
            node => self.numbers.nodes.get(&node).copied().unwrap_or(0),
        };
        let mut flow = Flow {
            to: tuple(value, ["to.src", "to.dst", "to.sport", "to.dport", "to.proto"]),
            backend,
            generation,
            service: self.numbers.service(service),
            flags,
            node,
            ifindex: value.u32("ifindex"),
            seen: value.u64("seen"),
            ..Flow::default()
        };
        match self.maps.ct.get(&key, 0) {
            // A hook that has the new program already may have said more about it.
            Ok(there) if there.to == flow.to => {
                flow.flags |= there.flags;
                flow.seen = flow.seen.max(there.seen);
            }
            Ok(_) if !answered => return Ok(()),
            _ => {}
        }
        flow.check = flow.sum(&key);
        let (name, map) =
            if answered { ("ct", &mut self.maps.ct) } else { ("ct_new", &mut self.maps.ct_new) };
        let set = map.insert(key, flow, 0);
        self.carried.flows += usize::from(self.added(set, name)?);
        Ok(())
    }

    fn client(&mut self, key: &Record<'_>, value: &Record<'_>) -> Result<()> {
        let service = key.u32("service");
        let key = AffinityKey { client: key.addr("client"), service: self.numbers.service(service), zero: 0 };
        let found = self.numbers.backend(service, value.u32("backend"), value.u32("generation"));
        let Some((backend, generation)) = found.filter(|_| key.service != 0) else { return Ok(()) };
        let mut affinity = Affinity { backend, generation, seen: value.u64("seen"), ..Affinity::default() };
        affinity.check = affinity.sum(&key);
        let set = self.maps.affinity.insert(key, affinity, NOEXIST);
        self.carried.clients += usize::from(self.added(set, "affinity")?);
        Ok(())
    }

    fn peer(&mut self, key: &Record<'_>, value: &Record<'_>) -> Result<()> {
        let key = sock_key(key);
        let mut peer = SockPeer { addr: value.addr("addr"), port: value.u16("port"), ..SockPeer::default() };
        peer.check = peer.sum(&key);
        let set = self.maps.sock_rev.insert(key, peer, NOEXIST);
        self.carried.sockets += usize::from(self.added(set, "sock_rev")?);
        Ok(())
    }

    fn choice(&mut self, key: &Record<'_>, value: &Record<'_>) -> Result<()> {
        let key = sock_key(key);
        let service = value.u32("service");
        let found = self.numbers.backend(service, value.u32("backend"), value.u32("generation"));
        let Some((backend, generation)) = found else { return Ok(()) };
        let service = self.numbers.service(service);
        let mut choice = SockChoice { backend, generation, service, ..SockChoice::default() };
        choice.check = choice.sum(&key);
        let set = self.maps.sock_udp.insert(key, choice, NOEXIST);
        self.carried.sockets += usize::from(self.added(set, "sock_udp")?);
        Ok(())
    }

    /// Whether it is there now because of us. A map that is full loses what does not fit.
    fn added(&mut self, result: Result<(), MapError>, map: &'static str) -> Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(false)
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::E2BIG) => {
                self.carried.lost += 1;
                Ok(false)
            }
            Err(source) => Err(Error::Map { name: map, source: Box::new(source) }),
        }
    }
}

fn tuple(record: &Record<'_>, names: [&str; 5]) -> Tuple {
    Tuple {
        src: record.addr(names[0]),
        dst: record.addr(names[1]),
        sport: record.u16(names[2]),
        dport: record.u16(names[3]),
        proto: record.u8(names[4]),
        zero: [0; 3],
    }
}

fn sock_key(key: &Record<'_>) -> SockKey {
    SockKey {
        cookie: key.u64("cookie"),
        addr: key.addr("addr"),
        port: key.u16("port"),
        proto: key.u8("proto"),
        zero: [0; 5],
    }
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.stale += other.stale;
        self.clients += other.clients;
        self.sockets += other.sockets;
        self.lost += other.lost;
    }
}
