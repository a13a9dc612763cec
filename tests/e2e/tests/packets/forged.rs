//! Tunnels that somebody else makes up: what does not look like a node's, and what pods are not to send.

use heddle_bpf::TcHook::{Pod, UnderlayIn};
use heddle_ebpf_common::Counter;

use crate::frames::{HERE_MAC, raw_ip, tcp};
use crate::tunnel::vxlan;
use crate::world::{BOTH, Family, PODS, UNDERLAY, Verdict, World, vtep_mac, world};

const MORE: u16 = 0x2000;

/// A VXLAN packet from node 2 with something inside that it may send.
fn right(outer: Family, inner: Family) -> crate::frames::Packet {
    let inside = tcp("S", inner.pod(2, 20, 1), inner.pod(1, 10, 80)).macs(vtep_mac(2), vtep_mac(1));
    vxlan(outer, 2, 1, &inside.frame())
}

/// The IPv4 frame as a fragment.
fn cut(frame: &mut [u8], fragment: u16) {
    frame[20..22].copy_from_slice(&fragment.to_be_bytes());
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn dropped(w: &mut World, frame: Vec<u8>, what: &str) {
    let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
    assert_eq!((out.verdict, out.count(Counter::DropMalformed)), (Verdict::Drop, 1), "{what}: {out:?}");
}

#[test]
fn fault_142_reserved_bits_are_zero_or_it_is_no_nodes() {
    for outer in BOTH {
        for inner in BOTH {
            let w = &mut *world();
            let packet = right(outer, inner);
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &packet).verdict, Verdict::Pass);
            let bent = [(0, 0x00), (0, 0x88), (0, 0x0c), (1, 1), (2, 0x80), (3, 1), (7, 1), (7, 0x80)];
            for (at, byte) in bent {
                let mut packet = packet.clone();
                packet.payload[at] = byte;
                dropped(w, packet.frame(), &format!("byte {at} is {byte:#x}"));
            }
        }
    }
}

#[test]
fn fault_142_a_vxlan_packet_in_fragments_is_dropped() {
    for inner in BOTH {
        let w = &mut *world();
        let packet = right(Family::V4, inner);
        let mut frame = packet.frame();
        cut(&mut frame, MORE);
        dropped(w, frame, "the first fragment");

        // The same over IPv6, also where it is the only one (RFC 6946).
        let packet = right(Family::V6, inner);
        let whole = packet.frame();
        for (bits, verdict) in [(1u16, Verdict::Drop), (0, Verdict::Pass)] {
            let mut transport = vec![17, 0];
            transport.extend_from_slice(&bits.to_be_bytes());
            transport.extend_from_slice(&[0, 0, 0, 7]);
            transport.extend_from_slice(&whole[54..]);
            let mut frame = raw_ip(&packet, &transport);
            frame[20] = 44;
            let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
            assert_eq!(out.verdict, verdict, "{bits}: {out:?}");
        }
    }
}

#[test]
fn fault_142_pods_send_nodes_no_packets_in_packets() {
    const PROTOCOLS: [u8; 3] = [4, 41, 47];
    for f in BOTH {
        let w = &mut *world();
        for protocol in PROTOCOLS {
            let mut send = |to| {
                let mut packet = tcp("S", f.pod(1, 10, 0), to).macs([2, 0, 0, 0, 0, 10], HERE_MAC);
                packet.proto = protocol;
                w.send_raw(Pod, PODS[0], &raw_ip(&packet, &[0x45; 40]))
            };
            for node in [f.node(1, 0), f.node(2, 0), f.vtep(2, 0)] {
                let out = send(node);
                assert_eq!(
                    (out.verdict, out.count(Counter::DropSpoofed)),
                    (Verdict::Drop, 1),
                    "{protocol} to {node}"
                );
            }
            for other in [f.client(0), f.pod(2, 20, 0)] {
                assert_eq!(send(other).verdict, Verdict::Pass, "{protocol} to {other}");
            }
        }
    }
}
