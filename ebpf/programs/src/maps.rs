//! The maps, under their pinned names. Sizes are defaults; the loader sets those of the configuration.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use heddle_ebpf_common::{
    Addr, Backend, ChoiceKey, Config, Counter, Flow, FragKey, FragPorts, Frontend, FrontendKey, Name, Node,
    NodeAddr, RingBlock, SockChoice, SockKey, SockPeer, Tuple,
};

macro_rules! maps { ($($(#[$doc:meta])* $name:literal $ident:ident: $kind:ident<$($param:ty),*> = $size:expr;)*) => { $(
    $(#[$doc])*
    #[map(name = $name)]
    pub static $ident: $kind<$($param),*> = $kind::with_max_entries($size, 0);
)* } }

maps! {
    "frontends" FRONTENDS: HashMap<FrontendKey, Frontend> = 1 << 14;
    "ring" RING: Array<RingBlock> = 1 << 14;
    "backends" BACKENDS: Array<Backend> = 1 << 16;
    "nodes" NODES: Array<Node> = 1 << 13;
    "node_addrs" NODE_ADDRS: HashMap<Addr, NodeAddr> = 1 << 14;
    /// Whose pods live in an address range: index into `nodes`.
    "ranges" RANGES: LpmTrie<Addr, u32> = 1 << 14;
    "choices" CHOICES: HashMap<ChoiceKey, u32> = 1 << 14;
    "ct_new" CT_NEW: LruHashMap<Tuple, Flow> = 1 << 16;
    "ct" CT: HashMap<Tuple, Flow> = 1 << 18;
    "frags" FRAGS: LruHashMap<FragKey, FragPorts> = 1 << 12;
    "sock_rev" SOCK_REV: LruHashMap<SockKey, SockPeer> = 1 << 16;
    "sock_udp" SOCK_UDP: LruHashMap<SockKey, SockChoice> = 1 << 16;
    "services" SERVICES: HashMap<u32, Name> = 1 << 14;
    "node_names" NODE_NAMES: HashMap<u32, Name> = 1 << 13;
    "counters" COUNTERS: PerCpuArray<u64> = Counter::COUNT;
    "config" CONFIG: Array<Config> = 1;
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
