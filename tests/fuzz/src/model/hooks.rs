//! Which packets each hook takes for a service's.

use heddle_bpf::TcHook;
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_OVERLAY, CT_DSR, CT_ENTRY, CT_HOST, CT_OWN, CT_TUNNEL,
    Counter, FRONTEND_EXTERNAL, MESH_DSR, MESH_REPLY, MESH_REQUEST, NODE_SELF,
};

use super::begin::{Origin, own_device};
use super::choose::Found;
use super::send::Mesh;
use super::{Back, Flow, MARK_ENTRY, MARK_HOST, Model, Outcome, Stimulus, pass};
use crate::make;
use crate::place::{Dev, route};
use crate::wire::{Packet, Seen, read};

impl Model {
    /// What becomes of this packet.
    pub fn packet(&mut self, stimulus: &Stimulus) -> Outcome {
        self.back = Back::Device;
        match stimulus.hook {
            TcHook::Pod => self.at_pod(stimulus),
            TcHook::PodOut => self.at_pod_out(stimulus),
            TcHook::UnderlayIn => self.at_underlay_in(stimulus),
            TcHook::UnderlayOut => self.at_underlay_out(stimulus),
            TcHook::OverlayIn => self.at_overlay_in(stimulus),
        }
    }

    /// `Err`: it is no flow's, and this becomes of it. `clients`: whoever sends here may ask for services.
    fn read(&mut self, stimulus: &Stimulus, clients: bool) -> Result<Packet, Outcome> {
        match read(&stimulus.frame, stimulus.gso != 0, |key| self.frags.get(key).copied()) {
            Seen::Flow(packet) => Ok(packet),
            Seen::Protocol(packet)
                if stimulus.hook == TcHook::Pod
                    && matches!(packet.tuple.proto, 4 | 41 | 47)
                    && self.table.known(packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY) =>
            {
                // Packets in packets, from a pod to a node.
                Err(self.drop(Counter::DropSpoofed))
            }
            Seen::Protocol(packet) if clients && self.table.known(packet.tuple.dst).is(ADDR_CLUSTER_IP) => {
                Err(if self.back == Back::Own && self.table.known(packet.tuple.src).node != NODE_SELF {
                    pass(stimulus)
                } else {
                    self.undefined_protocol(stimulus, &packet)
                })
            }
            Seen::Foreign | Seen::Protocol(_) => Err(pass(stimulus)),
            Seen::Malformed => Err(self.drop(Counter::DropMalformed)),
        }
    }

    /// UDP to the port of VXLAN.
    fn is_vxlan(&self, packet: &Packet) -> bool {
        packet.is_udp() && packet.tuple.dport == self.table.config.vxlan_port.to_be()
    }

