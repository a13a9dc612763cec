//! What XDP may do in place of the programs behind it: the same, at once.

use heddle_bpf::TcHook;
use heddle_ebpf_common::{Counter, MESH_DSR, MESH_REQUEST};

use super::{Model, Stimulus, Verdict};
use crate::place::{self, Dev};
use crate::rewrite::{Frame, fold, sum};
use crate::wire::ETH;

/// Ethernet, IPv4, UDP and VXLAN header.
const OUTER: usize = ETH + 20 + 8 + 8;

/// What must leave by the device that the packet came by, but for the Ethernet addresses of the hop.
#[derive(Clone, Debug)]
pub enum Sent {
    Plain(Frame),
    /// Inside VXLAN. The node is told by the inner frame, whose Ethernet addresses must be these.
    Wrapped(Frame),
}

impl Model {
    /// XDP has sent something in place of this packet: what it must be. `Err`: what must become of the packet instead.
    pub fn by_xdp(&mut self, stimulus: &Stimulus) -> Result<Sent, Verdict> {
        self.count(Counter::Xdp);
        let mut outcome = self.packet(stimulus);
        let unwrapped = outcome.verdict == Verdict::Pass;
        if unwrapped && stimulus.frame.len() > OUTER + ETH {
            // What is inside is met again when the device has unwrapped it.
            outcome = self.packet(&Stimulus {
                hook: TcHook::OverlayIn,
                dev: Dev::Overlay,
                frame: stimulus.frame[OUTER..].to_vec(),
                mark: outcome.mark,
                ..stimulus.clone()
            });
        }
        let mut frame = outcome.frame;
        match outcome.verdict {
            Verdict::To(Dev::Underlay) => Ok(Sent::Plain(frame)),
            Verdict::To(Dev::Overlay) if !unwrapped => {
                if ![MESH_REQUEST, MESH_DSR].contains(&[frame.bytes[6], frame.bytes[7]]) {
                    // Of `snat`: the kernel's device would have sent it from node to node.
                    self.count(Counter::TunnelSent);
                    let node = place::node_of(&frame.bytes);
                    frame.bytes[..6].copy_from_slice(&place::vtep_mac(node));
                    frame.bytes[6..12].copy_from_slice(&place::vtep_mac(1));
                }
                Ok(Sent::Wrapped(frame))
            }
            other => Err(other),
        }
    }
}

impl Sent {
    /// Is this what left?
    pub fn is(&self, seen: &[u8]) -> bool {
        match self {
            Self::Plain(frame) => hop(seen) && with_macs(frame, seen).is(seen),
            Self::Wrapped(frame) => {
                seen.len() > OUTER && frame.is(&seen[OUTER..]) && hop(seen) && self.outer(seen).is_some()
            }
        }
    }

    /// RFC 7348 section 5.
    fn outer(&self, seen: &[u8]) -> Option<()> {
        let Self::Wrapped(frame) = self else { return None };
        let node = (1..=place::NODES).find(|n| place::vtep_mac(*n)[..] == frame.bytes[..6])?;
        let (ip, udp) = (&seen[ETH..ETH + 20], &seen[ETH + 20..OUTER]);
        let addr = |n| place::node(true, n).as_v4().to_ne_bytes();
        let port = u16::from_be_bytes([udp[0], udp[1]]);
        // From its own length to the end of the inner packet; what a frame is filled up with does not count.
        let inner = u16::from_be_bytes([ip[2], ip[3]]).checked_sub(36)?;
        let right = seen[12..14] == [8, 0]
            && ip[0] == 0x45
            && ip[6..10] == [0x40, 0, 64, 17]
            && fold(sum(ip)) == 0xffff
            && ip[12..16] == addr(1)
            && ip[16..20] == addr(node)
            && port >= 0xc000
            && udp[2..4] == place::VXLAN_PORT.to_be_bytes()
            && u16::from_be_bytes([udp[4], udp[5]]) == inner + 16
            && udp[6..8] == [0, 0]
            && udp[8..16] == [8, 0, 0, 0, 0, 0, place::VNI as u8, 0]
            && usize::from(inner) <= frame.bytes.len();
        right.then_some(())
    }
}

/// To the neighbour that all underlay addresses have, from the device.
fn hop(seen: &[u8]) -> bool {
    seen[..6] == place::PEER_MAC && seen[6..12] != place::PEER_MAC
}

fn with_macs(frame: &Frame, seen: &[u8]) -> Frame {
    let mut frame = frame.clone();
    frame.bytes[..12].copy_from_slice(&seen[..12]);
    frame
}
