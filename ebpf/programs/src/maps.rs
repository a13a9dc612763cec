//! The maps, under their pinned names. Sizes are defaults; the loader sets those of the configuration.

use core::arch::asm;

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, Backend, ChoiceKey, Config, Counter, EVENTS_SIZE, Flow, FragKey, FragPorts,
    Frontend, FrontendKey, KnownAddr, LISTENING_LEN, Name, Node, PORTS_EXTERNAL, PORTS_LEN, RingBlock,
    Routes, SockChoice, SockKey, SockPeer, SourceKey, Tuple,
};

use crate::packet::Packet;

/// Elements take memory only when they are there: for what no program reads.
const LAZY: u32 = aya_ebpf::bindings::BPF_F_NO_PREALLOC;

macro_rules! maps { ($($(#[$doc:meta])* $name:literal $ident:ident: $kind:ident<$($param:ty),*> = $size:expr $(, $flags:expr)?;)*) => { $(
    $(#[$doc])*
    #[map(name = $name)]
    pub static $ident: $kind<$($param),*> = $kind::with_max_entries($size, 0 $(| $flags)?);
)* } }

maps! {
    "frontends" FRONTENDS: HashMap<FrontendKey, Frontend> = 1 << 16;
    "ring" RING: Array<RingBlock> = 1 << 17;
    "backends" BACKENDS: Array<Backend> = 1 << 17;
    /// New flows and sockets that each backend was given, since it has its slot.
    "conns" CONNS: Array<u64> = 1 << 17;
    "nodes" NODES: Array<Node> = 1 << 13;
    "addrs" ADDRS: HashMap<Addr, KnownAddr> = 1 << 15;
    /// Ports and number of addresses that clients outside may mean.
    "ports" PORTS: Array<u64> = PORTS_LEN;
    /// Whose pods live in an address range: index into `nodes`.
    "ranges" RANGES: LpmTrie<Addr, u32> = 1 << 15;
    "affinity" AFFINITY: LruHashMap<AffinityKey, Affinity> = 1 << 16;
    "sources" SOURCES: LpmTrie<SourceKey, u32> = 1 << 14;
    "choices" CHOICES: HashMap<ChoiceKey, u32> = 1 << 17;
    "ct_new" CT_NEW: LruHashMap<Tuple, Flow> = 1 << 16;
    "ct" CT: HashMap<Tuple, Flow> = 1 << 18;
    "routes" ROUTES: Array<Routes> = 1;
    "frags" FRAGS: LruHashMap<FragKey, FragPorts> = 1 << 12;
    "sock_rev" SOCK_REV: LruHashMap<SockKey, SockPeer> = 1 << 16;
    "sock_udp" SOCK_UDP: LruHashMap<SockKey, SockChoice> = 1 << 16;
    "services" SERVICES: HashMap<u32, Name> = 1 << 16, LAZY;
    "node_names" NODE_NAMES: HashMap<u32, Name> = 1 << 13, LAZY;
    "counters" COUNTERS: PerCpuArray<u64> = Counter::COUNT;
    "config" CONFIG: Array<Config> = 1;
    /// Not 0 once there was a flow of this [`Kind`].
    "kinds" KINDS: Array<u32> = 3;
    /// Until when somebody listens to `events`, and how many there was no room for.
    "listening" LISTENING: Array<u32> = LISTENING_LEN;
}

/// What happens, for `proxyd monitor`.
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_SIZE, 0);

/// Where the tc programs work, one on each processor (they run with bottom halves off, so that none meets
/// another's). On the stack there is no room for it (512 bytes for all calls), and the verifier would follow each
/// byte.
#[map(name = "work")]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

pub struct Work {
    pub packet: Packet,
    /// The entry that was found.
    pub found: Flow,
    /// The entry that is made.
    pub fresh: Flow,
    pub frontend: Frontend,
}

/// The same for the work on flows: each for the one function that is named.
#[map(name = "ct_work")]
static CT_WORK: PerCpuArray<CtWork> = PerCpuArray::with_max_entries(1, 0);

pub struct CtWork {
    /// `ct::insert`, `ct::answered`, `ct::restore_peer`.
    mirror: Flow,
    /// `ct::occupied`, `ct::answered`.
    other: Flow,
    /// `ct::is_over`.
    over: Over,
    /// `ct::remove`.
    removed_key: Tuple,
    /// `ct::mirror`.
    mirror_key: Tuple,
    /// `ct::enter`.
    reply_key: Tuple,
    /// `serve::aside`.
    aside_key: Tuple,
    /// `out::leave`, `out::owns_source`.
    fib: bpf_fib_lookup,
    /// `reject::quote`.
    quote: [u32; QUOTE],
    /// `nat::translate`.
    block: [u32; BLOCK],
}

pub struct Over {
    pub peer: Flow,
    pub key: Tuple,
}

/// Words of a packet that an ICMP error quotes, at most.
const QUOTE: usize = 12;
/// Words of a packet that are rewritten at once, at most: from the addresses of IPv6 to the checksum of TCP.
const BLOCK: usize = 13;

macro_rules! ct_work { ($($name:ident: $type:ty),*) => { $(
    #[inline(always)]
    pub fn $name() -> Option<&'static mut $type> {
        // SAFETY: as in `work`; each field is used by one function at a time.
        CT_WORK.get_ptr_mut(0).map(|work| unsafe { &mut (*work).$name })
    }
)* } }

