//! Loading, or adopting what is there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;

use aya::EbpfLoader;
use aya::maps::MapType;
use aya::programs::{Program, ProgramError};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, ChoiceKey, Config, Counter, EVENTS_SIZE, Flow, FragKey, FragPorts,
    Frontend, FrontendKey, KnownAddr, LISTENING_LEN, Name, Node, PORTS_LEN, RingBlock, Routes, SockChoice,
    SockKey, SockPeer, SourceKey, Tuple,
};

use crate::kept::{Reach, keep};
use crate::pins::{entries, inspect, remove_any};
use crate::raw::{Entries, Kind, RawMap, Shape, program_name};
use crate::succession::pinned_maps;
use crate::{Error, Maps, Pins, Result, SocketHook, TcHook, XdpMode, describe, object, sys};

/// How many elements the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub frontends: u32,
    /// Blocks of [`RING_BLOCK`](heddle_ebpf_common::RING_BLOCK) slots.
    pub ring: u32,
    pub backends: u32,
    pub nodes: u32,
    /// Addresses of nodes and services; pod ranges.
    pub addrs: u32,
    /// Backends of this node that other nodes may choose, a service each.
    pub choices: u32,
    /// Entries of unanswered flows; a flow has two.
    pub ct_new: u32,
    /// Entries of answered flows; a flow has two. Full: new flows are refused.
    pub ct: u32,
    /// Clients that session affinity remembers; beyond that the oldest are forgotten.
    pub affinity: u32,
    /// Ranges of addresses that services allow, all together.
    pub sources: u32,
    /// Translated sockets; beyond that the oldest ones show the backend's address.
    pub sockets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            frontends: 1 << 16,
            ring: 1 << 17,
            backends: 1 << 17,
            nodes: 1 << 13,
            addrs: 1 << 15,
            choices: 1 << 17,
            ct_new: 1 << 16,
            ct: 1 << 18,
            affinity: 1 << 16,
            sources: 1 << 14,
            sockets: 1 << 16,
        }
    }
}

struct Spec {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    max_entries: u32,
}

/// How many maps there are.
const MAPS: usize = 24;

impl Sizes {
    /// The same with what the maps hold that were kept.
    fn held_by(mut self, specs: &[Spec]) -> Self {
        let of = |name| specs.iter().find(|spec| spec.name == name).map_or(0, |spec| spec.max_entries);
        let Self { frontends, ring, backends, nodes, addrs, choices, ct_new, ct, affinity, sources, sockets } =
            &mut self;
        for (size, name) in [
            (frontends, "frontends"),
            (ring, "ring"),
            (backends, "backends"),
            (nodes, "nodes"),
            (addrs, "addrs"),
            (choices, "choices"),
            (ct_new, "ct_new"),
            (ct, "ct"),
            (affinity, "affinity"),
            (sources, "sources"),
            (sockets, "sock_rev"),
        ] {
            *size = of(name);
        }
        self
    }

    /// What a pinned map must be like to be adopted.
    fn specs(&self) -> [Spec; MAPS] {
        use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf};
        let spec = |name, kind, key, value, max_entries| Spec { name, kind, key, value, max_entries };
        let lpm_key = size_of::<aya::maps::lpm_trie::Key<Addr>>();
        let source_key = size_of::<aya::maps::lpm_trie::Key<SourceKey>>();
        [
            spec("frontends", Hash, size_of::<FrontendKey>(), size_of::<Frontend>(), self.frontends),
            spec("ring", Array, 4, size_of::<RingBlock>(), self.ring),
            spec("backends", Array, 4, size_of::<Backend>(), self.backends),
            spec("conns", Array, 4, 8, self.backends),
            spec("nodes", Array, 4, size_of::<Node>(), self.nodes),
            spec("addrs", Hash, size_of::<Addr>(), size_of::<KnownAddr>(), self.addrs),
            spec("ports", Array, 4, 8, PORTS_LEN),
            spec("routes", Array, 4, size_of::<Routes>(), 1),
            spec("ranges", LpmTrie, lpm_key, 4, self.addrs),
            spec("affinity", LruHash, size_of::<AffinityKey>(), size_of::<Affinity>(), self.affinity),
            spec("sources", LpmTrie, source_key, 4, self.sources),
            spec("choices", Hash, size_of::<ChoiceKey>(), 4, self.choices),
            spec("ct_new", LruHash, size_of::<Tuple>(), size_of::<Flow>(), self.ct_new),
            spec("ct", Hash, size_of::<Tuple>(), size_of::<Flow>(), self.ct),
            spec("frags", LruHash, size_of::<FragKey>(), size_of::<FragPorts>(), 1 << 12),
            spec("sock_rev", LruHash, size_of::<SockKey>(), size_of::<SockPeer>(), self.sockets),
            spec("sock_udp", LruHash, size_of::<SockKey>(), size_of::<SockChoice>(), self.sockets),
            spec("services", Hash, 4, size_of::<Name>(), self.frontends),
            spec("node_names", Hash, 4, size_of::<Name>(), self.nodes),
            spec("counters", PerCpuArray, 4, 8, Counter::COUNT),
            spec("config", Array, 4, size_of::<Config>(), 1),
            spec("kinds", Array, 4, 4, 3),
            spec("listening", Array, 4, 4, LISTENING_LEN),
            spec("events", RingBuf, 0, 0, EVENTS_SIZE),
        ]
    }
}

