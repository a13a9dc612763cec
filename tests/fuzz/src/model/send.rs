//! The ways out, and the answers that are made in a packet's place.

use heddle_ebpf_common::{Counter, MESH_DSR, MESH_REPLY, MESH_REQUEST, Tuple};

use super::{Back, MARK_HOST, Model, Outcome, Stimulus, Verdict};
use crate::place::{Dev, bytes16, route};
use crate::rewrite::{Frame, fold, sum, translated};
use crate::wire::{ACK, ETH, FIN, ICMP, ICMP6, Kind, Packet, RST, SYN, TCP, be16};

/// Bytes that are quoted of a packet: what RFC 792 asks for at least, and so much that SCTP finds its tag.
const LEAST: usize = 28;
const QUOTE: usize = 48;

impl Model {
    /// Of a datagram that is translated, the other fragments find their ports by its first.
    fn note_fragment(&mut self, packet: &Packet) {
        if packet.kind == Kind::First {
            self.frags.insert(packet.frag_key(), [packet.tuple.sport, packet.tuple.dport]);
        }
    }

    /// To where the route leads: a redirect, which cuts nothing. `clamp`: the client's packets come through the tunnel.
    pub(super) fn by_route(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        to: &Tuple,
        clamp: bool,
    ) -> Outcome {
        let Some(dev) = route(to.src, to.dst) else { return self.drop(Counter::DropNoRoute) };
        if largest(stimulus, packet) > dev.mtu() {
            return self.too_big(stimulus, packet, dev.mtu());
        }
        // 0 is not known.
        let tunnel = Some(self.table.config.tunnel_mtu).filter(|_| clamp).unwrap_or(dev.mtu());
        self.send(stimulus, packet, to, dev.mtu().min(tunnel), dev, None)
    }

    /// To a node through the tunnel.
    pub(super) fn by_tunnel(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        to: &Tuple,
        node: u32,
        mesh: Mesh,
    ) -> Outcome {
        let Some(mac) = self.table.by_tunnel(node) else { return self.drop(Counter::DropNoOverlay) };
        let mtu = self.table.config.tunnel_mtu;
        if packet.whole_only && largest(stimulus, packet) > mtu {
            return self.too_big(stimulus, packet, mtu);
        }
        // The answers to a client's SYN may go another way.
        let clamp = if matches!(mesh, Mesh::Direct(_)) { 0 } else { mtu };
        let outcome = self.send(stimulus, packet, to, clamp, Dev::Overlay, Some((mac, mesh)));
        if matches!(outcome.verdict, Verdict::To(_)) {
            self.count(Counter::TunnelSent);
        }
        outcome
    }

    fn send(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        to: &Tuple,
        mtu: u32,
        dev: Dev,
        mesh: Option<([u8; 6], Mesh)>,
    ) -> Outcome {
        self.note_fragment(packet);
        let mss = mtu.saturating_sub(if packet.v4 { 40 } else { 60 });
        if packet.ttl <= 1 {
            return self.drop(Counter::DropTtl);
        }
        let Some(mut frame) = translated(&stimulus.frame, packet, to, mss, 1) else {
            return self.drop(Counter::DropMalformed);
        };
        if let Some((mac, mesh)) = mesh {
            put_mesh(&mut frame.bytes, mac, mesh);
        }
        Outcome {
            verdict: Verdict::To(dev),
            frame,
            mark: stimulus.mark,
            sum_stays: has_sum(&stimulus.frame, packet),
        }
    }

    /// To a process in the host network, or its answer on its way out (then `clamp` says that the client's packets come
    /// through the tunnel).
    pub(super) fn deliver(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        to: &Tuple,
        clamp: bool,
    ) -> Outcome {
        self.note_fragment(packet);
        let mtu = if clamp { self.table.config.tunnel_mtu } else { 0 };
        let mss = mtu.saturating_sub(if packet.v4 { 40 } else { 60 });
        match translated(&stimulus.frame, packet, to, mss, 0) {
            Some(frame) => Outcome {
                verdict: Verdict::Pass,
                frame,
                mark: stimulus.mark,
                sum_stays: has_sum(&stimulus.frame, packet),
            },
            None => self.drop(Counter::DropMalformed),
        }
    }

