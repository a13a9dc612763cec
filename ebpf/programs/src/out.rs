//! The ways out of the datapath: [`leave`] by the route (to a pod of this node, to a client, to another node),
//! [`tunnel`] as a mesh packet, [`to_host`] into this node's stack. Nothing else sends a packet on its way, but
//! for what is rejected.
//!
//! A translated packet with an address of ours as its source must not enter the stack (martian); what is
//! redirected from hook to device passes netfilter in neither direction.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_redirect as redirect, bpf_redirect_neigh as redirect_neigh,
};
use heddle_ebpf_common::{Addr, Config, Counter, MESH_DSR, MESH_REPLY, MESH_REQUEST, Routes, Tuple};

use crate::ct::Entry;
use crate::maps::{self, NODES, config, count};
use crate::mss;
use crate::nat;
use crate::packet::{Kind, Packet};
use crate::reject;
use crate::skb::{MARK_HOST, PASS, Skb};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const EINVAL: i64 = 22;
const F_INGRESS: u64 = 1;
/// Bytes of an IP and a TCP header without options.
const HEADERS4: u32 = 40;
const HEADERS6: u32 = 60;

/// Makes `params` the question for the route from `tuple.src` to `tuple.dst`, for what came in at `ifindex`. `len`: 0, or
/// the size that must fit.
#[inline(always)]
pub fn ask_for(params: &mut bpf_fib_lookup, tuple: &Tuple, v4: bool, len: u32, ifindex: u32) {
    // SAFETY: numbers and unions of numbers.
    *params = unsafe { core::mem::zeroed() };
    params.ifindex = ifindex;
    params.l4_protocol = tuple.proto;
    params.__bindgen_anon_1.tot_len = len as u16;
    if v4 {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = tuple.src.as_v4();
        params.__bindgen_anon_4.ipv4_dst = tuple.dst.as_v4();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = tuple.src.0;
        params.__bindgen_anon_4.ipv6_dst = tuple.dst.0;
    }
}

/// Asks the kernel for it, whether or not it knows the neighbour.
#[inline(always)]
fn fib(skb: Skb, tuple: &Tuple, v4: bool, len: u32, params: &mut bpf_fib_lookup) -> i64 {
    ask_for(params, tuple, v4, len, skb.ifindex());
    // SAFETY: `params` outlives the call.
    unsafe {
        let size = size_of::<bpf_fib_lookup>() as i32;
        let result = fib_lookup(skb.0.cast(), params, size, BPF_FIB_LOOKUP_SKIP_NEIGH);
        // Kernels before 6.3 do not know the flag.
        if result == -EINVAL { fib_lookup(skb.0.cast(), params, size, 0) } else { result }
    }
}

#[inline(always)]
fn found(result: i64) -> bool {
    // The kernel asks for the neighbour when the packet is sent.
    result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// Is `skb` from the interface that its source address lives behind? The way back decides.
#[inline(never)]
pub fn owns_source(skb: Skb, packet: &Packet) -> bool {
    let Some(params) = maps::fib() else { return false };
    found(fib(skb, &packet.tuple.reversed(), packet.v4, 0, params)) && params.ifindex == skb.ifindex()
}

/// Where a packet goes next.
struct Hop {
    device: u32,
    /// The largest IP packet that the device takes; 0: not known.
    mtu: u32,
    /// The neighbour.
    addr: Addr,
}

/// Translates the packet of a flow and sends it on: the way that the flow's last packet went, else by the route.
#[inline(always)]
pub fn leave(skb: Skb, packet: &Packet, entry: &mut Entry<'_>) -> i32 {
    // Read before the route is.
    let Some(routes) = maps::routes() else { return skb.drop(Counter::DropNoRoute) };
    let mut hop = Hop { device: 0, mtu: 0, addr: entry.flow.to.dst };
    match entry.way(&routes, skb.ifindex()) {
        Some((device, mtu)) if packet.largest(skb) <= mtu && packet.kind != Kind::Error => {
            hop.device = device;
            hop.mtu = mtu;
        }
        _ => by_route(skb, packet, entry, &routes, &mut hop),
    }
    if hop.device != 0 {
        return send(skb, packet, &entry.flow.to, &hop);
    }
    if hop.mtu == 0 {
        return skb.drop(Counter::DropNoRoute);
    }
    reject::too_big(skb, packet, hop.mtu)
}

/// Where the kernel's routes lead. If `hop.device` stays 0: nowhere; with `hop.mtu` not 0, because the packet is larger
/// than that.
#[inline(never)]
fn by_route(skb: Skb, packet: &Packet, entry: &mut Entry<'_>, routes: &Routes, hop: &mut Hop) {
    let Some(params) = maps::fib() else { return };
    let result = fib(skb, &entry.flow.to, packet.v4, packet.largest(skb), params);
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: a number.
        hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result }.into();
        return;
    }
    if !found(result) {
        return;
    }
    hop.device = params.ifindex;
    if result != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        // SAFETY: a number. (Without a neighbour it is not said.)
        hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result }.into();
    }
    // SAFETY: plain fields of unions. (A route of IPv4 can lead to a neighbour of IPv6.)
    hop.addr = unsafe {
        if params.family == AF_INET {
            Addr::v4(params.__bindgen_anon_4.ipv4_dst)
        } else {
            Addr(params.__bindgen_anon_4.ipv6_dst)
        }
    };
    if hop.mtu != 0 && hop.addr == entry.flow.to.dst {
        entry.set_way(routes, skb.ifindex(), hop.device, hop.mtu);
    }
}

