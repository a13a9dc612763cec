//! The tc programs: what each hook does with a packet.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use heddle_ebpf_common::decide::{Found, Nodes, Origin};
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_OVERLAY, CT_DSR, CT_ENTRY, CT_HOST, CT_OWN, CT_REPLY,
    CT_TUNNEL, Config, Counter, FRONTEND_EXTERNAL, MESH_DSR, MESH_REPLY, MESH_REQUEST, NODE_SELF, Tuple,
};

use crate::ct;
use crate::events;
use crate::frontend::{self, known};
use crate::maps::{Kind, Work, config, has_flows, may_be_ours, work};
use crate::nat;
use crate::out::{self, REPLY};
use crate::packet::{Packet, Parsed, THIS_NODE};
use crate::reject;
use crate::serve;
use crate::skb::{MARK_ENTRY, MARK_ENTRY_MASK, MARK_HOST, PASS, Skb, UDP};
use crate::time::is_settling;
use crate::vxlan;

macro_rules! hooks { ($($(#[$doc:meta])* $name:ident: $body:ident;)*) => { $(
    $(#[$doc])*
    #[classifier]
    pub fn $name(ctx: TcContext) -> i32 {
        let Some(config) = config() else { return PASS };
        let skb = Skb(ctx.skb.skb);
        let verdict = $body(skb, config);
        if verdict == TC_ACT_SHOT {
            events::dropped(skb);
        }
        verdict
    }
)* } }

hooks! {
    /// What a pod sends: ingress of the host side of its veth.
    pod: from_pod;
    /// What the host sends to a pod: egress of the same.
    pod_out: to_pod;
    /// What comes in from the underlay: clients outside, other nodes, VXLAN packets.
    underlay_in: from_outside;
    /// What the host sends into the underlay.
    underlay_out: to_outside;
    /// What the VXLAN device has unwrapped.
    overlay_in: from_tunnel;
}

/// Parses, or leaves the hook. `$other`: what becomes of a protocol that no service speaks.
macro_rules! parse {
    ($skb:expr, $packet:expr) => {
        parse!($skb, $packet, return PASS)
    };
    ($skb:expr, $packet:expr, $other:expr) => {
        match $packet.parse($skb) {
            Parsed::Flow => {}
            Parsed::Protocol => $other,
            Parsed::Other => return PASS,
            Parsed::Malformed => return $skb.drop(Counter::DropMalformed),
        }
    };
}

/// Is it one of ours, sent to the stack by way of this device?
#[inline(always)]
fn is_for_host(skb: Skb) -> bool {
    if skb.mark() != MARK_HOST {
        return false;
    }
    skb.set_mark(0);
    skb.set_for_host();
    true
}

/// What no service speaks, to an address that only services have.
#[inline(never)]
fn other_protocol(skb: Skb, packet: &Packet) -> i32 {
    if known(&packet.tuple.dst).is(ADDR_CLUSTER_IP) { reject::protocol(skb, packet) } else { PASS }
}

/// The same from a pod, which does not send nodes packets in packets: IPIP, IPv6 in IP, GRE.
#[inline(never)]
fn pods_other_protocol(skb: Skb, packet: &Packet) -> i32 {
    if matches!(packet.tuple.proto, 4 | 41 | 47) && known(&packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY) {
        return skb.drop(Counter::DropSpoofed);
    }
    other_protocol(skb, packet)
}

#[inline(always)]
fn from_pod(skb: Skb, config: &Config) -> i32 {
    if is_for_host(skb) {
        return PASS;
    }
    let Some(Work { packet, found, fresh, frontend }) = work() else { return PASS };
    parse!(skb, packet, return pods_other_protocol(skb, packet));
    if packet.tuple.proto == UDP
        && packet.tuple.dport == config.vxlan_port.to_be()
        && known(&packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY)
    {
        // Pods do not talk as nodes do.
        return skb.drop(Counter::DropSpoofed);
    }
    if let Some(mut entry) = ct::of(packet, found) {
        if entry.flow.ifindex != skb.ifindex() {
            if !out::owns_source(skb, packet) {
                return skb.drop(Counter::DropSpoofed);
            }
            entry.set_ifindex(skb.ifindex());
        }
        if entry.is_reply() {
            return serve::reply(skb, packet, &mut entry, config);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut entry, config) {
            return verdict;
        }
    }
    let verdict = match frontend::of(&packet.tuple, Nodes::All, frontend) {
        Found::Frontend if !out::owns_source(skb, packet) => return skb.drop(Counter::DropSpoofed),
        Found::Frontend => serve::enter(skb, packet, fresh, frontend, &Origin::Pod),
        Found::Undefined => return reject::unreachable(skb, packet, Counter::RejectUndefined),
        Found::Nothing if packet.is_connected() && !packet.is_syn() && is_settling(config) => {
            return skb.drop(Counter::DropNoFlow);
        }
        Found::Nothing if has_flows(Kind::Pod) && serve::may_collide(packet) => {
            serve::aside(skb, packet, found, fresh)
        }
        Found::Nothing => return PASS,
    };
    serve::go_on(skb, packet, fresh, verdict)
}

#[inline(always)]
fn to_pod(skb: Skb, config: &Config) -> i32 {
    if !has_flows(Kind::Host) || skb.is_done() {
        return PASS;
    }
    let Some(Work { packet, found, .. }) = work() else { return PASS };
    parse!(skb, packet);
    packet.from = THIS_NODE;
    let Some(mut entry) = ct::find(&packet.tuple, found) else { return PASS };
    if entry.flow.flags & (CT_REPLY | CT_HOST) != CT_REPLY | CT_HOST {
        return PASS;
    }
    host_reply(skb, packet, &mut entry, config)
}

/// A reply of a process in the host network, as it leaves the stack.
#[inline(always)]
fn host_reply(skb: Skb, packet: &mut Packet, entry: &mut ct::Entry<'_>, config: &Config) -> i32 {
    if let Err(verdict) = serve::known_reply(skb, packet, entry, config) {
        return verdict;
    }
    let flow = &*entry.flow;
    if flow.flags & CT_TUNNEL != 0 {
        return out::tunnel(skb, packet, &flow.to, flow.node, REPLY);
    }
    if flow.flags & CT_OWN != 0 {
        return out::to_host_by(skb, packet, &flow.to, flow.node);
    }
    if flow.flags & CT_DSR != 0 {
        out::clamp_to_tunnel(skb, packet, config);
    }
    packet.note_fragment();
    if nat::translate(skb, packet, &flow.to, nat::DELIVERED) {
        PASS
    } else {
        skb.drop(Counter::DropMalformed)
    }
}

#[inline(always)]
fn from_outside(skb: Skb, config: &Config) -> i32 {
    if is_for_host(skb) {
        return PASS;
    }
    let Some(Work { packet, found, fresh, frontend }) = work() else { return PASS };
    parse!(skb, packet, return other_protocol(skb, packet));
    if packet.tuple.proto == UDP
        && packet.tuple.dport == config.vxlan_port.to_be()
        && config.vxlan_ifindex != 0
        && known(&packet.tuple.dst).node == NODE_SELF
    {
        return vxlan::check(skb, packet, config);
    }
    if passes_by(&packet.tuple, config) {
        return PASS;
    }
    if let Some(mut entry) = ct::of(packet, found) {
        if entry.is_reply() {
            // Of a backend that `snat` reached by the underlay; others come by other ways.
            return if serve::is_snat(&packet.tuple, false, config) {
                serve::reply(skb, packet, &mut entry, config)
            } else {
                PASS
            };
        }
        if is_spoofed(&entry, packet) {
            return skb.drop(Counter::DropSpoofed);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut entry, config) {
            return verdict;
        }
    }
    match frontend::of(&packet.tuple, Nodes::Own, frontend) {
        Found::Frontend if frontend.flags & FRONTEND_EXTERNAL != 0 => {
            serve::begin(skb, packet, fresh, frontend, &Origin::Outside)
        }
        Found::Undefined => reject::unreachable(skb, packet, Counter::RejectUndefined),
        _ => PASS,
    }
}

/// Is a packet from outside for no frontend, no answer to `snat`, and not for a service's address inside the cluster
/// (which would be rejected)? Most are for this node itself.
#[inline(always)]
fn passes_by(tuple: &Tuple, config: &Config) -> bool {
    !may_be_ours(tuple)
        && (tuple.dst == config.underlay4
            || tuple.dst == config.underlay6
            || !known(&tuple.dst).is(ADDR_CLUSTER_IP))
}

/// Does the request pretend to be one of a pod of this node, of the node itself, or one that another node sends us?
/// (For an external address the client may have come by another node before.)
#[inline(always)]
pub fn is_spoofed(entry: &ct::Entry<'_>, packet: &Packet) -> bool {
    let flags = entry.flow.flags;
    entry.flow.ifindex != 0
        || flags & CT_OWN != 0
        || (flags & (CT_TUNNEL | CT_DSR) != 0
            && flags & CT_ENTRY == 0
            && known(&packet.tuple.dst).is(ADDR_NODE))
}

#[inline(always)]
fn to_outside(skb: Skb, config: &Config) -> i32 {
    if skb.is_done() {
        return PASS;
    }
    let Some(Work { packet, found, fresh, frontend }) = work() else { return PASS };
    parse!(skb, packet, return own_other_protocol(skb, packet));
    packet.from = THIS_NODE;
    if packet.tuple.proto == UDP && packet.tuple.dport == config.vxlan_port.to_be() {
        return PASS;
    }
    let own = has_flows(Kind::Own);
    if (own || has_flows(Kind::Host))
        && let Some(mut entry) = ct::find(&packet.tuple, found)
    {
        if entry.is_reply() {
            return if entry.flow.flags & CT_HOST != 0 {
                host_reply(skb, packet, &mut entry, config)
            } else {
                PASS
            };
        }
        if entry.flow.flags & CT_OWN == 0 {
            return PASS;
        }
        if let Some(verdict) = serve::request(skb, packet, &mut entry, config) {
            return verdict;
        }
    }
    if packet.is_connected() && !packet.is_syn() {
        return if is_settling(config) { skb.drop(Counter::DropNoFlow) } else { PASS };
    }
    // What this node sends to a service itself, and no socket hook saw: raw sockets, the kernel's own, processes
    // outside the cgroup.
    match frontend::of(&packet.tuple, Nodes::All, frontend) {
        Found::Nothing => PASS,
        _ if known(&packet.tuple.src).node != NODE_SELF => PASS,
        Found::Undefined => reject::unreachable(skb, packet, Counter::RejectUndefined),
        Found::Frontend => serve::begin(skb, packet, fresh, frontend, &Origin::Host),
    }
}

#[inline(never)]
fn own_other_protocol(skb: Skb, packet: &mut Packet) -> i32 {
    packet.from = THIS_NODE;
    if known(&packet.tuple.dst).is(ADDR_CLUSTER_IP) && known(&packet.tuple.src).node == NODE_SELF {
        reject::protocol(skb, packet)
    } else {
        PASS
    }
}

#[inline(always)]
fn from_tunnel(skb: Skb, config: &Config) -> i32 {
    let Some(work) = work() else { return PASS };
    parse!(skb, work.packet);
    let Some(mac) = skb.at::<[u8; 6]>(6) else { return PASS };
    let mark = [mac[0], mac[1]];
    if mark == MESH_REQUEST || mark == MESH_DSR {
        let hash = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]);
        return mesh_request(skb, work, hash, mark == MESH_DSR, config);
    }
    let Work { packet, found, .. } = work;
    let Some(mut entry) = ct::of(packet, found) else {
        return if mark == MESH_REPLY { skb.drop(Counter::DropUnknownTunnel) } else { PASS };
    };
    let meant = if mark == MESH_REPLY {
        entry.is_reply() && entry.flow.flags & CT_ENTRY != 0
    } else {
        entry.is_reply() && entry.flow.flags & (CT_ENTRY | CT_TUNNEL | CT_DSR | CT_HOST) == 0
    };
    if meant {
        serve::reply(skb, packet, &mut entry, config)
    } else if mark == MESH_REPLY {
        skb.drop(Counter::DropUnknownTunnel)
    } else {
        PASS
    }
}