    /// The same, as if it had come in by this device of the underlay.
    pub(super) fn deliver_by(
        &mut self,
        stimulus: &Stimulus,
        packet: &Packet,
        to: &Tuple,
        dev: Dev,
    ) -> Outcome {
        let outcome = self.deliver(stimulus, packet, to, false);
        if outcome.verdict == Verdict::Drop {
            return outcome;
        }
        Outcome { verdict: Verdict::To(dev), mark: MARK_HOST, ..outcome }
    }

    /// Nobody serves this.
    pub(super) fn unreachable(&mut self, stimulus: &Stimulus, packet: &Packet, reason: Counter) -> Outcome {
        // An error is never answered (RFC 1122 section 3.2.2), nor is a RST (RFC 9293 section 3.5.2).
        if !matches!(packet.kind, Kind::Whole | Kind::First) || packet.flags & RST != 0 {
            return self.drop(Counter::DropNoFlow);
        }
        self.count(reason);
        if packet.is_tcp() {
            let bytes = reset(&stimulus.frame, packet);
            return self.answer(stimulus, bytes);
        }
        if packet.is_connected() {
            return self.no_protocol(stimulus, packet);
        }
        // Port unreachable (RFC 792; RFC 4443 section 3.1).
        let head = if packet.v4 { [3, 3] } else { [1, 4] };
        self.error(stimulus, packet, head, 0)
    }

    /// An address that only services have, and nothing that services speak.
    pub(super) fn undefined_protocol(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        if packet.kind != Kind::Whole {
            return self.drop(Counter::DropNoFlow);
        }
        self.count(Counter::RejectUndefined);
        self.no_protocol(stimulus, packet)
    }

    /// RFC 792; RFC 4443 section 3.4. An SCTP association ends by it (RFC 9260 section 10).
    fn no_protocol(&mut self, stimulus: &Stimulus, packet: &Packet) -> Outcome {
        let (head, rest) = if packet.v4 { ([3, 2], 0) } else { ([4, 1], packet.next_at as u32) };
        self.error(stimulus, packet, head, rest)
    }

    fn too_big(&mut self, stimulus: &Stimulus, packet: &Packet, mtu: u32) -> Outcome {
        if packet.is_error() || packet.kind == Kind::Later {
            return self.drop(Counter::DropNoRoute);
        }
        self.count(Counter::TooBig);
        // RFC 1191 section 4; RFC 4443 section 3.2.
        let head = if packet.v4 { [3, 4] } else { [2, 0] };
        self.error(stimulus, packet, head, mtu)
    }

    fn error(&mut self, stimulus: &Stimulus, packet: &Packet, head: [u8; 2], rest: u32) -> Outcome {
        match error(&stimulus.frame, packet, head, rest) {
            Some(bytes) => self.answer(stimulus, bytes),
            None => self.drop(Counter::DropMalformed),
        }
    }

    fn answer(&mut self, stimulus: &Stimulus, mut bytes: Vec<u8>) -> Outcome {
        let mut mark = stimulus.mark;
        let dev = match self.back {
            Back::Device => {
                let (to, from) = bytes.split_at_mut(6);
                to.swap_with_slice(&mut from[..6]);
                stimulus.dev
            }
            Back::Node(node) => {
                let Some(mac) = self.table.by_tunnel(node) else {
                    return self.drop(Counter::DropNoOverlay);
                };
                put_mesh(&mut bytes, mac, Mesh::Reply);
                self.count(Counter::TunnelSent);
                Dev::Overlay
            }
            Back::Own => {
                mark = MARK_HOST;
                stimulus.dev
            }
        };
        let v4 = bytes[12] == 8;
        let loose = if v4 { vec![ETH + 10, ETH + 22, ETH + 36] } else { vec![ETH + 42, ETH + 56] };
        let frame = Frame { bytes, loose };
        Outcome { verdict: Verdict::To(dev), frame, mark, sum_stays: false }
    }
}

/// A packet between nodes about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// With the hash of the backend that was chosen.
    Request(u32),
    /// The same, and the client is answered directly.
    Direct(u32),
    Reply,
}

