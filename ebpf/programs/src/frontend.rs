//! The maps as the decision reads them ([`decide`]), and the decision as functions of a packet.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::maps::lpm_trie::Key;
use heddle_ebpf_common::decide::{self, Choice, Copied, Found, Nodes, Origin, Search, Tables, Way};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, BACKEND_FREE, Backend, ChoiceKey, Config, Frontend, FrontendKey, KnownAddr,
    NODE_FREE, RING_BLOCK, SourceKey, Tuple,
};

use crate::maps::{ADDRS, AFFINITY, BACKENDS, CHOICES, FRONTENDS, NODES, RING, SOURCES};
use crate::time::{now, random};

/// Times that a torn value is read again. A writer is done after a few instructions.
const TORN: u32 = 4;

/// The maps.
#[derive(Clone, Copy)]
pub struct Kernel;

impl Tables for Kernel {
    type Backend = &'static Backend;

    #[inline(always)]
    fn frontend(self, key: &FrontendKey, copy: &mut Frontend) -> Copied {
        for _ in 0..TORN {
            // SAFETY: copied out, and its check compared before it is used.
            let Some(value) = (unsafe { FRONTENDS.get(key) }) else { return Copied::Absent };
            *copy = *value;
            if copy.check == copy.sum(key) {
                return Copied::Whole;
            }
        }
        Copied::Torn
    }

    #[inline(always)]
    fn addr(self, addr: &Addr) -> KnownAddr {
        known(addr)
    }

    #[inline(always)]
    fn slot(self, slot: u32) -> u32 {
        match RING.get(slot / RING_BLOCK) {
            Some(block) => block.0[(slot % RING_BLOCK) as usize],
            None => 0,
        }
    }

    /// It stays as it is while the program runs (grace period), but for its state.
    #[inline(always)]
    fn backend(self, index: u32) -> Option<&'static Backend> {
        backend(index)
    }

    #[inline(always)]
    fn node_state(self, index: u32) -> u32 {
        match NODES.get(index) {
            Some(node) => node.state,
            None => NODE_FREE,
        }
    }

    #[inline(always)]
    fn has_overlay(self, index: u32) -> bool {
        match NODES.get(index) {
            Some(node) => node.overlay != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn choice(self, key: ChoiceKey) -> Option<u32> {
        // SAFETY: four bytes, written at once.
        unsafe { CHOICES.get(&key) }.copied()
    }

    #[inline(always)]
    fn affinity(self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied out, and its check compared before it is used.
        let affinity = unsafe { AFFINITY.get(key) }.copied()?;
        (affinity.check == affinity.sum(key)).then_some(affinity)
    }

    #[inline(always)]
    fn allows(self, service: u32, client: &Addr) -> bool {
        SOURCES.get(Key::new(32 + 128, SourceKey { service, addr: client.0 })).is_some()
    }

    #[inline(always)]
    fn search(self, search: &mut Search, count: u32) {
        // SAFETY: `step` is called with this very pointer, while `search` lives.
        unsafe { bpf_loop(count, step as *mut c_void, (&raw mut *search).cast(), 0) };
    }
}

extern "C" fn step(i: u32, search: *mut Search) -> i64 {
    // SAFETY: `Tables::search` passes its own, exclusively.
    i64::from(unsafe { &mut *search }.step(Kernel, i))
}

/// What is known of an address; all zero: nothing.
#[inline(always)]
pub fn known(addr: &Addr) -> KnownAddr {
    // SAFETY: copied out. Both fields are written before the key is, and an address changes its node only
    // by way of being removed; a torn value names a node that is then checked by its own state.
    match unsafe { ADDRS.get(addr) } {
        Some(known) => *known,
        None => KnownAddr { node: 0, kind: 0 },
    }
}

/// A backend in use.
#[inline(always)]
pub fn backend(index: u32) -> Option<&'static Backend> {
    BACKENDS.get(index).filter(|backend| backend.state != BACKEND_FREE)
}

/// The frontend that a packet is for.
#[inline(never)]
pub fn of(to: &Tuple, nodes: Nodes, copy: &mut Frontend) -> Found {
    decide::find(Kernel, &to.dst, to.dport, to.proto, nodes, copy)
}

/// The backend for a flow that begins with a packet of `tuple`: its index, or [`REFUSED`] and a refusal. (As the enum
/// that it is, LLVM returns the part that is not there as a register that nobody has written.)
#[inline(never)]
pub fn choose(frontend: &Frontend, tuple: &Tuple, origin: &Origin, config: &Config) -> u64 {
    match decide::choose(Kernel, frontend, tuple, *origin, random(config), now(config)) {
        Choice::Backend(index, _) => u64::from(index),
        Choice::Refused(refusal) => REFUSED | refusal as u64,
    }
}

/// The same for a client inside that is known by `client` ([`decide::choose_inside`]).
#[inline(never)]
pub fn choose_inside(frontend: &Frontend, client: &Addr, v4: bool, config: &Config) -> u64 {
    match decide::choose_inside(Kernel, frontend, client, v4, random(config), now(config)) {
        Choice::Backend(index, _) => u64::from(index),
        Choice::Refused(refusal) => REFUSED | refusal as u64,
    }
}

/// Keeps under session affinity which backend this client has, as of now. Returns the backend that it is: where two
/// first flows of a client meet, the second gets that of the first.
#[inline(never)]
pub fn settle(frontend: &Frontend, client: &Addr, index: u32, config: &Config) -> u32 {
    let key = AffinityKey { client: *client, service: frontend.service, zero: 0 };
    let Some(chosen) = backend(index) else { return index };
    let mut value = Affinity { backend: index, generation: chosen.generation, seen: now(config), check: 0 };
    value.check = value.sum(&key);
    // SAFETY: only whether there is one.
    let flags = if unsafe { AFFINITY.get(&key) }.is_some() { BPF_ANY } else { BPF_NOEXIST };
    if AFFINITY.insert(&key, &value, flags.into()).is_ok() {
        return index;
    }
    let Some(first) = Kernel.affinity(&key) else { return index };
    match backend(first.backend) {
        Some(backend) if backend.generation == first.generation => first.backend,
        _ => index,
    }
}

/// Beside a [`Refusal`](decide::Refusal).
pub const REFUSED: u64 = 1 << 32;

/// The way to it.
#[inline(never)]
pub fn way(backend: &Backend, frontend: &Addr, client: &Addr, origin: &Origin, config: &Config) -> Way {
    decide::way(Kernel, config, backend, frontend, client, *origin)
}
