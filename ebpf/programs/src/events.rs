//! What is told to whoever listens. Nobody does, mostly: then it costs one look into an array, where a packet is
//! dropped or a flow begins, and nothing elsewhere.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use heddle_ebpf_common::{
    Addr, Counter, EVENT_DROP, EVENT_FLOW, EVENT_HEAD, EVENT_REJECT, Event, Flow, LISTENING_LOST,
    LISTENING_UNTIL, Tuple,
};

use crate::maps::{EVENTS, LISTENING};
use crate::skb::Skb;

/// Why the packet that this processor has in hands is dropped. It is told at the end of the hook: where reasons are
/// found, calls nest too deep to tell them.
#[map(name = "why")]
static WHY: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// What is not a packet's.
const NONE: u32 = 0;

/// Does somebody listen? A listener says so every second or two; one that was killed is forgotten.
#[inline(always)]
fn heard() -> bool {
    match LISTENING.get(LISTENING_UNTIL) {
        // SAFETY: no argument, no memory.
        Some(until) if *until != 0 => (unsafe { bpf_ktime_get_ns() }) >> 30 < u64::from(*until),
        _ => false,
    }
}

/// Room for an event, its first fields filled in. `None`: the reader is too slow.
#[inline(always)]
fn begin(kind: u32, reason: u32) -> Option<RingBufEntry<Event>> {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        if let Some(lost) = LISTENING.get_ptr_mut(LISTENING_LOST) {
            // SAFETY: one word; counted roughly, if processors meet.
            unsafe { *lost = (*lost).wrapping_add(1) };
        }
        return None;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the buffer's own, until it is submitted.
    unsafe {
        (&raw mut (*event).kind).write(kind);
        (&raw mut (*event).reason).write(reason);
        (&raw mut (*event).time).write(bpf_ktime_get_ns());
    }
    Some(entry)
}

/// No tuples. Word by word: where calls nest deepest there is no room for one of `memset`.
///
/// # Safety
/// An event that is the caller's.
#[inline(always)]
unsafe fn nobody(event: *mut Event) {
    const WORDS: usize = size_of::<Tuple>() / 8;
    // SAFETY: the caller's; both are whole words, and aligned.
    unsafe {
        for tuple in [(&raw mut (*event).tuple).cast::<u64>(), (&raw mut (*event).to).cast()] {
            for word in 0..WORDS {
                tuple.add(word).write_volatile(0);
            }
        }
    }
}

/// A packet, as it is now. `kind`: `EVENT_*`.
#[inline(always)]
fn packet(skb: Skb, kind: u32, reason: u32) {
    if !heard() {
        return;
    }
    let Some(mut entry) = begin(kind, reason) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the buffer's own, until it is submitted; `head` has room for all that is loaded.
    unsafe {
        nobody(event);
        (&raw mut (*event).service).write(NONE);
        (&raw mut (*event).ifindex).write(skb.ifindex());
        let len = skb.len();
        (&raw mut (*event).len).write(len);
        let head = (&raw mut (*event).head).cast::<core::ffi::c_void>();
        // The helper wants to know how much it is: all that fits, a SYN or another segment with its options, one
        // without, a datagram, a frame.
        let mut loaded = 0;
        for size in [EVENT_HEAD as u32, 94, 86, 74, 66, 54, 42, 14] {
            if loaded == 0 && len >= size && bpf_skb_load_bytes(skb.0.cast(), 0, head, size) == 0 {
                loaded = size;
            }
        }
        (&raw mut (*event).head_len).write(loaded);
    }
    entry.submit(0);
}

/// The packet will be dropped for this reason.
#[inline(always)]
pub fn note(reason: Counter) {
    if let Some(why) = WHY.get_ptr_mut(0) {
        // SAFETY: this processor's own.
        unsafe { why.write(reason as u32) };
    }
}

/// The packet is dropped, for the reason that was noted.
#[inline(never)]
pub fn dropped(skb: Skb) {
    if let Some(why) = WHY.get(0) {
        packet(skb, EVENT_DROP, *why);
    }
}

/// A packet is answered with a refusal, and will be the answer in a moment.
#[inline(always)]
pub fn rejected(skb: Skb, reason: Counter) {
    packet(skb, EVENT_REJECT, reason as u32);
}

/// A flow begins: its packets of this tuple become `flow.to`.
#[inline(always)]
pub fn flow(key: &Tuple, flow: &Flow) {
    if heard() {
        told(key, flow);
    }
}

/// A socket asks for `asked` and is given `to`, or refused for this reason.
#[inline(always)]
pub fn socket(kind: u32, reason: Counter, asked: (&Addr, u16), to: (&Addr, u16), proto: u8, service: u32) {
    if !heard() {
        return;
    }
    let Some(mut entry) = begin(kind, reason as u32) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the buffer's own, until it is submitted.
    unsafe {
        nobody(event);
        (&raw mut (*event).tuple.dst).write(*asked.0);
        (&raw mut (*event).tuple.dport).write(asked.1);
        (&raw mut (*event).tuple.proto).write(proto);
        (&raw mut (*event).to.dst).write(*to.0);
        (&raw mut (*event).to.dport).write(to.1);
        (&raw mut (*event).to.proto).write(proto);
        rest(event, service);
    }
    entry.submit(0);
}

#[inline(never)]
fn told(key: &Tuple, flow: &Flow) {
    let Some(mut entry) = begin(EVENT_FLOW, Counter::FlowNew as u32) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the buffer's own, until it is submitted.
    unsafe {
        (&raw mut (*event).tuple).write(*key);
        (&raw mut (*event).to).write(flow.to);
        rest(event, flow.service);
        (&raw mut (*event).len).write(flow.backend);
    }
    entry.submit(0);
}

/// The fields of a packet, of what is none.
///
/// # Safety
/// An event that is the caller's.
#[inline(always)]
unsafe fn rest(event: *mut Event, service: u32) {
    // SAFETY: the caller's.
    unsafe {
        (&raw mut (*event).service).write(service);
        (&raw mut (*event).ifindex).write(NONE);
        (&raw mut (*event).len).write(NONE);
        (&raw mut (*event).head_len).write(NONE);
    }
}