ct_work!(mirror: Flow, other: Flow, over: Over, removed_key: Tuple, mirror_key: Tuple, reply_key: Tuple, aside_key: Tuple, fib: bpf_fib_lookup, quote: [u32; QUOTE], block: [u32; BLOCK]);

/// To be called once in a run of a program.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: nobody else has this processor's element, see `WORK`.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Kinds of flows that many nodes never have: what looks for them is spared where there are none.
#[derive(Clone, Copy)]
pub enum Kind {
    /// To a backend in the host network of this node. The host sends replies only then.
    Host = 0,
    /// Of a pod of this node (no socket hook translated it).
    Pod = 1,
    /// Of this node itself (no socket hook translated it).
    Own = 2,
}

/// Has there been a flow of this kind since the maps were made?
#[inline(always)]
pub fn has_flows(kind: Kind) -> bool {
    KINDS.get(kind as u32).is_some_and(|flows| *flows != 0)
}

#[inline(always)]
pub fn note_flow(kind: Kind) {
    if let Some(flows) = KINDS.get_ptr_mut(kind as u32) {
        // SAFETY: one word, and all write the same.
        unsafe { flows.write_volatile(1) };
    }
}

/// Can a packet from outside be for a frontend, or an answer to `snat`? Two words tell it of nearly all that
/// are not.
#[inline(always)]
pub fn may_be_ours(to: &Tuple) -> bool {
    let port = u32::from(u16::from_be(to.dport));
    PORTS.get(port / 64).is_some_and(|ports| ports >> (port % 64) & 1 != 0)
        || PORTS.get(PORTS_EXTERNAL).is_some_and(|externals| *externals != 0)
}

/// Counts a flow, or a socket, that was given to a backend.
#[inline(always)]
pub fn count_flow(backend: u32) {
    if let Some(count) = CONNS.get_ptr_mut(backend) {
        // SAFETY: eight aligned bytes that live as long as the map. (The compiler lends atomic additions only to
        // targets that can also compare and swap.)
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) count, in(reg) 1_u64) };
    }
}

/// The state of the routes at this moment.
#[inline(always)]
pub fn routes() -> Option<Routes> {
    ROUTES.get(0).copied()
}

/// Count one event.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a non-null value of a per-CPU map, which nobody else writes at this moment.
        unsafe { *value += 1 };
    }
}

/// The configuration; `None` cannot be (an array of one), but the verifier does not know.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}
