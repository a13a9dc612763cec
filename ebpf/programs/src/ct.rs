//! The flows. Two maps: `ct_new` (LRU) for what has not been answered, so that a flood of new flows displaces
//! only its like; `ct` for what has. A flow moves with its first reply.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_loop;
use heddle_ebpf_common::{
    BACKEND_ACTIVE, BACKEND_DRAINING, CT_ANSWERED, CT_DSR, CT_ENTRY, CT_FIN, CT_REPLY, CT_RST, Config,
    Counter, Flow, Routes, Tuple,
};

use crate::events;
use crate::maps::{self, BACKENDS, CT, CT_NEW, count};
use crate::packet::{FIN, Kind, Packet, RST};
use crate::time::{coarse_now, random};

/// Source ports tried when another flow has the tuple of the replies.
const PORTS: u32 = 16;

/// The source ports that a flow may get.
pub struct Ports {
    /// Host byte order.
    pub first: u32,
    pub count: u32,
    /// The client's own cannot be kept.
    pub always: bool,
}

impl Ports {
    /// The client's own, and any other if that is taken.
    pub const OWN: Self = Self { first: 1024, count: 65536 - 1024, always: false };
    /// The client's own and no other (SCTP).
    pub const NO_OTHER: Self = Self { first: 0, count: 0, always: false };
}

/// An entry: what it said when it was read, and where it is.
pub struct Entry<'a> {
    pub flow: &'a mut Flow,
    /// Null: it was made by this very packet.
    place: *mut Flow,
}

impl<'a> Entry<'a> {
    /// Of a flow that was made just now.
    #[inline(always)]
    pub fn fresh(flow: &'a mut Flow) -> Self {
        Self { flow, place: core::ptr::null_mut() }
    }

    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.flow.flags & CT_REPLY != 0
    }

    /// Is the backend gone, its slot free or another's?
    #[inline(always)]
    pub fn is_stale(&self) -> bool {
        is_stale(self.flow)
    }

    /// Has nobody answered yet, and does the backend take no new flows? Then a SYN that is repeated is a new one: the
    /// backend may be gone before it listens to it.
    #[inline(always)]
    pub fn came_too_late(&self) -> bool {
        self.flow.flags & CT_ANSWERED == 0
            && BACKENDS.get(self.flow.backend).is_some_and(|backend| backend.state == BACKEND_DRAINING)
    }

    /// Notes what this packet says about the flow.
    #[inline(always)]
    pub fn touch(&mut self, packet: &Packet, config: &Config) {
        if packet.kind == Kind::Error {
            return;
        }
        let now = coarse_now(config);
        let mut flags = self.flow.flags;
        if packet.flags & FIN != 0 {
            flags |= CT_FIN;
        }
        if packet.flags & RST != 0 {
            flags |= CT_RST;
        }
        // SAFETY: the place of an element of a map. If it was given to another flow meanwhile, that one looks
        // younger than it is, or closed before its time: the harm of a lost packet.
        unsafe {
            self.flow.packets += 1;
            self.flow.bytes += u64::from(packet.len);
            (&raw mut (*self.place).packets).write(self.flow.packets);
            (&raw mut (*self.place).bytes).write(self.flow.bytes);
            if self.flow.seen != now {
                self.flow.seen = now;
                (&raw mut (*self.place).seen).write(now);
            }
            if self.flow.flags != flags {
                self.flow.flags = flags;
                (&raw mut (*self.place).flags).write(flags);
            }
        }
    }

    /// Notes which pod sends this direction.
    #[inline(always)]
    pub fn set_ifindex(&mut self, ifindex: u32) {
        self.flow.ifindex = ifindex;
        // SAFETY: as in `touch`; a wrong owner is checked again by its next packet.
        unsafe { (&raw mut (*self.place).ifindex).write(ifindex) };
    }

    /// The interface that packets of this direction leave by and the largest IP packet that it takes, if they were found
    /// for a packet from interface `from` and the routes have not changed since.
    #[inline(always)]
    pub fn way(&self, routes: &Routes, from: u32) -> Option<(u32, u32)> {
        let flow = &*self.flow;
        (flow.way == flow.way(routes, from) && flow.seen < routes.until).then_some((flow.out, flow.mtu))
    }

    /// Notes that way. `routes`: as they were before it was looked for.
    #[inline(always)]
    pub fn set_way(&mut self, routes: &Routes, from: u32, out: u32, mtu: u32) {
        if self.place.is_null() {
            return;
        }
        self.flow.out = out;
        self.flow.mtu = mtu;
        let way = self.flow.way(routes, from);
        // SAFETY: as in `touch`; `way` does not fit another flow, nor a half of this.
        unsafe {
            (&raw mut (*self.place).out).write(out);
            (&raw mut (*self.place).mtu).write(mtu);
            (&raw mut (*self.place).way).write(way);
        }
    }
}

