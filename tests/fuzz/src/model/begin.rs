//! Flows: those that are known, and those that begin.

use heddle_ebpf_common::{
    ADDR_EXTERNAL, ADDR_NODE, Addr, BACKEND_ACTIVE, BACKEND_DRAINING, Backend, CONFIG_OTHER_PROXY, CT_DSR,
    CT_ENTRY, CT_HOST, CT_OWN, CT_TUNNEL, Counter, HAIRPIN4, HAIRPIN6, NODE_SELF, REMOTE_DSR, REMOTE_SNAT,
    Tuple,
};

use super::choose::Refused;
use super::flows::{Flow, Side};
use super::hooks::owns_source;
use super::send::Mesh;
use super::{Model, Outcome, Stimulus, pass};
use crate::place::Dev;
use crate::table::Front;
use crate::wire::{ACK, FIN, Kind, Packet, RST, SCTP, SYN};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Pod,
    /// This node itself, by a packet that no socket hook saw.
    Own,
    Outside,
    /// Another node, which has chosen the backend with this hash. `direct`: the client is answered directly.
    Tunnel {
        entry: u32,
        hash: u32,
        direct: bool,
    },
}

/// Source ports that are tried.
const PORTS: u32 = 16;

/// The source ports that a flow may get, if the client's own cannot be kept.
#[derive(Clone, Copy)]
struct Ports {
    first: u16,
    last: u16,
    keep: bool,
}

/// The client's own, else any that is not privileged.
const ANY_PORT: Ports = Ports { first: 1024, last: u16::MAX, keep: true };

/// The device by which answers go to the node itself, if it is the client.
pub(super) fn own_device(flow: &Flow) -> Option<Dev> {
    Dev::ALL.into_iter().find(|dev| flow.has(CT_OWN) && dev.ifindex() == flow.node)
}