/// Is there a transport checksum in which a change of addresses and ports is made up for?
fn has_sum(frame: &[u8], packet: &Packet) -> bool {
    packet.is_error()
        || packet.kind != Kind::Later
            && (packet.is_tcp() || packet.is_udp() && be16(frame, packet.l4 + 6) != 0)
}

/// The largest IP packet that leaves.
fn largest(stimulus: &Stimulus, packet: &Packet) -> u32 {
    if stimulus.gso == 0 {
        packet.size() as u32
    } else {
        (packet.l4 - ETH + packet.header) as u32 + stimulus.gso
    }
}

fn put_mesh(bytes: &mut [u8], mac: [u8; 6], mesh: Mesh) {
    let (mark, hash) = match mesh {
        Mesh::Request(hash) => (MESH_REQUEST, hash),
        Mesh::Direct(hash) => (MESH_DSR, hash),
        Mesh::Reply => (MESH_REPLY, 0),
    };
    bytes[..6].copy_from_slice(&mac);
    bytes[6..8].copy_from_slice(&mark);
    bytes[8..12].copy_from_slice(&hash.to_be_bytes());
}

/// An IP packet from the one whom `packet` was for, to its sender.
fn packet_back(frame: &[u8], packet: &Packet, proto: u8, body: &mut [u8], sum_at: usize) -> Vec<u8> {
    let (src, dst) = (packet.tuple.dst, packet.tuple.src);
    let len = body.len() as u16;
    let mut bytes = frame[..ETH].to_vec();
    if packet.v4 {
        let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
        header[12..16].copy_from_slice(&src.as_v4().to_ne_bytes());
        header[16..20].copy_from_slice(&dst.as_v4().to_ne_bytes());
        let check = !fold(sum(&header));
        header[10..12].copy_from_slice(&check.to_be_bytes());
        bytes.extend_from_slice(&header);
    } else {
        bytes.extend_from_slice(&[0x60, 0, 0, 0]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[proto, 64]);
        bytes.extend_from_slice(&bytes16(src));
        bytes.extend_from_slice(&bytes16(dst));
    }
    let pseudo = match (packet.v4, proto) {
        (true, ICMP) => 0,
        (true, _) => {
            sum(&src.as_v4().to_ne_bytes())
                + sum(&dst.as_v4().to_ne_bytes())
                + u64::from(proto)
                + u64::from(len)
        }
        _ => sum(&bytes16(src)) + sum(&bytes16(dst)) + u64::from(proto) + u64::from(len),
    };
    let check = !fold(pseudo + sum(body));
    body[sum_at..sum_at + 2].copy_from_slice(&check.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// RFC 9293 section 3.5.2.
fn reset(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let l4 = &frame[packet.l4..packet.end];
    let word = |at: usize| u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]]);
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&l4[2..4]);
    segment[2..4].copy_from_slice(&l4[..2]);
    segment[12] = 0x50;
    if packet.flags & ACK != 0 {
        segment[4..8].copy_from_slice(&l4[8..12]);
        segment[13] = RST;
    } else {
        let octets = l4.len() - packet.header
            + usize::from(packet.flags & SYN != 0)
            + usize::from(packet.flags & FIN != 0);
        segment[8..12].copy_from_slice(&word(4).wrapping_add(octets as u32).to_be_bytes());
        segment[13] = RST | ACK;
    }
    packet_back(frame, packet, TCP, &mut segment, 16)
}

/// An ICMP error that quotes the packet.
fn error(frame: &[u8], packet: &Packet, [kind, code]: [u8; 2], rest: u32) -> Option<Vec<u8>> {
    let quote = if packet.v4 && packet.size() < QUOTE { LEAST } else { QUOTE };
    let quoted = frame.get(ETH..ETH + quote)?;
    let mut body = vec![kind, code, 0, 0];
    body.extend_from_slice(&rest.to_be_bytes());
    body.extend_from_slice(quoted);
    let proto = if packet.v4 { ICMP } else { ICMP6 };
    debug_assert_eq!(be16(&body, 2), 0);
    Some(packet_back(frame, packet, proto, &mut body, 2))
}
