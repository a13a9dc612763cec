//! Which service does an address belong to, and which of its backends takes this connection?

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use heddle_ebpf_common::{
    Addr, BACKEND_ACTIVE, BACKEND_FREE, Backend, Frontend, FrontendKey, NET_LOOPBACK, ADDR_NODE_PORTS,
    NODE_DOWN, NODE_SELF, KnownAddr, RING_BLOCK, Tuple,
};

use crate::maps::{BACKENDS, FRONTENDS, ADDRS, NODES, RING};

/// Slots of a Maglev table tried after the first.
const NEAR: u32 = 7;
/// Slots of a dense list tried after the first: all, for any service that there is.
const LONGEST: u32 = 1 << 16;
/// Times that a torn value is read again. A writer is done after a few instructions.
const TORN: u32 = 4;

/// Copies the frontend under exactly this key. False: there is none.
#[inline(always)]
fn exact(key: &FrontendKey, copy: &mut Frontend) -> bool {
    for _ in 0..TORN {
        // SAFETY: copied out, and its check compared before it is used.
        let Some(value) = (unsafe { FRONTENDS.get(key) }) else { return false };
        *copy = *value;
        if copy.check == copy.sum(key) {
            return true;
        }
    }
    false
}

/// The address, if it is one of a node's.
#[inline(always)]
pub fn known(addr: &Addr) -> Option<KnownAddr> {
    // SAFETY: copied out. Both fields are written before the key is, and an address changes its node only
    // by way of being removed; a torn value names a node that is then checked by its own state.
    unsafe { ADDRS.get(addr) }.copied()
}

/// Which of the nodes' addresses answer on node ports here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    All,
    /// From outside, a node answers for itself only.
    Own,
}

/// Copies the frontend of an address: its own entry, or the node port's if it is an underlay address of a node.
/// False: there is none.
#[inline(always)]
pub fn find(addr: &Addr, port: u16, proto: u8, nodes: Nodes, copy: &mut Frontend) -> bool {
    let mut key = FrontendKey { addr: *addr, net: 0, port, proto, zero: 0 };
    if exact(&key, copy) {
        return true;
    }
    let Some(owner) = known(addr) else { return false };
    if !owner.is(ADDR_NODE_PORTS) || (nodes == Nodes::Own && owner.node != NODE_SELF) {
        return false;
    }
    key.addr = if addr.is_v4() { Addr::ANY4 } else { Addr::ANY6 };
    exact(&key, copy)
}

/// Copies the frontend of a loopback address, for a socket of the node itself. False: there is none.
#[inline(always)]
pub fn find_loopback(addr: &Addr, port: u16, proto: u8, copy: &mut Frontend) -> bool {
    exact(&FrontendKey { addr: *addr, net: NET_LOOPBACK, port, proto, zero: 0 }, copy)
}

/// The frontend that a packet is for.
#[inline(never)]
pub fn of(to: &Tuple, nodes: Nodes, copy: &mut Frontend) -> bool {
    find(&to.dst, to.dport, to.proto, nodes, copy)
}

/// What a choice may fall on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    /// Backends of this node only.
    Local,
}

/// The index of the backend in this slot of `ring`, if it takes new connections; else 0.
#[inline(always)]
fn candidate(slot: u32, v4: bool, scope: Scope) -> u32 {
    let Some(block) = RING.get(slot / RING_BLOCK) else { return 0 };
    let index = block.0[(slot % RING_BLOCK) as usize];
    let Some(backend) = BACKENDS.get(index) else { return 0 };
    if backend.state != BACKEND_ACTIVE || backend.addr.is_v4() != v4 {
        return 0;
    }
    if scope == Scope::Local {
        return if backend.node == NODE_SELF { index } else { 0 };
    }
    if backend.node == 0 || is_up(backend.node) { index } else { 0 }
}

/// A node that is not known to be down.
#[inline(always)]
pub fn is_up(node: u32) -> bool {
    NODES.get(node).is_some_and(|node| node.state != NODE_DOWN)
}

/// `hash * len / 2^32`: below `len`, evenly, without a division.
#[inline(always)]
fn scale(hash: u32, len: u32) -> u32 {
    ((u64::from(hash) * u64::from(len)) >> 32) as u32
}

/// A search over an extent of `ring`, from the slot that a hash points to.
struct Search {
    start: u32,
    len: u32,
    first: u32,
    v4: bool,
    scope: Scope,
    /// The index of the backend; 0: none.
    found: u32,
}

impl Search {
    #[inline(always)]
    fn new(start: u32, len: u32, hash: u32, v4: bool, scope: Scope) -> Self {
        Self { start, len, first: scale(hash, len), v4, scope, found: 0 }
    }

    /// The candidate `i` slots after the first.
    #[inline(always)]
    fn at(&self, i: u32) -> u32 {
        let at = self.first.wrapping_add(i);
        let at = if at >= self.len { at.wrapping_sub(self.len) } else { at };
        candidate(self.start.wrapping_add(at), self.v4, self.scope)
    }

    /// The first candidate, of at most `most` slots after the first. Only that one is looked at in line: that
    /// it does not do is rare (a node has died, few of many backends are on this node), and the verifier would
    /// walk through each of the others wherever a backend is chosen.
    #[inline(always)]
    fn run(&mut self, most: u32) -> u32 {
        if self.len == 0 {
            return 0;
        }
        let index = self.at(0);
        if index != 0 {
            return index;
        }
        let more = self.len - 1;
        let more = if more > most { most } else { more };
        // SAFETY: `step` is called with this very pointer, while `self` lives.
        unsafe { bpf_loop(more, step as *mut c_void, (&raw mut *self).cast(), 0) };
        self.found
    }
}

extern "C" fn step(i: u32, search: *mut Search) -> i64 {
    // SAFETY: `run` passes its own, exclusively.
    let search = unsafe { &mut *search };
    search.found = search.at(i + 1);
    i64::from(search.found != 0)
}

/// A backend out of the dense list, evenly by `hash`: 0 if there is none.
#[inline(never)]
pub fn from_ring(frontend: &Frontend, hash: u32, v4: bool, scope: Scope) -> u32 {
    Search::new(frontend.ring, frontend.ring_len, hash, v4, scope).run(LONGEST)
}

/// A backend out of the Maglev table, where there is one, else out of the dense list: 0 if there is none.
#[inline(never)]
pub fn from_maglev(frontend: &Frontend, hash: u32, v4: bool) -> u32 {
    let index = Search::new(frontend.outside, frontend.outside_len, hash, v4, Scope::Cluster).run(NEAR);
    if index != 0 { index } else { from_ring(frontend, hash, v4, Scope::Cluster) }
}

/// A backend in use. It stays as it is while the program runs (grace period), but for its state.
#[inline(always)]
pub fn backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index).filter(|backend| backend.state != BACKEND_FREE)
}