impl Model {
    /// Is the backend gone: its slot put down, free or another's?
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let lives = |backend: &Backend| {
            backend.generation == flow.generation
                && matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING)
        };
        flow.backend != 0 && !self.table.backend(flow.backend).is_some_and(lives)
    }

    /// May another take its place?
    fn is_over(&self, flow: &Flow) -> bool {
        self.is_stale(flow) || flow.is_closed()
    }

    /// Notes what this packet says about its flow.
    fn touch(&mut self, packet: &Packet, id: u32, is_reply: bool) {
        if packet.is_error() {
            return;
        }
        let now = self.now();
        let side = self.flows.get_mut(id).side(is_reply);
        side.seen = now;
        side.packets += 1;
        side.bytes += packet.size() as u64;
        side.fin |= packet.flags & FIN != 0;
        side.rst |= packet.flags & RST != 0;
    }

    /// A request of a flow that is known; `None`: it begins another one.
    pub(super) fn request(&mut self, stimulus: &Stimulus, packet: &Packet, id: u32) -> Option<Outcome> {
        let flow = self.flows.get(id);
        let (stale, over) = (self.is_stale(flow), self.is_over(flow));
        let draining = |backend: &Backend| backend.state == BACKEND_DRAINING;
        let too_late =
            !flow.answered && flow.backend != 0 && self.table.backend(flow.backend).is_some_and(draining);
        if packet.is_syn() && (over || too_late) {
            self.flows.remove(id);
            return None;
        }
        if stale {
            // TCP is told, it never moves. A datagram moves.
            if packet.is_connected() || packet.is_error() {
                return Some(self.unreachable(stimulus, packet, Counter::RejectStale));
            }
            self.flows.remove(id);
            return None;
        }
        Some(self.goes_on(stimulus, packet, id))
    }

    /// A request of a flow that stands.
    fn goes_on(&mut self, stimulus: &Stimulus, packet: &Packet, id: u32) -> Outcome {
        self.touch(packet, id, false);
        let flow = self.flows.get(id);
        // Where the replies go another way, what the client says shows that there was one.
        let confirms = flow.has(CT_DSR) && flow.has(CT_ENTRY) && packet.flags & (SYN | ACK) == ACK;
        if confirms && !flow.answered && self.has_room() {
            let now = self.now();
            let flow = self.flows.get_mut(id);
            (flow.answered, flow.reply.seen) = (true, now);
        }
        self.count(Counter::Request);
        self.forward(stimulus, packet, id)
    }

    fn forward(&mut self, stimulus: &Stimulus, packet: &Packet, id: u32) -> Outcome {
        let flow = self.flows.get(id).clone();
        if flow.has(CT_HOST) {
            return match own_device(&flow) {
                Some(dev) => self.deliver_by(stimulus, packet, &flow.to, dev),
                None if flow.has(CT_TUNNEL | CT_DSR) => {
                    self.deliver_by(stimulus, packet, &flow.to, Dev::Underlay)
                }
                None => self.deliver(stimulus, packet, &flow.to, false),
            };
        }
        if flow.has(CT_ENTRY) {
            let hash = self.table.backends[flow.backend as usize].hash;
            let mesh = if flow.has(CT_DSR) { Mesh::Direct(hash) } else { Mesh::Request(hash) };
            return self.by_tunnel(stimulus, packet, &flow.to, flow.node, mesh);
        }
        self.by_route(stimulus, packet, &flow.to, false)
    }

    /// Is there room for one more answered flow?
    fn has_room(&self) -> bool {
        2 * self.flows.answered() + 2 <= self.room
    }

    /// `Err`: the reply goes no further.
    pub(super) fn known_reply(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        id: u32,
    ) -> Result<(), Outcome> {
        if self.is_stale(self.flows.get(id)) {
            return Err(self.unreachable(stimulus, packet, Counter::RejectStale));
        }
        self.touch(packet, id, true);
        if !self.flows.get(id).answered && !packet.is_error() {
            if !self.has_room() {
                return Err(self.drop(Counter::DropCtFull));
            }
            self.flows.get_mut(id).answered = true;
        }
        self.count(Counter::Reply);
        Ok(())
    }

    pub(super) fn reply(&mut self, stimulus: &Stimulus, packet: &Packet, id: u32) -> Outcome {
        if let Err(outcome) = self.known_reply(stimulus, packet, id) {
            return outcome;
        }
        let flow = self.flows.get(id);
        let (to, node) = (flow.from.reversed(), flow.node);
        if flow.has(CT_TUNNEL) {
            return self.by_tunnel(stimulus, packet, &to, node, Mesh::Reply);
        }
        if let Some(dev) = own_device(flow) {
            return self.deliver_by(stimulus, packet, &to, dev);
        }
        let clamp = flow.has(CT_DSR) && !flow.has(CT_ENTRY);
        self.by_route(stimulus, packet, &to, clamp)
    }

    /// The first packet of a flow.
    pub(super) fn begin(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        front: &Front,
        origin: Origin,
    ) -> Outcome {
        let kernels =
            self.table.config.flags & CONFIG_OTHER_PROXY != 0 && !matches!(origin, Origin::Tunnel { .. });
        if packet.is_error() || packet.kind == Kind::Later {
            return if kernels { pass(stimulus) } else { self.drop(Counter::DropNoFlow) };
        }
        if self.is_settling() {
            return self.drop(Counter::DropNoFlow);
        }
        if packet.is_segment()
            && let Some((id, false)) = self.flows.find(&packet.tuple)
            && !self.is_stale(self.flows.get(id))
        {
            // Of a connection that nobody has answered here: as of any other, the request must come from where they do.
            let flow = self.flows.get(id);
            let by_tunnel = flow.has(CT_TUNNEL | CT_DSR) && !flow.has(CT_ENTRY);
            if origin == Origin::Outside && self.is_spoofed(flow, packet) {
                return self.drop(Counter::DropSpoofed);
            }
            if by_tunnel == matches!(origin, Origin::Tunnel { .. }) {
                return self.goes_on(stimulus, packet, id);
            }
        }
        if packet.is_connected() && !packet.is_syn() {
            // The rest of a connection that nobody here knows.
            if kernels {
                return pass(stimulus);
            }
            return self.unreachable(stimulus, packet, Counter::RejectStale);
        }
        if origin == Origin::Outside && self.table.known(packet.tuple.src).node == NODE_SELF {
            // Nobody outside is this node.
            return self.drop(Counter::DropSpoofed);
        }
        let index = match self.choose(packet, front, origin) {
            Ok(index) => index,
            Err(Refused::Reject) => {
                return self.unreachable(stimulus, packet, Counter::RejectNoBackend);
            }
            Err(Refused::Drop) => return self.drop(Counter::DropNoBackend),
            Err(Refused::Source) => return self.drop(Counter::DropSource),
            // The nodes disagree for a moment; the client asks again.
            Err(Refused::NotHere) => return self.drop(Counter::DropNotHere),
        };
        if front.affinity != 0 && !matches!(origin, Origin::Tunnel { .. }) {
            let generation = self.table.backends[index as usize].generation;
            let now = self.table.config.fixed_time;
            self.affinity.insert((packet.tuple.src, front.service), (index, generation, now));
        }
        let Some((mut flow, mut ports)) = self.way(packet, index, front.service, origin) else {
            return self.drop(Counter::DropNoOverlay);
        };
        if packet.tuple.proto == SCTP {
            // Its checksum covers the ports, and nobody here computes it.
            if flow.to.dport != flow.from.dport {
                return self.drop(Counter::DropNoPort);
            }
            ports = None;
        }
        if origin == Origin::Pod {
            flow.request.ifindex = stimulus.dev.ifindex();
        }
        if origin == Origin::Own && !flow.has(CT_ENTRY) {
            flow.node = stimulus.dev.ifindex();
        }
        let Some(id) = self.enter(packet, flow, ports) else { return self.drop(Counter::DropNoPort) };
        self.pod_flows |= origin == Origin::Pod;
        self.own_flows |= origin == Origin::Own;
        *self.conns.entry(index).or_default() += 1;
        self.count(Counter::Request);
        self.forward(stimulus, packet, id)
    }

    /// How the flow reaches its backend, and the ports that it may get. `None`: it cannot.
    fn way(
        &mut self,
        packet: &Packet,
        index: u32,
        service: u32,
        origin: Origin,
    ) -> Option<(Flow, Option<Ports>)> {
        let backend = self.table.backends[index as usize];
        let config = self.table.config;
        let from = packet.tuple;
        let mut flow = Flow {
            from,
            to: Tuple { dst: backend.addr, dport: backend.port, ..from },
            backend: index,
            generation: backend.generation,
            service,
            way: 0,
            node: 0,
            answered: false,
            request: Side::default(),
            reply: Side::default(),
        };
        let hairpin = if packet.v4 { HAIRPIN4 } else { HAIRPIN6 };
        let (first, last) = (config.snat_port_min, config.snat_port_max);
        let ours = (first <= last).then_some(Ports { first, last, keep: false });
        match origin {
            Origin::Tunnel { entry, direct, .. } => {
                flow.way |= if direct { CT_DSR } else { CT_TUNNEL };
                flow.node = entry;
            }
            Origin::Own => flow.way |= CT_OWN,
            _ => {}
        }
        // A process in the host network of a node.
        let host = self.table.known(backend.addr).is(ADDR_NODE);
        // The node's own ports are the kernel's, for connections of its own.
        let ports = if origin == Origin::Own { ours } else { Some(ANY_PORT) };
        if backend.node == NODE_SELF {
            if host {
                flow.way |= CT_HOST;
                self.host_flows = true;
            }
            // To itself: the source must not be its own.
            if host && origin == Origin::Own || !host && backend.addr == from.src {
                flow.to.src = hairpin;
            }
            return ports.map(|ports| (flow, Some(ports)));
        }
        let reached = backend.node != 0 && self.table.by_tunnel(backend.node).is_some();
        let pod = reached && !host;
        if origin == Origin::Pod && pod {
            // As if the pod had asked for that one.
            return Some((flow, Some(ANY_PORT)));
        }
        // The other end must learn who asks: from a node's address, or from the outer source.
        let told = self.table.known(from.dst).is(ADDR_NODE | ADDR_EXTERNAL);
        if origin == Origin::Outside && config.remote != REMOTE_SNAT && reached && told {
            flow.way |= if config.remote == REMOTE_DSR { CT_ENTRY | CT_DSR } else { CT_ENTRY };
            flow.node = backend.node;
            flow.to = from;
            return Some((flow, Some(ANY_PORT)));
        }
        // snat: into the overlay with the address there, else with the one in the underlay.
        flow.to.src = match (pod, packet.v4) {
            (true, true) => config.overlay4,
            (true, false) => config.overlay6,
            (false, true) => config.underlay4,
            (false, false) => config.underlay6,
        };
        (flow.to.src != Addr::default()).then_some((flow, Some(ours?)))
    }

    /// Law 4: no two living flows have the same replies. Of two, the later gets another source port (without `ports` it
    /// keeps its own); one that is over makes room.
    fn enter(&mut self, packet: &Packet, mut flow: Flow, ports: Option<Ports>) -> Option<u32> {
        let now = self.now();
        (flow.request.seen, flow.reply.seen) = (now, now);
        (flow.request.packets, flow.request.bytes) = (1, packet.size() as u64);
        let kept = ports.is_none_or(|ports| ports.keep).then_some(flow.to.sport);
        // Spread by the golden ratio from a random one on.
        let random = self.table.config.fixed_random;
        let tried = ports.into_iter().flat_map(|ports| {
            let count = u64::from(ports.last - ports.first) + 1;
            (0..PORTS).map(move |i| {
                let at = u64::from(random.wrapping_add(i.wrapping_mul(0x9e37_79b9)));
                (ports.first + ((at * count) >> 32) as u16).to_be()
            })
        });
        for port in kept.into_iter().chain(tried) {
            flow.to.sport = port;
            if flow.back() == flow.from {
                // Sent to itself: requests could not be told from replies.
                continue;
            }
            if let Some((other, _)) = self.flows.find(&flow.back()) {
                if !self.is_over(self.flows.get(other)) {
                    continue;
                }
                self.flows.remove(other);
            }
            self.count(Counter::FlowNew);
            return Some(self.flows.add(flow));
        }
        None
    }

    /// A packet of a pod that is not for a service. It may have the tuple of what a flow is translated to; then the
    /// replies would be taken for that flow's.
    pub(super) fn beside(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        let begins = packet.kind == Kind::Whole && (packet.is_syn() || !packet.is_connected());
        if !self.pod_flows || !begins {
            return pass(stimulus);
        }
        let Some((id, true)) = self.flows.find(&packet.tuple.reversed()) else { return pass(stimulus) };
        if self.is_over(self.flows.get(id)) {
            self.flows.remove(id);
            return pass(stimulus);
        }
        if !owns_source(stimulus.dev, packet) {
            return self.drop(Counter::DropSpoofed);
        }
        let flow = Flow {
            from: packet.tuple,
            to: packet.tuple,
            backend: 0,
            generation: 0,
            service: self.flows.get(id).service,
            way: 0,
            node: 0,
            answered: false,
            request: Side { ifindex: stimulus.dev.ifindex(), ..Side::default() },
            reply: Side::default(),
        };
        let ports = (packet.tuple.proto != SCTP).then_some(ANY_PORT);
        let Some(id) = self.enter(packet, flow, ports) else { return self.drop(Counter::DropNoPort) };
        let to = self.flows.get(id).to;
        self.by_route(stimulus, packet, &to, false)
    }
}
