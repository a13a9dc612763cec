//! Which packets each hook takes for a service's.

use heddle_bpf::TcHook;
use heddle_ebpf_common::{
    ADDR_NODE, ADDR_OVERLAY, CT_ENTRY, CT_HOST, CT_TUNNEL, Counter, FRONTEND_EXTERNAL, MESH_REPLY,
    MESH_REQUEST, NODE_SELF,
};

use super::begin::Origin;
use super::{MARK_HOST, Model, Outcome, Stimulus, pass};
use crate::place::{Dev, route};
use crate::wire::{Packet, Seen, read};

impl Model {
    /// What becomes of this packet.
    pub fn packet(&mut self, stimulus: &Stimulus) -> Outcome {
        match stimulus.hook {
            TcHook::Pod => self.from_pod(stimulus),
            TcHook::PodOut | TcHook::UnderlayOut => self.from_host(stimulus),
            TcHook::UnderlayIn => self.from_outside(stimulus),
            TcHook::OverlayIn => self.from_tunnel(stimulus),
        }
    }

    /// `Err`: it is no flow's, and this becomes of it.
    fn read(&mut self, stimulus: &Stimulus) -> Result<Packet, Outcome> {
        match read(&stimulus.frame, |key| self.frags.get(key).copied()) {
            Seen::Flow(packet) => Ok(packet),
            Seen::Foreign => Err(pass(stimulus)),
            Seen::Malformed => Err(self.drop(Counter::DropMalformed)),
        }
    }

    /// UDP to the port of VXLAN.
    fn is_vxlan(&self, packet: &Packet) -> bool {
        packet.is_udp() && packet.tuple.dport == self.table.config.vxlan_port.to_be()
    }

    fn from_pod(&mut self, stimulus: &Stimulus) -> Outcome {
        let packet = match self.read(stimulus) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet) && self.table.known(packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY) {
            // Pods do not talk as nodes do.
            return self.drop(Counter::DropSpoofed);
        }
        let device = stimulus.dev.ifindex();
        if let Some((id, is_reply)) = self.flows.find(&packet.tuple) {
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
            if let Some(outcome) = self.request(stimulus, &packet, id, Origin::Pod) {
                return outcome;
            }
        }
        if let Some(front) = self.frontend(&packet, false) {
            if !owns_source(stimulus.dev, &packet) {
                return self.drop(Counter::DropSpoofed);
            }
            return self.begin(stimulus, &packet, &front, Origin::Pod);
        }
        self.beside(stimulus, &packet)
    }

    /// Replies of processes in the host network.
    fn from_host(&mut self, stimulus: &Stimulus) -> Outcome {
        // Where there never was such a flow nothing is looked at.
        if !self.host_flows || stimulus.done {
            return pass(stimulus);
        }
        let packet = match self.read(stimulus) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet) {
            return pass(stimulus);
        }
        let Some((id, true)) = self.flows.find(&packet.tuple) else { return pass(stimulus) };
        if !self.flows.get(id).has(CT_HOST) {
            return pass(stimulus);
        }
        if let Err(outcome) = self.known_reply(stimulus, &packet, id) {
            return outcome;
        }
        let flow = self.flows.get(id).clone();
        if flow.has(CT_TUNNEL) {
            return self.by_tunnel(stimulus, &packet, &flow.from.reversed(), flow.node, None);
        }
        self.to_stack(stimulus, &packet, &flow.from.reversed())
    }

    fn from_outside(&mut self, stimulus: &Stimulus) -> Outcome {
        if stimulus.mark == MARK_HOST {
            // Out of the tunnel, translated: it goes on into the stack.
            return Outcome { mark: 0, ..pass(stimulus) };
        }
        let packet = match self.read(stimulus) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        if self.is_vxlan(&packet)
            && self.table.config.vxlan_ifindex != 0
            && self.table.known(packet.tuple.dst).node == NODE_SELF
        {
            return self.vxlan(stimulus, &packet);
        }
        if let Some((id, is_reply)) = self.flows.find(&packet.tuple) {
            let flow = self.flows.get(id);
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
            if flow.request.ifindex != 0 || flow.has(CT_TUNNEL) {
                // A flow of a pod of this node, or one that another node sends us.
                return self.drop(Counter::DropSpoofed);
            }
            if let Some(outcome) = self.request(stimulus, &packet, id, Origin::Outside) {
                return outcome;
            }
        }
        match self.frontend(&packet, true) {
            Some(front) if front.flags & FRONTEND_EXTERNAL != 0 => {
                self.begin(stimulus, &packet, &front, Origin::Outside)
            }
            _ => pass(stimulus),
        }
    }

    fn from_tunnel(&mut self, stimulus: &Stimulus) -> Outcome {
        let packet = match self.read(stimulus) {
            Ok(packet) => packet,
            Err(outcome) => return outcome,
        };
        let mark = [stimulus.frame[6], stimulus.frame[7]];
        if mark == MESH_REQUEST {
            return self.mesh_request(stimulus, &packet);
        }
        let known = match self.flows.find(&packet.tuple) {
            Some((id, true)) => {
                let flow = self.flows.get(id);
                // With the mark: of a request that went through the tunnel. Without: of a pod that asked a pod, or of
                // a client for whom `snat` asked.
                let fits = if mark == MESH_REPLY {
                    flow.has(CT_ENTRY)
                } else {
                    !flow.has(CT_ENTRY | CT_TUNNEL | CT_HOST)
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
    fn mesh_request(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        let owner = self.table.known(packet.tuple.dst);
        if !owner.is(ADDR_NODE) || owner.node == NODE_SELF {
            return self.drop(Counter::DropUnknownTunnel);
        }
        let [a, b, c, d] = [8, 9, 10, 11].map(|at| stimulus.frame[at]);
        let origin = Origin::Tunnel { entry: owner.node, hash: u32::from_be_bytes([a, b, c, d]) };
        if let Some((id, is_reply)) = self.flows.find(&packet.tuple) {
            if is_reply || !self.flows.get(id).has(CT_TUNNEL) {
                return self.drop(Counter::DropUnknownTunnel);
            }
            if let Some(outcome) = self.request(stimulus, packet, id, origin) {
                return outcome;
            }
        }
        match self.frontend(packet, false) {
            Some(front) => self.begin(stimulus, packet, &front, origin),
            None => self.drop(Counter::DropNotHere),
        }
    }
}

/// Does the source live behind this device? The way back decides.
pub(super) fn owns_source(dev: Dev, packet: &Packet) -> bool {
    route(packet.tuple.src) == Some(dev)
}
