//! VXLAN packets before they are unwrapped: who may send what is inside.

use heddle_ebpf_common::{
    ADDR_EXTERNAL, ADDR_NODE, Addr, Counter, MESH_DSR, MESH_REPLY, MESH_REQUEST, NODE_SELF,
};

use super::{MARK_ENTRY, Model, Outcome, Stimulus, pass};
use crate::wire::{ETH, Kind, Packet, addr4, addr6, be16};

/// Why a node may send a packet.
enum Right {
    Own,
    /// It is for an external address: who sent it is noted, as nothing inside tells.
    External,
}

impl Model {
    pub(super) fn vxlan(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        if matches!(packet.kind, Kind::First | Kind::Later) {
            return self.drop(Counter::DropMalformed);
        }
        let Some(inside) = stimulus.frame.get(packet.l4 + 8..) else {
            return self.drop(Counter::DropMalformed);
        };
        let Some(header) = inside.get(..8) else { return self.drop(Counter::DropMalformed) };
        // Other networks are not ours to judge (RFC 7348 section 5).
        if u32::from_be_bytes([0, header[4], header[5], header[6]]) != self.table.config.vni {
            return pass(stimulus);
        }
        // All that is reserved is zero.
        if header[..4] != [8, 0, 0, 0] || header[7] != 0 {
            return self.drop(Counter::DropMalformed);
        }
        let sender = self.table.known(packet.tuple.src);
        let right = if sender.is(ADDR_NODE) && sender.node != NODE_SELF {
            self.right(sender.node, &inside[8..])
        } else {
            None
        };
        let Some(right) = right else { return self.drop(Counter::DropUnknownTunnel) };
        self.count(Counter::TunnelReceived);
        match right {
            Right::Own => pass(stimulus),
            Right::External => Outcome { mark: MARK_ENTRY | sender.node, ..pass(stimulus) },
        }
    }

    fn right(&self, sender: u32, frame: &[u8]) -> Option<Right> {
        if frame.len() < ETH {
            return None;
        }
        let (src, dst) = match (be16(frame, 12), frame.len()) {
            (0x0800, ETH34..) => (addr4(frame, ETH + 12), addr4(frame, ETH + 16)),
            (0x86dd, ETH54..) => (addr6(frame, ETH + 8), addr6(frame, ETH + 24)),
            _ => return None,
        };
        let own = match [frame[6], frame[7]] {
            // A request for a frontend of the sender, or for an address that all nodes answer for.
            MESH_REQUEST | MESH_DSR => {
                let asked = self.table.known(dst);
                if asked.is(ADDR_EXTERNAL) {
                    return Some(Right::External);
                }
                asked.is(ADDR_NODE) && asked.node == sender
            }
            // A reply of a frontend of this node.
            MESH_REPLY => {
                let asked = self.table.known(src);
                asked.is(ADDR_EXTERNAL) || (asked.is(ADDR_NODE) && asked.node == NODE_SELF)
            }
            _ => self.owner(src) == sender && self.owner(dst) == NODE_SELF,
        };
        own.then_some(Right::Own)
    }

    /// Whose pod's or own address this is; 0: nobody's.
    fn owner(&self, addr: Addr) -> u32 {
        self.table.range_of(addr).unwrap_or_else(|| self.table.known(addr).node)
    }
}

const ETH34: usize = 34;
const ETH54: usize = 54;
