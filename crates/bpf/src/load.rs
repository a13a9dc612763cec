//! Loading, or adopting what is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use aya::EbpfLoader;
use aya::maps::{MapData, MapType};
use aya::programs::{Program, ProgramError};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, ChoiceKey, Config, Counter, Flow, FragKey, FragPorts, Frontend,
    FrontendKey, KnownAddr, Name, Node, PORTS_LEN, RingBlock, SockChoice, SockKey, SockPeer, SourceKey,
    Tuple,
};

use crate::pins::{entries, remove_file};
use crate::{Error, Maps, Pins, Result, SocketHook, TcHook, XdpMode, object, sys};

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

impl Sizes {
    /// What a pinned map must be like to be adopted.
    fn specs(&self) -> [Spec; 20] {
        use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray};
        let spec = |name, kind, key, value, max_entries| Spec { name, kind, key, value, max_entries };
        let lpm_key = size_of::<aya::maps::lpm_trie::Key<Addr>>();
        let source_key = size_of::<aya::maps::lpm_trie::Key<SourceKey>>();
        [
            spec("frontends", Hash, size_of::<FrontendKey>(), size_of::<Frontend>(), self.frontends),
            spec("ring", Array, 4, size_of::<RingBlock>(), self.ring),
            spec("backends", Array, 4, size_of::<Backend>(), self.backends),
            spec("nodes", Array, 4, size_of::<Node>(), self.nodes),
            spec("addrs", Hash, size_of::<Addr>(), size_of::<KnownAddr>(), self.addrs),
            spec("ports", Array, 4, 8, PORTS_LEN),
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
            spec("kinds", Array, 4, 4, 2),
        ]
    }
}

impl Spec {
    /// The reason why the map that is pinned cannot be ours, if it is there and there is one.
    fn mismatch(&self, pins: &Pins) -> Option<String> {
        let path = pins.map(self.name);
        let meta = fs::symlink_metadata(&path).ok()?;
        if meta.uid() != 0 {
            return Some(format!("map {} belongs to user {}", self.name, meta.uid()));
        }
        let info = match MapData::from_pin(&path).and_then(|map| map.info()) {
            Ok(info) => info,
            Err(error) => return Some(format!("map {}: {error}", self.name)),
        };
        let found = (info.map_type().ok(), info.key_size(), info.value_size(), info.max_entries());
        let wanted = (Some(self.kind), self.key as u32, self.value as u32, self.max_entries);
        (found != wanted).then(|| {
            format!("map {} has (type, key, value, entries) {found:?} instead of {wanted:?}", self.name)
        })
    }
}

/// What was found when the datapath was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing was pinned.
    Fresh,
    /// The maps of an earlier run, with all that they hold.
    Adopted,
    /// The maps of an earlier run did not fit, for this reason, and were replaced by empty ones. What is still
    /// attached works on with the old ones until the new programs are swapped in.
    Rebuilt(String),
}

/// The loaded programs, not attached by loading, and their maps.
#[derive(Debug)]
pub struct Datapath {
    pub pins: Pins,
    pub maps: Maps,
    pub opened: Opened,
    programs: BTreeMap<&'static str, OwnedFd>,
}

impl Datapath {
    /// Loads the programs of the embedded object over the maps that are pinned, as far as they fit, or over new
    /// ones, and pins maps and programs. Attaches nothing.
    pub fn open(pins: Pins, sizes: &Sizes) -> Result<Self> {
        Self::open_object(pins, sizes, object::bytes()?)
    }

    /// The same with another object than the embedded one: an older or newer version, or one that a test has
    /// broken.
    pub fn open_object(pins: Pins, sizes: &Sizes, object: &[u8]) -> Result<Self> {
        pins.create()?;
        let specs = sizes.specs();
        let found = specs.iter().filter(|spec| pins.map(spec.name).exists()).count();
        let opened = match specs.iter().find_map(|spec| spec.mismatch(&pins)) {
            Some(reason) => {
                for path in entries(&pins.dir().join("maps"))? {
                    remove_file(&path)?;
                }
                Opened::Rebuilt(reason)
            }
            None if found == specs.len() => Opened::Adopted,
            None => Opened::Fresh,
        };
        let mut loader = EbpfLoader::new();
        for spec in &specs {
            loader.map_max_entries(spec.name, spec.max_entries).map_pin_path(spec.name, pins.map(spec.name));
        }
        let mut ebpf = loader.load(object).map_err(|source| Error::Load { source: Box::new(source) })?;
        let mut programs = BTreeMap::new();
        let names = TcHook::ALL
            .map(TcHook::name)
            .into_iter()
            .chain(SocketHook::ALL.map(SocketHook::name))
            .chain(XdpMode::ALL.map(XdpMode::name));
        for name in names {
            let program = ebpf.program_mut(name).ok_or(Error::NoProgram { name })?;
            let fd = load(program).map_err(|source| Error::Program { name, source: Box::new(source) })?;
            pin_program(&pins, name, fd.as_fd())?;
            programs.insert(name, fd);
        }
        let maps = Maps::open(&pins)?;
        Ok(Self { pins, maps, opened, programs })
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
    remove_file(&new)?;
    sys::pin(fd, &new).map_err(|source| Error::Pin { operation: "pin", path: new.clone(), source })?;
    fs::rename(&new, &path).map_err(|source| Error::Pin { operation: "pin", path, source })
}
