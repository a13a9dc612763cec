//! What becomes of a packet of a service: of a flow that is known ([`request`], [`reply`]), and of one that
//! begins ([`begin`]).

use heddle_ebpf_common::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, Backend, CT_ANSWERED, CT_ENTRY, CT_HOST, CT_TUNNEL, ChoiceKey,
    Config, Counter, Flow, Frontend, HAIRPIN4, HAIRPIN6, ADDR_NODE, NODE_SELF, REMOTE_TUNNEL, Tuple,
};

use crate::ct::{self, Entry, Ports};
use crate::frontend::{self, Scope};
use crate::maps::{self, BACKENDS, CHOICES, NODES, config, count, note_flow};
use crate::out::{self, REPLY};
use crate::packet::{Kind, Packet};
use crate::reject::{self, From};
use crate::skb::{PASS, Skb};
use crate::time::random;

/// Where a request was met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A pod of this node sent it.
    Pod,
    /// It came in by an underlay device.
    Outside,
    /// Another node sent it through the tunnel.
    Tunnel { entry: u32, hash: u32 },
}

impl Origin {
    #[inline(always)]
    fn from(self) -> From {
        match self {
            Self::Tunnel { entry, .. } => entry,
            _ => 0,
        }
    }
}

/// A request of a flow that is known. `None`: it begins a new one.
#[inline(always)]
pub fn request(
    skb: Skb,
    packet: &mut Packet,
    entry: &mut Entry<'_>,
    origin: Origin,
    config: &Config,
) -> Option<i32> {
    // A port that is used again, or a SYN that is repeated because its backend went: nothing stands yet.
    if packet.is_syn() && packet.is_tcp() && (ct::is_over(entry.flow) || entry.is_stale()) {
        ct::remove(&packet.tuple, entry.flow);
        return None;
    }
    if entry.is_stale() {
        // TCP cannot move to another backend; a datagram can.
        if packet.is_tcp() || packet.kind == Kind::Error {
            return Some(reject::unreachable(skb, packet, origin.from(), Counter::RejectStale));
        }
        ct::remove(&packet.tuple, entry.flow);
        return None;
    }
    entry.touch(packet, config);
    let flow = &*entry.flow;
    if flow.flags & CT_ANSWERED == 0 {
        ct::restore_peer(&packet.tuple, flow);
    }
    count(Counter::Request);
    Some(forward(skb, packet, flow))
}

/// Sends a request on.
#[inline(never)]
fn forward(skb: Skb, packet: &mut Packet, flow: &Flow) -> i32 {
    if flow.flags & CT_HOST != 0 {
        return if flow.flags & CT_TUNNEL != 0 {
            out::to_host_by_underlay(skb, packet, &flow.to)
        } else {
            out::to_host(skb, packet, &flow.to)
        };
    }
    if flow.flags & CT_ENTRY != 0 {
        let hash = match BACKENDS.get(flow.backend) {
            Some(backend) => backend.hash,
            None => 0,
        };
        return out::tunnel(skb, packet, &flow.to, flow.node, hash);
    }
    out::leave(skb, packet, &flow.to)
}

/// Is it a reply that may go on? `Err`: what became of it. Moves a flow with its first reply to `ct`.
#[inline(always)]
pub fn known_reply(skb: Skb, packet: &Packet, entry: &mut Entry<'_>, config: &Config) -> Result<(), i32> {
    if entry.is_stale() {
        return Err(reject::unreachable(skb, packet, 0, Counter::RejectStale));
    }
    entry.touch(packet, config);
    if entry.flow.flags & CT_ANSWERED == 0
        && packet.kind != Kind::Error
        && !ct::answered(&packet.tuple, entry.flow)
    {
        return Err(aya_ebpf::bindings::TC_ACT_SHOT);
    }
    count(Counter::Reply);
    Ok(())
}

/// A reply of a backend on its way to the client.
#[inline(always)]
pub fn reply(skb: Skb, packet: &mut Packet, entry: &mut Entry<'_>, config: &Config) -> i32 {
    if let Err(verdict) = known_reply(skb, packet, entry, config) {
        return verdict;
    }
    let flow = &*entry.flow;
    if flow.flags & CT_TUNNEL != 0 {
        return out::tunnel(skb, packet, &flow.to, flow.node, REPLY);
    }
    out::leave(skb, packet, &flow.to)
}

/// The first packet of a flow, for a frontend that was found. `flow`: where its entry is made.
#[inline(never)]
pub fn begin(skb: Skb, packet: &mut Packet, flow: &mut Flow, frontend: &Frontend, origin: &Origin) -> i32 {
    let Some(config) = config() else { return skb.drop(Counter::DropNoFlow) };
    if packet.kind == Kind::Error || packet.kind == Kind::Later {
        return skb.drop(Counter::DropNoFlow);
    }
    if packet.is_tcp() && !packet.is_syn() {
        // The rest of a connection that nobody here knows.
        return reject::unreachable(skb, packet, origin.from(), Counter::RejectStale);
    }
    let index = match *origin {
        Origin::Pod => frontend::from_ring(frontend, random(config), packet.v4, Scope::Cluster),
        Origin::Outside => frontend::from_maglev(frontend, packet.tuple.client_hash(), packet.v4),
        Origin::Tunnel { hash, .. } => chosen(frontend, hash, packet, config),
    };
    let backend = match frontend::backend(index) {
        Some(backend) if index != 0 => backend,
        // The nodes disagree for a moment: the client asks again, and then they do not.
        _ if matches!(origin, Origin::Tunnel { .. }) => return skb.drop(Counter::DropNotHere),
        _ => return reject::unreachable(skb, packet, origin.from(), Counter::RejectNoBackend),
    };
    flow.to = packet.tuple;
    flow.backend = index;
    flow.generation = backend.generation;
    flow.service = frontend.service;
    flow.flags = 0;
    flow.node = 0;
    flow.ifindex = if *origin == Origin::Pod { skb.ifindex() } else { 0 };
    let Some(ports) = route(flow, backend, *origin, packet.v4, config) else {
        return skb.drop(Counter::DropNoOverlay);
    };
    if !ct::insert(&packet.tuple, flow, &ports, config) {
        return skb.drop(Counter::DropNoPort);
    }
    if *origin == Origin::Pod {
        note_flow(maps::Kind::Pod);
    }
    count(Counter::Request);
    forward(skb, packet, flow)
}

