//! VXLAN packets before they are unwrapped: who may send what is inside.

use heddle_ebpf_common::{ADDR_NODE, Addr, Counter, MESH_REPLY, MESH_REQUEST, NODE_SELF};

use super::{Model, Outcome, Stimulus, pass};
use crate::wire::{ETH, Packet, addr4, addr6, be16};

impl Model {
    pub(super) fn vxlan(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        let Some(inside) = stimulus.frame.get(packet.l4 + 8..) else {
            return self.drop(Counter::DropMalformed);
        };
        let Some(header) = inside.get(..8) else { return self.drop(Counter::DropMalformed) };
        // Other networks are not ours to judge (RFC 7348 section 5).
        if header[0] & 8 == 0
            || u32::from_be_bytes([0, header[4], header[5], header[6]]) != self.table.config.vni
        {
            return pass(stimulus);
        }
        let sender = self.table.known(packet.tuple.src);
        if sender.is(ADDR_NODE) && sender.node != NODE_SELF && self.may_send(sender.node, &inside[8..]) {
            self.count(Counter::TunnelReceived);
            pass(stimulus)
        } else {
            self.drop(Counter::DropUnknownTunnel)
        }
    }

    fn may_send(&self, sender: u32, frame: &[u8]) -> bool {
        if frame.len() < ETH {
            return false;
        }
        let (src, dst) = match (be16(frame, 12), frame.len()) {
            (0x0800, ETH34..) => (addr4(frame, ETH + 12), addr4(frame, ETH + 16)),
            (0x86dd, ETH54..) => (addr6(frame, ETH + 8), addr6(frame, ETH + 24)),
            _ => return false,
        };
        match [frame[6], frame[7]] {
            // A request for a frontend of the sender (or an address of no node, which is looked for later).
            MESH_REQUEST => matches!(self.table.known(dst).node, 0) || self.table.known(dst).node == sender,
            // A reply of a frontend of this node.
            MESH_REPLY => matches!(self.table.known(src).node, 0 | NODE_SELF),
            _ => self.owner(src) == sender && self.owner(dst) == NODE_SELF,
        }
    }

    /// Whose pod's or own address this is; 0: nobody's.
    fn owner(&self, addr: Addr) -> u32 {
        self.table.range_of(addr).unwrap_or_else(|| self.table.known(addr).node)
    }
}

const ETH34: usize = 34;
const ETH54: usize = 54;
