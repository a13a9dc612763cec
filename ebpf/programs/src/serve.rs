//! What becomes of a packet of a service: of a flow that is known ([`request`], [`reply`]), and of one that
//! begins ([`begin`]).

use heddle_ebpf_common::decide::{Origin, Refusal, Way};
use heddle_ebpf_common::{
    Addr, Backend, CONFIG_OTHER_PROXY, CT_ANSWERED, CT_DSR, CT_ENTRY, CT_HOST, CT_OWN, CT_TUNNEL, Config,
    Counter, Flow, Frontend, HAIRPIN4, HAIRPIN6, NODE_SELF, Tuple,
};

use crate::ct::{self, Entry, Ports};
use crate::frontend::{self, REFUSED};
use crate::hooks::is_spoofed;
use crate::maps::{self, BACKENDS, config, count, count_flow, note_flow};
use crate::out::{self, DIRECT, REPLY};
use crate::packet::{ACK, Kind, Packet, SYN};
use crate::reject;
use crate::skb::{PASS, SCTP, Skb};
use crate::time::is_settling;

/// A request of a flow that is known. `None`: it begins a new one.
#[inline(always)]
pub fn request(skb: Skb, packet: &mut Packet, entry: &mut Entry<'_>, config: &Config) -> Option<i32> {
    // A port that is used again, or a SYN that is repeated because its backend went or is going: nothing stands yet.
    if packet.is_syn() && (ct::is_over(entry.flow) || entry.came_too_late()) {
        ct::remove(&packet.tuple, entry.flow);
        return None;
    }
    if entry.is_stale() {
        // TCP cannot move to another backend; a datagram can.
        if packet.is_connected() || packet.kind == Kind::Error {
            return Some(reject::unreachable(skb, packet, Counter::RejectStale));
        }
        ct::remove(&packet.tuple, entry.flow);
        return None;
    }
    note(packet, entry, config);
    Some(forward(skb, packet, entry))
}

/// Notes a request of a flow that is known.
#[inline(always)]
fn note(packet: &Packet, entry: &mut Entry<'_>, config: &Config) {
    entry.touch(packet, config);
    let flags = entry.flow.flags;
    if flags & CT_ANSWERED == 0 {
        if flags & CT_DSR != 0 && flags & CT_ENTRY != 0 && packet.flags & (SYN | ACK) == ACK {
            // The client has had an answer.
            ct::confirmed(&packet.tuple, entry.flow);
        } else {
            ct::restore_peer(&packet.tuple, entry.flow);
        }
    }
    count(Counter::Request);
}

/// Sends a request on.
#[inline(never)]
fn forward(skb: Skb, packet: &Packet, entry: &mut Entry<'_>) -> i32 {
    let flow = &*entry.flow;
    if flow.flags & CT_HOST != 0 {
        return if flow.flags & CT_OWN != 0 {
            out::to_host_by(skb, packet, &flow.to, flow.node)
        } else if flow.flags & (CT_TUNNEL | CT_DSR) != 0 {
            let Some(config) = config() else { return skb.drop(Counter::DropNoOverlay) };
            out::to_host_by(skb, packet, &flow.to, config.underlay_ifindex)
        } else {
            out::to_host(skb, packet, &flow.to)
        };
    }
    if flow.flags & CT_ENTRY != 0 {
        let hash = match BACKENDS.get(flow.backend) {
            Some(backend) => backend.hash,
            None => 0,
        };
        let direct = if flow.flags & CT_DSR != 0 { DIRECT } else { 0 };
        return out::tunnel(skb, packet, &flow.to, flow.node | direct, hash);
    }
    out::leave(skb, packet, entry)
}