/// What only user space writes, in numbers of its own: all of these are of one piece, and what programs remember
/// speaks in those numbers.
const WRITTEN: [&str; 11] = [
    "frontends",
    "ring",
    "backends",
    "nodes",
    "addrs",
    "ports",
    "ranges",
    "sources",
    "choices",
    "services",
    "node_names",
];

impl Spec {
    /// The map that is pinned under this name, if there is one and it is ours.
    ///
    /// # Errors
    /// Why it cannot be ours.
    fn find(&self, pins: &Pins) -> Result<Option<RawMap>, String> {
        let foreign = |why: String| format!("map {} {why}", self.name);
        let Some(fd) = inspect(&pins.map(self.name), Kind::Map).map_err(foreign)? else { return Ok(None) };
        let map = RawMap::new(fd).map_err(|error| foreign(error.to_string()))?;
        let Shape { kind, key, value, .. } = map.shape;
        let wanted = (self.kind as u32, self.key as u32, self.value as u32);
        if (kind, key, value) != wanted {
            let found = (kind, key, value);
            return Err(foreign(format!("has (type, key, value) {found:?} instead of {wanted:?}")));
        }
        if map.name != self.name {
            return Err(foreign(format!("is called {}", map.name)));
        }
        Ok(Some(map))
    }

    /// What `map` holds, if that fits into this many elements.
    fn content(&self, map: &RawMap) -> Result<Option<Entries>> {
        let fail = |source| Error::Pin { operation: "read map", path: self.name.into(), source };
        if !matches!(self.kind, MapType::Hash | MapType::LruHash | MapType::Array | MapType::LpmTrie) {
            return Ok(Some(Entries::default()));
        }
        let mut content = map.entries().map_err(fail)?;
        let room = self.max_entries as usize;
        if self.kind == MapType::Array {
            // In order; behind the last one in use there are zeros.
            let used =
                content.values.iter().rposition(|byte| *byte != 0).map_or(0, |last| last / self.value + 1);
            content.keys.truncate(used * self.key);
            content.values.truncate(used * self.value);
        }
        let fits = self.kind == MapType::LruHash || content.keys.len() / self.key <= room;
        Ok(fits.then_some(content))
    }
}

/// What was found when the datapath was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing was pinned.
    Fresh,
    /// The maps of an earlier run, with all that they hold.
    Adopted,
    /// The same, and some of them were given another size: which, and from what to what.
    Resized(String),
    /// The maps of an earlier run could not be used, for this reason, and were replaced by empty ones. What is
    /// still attached works on with the old ones until the new programs are swapped in.
    Rebuilt(String),
}

/// The loaded programs, not attached by loading, and their maps.
#[derive(Debug)]
pub struct Datapath {
    pub pins: Pins,
    pub maps: Maps,
    pub opened: Opened,
    /// What the maps really hold: a map that holds more than it was asked to is not made smaller.
    pub sizes: Sizes,
    pub(crate) programs: BTreeMap<&'static str, OwnedFd>,
    /// [`describe::build`].
    build: String,
}

/// Which maps are as they must be, which are to be made.
struct Found {
    specs: [Spec; MAPS],
    adopted: Vec<&'static str>,
    /// Those of another size, with what they hold.
    resized: BTreeMap<&'static str, Entries>,
    sizes: String,
    refused: Vec<String>,
}