#[inline(always)]
fn is_stale(flow: &Flow) -> bool {
    if flow.backend == 0 {
        return false;
    }
    match BACKENDS.get(flow.backend) {
        // What was put down is free a moment later: nobody waits for that.
        Some(backend) => {
            backend.generation != flow.generation
                || !matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING)
        }
        None => true,
    }
}

/// Copies what is at `place`, then asks whether it is all of one piece.
#[inline(always)]
fn sound<'a>(place: Option<*mut Flow>, key: &Tuple, copy: &'a mut Flow) -> Option<Entry<'a>> {
    let place = place?;
    // SAFETY: the place of an element of a map; a flow is whole words. (Copied as one thing, LLVM would call a function
    // that copies byte by byte.)
    unsafe {
        let (from, to) = (place.cast::<u64>(), (&raw mut *copy).cast::<u64>());
        let mut word = 0;
        while word < size_of::<Flow>() / 8 {
            to.add(word).write(from.add(word).read_volatile());
            word += 1;
        }
    }
    if copy.check == copy.sum(key) { Some(Entry { flow: copy, place }) } else { None }
}

/// The entry of an answered flow under `key`, copied to `copy`.
#[inline(always)]
pub fn established<'a>(key: &Tuple, copy: &'a mut Flow) -> Option<Entry<'a>> {
    sound(CT.get_ptr_mut(key), key, copy)
}

/// The entry of a flow that was not answered, under `key`, copied to `copy`.
#[inline(always)]
pub fn unanswered<'a>(key: &Tuple, copy: &'a mut Flow) -> Option<Entry<'a>> {
    sound(CT_NEW.get_ptr_mut(key), key, copy)
}

/// The entry that a packet belongs to, copied to `copy`. A TCP segment that neither begins nor answers nor breaks off a
/// connection belongs to an answered flow, but for the rarest: those are [`unanswered`], asked for once it is clear
/// that the packet is for a service.
#[inline(always)]
pub fn of<'a>(packet: &Packet, copy: &'a mut Flow) -> Option<Entry<'a>> {
    let place = match CT.get_ptr_mut(&packet.tuple) {
        None if !packet.is_segment() => CT_NEW.get_ptr_mut(&packet.tuple),
        place => place,
    };
    sound(place, &packet.tuple, copy)
}

/// The entry under `key`, copied to `copy`.
#[inline(always)]
pub fn find<'a>(key: &Tuple, copy: &'a mut Flow) -> Option<Entry<'a>> {
    let place = match CT.get_ptr_mut(key) {
        Some(place) => place,
        None => CT_NEW.get_ptr_mut(key)?,
    };
    sound(Some(place), key, copy)
}

/// The flags of the entry under `key`, and the key of the other one.
#[inline(never)]
fn peek(key: &Tuple, copy: &mut Flow) -> bool {
    find(key, copy).is_some()
}

/// Has the connection ended: both sides have said all, or one has broken it off? (Of one whose replies go another way
/// only the client is heard.)
#[inline(always)]
fn closed(ours: u32, peers: u32) -> bool {
    (ours | peers) & CT_RST != 0
        || ours & peers & CT_FIN != 0
        || ours & CT_ENTRY != 0 && ours & CT_DSR != 0 && ours & CT_FIN != 0
}