/// Does this packet of a pod begin something whose replies could be taken for a service's?
#[inline(always)]
pub fn may_collide(packet: &Packet) -> bool {
    packet.kind == Kind::Whole && (packet.is_syn() || !packet.is_tcp())
}

/// A pod talks to another one directly, or by a socket hook. Ports are used again for another destination: its
/// packets may have the very tuple that those of a flow of ours are translated to, and the replies would be
/// taken for that flow's. If that one is over it is forgotten; if not, this one gets another source port (law 4).
#[inline(never)]
pub fn aside(skb: Skb, packet: &mut Packet, found: &mut Flow, flow: &mut Flow) -> i32 {
    let reply_key = packet.tuple.reversed();
    let Some(entry) = ct::find(&reply_key, found) else { return PASS };
    if !entry.is_reply() {
        return PASS;
    }
    if ct::is_over(entry.flow) {
        ct::remove(&reply_key, entry.flow);
        return PASS;
    }
    let Some(config) = config() else { return PASS };
    if !out::owns_source(skb, packet) {
        return skb.drop(Counter::DropSpoofed);
    }
    flow.to = packet.tuple;
    flow.backend = 0;
    flow.generation = 0;
    flow.service = entry.flow.service;
    flow.flags = 0;
    flow.node = 0;
    flow.ifindex = skb.ifindex();
    if !ct::insert(&packet.tuple, flow, &Ports::OWN, config) {
        return skb.drop(Counter::DropNoPort);
    }
    out::leave(skb, packet, &flow.to)
}

/// The backend that the entry node chose, if it is here and lives; else another one of this node.
#[inline(always)]
fn chosen(frontend: &Frontend, hash: u32, packet: &Packet, config: &Config) -> u32 {
    // SAFETY: four bytes, written at once.
    if let Some(&index) = unsafe { CHOICES.get(ChoiceKey { service: frontend.service, hash }) }
        && let Some(backend) = BACKENDS.get(index)
        && backend.node == NODE_SELF
        && backend.hash == hash
        && (backend.state == BACKEND_ACTIVE || backend.state == BACKEND_DRAINING)
        && backend.addr.is_v4() == packet.v4
    {
        return index;
    }
    frontend::from_ring(frontend, random(config), packet.v4, Scope::Local)
}

/// Decides how the flow reaches its backend: what its packets become, by which way. Returns the source ports that
/// it may get; `None`: this node has no address to give to packets that need one.
#[inline(always)]
fn route(flow: &mut Flow, backend: &Backend, origin: Origin, v4: bool, config: &Config) -> Option<Ports> {
    let client = flow.to.src;
    let frontend = flow.to;
    flow.to.dst = backend.addr;
    flow.to.dport = backend.port;
    let host = frontend::known(&backend.addr).is_some_and(|addr| addr.is(ADDR_NODE));
    if let Origin::Tunnel { entry, .. } = origin {
        flow.flags |= CT_TUNNEL;
        flow.node = entry;
    }
    if backend.node == NODE_SELF {
        if host {
            flow.flags |= CT_HOST;
            note_flow(maps::Kind::Host);
        } else if backend.addr == client {
            flow.to.src = if v4 { HAIRPIN4 } else { HAIRPIN6 };
        }
        return Some(Ports::OWN);
    }
    let overlay = NODES.get(backend.node).is_some_and(|node| node.overlay != 0) && config.vxlan_ifindex != 0;
    let inside = backend.node != 0 && overlay && !host;
    if origin == Origin::Pod {
        // Pod to pod, as if the pod had asked for that one.
        if inside {
            return Some(Ports::OWN);
        }
    } else if config.remote == REMOTE_TUNNEL
        && backend.node != 0
        && overlay
        // The other end learns from this address who asks; an external one says nothing.
        && frontend::known(&frontend.dst).is_some_and(|addr| addr.is(ADDR_NODE))
    {
        flow.flags |= CT_ENTRY;
        flow.node = backend.node;
        flow.to = frontend;
        return Some(Ports::OWN);
    }
    // snat: the answers must come back here.
    flow.to.src = match (inside, v4) {
        (true, true) => config.overlay4,
        (true, false) => config.overlay6,
        (false, true) => config.underlay4,
        (false, false) => config.underlay6,
    };
    if flow.to.src == Addr([0; 4]) || config.snat_port_max < config.snat_port_min {
        return None;
    }
    let first = u32::from(config.snat_port_min);
    Some(Ports { first, count: u32::from(config.snat_port_max) - first + 1, always: true })
}

/// Is this the source that `snat` gives to packets into the underlay (`overlay`: into the overlay)?
#[inline(always)]
pub fn is_snat(tuple: &Tuple, overlay: bool, config: &Config) -> bool {
    let [v4, v6] =
        if overlay { [&config.overlay4, &config.overlay6] } else { [&config.underlay4, &config.underlay6] };
    tuple.dst == *if tuple.dst.is_v4() { v4 } else { v6 }
}