/// A request that another node has chosen a backend of this one for. It never enters the tunnel again: what is
/// chosen for it here is here.
#[inline(always)]
fn mesh_request(skb: Skb, work: &mut Work, hash: u32, dsr: bool, config: &Config) -> i32 {
    let Work { packet, found, fresh, frontend } = work;
    // Which node was it? The address that the client talked to tells; an external one does not, but the packet's
    // sender has been noted.
    let asked = known(&packet.tuple.dst);
    let mark = skb.mark();
    let entry = if asked.is(ADDR_EXTERNAL) && mark & MARK_ENTRY_MASK == MARK_ENTRY {
        skb.set_mark(0);
        mark & !MARK_ENTRY_MASK
    } else if asked.is(ADDR_NODE) {
        asked.node
    } else {
        NODE_SELF
    };
    if entry == NODE_SELF {
        return skb.drop(Counter::DropUnknownTunnel);
    }
    packet.from = entry;
    let origin = Origin::Tunnel { entry, hash, dsr };
    if let Some(mut known) = ct::of(packet, found) {
        let flags = known.flow.flags;
        if known.is_reply() || flags & (CT_TUNNEL | CT_DSR) == 0 || flags & CT_ENTRY != 0 {
            return skb.drop(Counter::DropUnknownTunnel);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut known, config) {
            return verdict;
        }
    }
    if frontend::of(&packet.tuple, Nodes::All, frontend) != Found::Frontend {
        // The other node knows the service and this one does not, for a moment: the client asks again.
        return skb.drop(Counter::DropNotHere);
    }
    serve::begin(skb, packet, fresh, frontend, &origin)
}
