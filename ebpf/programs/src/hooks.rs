//! The tc programs: what each hook does with a packet.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use heddle_ebpf_common::{
    ADDR_NODE, ADDR_OVERLAY, CT_ENTRY, CT_HOST, CT_TUNNEL, Config, Counter, FRONTEND_EXTERNAL, MESH_REPLY,
    MESH_REQUEST, NODE_SELF,
};

use crate::ct;
use heddle_ebpf_common::decide::{Found, Nodes, Origin};

use crate::frontend::{self, known};
use crate::maps::{Kind, Work, config, has_flows, work};
use crate::nat;
use crate::out::{self, REPLY};
use crate::packet::Parsed;
use crate::serve;
use crate::skb::{MARK_HOST, PASS, Skb, UDP};
use crate::vxlan;

macro_rules! hooks { ($($(#[$doc:meta])* $name:ident: $body:ident;)*) => { $(
    $(#[$doc])*
    #[classifier]
    pub fn $name(ctx: TcContext) -> i32 {
        let Some(config) = config() else { return PASS };
        $body(Skb(ctx.skb.skb), config)
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

/// Parses, or leaves the hook.
macro_rules! parse {
    ($skb:expr, $packet:expr) => {
        match $packet.parse($skb) {
            Parsed::Flow => {}
            Parsed::Other => return PASS,
            Parsed::Malformed => return $skb.drop(Counter::DropMalformed),
        }
    };
}

#[inline(always)]
fn from_pod(skb: Skb, config: &Config) -> i32 {
    let Some(Work { packet, found, fresh, frontend }) = work() else { return PASS };
    parse!(skb, packet);
    if packet.tuple.proto == UDP
        && packet.tuple.dport == config.vxlan_port.to_be()
        && known(&packet.tuple.dst).is(ADDR_NODE | ADDR_OVERLAY)
    {
        // Pods do not talk as nodes do.
        return skb.drop(Counter::DropSpoofed);
    }
    if let Some(mut entry) = ct::find(&packet.tuple, found) {
        if entry.flow.ifindex != skb.ifindex() {
            if !out::owns_source(skb, packet) {
                return skb.drop(Counter::DropSpoofed);
            }
            entry.set_ifindex(skb.ifindex());
        }
        if entry.is_reply() {
            return serve::reply(skb, packet, &mut entry, config);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut entry, Origin::Pod, config) {
            return verdict;
        }
    }
    if frontend::of(&packet.tuple, Nodes::All, frontend) != Found::Frontend {
        return if has_flows(Kind::Pod) && serve::may_collide(packet) {
            serve::aside(skb, packet, found, fresh)
        } else {
            PASS
        };
    };
    if !out::owns_source(skb, packet) {
        return skb.drop(Counter::DropSpoofed);
    }
    serve::begin(skb, packet, fresh, frontend, &Origin::Pod)
}

#[inline(always)]
fn to_pod(skb: Skb, config: &Config) -> i32 {
    if !has_flows(Kind::Host) || skb.is_done() {
        return PASS;
    }
    host_reply(skb, config)
}

/// A reply of a process in the host network, as it leaves the stack.
#[inline(always)]
fn host_reply(skb: Skb, config: &Config) -> i32 {
    let Some(Work { packet, found, .. }) = work() else { return PASS };
    parse!(skb, packet);
    if packet.tuple.proto == UDP && packet.tuple.dport == config.vxlan_port.to_be() {
        return PASS;
    }
    let Some(mut entry) = ct::find(&packet.tuple, found) else { return PASS };
    if !entry.is_reply() || entry.flow.flags & CT_HOST == 0 {
        return PASS;
    }
    if let Err(verdict) = serve::known_reply(skb, packet, &mut entry, config) {
        return verdict;
    }
    let flow = &*entry.flow;
    if flow.flags & CT_TUNNEL != 0 {
        return out::tunnel(skb, packet, &flow.to, flow.node, REPLY);
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
    if skb.mark() == MARK_HOST {
        skb.set_mark(0);
        skb.set_for_host();
        return PASS;
    }
    let Some(Work { packet, found, fresh, frontend }) = work() else { return PASS };
    parse!(skb, packet);
    if packet.tuple.proto == UDP
        && packet.tuple.dport == config.vxlan_port.to_be()
        && config.vxlan_ifindex != 0
        && known(&packet.tuple.dst).node == NODE_SELF
    {
        return vxlan::check(skb, packet, config);
    }
    if let Some(mut entry) = ct::find(&packet.tuple, found) {
        if entry.is_reply() {
            // Of a backend that `snat` reached by the underlay; others come by other ways.
            return if serve::is_snat(&packet.tuple, false, config) {
                serve::reply(skb, packet, &mut entry, config)
            } else {
                PASS
            };
        }
        if entry.flow.ifindex != 0 || entry.flow.flags & CT_TUNNEL != 0 {
            // A flow of a pod of this node, or one that another node sends us.
            return skb.drop(Counter::DropSpoofed);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut entry, Origin::Outside, config) {
            return verdict;
        }
    }
    if frontend::of(&packet.tuple, Nodes::Own, frontend) == Found::Frontend
        && frontend.flags & FRONTEND_EXTERNAL != 0
    {
        serve::begin(skb, packet, fresh, frontend, &Origin::Outside)
    } else {
        PASS
    }
}

#[inline(always)]
fn to_outside(skb: Skb, config: &Config) -> i32 {
    if !has_flows(Kind::Host) || skb.is_done() {
        return PASS;
    }
    host_reply(skb, config)
}

#[inline(always)]
fn from_tunnel(skb: Skb, config: &Config) -> i32 {
    let Some(work) = work() else { return PASS };
    parse!(skb, work.packet);
    let Some(mac) = skb.at::<[u8; 6]>(6) else { return PASS };
    let mark = [mac[0], mac[1]];
    if mark == MESH_REQUEST {
        return mesh_request(skb, work, u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]), config);
    }
    let Work { packet, found, .. } = work;
    let Some(mut entry) = ct::find(&packet.tuple, found) else {
        return if mark == MESH_REPLY { skb.drop(Counter::DropUnknownTunnel) } else { PASS };
    };
    let meant = if mark == MESH_REPLY {
        entry.is_reply() && entry.flow.flags & CT_ENTRY != 0
    } else {
        entry.is_reply() && entry.flow.flags & (CT_ENTRY | CT_TUNNEL | CT_HOST) == 0
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
fn mesh_request(skb: Skb, work: &mut Work, hash: u32, config: &Config) -> i32 {
    let Work { packet, found, fresh, frontend } = work;
    // The address that the client talked to tells which node it was. (Of a service's external address nothing
    // does; those are not sent by tunnel.)
    let owner = known(&packet.tuple.dst);
    if !owner.is(ADDR_NODE) || owner.node == NODE_SELF {
        return skb.drop(Counter::DropUnknownTunnel);
    }
    let entry = owner.node;
    let origin = Origin::Tunnel { entry, hash, dsr: false };
    if let Some(mut known) = ct::find(&packet.tuple, found) {
        if known.is_reply() || known.flow.flags & CT_TUNNEL == 0 {
            return skb.drop(Counter::DropUnknownTunnel);
        }
        if let Some(verdict) = serve::request(skb, packet, &mut known, origin, config) {
            return verdict;
        }
    }
    if frontend::of(&packet.tuple, Nodes::All, frontend) != Found::Frontend {
        // The other node knows the service and this one does not, for a moment: the client asks again.
        return skb.drop(Counter::DropNotHere);
    }
    serve::begin(skb, packet, fresh, frontend, &origin)
}
