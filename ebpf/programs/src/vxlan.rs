//! VXLAN packets before the kernel unwraps them: only here is the sender to be seen.

use heddle_ebpf_common::{
    ADDR_EXTERNAL, ADDR_NODE, Addr, Config, Counter, MESH_DSR, MESH_REPLY, MESH_REQUEST, NODE_SELF,
};

use crate::frontend::known;
use crate::maps::{RANGES, count};
use crate::packet::{Kind, Packet};
use crate::skb::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, MARK_ENTRY, PASS, Skb};

use aya_ebpf::maps::lpm_trie::Key;

/// UDP and VXLAN header (RFC 7348 section 5).
const OUTER: u32 = 8 + 8;
/// The flags: the VNI is valid, everything else is reserved.
const VNI_VALID: u32 = 0x0800_0000;

#[repr(C)]
#[derive(Clone, Copy)]
struct Inner {
    dst: [u8; 6],
    src: [u8; 6],
    protocol: u16,
}

/// Passes the packet if a node sent it and has a right to what is inside: from its pods, or from itself, to ours
/// or to this node; a request for a frontend of that node, or for an external address (then `mark` tells who it was:
/// what is inside does not); a reply of a frontend of this node (whether the flow is known is asked when it is
/// unwrapped). Other networks (VNI) are not ours to judge.
#[inline(never)]
pub fn check(skb: Skb, packet: &Packet, config: &Config) -> i32 {
    if packet.kind == Kind::First || packet.kind == Kind::Later {
        // What is inside is not in sight, and no node cuts its packets (RFC 7348 section 4.3).
        return skb.drop(Counter::DropMalformed);
    }
    let Some([flags, vni]) = read::<[u32; 2]>(skb, packet, 8) else {
        return skb.drop(Counter::DropMalformed);
    };
    let vni = u32::from_be(vni);
    if vni >> 8 != config.vni {
        return PASS;
    }
    if u32::from_be(flags) != VNI_VALID || vni & 0xff != 0 {
        return skb.drop(Counter::DropMalformed);
    }
    let sender = known(&packet.tuple.src);
    if !sender.is(ADDR_NODE) || sender.node == NODE_SELF {
        return skb.drop(Counter::DropUnknownTunnel);
    }
    if allowed(skb, packet, sender.node) {
        count(Counter::TunnelReceived);
        PASS
    } else {
        skb.drop(Counter::DropUnknownTunnel)
    }
}

/// Reads `offset` bytes after the outer transport header's start; straight from the packet where its IP header
/// has no options.
#[inline(always)]
fn read<T: Copy>(skb: Skb, packet: &Packet, offset: u32) -> Option<T> {
    match packet.l4 {
        34 => skb.at(34 + offset),
        54 => skb.at(54 + offset),
        other => skb.load(other + offset),
    }
}

#[inline(always)]
fn allowed(skb: Skb, packet: &Packet, sender: u32) -> bool {
    let Some(inner) = read::<Inner>(skb, packet, OUTER) else { return false };
    const IP: u32 = OUTER + ETH_LEN;
    let (src, dst) = if inner.protocol == ETH_P_IP {
        let Some([src, dst]) = read::<[u32; 2]>(skb, packet, IP + 12) else { return false };
        (Addr::v4(src), Addr::v4(dst))
    } else if inner.protocol == ETH_P_IPV6 {
        let Some([src, dst]) = read::<[[u32; 4]; 2]>(skb, packet, IP + 8) else { return false };
        (Addr(src), Addr(dst))
    } else {
        return false;
    };
    let mark = [inner.src[0], inner.src[1]];
    if mark == MESH_REQUEST || mark == MESH_DSR {
        let asked = known(&dst);
        if asked.is(ADDR_EXTERNAL) {
            skb.set_mark(MARK_ENTRY | sender);
            return true;
        }
        return asked.is(ADDR_NODE) && asked.node == sender;
    }
    if mark == MESH_REPLY {
        let asked = known(&src);
        return asked.is(ADDR_EXTERNAL) || asked.is(ADDR_NODE) && asked.node == NODE_SELF;
    }
    owner(&src) == sender && owner(&dst) == NODE_SELF
}

/// Whose pod or own address is this? 0: nobody's. (Pods first: nearly all are, and a VXLAN device's address lies in
/// its node's range too.)
#[inline(always)]
fn owner(addr: &Addr) -> u32 {
    match RANGES.get(Key::new(128, *addr)) {
        Some(node) => *node,
        None => known(addr).node,
    }
}