impl Found {
    fn look(pins: &Pins, sizes: &Sizes, refused: Vec<String>) -> Result<Self> {
        let mut found = Self {
            specs: sizes.specs(),
            adopted: Vec::new(),
            resized: BTreeMap::new(),
            sizes: String::new(),
            refused,
        };
        let mut missing = Vec::new();
        for spec in &mut found.specs {
            match spec.find(pins) {
                Ok(None) => missing.push(spec.name),
                Ok(Some(map)) if map.shape.entries == spec.max_entries => found.adopted.push(spec.name),
                Ok(Some(map)) => match spec.content(&map)? {
                    Some(content) => {
                        let _ = write!(
                            found.sizes,
                            " {} {} to {}",
                            spec.name, map.shape.entries, spec.max_entries
                        );
                        found.resized.insert(spec.name, content);
                    }
                    None => {
                        spec.max_entries = map.shape.entries;
                        found.adopted.push(spec.name);
                    }
                },
                Err(why) => {
                    missing.push(spec.name);
                    found.refused.push(why);
                }
            }
        }
        if missing.len() < found.specs.len() && missing.iter().any(|name| WRITTEN.contains(name)) {
            // An empty one among them would make the others lie.
            if found.refused.is_empty() {
                found.refused.push(format!("map {} is missing", missing.join(", ")));
            }
            found.adopted.clear();
            found.resized.clear();
        }
        Ok(found)
    }

    fn opened(&self) -> Opened {
        if !self.refused.is_empty() {
            Opened::Rebuilt(self.refused.join("; "))
        } else if !self.resized.is_empty() {
            Opened::Resized(self.sizes.trim_start().to_owned())
        } else if self.adopted.is_empty() {
            Opened::Fresh
        } else {
            Opened::Adopted
        }
    }
}

impl Datapath {
    /// Loads the programs of the embedded object over the maps that are pinned, as far as they fit, or over new
    /// ones, and pins maps and programs. Attaches nothing.
    ///
    /// Maps of another size are replaced by new ones with the same content. What is foreign among the pins is
    /// removed. Nothing is touched before all programs have passed the verifier. If other programs are attached
    /// that work with other maps, ours are pinned when they [have taken over](Self::take_over).
    pub fn open(pins: Pins, sizes: &Sizes) -> Result<Self> {
        let opened = Self::open_object(pins, sizes, object::bytes()?);
        object::release();
        opened
    }

    /// The same with another object than the embedded one: an older or newer version, or one that a test has
    /// broken.
    pub fn open_object(pins: Pins, sizes: &Sizes, object: &[u8]) -> Result<Self> {
        keep(&pins)?;
        let refused = pins.create()?;
        let found = Found::look(&pins, sizes, refused)?;
        let build = describe::build(object);
        let next = pins.next();
        remove_any(&next)?;
        if found.opened() == Opened::Adopted
            && describe::is_of(&pins, &build)
            && let Some(programs) = pinned(&pins)?
        {
            let (maps, sizes) = (Maps::open(&pins)?, sizes.held_by(&found.specs));
            let datapath = Self { pins, maps, opened: Opened::Adopted, sizes, programs, build };
            datapath.release()?;
            return Ok(datapath);
        }
        let fail = |source| Error::Pin { operation: "create", path: next.clone(), source };
        fs::DirBuilder::new().mode(0o700).create(&next).map_err(fail)?;
        let loaded = load_all(&pins, &found, object).and_then(|programs| {
            found.fill(&pins)?;
            Ok(programs)
        });
        let programs = match loaded {
            Ok(programs) => programs,
            Err(error) => {
                // What was there works on, and is all that is there.
                let _ = remove_any(&next);
                return Err(error);
            }
        };
        if found.adopted.is_empty() && found.resized.is_empty() {
            // Not one by one: a daemon that is killed here must not leave a mixture that looks whole.
            for path in entries(&pins.dir().join("maps"))? {
                remove_any(&path)?;
            }
        }
        for path in entries(&next)? {
            let Some(name) = path.file_name() else { continue };
            let to = pins.dir().join("maps").join(name);
            if fs::symlink_metadata(&to).is_ok_and(|meta| !meta.is_file()) {
                remove_any(&to)?;
            }
            fs::rename(&path, &to).map_err(|source| Error::Pin { operation: "pin", path: to, source })?;
        }
        remove_any(&next)?;
        // As long as not all programs of this build are pinned, none are said to be.
        describe::publish(&pins, None)?;
        let maps = Maps::open(&pins)?;
        let sizes = sizes.held_by(&found.specs);
        let datapath = Self { pins, maps, opened: found.opened(), sizes, programs, build };
        if !datapath.is_succession()? {
            datapath.pin_programs()?;
        }
        Ok(datapath)
    }