/// Is it a reply that may go on? `Err`: what became of it. Moves a flow with its first reply to `ct`.
#[inline(always)]
pub fn known_reply(skb: Skb, packet: &Packet, entry: &mut Entry<'_>, config: &Config) -> Result<(), i32> {
    if entry.is_stale() {
        return Err(reject::unreachable(skb, packet, Counter::RejectStale));
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
    if flow.flags & CT_OWN != 0 {
        return out::to_host_by(skb, packet, &flow.to, flow.node);
    }
    if flow.flags & CT_DSR != 0 && flow.flags & CT_ENTRY == 0 {
        // What the client sends comes through the tunnel.
        out::clamp_to_tunnel(skb, packet, config);
    }
    out::leave(skb, packet, entry)
}

/// The first packet of a flow, for a frontend that was found. `flow`: where its entry is made.
#[inline(always)]
pub fn begin(skb: Skb, packet: &mut Packet, flow: &mut Flow, frontend: &Frontend, origin: &Origin) -> i32 {
    let verdict = enter(skb, packet, flow, frontend, origin);
    go_on(skb, packet, flow, verdict)
}

/// No verdict: the packet belongs to the flow that stands where its entry was to be made.
const ENTERED: i32 = i32::MIN;

/// Sends the packet of `flow` on, unless there is a verdict.
#[inline(always)]
pub fn go_on(skb: Skb, packet: &Packet, flow: &mut Flow, verdict: i32) -> i32 {
    if verdict == ENTERED { forward(skb, packet, &mut Entry::fresh(flow)) } else { verdict }
}

/// Makes the flow ([`ENTERED`]), or says what became of the packet.
#[inline(never)]
pub fn enter(skb: Skb, packet: &mut Packet, flow: &mut Flow, frontend: &Frontend, origin: &Origin) -> i32 {
    let Some(config) = config() else { return skb.drop(Counter::DropNoFlow) };
    if packet.kind == Kind::Error || packet.kind == Kind::Later {
        return if may_be_the_kernels(origin, config) { PASS } else { skb.drop(Counter::DropNoFlow) };
    }
    if is_settling(config) {
        return skb.drop(Counter::DropNoFlow);
    }
    if packet.is_connected() && !packet.is_syn() {
        return rest(skb, packet, flow, origin, config);
    }
    if *origin == Origin::Outside && frontend::known(&packet.tuple.src).node == NODE_SELF {
        // Nobody outside is this node.
        return skb.drop(Counter::DropSpoofed);
    }
    let choice = frontend::choose(frontend, &packet.tuple, origin, config);
    if choice & REFUSED != 0 {
        return refuse(skb, packet, choice as u32);
    }
    let mut index = choice as u32;
    if frontend.affinity != 0 && !matches!(origin, Origin::Tunnel { .. }) {
        index = frontend::settle(frontend, &packet.tuple.src, index, config);
    }
    let Some(backend) = frontend::backend(index) else {
        return refuse(skb, packet, Refusal::Reject as u32);
    };
    flow.to = packet.tuple;
    flow.backend = index;
    flow.generation = backend.generation;
    flow.service = frontend.service;
    flow.flags = 0;
    flow.node = 0;
    flow.ifindex = if *origin == Origin::Pod { skb.ifindex() } else { 0 };
    let way = frontend::way(backend, &packet.tuple.dst, &packet.tuple.src, origin, config);
    if *origin == Origin::Host {
        flow.node = skb.ifindex();
    }
    let Some(mut ports) = route(flow, backend, way, origin, config) else {
        return skb.drop(Counter::DropNoOverlay);
    };
    if packet.tuple.proto == SCTP {
        if flow.to.dport != packet.tuple.dport {
            return skb.drop(Counter::DropNoPort);
        }
        ports = Ports::NO_OTHER;
    }
    if !ct::insert(packet, flow, &ports, config) {
        return skb.drop(Counter::DropNoPort);
    }
    match *origin {
        Origin::Pod => note_flow(maps::Kind::Pod),
        Origin::Host => note_flow(maps::Kind::Own),
        _ => {}
    }
    count_flow(index);
    count(Counter::Request);
    ENTERED
}

/// Do the requests of a flow with these flags come out of the tunnel?
#[inline(always)]
fn came_by_tunnel(flags: u32) -> bool {
    flags & (CT_TUNNEL | CT_DSR) != 0 && flags & CT_ENTRY == 0
}

/// A packet of a connection that [`ct::of`] does not know: one that nobody has answered here, or nobody's. `flow`: where
/// its entry is copied to.
#[inline(always)]
fn rest(skb: Skb, packet: &Packet, flow: &mut Flow, origin: &Origin, config: &Config) -> i32 {
    if let Some(mut entry) = ct::unanswered(&packet.tuple, flow)
        && !entry.is_reply()
        && !entry.is_stale()
    {
        if *origin == Origin::Outside && is_spoofed(&entry, packet) {
            return skb.drop(Counter::DropSpoofed);
        }
        if came_by_tunnel(entry.flow.flags) == matches!(origin, Origin::Tunnel { .. }) {
            note(packet, &mut entry, config);
            return ENTERED;
        }
    }
    if may_be_the_kernels(origin, config) {
        return PASS;
    }
    reject::unreachable(skb, packet, Counter::RejectStale)
}

/// Is there another proxy, whose connection this may be? (What comes out of the tunnel is never one's: the node that sent
/// it has translated nothing.)
#[inline(always)]
fn may_be_the_kernels(origin: &Origin, config: &Config) -> bool {
    config.flags & CONFIG_OTHER_PROXY != 0 && !matches!(origin, Origin::Tunnel { .. })
}

/// Does this packet of a pod begin something whose replies could be taken for a service's?
#[inline(always)]
pub fn may_collide(packet: &Packet) -> bool {
    packet.kind == Kind::Whole && (packet.is_syn() || !packet.is_connected())
}

/// A pod talks to another one directly, or by a socket hook. Ports are used again for another destination: its
/// packets may have the very tuple that those of a flow of ours are translated to, and the replies would be
/// taken for that flow's. If that one is over it is forgotten; if not, this one gets another source port (law 4).
#[inline(never)]
pub fn aside(skb: Skb, packet: &mut Packet, found: &mut Flow, flow: &mut Flow) -> i32 {
    let Some(reply_key) = maps::aside_key() else { return PASS };
    *reply_key = packet.tuple.reversed();
    let Some(entry) = ct::find(reply_key, found) else { return PASS };
    if !entry.is_reply() {
        return PASS;
    }
    if ct::is_over(entry.flow) {
        ct::remove(reply_key, entry.flow);
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
    let ports = if packet.tuple.proto == SCTP { Ports::NO_OTHER } else { Ports::OWN };
    if !ct::insert(packet, flow, &ports, config) {
        return skb.drop(Counter::DropNoPort);
    }
    ENTERED
}

/// There is no backend for this client. `refusal`: a [`Refusal`].
#[inline(never)]
fn refuse(skb: Skb, packet: &Packet, refusal: u32) -> i32 {
    const DROP: u32 = Refusal::Drop as u32;
    const SOURCE: u32 = Refusal::Source as u32;
    const NOT_HERE: u32 = Refusal::NotHere as u32;
    match refusal {
        DROP => skb.drop(Counter::DropNoBackend),
        SOURCE => skb.drop(Counter::DropSource),
        // The client asks again, and then the nodes agree.
        NOT_HERE => skb.drop(Counter::DropNotHere),
        _ => reject::unreachable(skb, packet, Counter::RejectNoBackend),
    }
}

/// Fills in what the flow's packets become and how they go. Returns the source ports that it may get; `None`: this
/// node has no address to give to packets that need one.
#[inline(always)]
fn route(flow: &mut Flow, backend: &Backend, way: Way, origin: &Origin, config: &Config) -> Option<Ports> {
    let v4 = backend.addr.is_v4();
    match *origin {
        Origin::Tunnel { entry, dsr, .. } => {
            flow.flags |= if dsr { CT_DSR } else { CT_TUNNEL };
            flow.node = entry;
        }
        Origin::Host => flow.flags |= CT_OWN,
        _ => {}
    }
    if matches!(way, Way::Tunnel | Way::Dsr) {
        flow.flags |= if way == Way::Dsr { CT_ENTRY | CT_DSR } else { CT_ENTRY };
        flow.node = backend.node;
        return Some(Ports::OWN);
    }
    flow.to.dst = backend.addr;
    flow.to.dport = backend.port;
    match way {
        Way::Host => {
            if *origin == Origin::Host {
                // Not to itself under one address.
                flow.to.src = if v4 { HAIRPIN4 } else { HAIRPIN6 };
            }
            flow.flags |= CT_HOST;
            note_flow(maps::Kind::Host);
        }
        Way::Hairpin => flow.to.src = if v4 { HAIRPIN4 } else { HAIRPIN6 },
        Way::Snat { overlay } => {
            // The answers must come back here.
            flow.to.src = match (overlay, v4) {
                (true, true) => config.overlay4,
                (true, false) => config.overlay6,
                (false, true) => config.underlay4,
                (false, false) => config.underlay6,
            };
            if flow.to.src == Addr([0; 4]) {
                return None;
            }
            return snat_ports(config);
        }
        Way::Pod | Way::Overlay | Way::Tunnel | Way::Dsr => {}
    }
    // The kernel may use its own port for a connection to this very backend.
    if *origin == Origin::Host { snat_ports(config) } else { Some(Ports::OWN) }
}

#[inline(always)]
fn snat_ports(config: &Config) -> Option<Ports> {
    let (first, last) = (u32::from(config.snat_port_min), u32::from(config.snat_port_max));
    (first <= last).then_some(Ports { first, count: last.wrapping_sub(first) + 1, always: true })
}

/// Is this the source that `snat` gives to packets into the underlay (`overlay`: into the overlay)?
#[inline(always)]
pub fn is_snat(tuple: &Tuple, overlay: bool, config: &Config) -> bool {
    let [v4, v6] =
        if overlay { [&config.overlay4, &config.overlay6] } else { [&config.underlay4, &config.underlay6] };
    tuple.dst == *if tuple.dst.is_v4() { v4 } else { v6 }
}