/// May a new connection take the place of this one?
#[inline(never)]
pub fn is_over(flow: &Flow) -> bool {
    if is_stale(flow) || flow.flags & CT_RST != 0 {
        return true;
    }
    let Some(over) = maps::over() else { return true };
    over.key = flow.peer();
    peek(&over.key, &mut over.peer) && closed(flow.flags, over.peer.flags)
}

/// Forgets the flow whose entry under `key` is `flow`.
#[inline(never)]
pub fn remove(key: &Tuple, flow: &Flow) {
    let Some(peer) = maps::removed_key() else { return };
    *peer = flow.peer();
    let _ = CT.remove(key);
    let _ = CT.remove(&*peer);
    let _ = CT_NEW.remove(key);
    let _ = CT_NEW.remove(&*peer);
}

/// An unanswered flow's reply entry may have been displaced: puts it back. The key of the requests is `key`.
#[inline(never)]
pub fn restore_peer(key: &Tuple, flow: &Flow) {
    let peer = flow.peer();
    if CT_NEW.get_ptr(&peer).is_some() {
        return;
    }
    let Some(reply) = maps::mirror() else { return };
    mirror(key, flow, CT_REPLY, reply);
    let _ = CT_NEW.insert(&peer, &*reply, BPF_NOEXIST.into());
}

/// Fills in `check`. Not inlined: with all words of two tuples at hand the compiler needs 300 bytes of stack.
#[inline(never)]
fn seal(key: &Tuple, flow: &mut Flow) {
    flow.check = flow.sum(key);
}

/// Makes `other` the other entry of the flow whose entry under `key` is `flow`.
#[inline(never)]
fn mirror(key: &Tuple, flow: &Flow, flags: u32, other: &mut Flow) {
    other.to = key.reversed();
    other.backend = flow.backend;
    other.generation = flow.generation;
    other.service = flow.service;
    other.flags = flow.flags & !(CT_REPLY | CT_FIN | CT_RST) | flags;
    other.node = flow.node;
    other.ifindex = 0;
    other.seen = flow.seen;
    other.packets = 0;
    other.bytes = 0;
    other.out = 0;
    other.mtu = 0;
    other.way = 0;
    let Some(peer) = maps::mirror_key() else { return };
    *peer = flow.peer();
    seal(peer, other);
}

/// The first reply of a flow: moves it to `ct`. False: there is no room.
#[inline(never)]
pub fn answered(key: &Tuple, reply: &mut Flow) -> bool {
    let Some(request) = maps::mirror() else { return false };
    let Some(old) = maps::other() else { return false };
    let request_key = reply.peer();
    reply.flags |= CT_ANSWERED;
    mirror(key, reply, 0, request);
    if let Some(entry) = sound(CT_NEW.get_ptr_mut(&request_key), &request_key, old) {
        request.flags |= entry.flow.flags & (CT_FIN | CT_RST);
        request.ifindex = entry.flow.ifindex;
        request.seen = entry.flow.seen;
        request.packets = entry.flow.packets;
        request.bytes = entry.flow.bytes;
    }
    if CT.insert(&request_key, &*request, BPF_ANY.into()).is_err() {
        count(Counter::DropCtFull);
        events::note(Counter::DropCtFull);
        return false;
    }
    if CT.insert(key, &*reply, BPF_ANY.into()).is_err() {
        let _ = CT.remove(&request_key);
        count(Counter::DropCtFull);
        events::note(Counter::DropCtFull);
        return false;
    }
    let _ = CT_NEW.remove(key);
    let _ = CT_NEW.remove(&request_key);
    true
}