    /// Where the CNI plugin finds them.
    pub(crate) fn pin_programs(&self) -> Result<()> {
        self.programs.iter().try_for_each(|(name, fd)| pin_program(&self.pins, name, fd.as_fd()))?;
        describe::publish(&self.pins, Some(&self.build))
    }

    fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>> {
        self.programs.get(name).map(AsFd::as_fd).ok_or(Error::NoProgram { name })
    }

    pub fn tc_program(&self, hook: TcHook) -> Result<BorrowedFd<'_>> {
        self.program(hook.name())
    }

    pub fn xdp_program(&self, mode: XdpMode) -> Result<BorrowedFd<'_>> {
        self.program(mode.name())
    }

    pub fn socket_program(&self, hook: SocketHook) -> Result<BorrowedFd<'_>> {
        self.program(hook.name())
    }
}

impl Found {
    /// Gives new maps what those of another size hold.
    fn fill(&self, pins: &Pins) -> Result<()> {
        for (name, content) in &self.resized {
            let path = pins.next().join(name);
            let fail = |source| Error::Pin { operation: "fill map", path: path.clone(), source };
            RawMap::new(sys::get(&path).map_err(fail)?).and_then(|map| map.put(content)).map_err(fail)?;
        }
        Ok(())
    }
}

/// Loads all programs over the maps that were adopted and new ones, which wait in a directory of their own.
fn load_all(pins: &Pins, found: &Found, object: &[u8]) -> Result<BTreeMap<&'static str, OwnedFd>> {
    let mut loader = EbpfLoader::new();
    for spec in &found.specs {
        let adopted = found.adopted.contains(&spec.name);
        let path = if adopted { pins.map(spec.name) } else { pins.next().join(spec.name) };
        loader.map_max_entries(spec.name, spec.max_entries).map_pin_path(spec.name, path);
    }
    let mut ebpf = loader.load(object).map_err(|source| Error::Load { source: Box::new(source) })?;
    let load = |name| {
        let program = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?;
        let fd = load(program).map_err(|source| Error::Program { name, source: Box::new(source) })?;
        Ok((name, fd))
    };
    let programs = names().map(load).collect::<Result<_>>()?;
    // Without a pin nobody could tell later what the programs work with.
    for (name, map) in ebpf.maps().filter(|(name, _)| found.specs.iter().all(|spec| spec.name != *name)) {
        // The file system takes no dots.
        let path = pins.scratch().join(name.trim_start_matches('.').replace('.', ":"));
        remove_any(&path)?;
        let fail = |error: aya::pin::PinError| Error::Pin {
            operation: "pin",
            path: path.clone(),
            source: std::io::Error::other(error),
        };
        map.pin(&path).map_err(fail)?;
    }
    Ok(programs)
}

/// The programs of the object.
fn names() -> impl Iterator<Item = &'static str> {
    let sockets = SocketHook::ALL.map(SocketHook::name);
    TcHook::ALL.map(TcHook::name).into_iter().chain(sockets).chain(XdpMode::ALL.map(XdpMode::name))
}

/// The programs that are pinned, if all are there, are ours and work with the maps that are pinned: the verifier has
/// seen them, and takes a second for all of them.
fn pinned(pins: &Pins) -> Result<Option<BTreeMap<&'static str, OwnedFd>>> {
    let own = pinned_maps(pins)?;
    let reach = Reach::of(pins)?;
    let adopt = |name| {
        let program = inspect(&pins.program(name), Kind::Program).ok()??;
        let (_, called) = program_name(program.as_fd()).ok()?;
        let used = reach.used(program.as_fd()).ok()?;
        let is_own =
            |map: &RawMap| own.get(&map.name).is_none_or(|own| own.iter().any(|own| own.id == map.id));
        (called == name && !used.more && used.maps.iter().all(is_own)).then_some((name, program))
    };
    Ok(names().map(adopt).collect())
}

fn load(program: &mut Program) -> Result<OwnedFd, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::Xdp(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Under its name from one moment to the next: the CNI plugin may look for it at any time.
fn pin_program(pins: &Pins, name: &'static str, fd: BorrowedFd<'_>) -> Result<()> {
    let path = pins.program(name);
    let new = pins.program(&format!("new:{name}"));
    remove_any(&new)?;
    if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
        remove_any(&path)?;
    }
    sys::pin(fd, &new).map_err(|source| Error::Pin { operation: "pin", path: new.clone(), source })?;
    fs::rename(&new, &path).map_err(|source| Error::Pin { operation: "pin", path, source })
}