/// Translates the packet to `to` and sends it.
#[inline(never)]
fn send(skb: Skb, packet: &Packet, to: &Tuple, hop: &Hop) -> i32 {
    mss::clamp(skb, packet, hop.mtu.saturating_sub(if packet.v4 { HEADERS4 } else { HEADERS6 }));
    packet.note_fragment();
    if packet.ttl <= 1 {
        return skb.drop(Counter::DropTtl);
    }
    if !nat::translate(skb, packet, to, nat::FORWARDED) {
        return skb.drop(Counter::DropMalformed);
    }
    skb.set_done(hop.device);
    // SAFETY: plain fields of unions; `next` outlives the call.
    unsafe {
        let mut next: bpf_redir_neigh = core::mem::zeroed();
        if hop.addr.is_v4() {
            next.nh_family = AF_INET.into();
            next.__bindgen_anon_1.ipv4_nh = hop.addr.as_v4();
        } else {
            next.nh_family = AF_INET6.into();
            next.__bindgen_anon_1.ipv6_nh = hop.addr.0;
        }
        redirect_neigh(hop.device, &raw mut next, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// In place of the hash of a chosen backend (never 0): the packet is a reply.
pub const REPLY: u32 = 0;
/// Beside the node that a request goes to: that one is to answer the client itself.
pub const DIRECT: u32 = 1 << 31;

/// Translates the packet to `to` and sends it to a node as a mesh packet: a request with the hash of the chosen
/// backend, or a [`REPLY`].
#[inline(never)]
pub fn tunnel(skb: Skb, packet: &Packet, to: &Tuple, node: u32, hash: u32) -> i32 {
    let Some(config) = config() else { return skb.drop(Counter::DropNoOverlay) };
    let direct = node & DIRECT != 0;
    let Some(mac) = mac_of(node & !DIRECT, config) else { return skb.drop(Counter::DropNoOverlay) };
    // Without "don't fragment" the outer packet is fragmented.
    if packet.whole_only && packet.largest(skb) > config.tunnel_mtu {
        return reject::too_big(skb, packet, config.tunnel_mtu);
    }
    // The client's MSS is for answers, which may go another way.
    if !direct {
        clamp_to_tunnel(skb, packet, config);
    }
    packet.note_fragment();
    if packet.ttl <= 1 {
        return skb.drop(Counter::DropTtl);
    }
    if !nat::translate(skb, packet, to, nat::FORWARDED) {
        return skb.drop(Counter::DropMalformed);
    }
    let mark = match hash {
        REPLY => MESH_REPLY,
        _ if direct => MESH_DSR,
        _ => MESH_REQUEST,
    };
    into_tunnel(skb, mac, mark, hash, config)
}

/// Lowers the MSS of a SYN to what the tunnel carries.
#[inline(always)]
pub fn clamp_to_tunnel(skb: Skb, packet: &Packet, config: &Config) {
    mss::clamp(skb, packet, config.tunnel_mtu.saturating_sub(if packet.v4 { HEADERS4 } else { HEADERS6 }));
}

/// The Ethernet address of a node's VXLAN device, if the node can be reached by it.
#[inline(always)]
pub fn mac_of(node: u32, config: &Config) -> Option<[u8; 6]> {
    let node = NODES.get(node)?;
    (node.overlay != 0 && config.vxlan_ifindex != 0).then_some(node.mac)
}

#[inline(always)]
pub fn into_tunnel(skb: Skb, dst: [u8; 6], mark: [u8; 2], hash: u32, config: &Config) -> i32 {
    let [a, b, c, d] = hash.to_be_bytes();
    if !skb.store(0, &[dst, [mark[0], mark[1], a, b, c, d]]) {
        return skb.drop(Counter::DropMalformed);
    }
    skb.set_done(config.vxlan_ifindex);
    count(Counter::TunnelSent);
    // SAFETY: numbers.
    unsafe { redirect(config.vxlan_ifindex, 0) as i32 }
}

/// Back the way it came, as it is now.
#[inline(always)]
pub fn send_back(skb: Skb) -> i32 {
    skb.set_done(skb.ifindex());
    // SAFETY: numbers.
    unsafe { redirect(skb.ifindex(), 0) as i32 }
}

/// Translates the packet to `to`, for a process in the host network.
#[inline(never)]
pub fn to_host(skb: Skb, packet: &Packet, to: &Tuple) -> i32 {
    packet.note_fragment();
    if nat::translate(skb, packet, to, nat::DELIVERED) { PASS } else { skb.drop(Counter::DropMalformed) }
}

/// The same, as if it had come in on this underlay device: for what came out of the tunnel (a client's address is at
/// home behind the underlay, and rp_filter would not take it from another device), and for the answers of services to
/// this node, whose addresses are where the node sends packets for them.
#[inline(never)]
pub fn to_host_by(skb: Skb, packet: &Packet, to: &Tuple, device: u32) -> i32 {
    packet.note_fragment();
    if !nat::translate(skb, packet, to, nat::DELIVERED) {
        return skb.drop(Counter::DropMalformed);
    }
    as_if_from(skb, device)
}

/// Into the stack, as it is now, as if it had come in on this underlay device.
#[inline(always)]
pub fn as_if_from(skb: Skb, device: u32) -> i32 {
    skb.set_mark(MARK_HOST);
    skb.set_done(device);
    // SAFETY: numbers.
    unsafe { redirect(device, F_INGRESS) as i32 }
}