    fn at_pod(&mut self, stimulus: &Stimulus) -> Outcome {
        if stimulus.mark == MARK_HOST {
            // An answer to a process of the host that talked to this pod: it goes on into the stack.
            return Outcome { mark: 0, ..pass(stimulus) };
        }
        let packet = match self.read(stimulus, true) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet) && self.table.known(packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY) {
            // Pods do not talk as nodes do.
            return self.drop(Counter::DropSpoofed);
        }
        let device = stimulus.dev.ifindex();
        if let Some((id, is_reply)) = self.flows.of(&packet) {
            // The pod that a direction comes from is noted once it was seen to own the source.
            if self.flows.get_mut(id).side(is_reply).ifindex != device {
                if !owns_source(stimulus.dev, &packet) {
                    return self.drop(Counter::DropSpoofed);
                }
                self.flows.get_mut(id).side(is_reply).ifindex = device;
            }
            if is_reply {
                return self.reply(stimulus, &packet, id);
            }
            if let Some(outcome) = self.request(stimulus, &packet, id) {
                return outcome;
            }
        }
        match self.frontend(&packet, false) {
            Found::Frontend(front) => {
                if !owns_source(stimulus.dev, &packet) {
                    return self.drop(Counter::DropSpoofed);
                }
                self.begin(stimulus, &packet, &front, Origin::Pod)
            }
            Found::Undefined => self.unreachable(stimulus, &packet, Counter::RejectUndefined),
            Found::Nothing if self.is_settling() && packet.is_connected() && !packet.is_syn() => {
                self.drop(Counter::DropNoFlow)
            }
            Found::Nothing => self.beside(stimulus, &packet),
        }
    }

    /// Replies of processes in the host network to pods.
    fn at_pod_out(&mut self, stimulus: &Stimulus) -> Outcome {
        // Where there never was such a flow nothing is looked at.
        if !self.host_flows || stimulus.done {
            return pass(stimulus);
        }
        let packet = match self.read(stimulus, false) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        self.back = Back::Own;
        match self.flows.find(&packet.tuple) {
            Some((id, true)) if self.flows.get(id).has(CT_HOST) => self.host_reply(stimulus, &packet, id),
            _ => pass(stimulus),
        }
    }

    fn host_reply(&mut self, stimulus: &Stimulus, packet: &Packet, id: u32) -> Outcome {
        if let Err(outcome) = self.known_reply(stimulus, packet, id) {
            return outcome;
        }
        let flow = self.flows.get(id).clone();
        let to = flow.from.reversed();
        if flow.has(CT_TUNNEL) {
            return self.by_tunnel(stimulus, packet, &to, flow.node, Mesh::Reply);
        }
        match own_device(&flow) {
            Some(dev) => self.deliver_by(stimulus, packet, &to, dev),
            None => self.deliver(stimulus, packet, &to, flow.has(CT_DSR)),
        }
    }

    fn at_underlay_in(&mut self, stimulus: &Stimulus) -> Outcome {
        if stimulus.mark == MARK_HOST {
            // Translated already: it goes on into the stack.
            return Outcome { mark: 0, ..pass(stimulus) };
        }
        let packet = match self.read(stimulus, true) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet)
            && self.table.config.vxlan_ifindex != 0
            && self.table.known(packet.tuple.dst).node == NODE_SELF
        {
            return self.vxlan(stimulus, &packet);
        }
        if self.passes_by(&packet) {
            return pass(stimulus);
        }
        if let Some((id, is_reply)) = self.flows.of(&packet) {
            if is_reply {
                // Of a backend that `snat` reached by the underlay; others come by other ways.
                let config = &self.table.config;
                let own = if packet.v4 { config.underlay4 } else { config.underlay6 };
                return if packet.tuple.dst == own {
                    self.reply(stimulus, &packet, id)
                } else {
                    pass(stimulus)
                };
            }
            if self.is_spoofed(self.flows.get(id), &packet) {
                return self.drop(Counter::DropSpoofed);
            }
            if let Some(outcome) = self.request(stimulus, &packet, id) {
                return outcome;
            }
        }
        match self.frontend(&packet, true) {
            Found::Frontend(front) if front.flags & FRONTEND_EXTERNAL != 0 => {
                self.begin(stimulus, &packet, &front, Origin::Outside)
            }
            Found::Undefined => self.unreachable(stimulus, &packet, Counter::RejectUndefined),
            _ => pass(stimulus),
        }
    }

    /// Where there are no external addresses, ports tell what is for no service and no answer to `snat`.
    fn passes_by(&self, packet: &Packet) -> bool {
        let port = u16::from_be(packet.tuple.dport);
        let externals = self.table.addrs.values().any(|known| known.is(ADDR_EXTERNAL));
        let known = make::ports().any(|ports| ports.contains(&port));
        !externals && !known && !self.table.known(packet.tuple.dst).is(ADDR_CLUSTER_IP)
    }

    /// Does a request from outside pretend to be one of a pod of this node, of the node itself, or one that another
    /// node sends? (An external address is every node's: a client may come by another node than before.)
    pub(super) fn is_spoofed(&self, flow: &Flow, packet: &Packet) -> bool {
        let tunnelled = flow.has(CT_TUNNEL | CT_DSR) && !flow.has(CT_ENTRY);
        flow.request.ifindex != 0
            || flow.has(CT_OWN)
            || (tunnelled && self.table.known(packet.tuple.dst).is(ADDR_NODE))
    }

    /// Replies of processes in the host network; what the node itself asks of services, past the socket hooks.
    fn at_underlay_out(&mut self, stimulus: &Stimulus) -> Outcome {
        if stimulus.done {
            return pass(stimulus);
        }
        self.back = Back::Own;
        let packet = match self.read(stimulus, true) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet) {
            return pass(stimulus);
        }
        if (self.own_flows || self.host_flows)
            && let Some((id, is_reply)) = self.flows.find(&packet.tuple)
        {
            let flow = self.flows.get(id);
            match is_reply {
                true if flow.has(CT_HOST) => return self.host_reply(stimulus, &packet, id),
                false if flow.has(CT_OWN) => {
                    if let Some(outcome) = self.request(stimulus, &packet, id) {
                        return outcome;
                    }
                }
                _ => return pass(stimulus),
            }
        }
        if packet.is_connected() && !packet.is_syn() {
            return if self.is_settling() { self.drop(Counter::DropNoFlow) } else { pass(stimulus) };
        }
        let found = self.frontend(&packet, false);
        if found == Found::Nothing || self.table.known(packet.tuple.src).node != NODE_SELF {
            return pass(stimulus);
        }
        match found {
            Found::Frontend(front) => self.begin(stimulus, &packet, &front, Origin::Own),
            _ => self.unreachable(stimulus, &packet, Counter::RejectUndefined),
        }
    }

    fn at_overlay_in(&mut self, stimulus: &Stimulus) -> Outcome {
        let packet = match self.read(stimulus, false) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        let mark = [stimulus.frame[6], stimulus.frame[7]];
        if mark == MESH_REQUEST || mark == MESH_DSR {
            return self.mesh_request(stimulus, &packet, mark == MESH_DSR);
        }
        let known = match self.flows.of(&packet) {
            Some((id, true)) => {
                let flow = self.flows.get(id);
                // With the mark: of a request that went through the tunnel. Without: of a pod that asked a pod, or of
                // a client for whom `snat` asked.
                let fits = if mark == MESH_REPLY {
                    flow.has(CT_ENTRY)
                } else {
                    !flow.has(CT_ENTRY | CT_TUNNEL | CT_DSR | CT_HOST)
                };
                fits.then_some(id)
            }
            _ => None,
        };
        match known {
            Some(id) => self.reply(stimulus, &packet, id),
            None if mark == MESH_REPLY => self.drop(Counter::DropUnknownTunnel),
            None => pass(stimulus),
        }
    }

    /// A request that another node has chosen a backend of this one for.
    fn mesh_request(&mut self, stimulus: &Stimulus, packet: &Packet, direct: bool) -> Outcome {
        // Which node it was, the address says; of an external one, what was noted of the sender.
        let owner = self.table.known(packet.tuple.dst);
        let noted = stimulus.mark & 0xff00_0000 == MARK_ENTRY;
        let mut stimulus = stimulus.clone();
        let entry = if owner.is(ADDR_EXTERNAL) && noted {
            stimulus.mark &= 0x00ff_ffff;
            std::mem::take(&mut stimulus.mark)
        } else if owner.is(ADDR_NODE) {
            owner.node
        } else {
            NODE_SELF
        };
        if entry == NODE_SELF {
            return self.drop(Counter::DropUnknownTunnel);
        }
        self.back = Back::Node(entry);
        let [a, b, c, d] = [8, 9, 10, 11].map(|at| stimulus.frame[at]);
        let origin = Origin::Tunnel { entry, hash: u32::from_be_bytes([a, b, c, d]), direct };
        if let Some((id, is_reply)) = self.flows.of(packet) {
            let flow = self.flows.get(id);
            if is_reply || !flow.has(CT_TUNNEL | CT_DSR) || flow.has(CT_ENTRY) {
                return self.drop(Counter::DropUnknownTunnel);
            }
            if let Some(outcome) = self.request(&stimulus, packet, id) {
                return outcome;
            }
        }
        match self.frontend(packet, false) {
            Found::Frontend(front) => self.begin(&stimulus, packet, &front, origin),
            _ => self.drop(Counter::DropNotHere),
        }
    }
}

/// Does the source live behind this device? The way back decides.
pub(super) fn owns_source(dev: Dev, packet: &Packet) -> bool {
    route(packet.tuple.dst, packet.tuple.src) == Some(dev)
}