/// Moves a flow whose replies are not to be seen here to `ct`, at a packet which shows that there was one. Without room
/// there it stays where it is.
#[inline(never)]
pub fn confirmed(key: &Tuple, request: &mut Flow) {
    let Some(reply) = maps::mirror() else { return };
    let reply_key = request.peer();
    request.flags |= CT_ANSWERED;
    mirror(key, request, CT_REPLY, reply);
    if CT.insert(&reply_key, &*reply, BPF_ANY.into()).is_err() {
        return;
    }
    if CT.insert(key, &*request, BPF_ANY.into()).is_err() {
        let _ = CT.remove(&reply_key);
        return;
    }
    let _ = CT_NEW.remove(key);
    let _ = CT_NEW.remove(&reply_key);
}

/// Is the tuple of the replies another living flow's? One that is over is forgotten.
#[inline(never)]
fn occupied(reply_key: &Tuple, key: &Tuple) -> bool {
    let Some(other) = maps::other() else { return true };
    if reply_key == key {
        // Sent to itself: requests could not be told from replies.
        return true;
    }
    if !peek(reply_key, other) {
        return false;
    }
    if other.flags & CT_REPLY != 0 && other.peer() == *key {
        // What was left of a flow of this very client.
        return false;
    }
    if is_over(other) {
        remove(reply_key, other);
        return false;
    }
    true
}

/// Enters a flow: its packets under `key` become `flow.to`. If another flow has the tuple of the replies, the
/// source port of `flow.to` is changed to one of `ports` (law 4: the client's address stays). False: none was
/// free. `packet`: the first one, which is counted.
#[inline(never)]
pub fn insert(packet: &Packet, flow: &mut Flow, ports: &Ports, config: &Config) -> bool {
    let key = &packet.tuple;
    flow.seen = coarse_now(config);
    flow.packets = 1;
    flow.bytes = packet.len.into();
    flow.out = 0;
    flow.mtu = 0;
    flow.way = 0;
    if !ports.always && enter(key, flow) {
        return true;
    }
    if ports.count == 0 {
        return false;
    }
    // Rare, so a call per port: the verifier walks through it once.
    let mut trial =
        Trial { key, flow, first: ports.first, count: ports.count, hash: random(config), entered: false };
    // SAFETY: `another_port` is called with this very pointer, while `trial` lives.
    unsafe { bpf_loop(PORTS, another_port as *mut c_void, (&raw mut trial).cast(), 0) };
    trial.entered
}

/// Looking for a source port.
struct Trial<'a> {
    key: &'a Tuple,
    flow: &'a mut Flow,
    first: u32,
    count: u32,
    hash: u32,
    entered: bool,
}

extern "C" fn another_port(i: u32, trial: *mut Trial<'_>) -> i64 {
    // SAFETY: `insert` passes its own, exclusively.
    let trial = unsafe { &mut *trial };
    let at = trial.hash.wrapping_add(i.wrapping_mul(0x9e37_79b9));
    let port = trial.first + ((u64::from(at) * u64::from(trial.count)) >> 32) as u32;
    trial.flow.to.sport = (port as u16).to_be();
    trial.entered = enter(trial.key, trial.flow);
    i64::from(trial.entered)
}

/// Enters the flow as it is, unless another has the tuple of its replies.
#[inline(never)]
fn enter(key: &Tuple, flow: &mut Flow) -> bool {
    let Some(reply) = maps::mirror() else { return false };
    let Some(reply_key) = maps::reply_key() else { return false };
    *reply_key = flow.peer();
    if occupied(reply_key, key) {
        return false;
    }
    seal(key, flow);
    mirror(key, flow, CT_REPLY, reply);
    if CT_NEW.insert(&*reply_key, &*reply, BPF_NOEXIST.into()).is_err() {
        // Ours of earlier, or another's of this very moment.
        if occupied(reply_key, key) || CT_NEW.insert(&*reply_key, &*reply, BPF_ANY.into()).is_err() {
            return false;
        }
    }
    if CT_NEW.insert(key, &*flow, BPF_ANY.into()).is_err() {
        return false;
    }
    count(Counter::FlowNew);
    events::flow(key, flow);
    true
}
