//! What the programs count.

/// Index into the per-CPU array `counters` (values: `u64` packets).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// Flows that were given a backend.
    FlowNew,
    /// Connects and datagrams that a socket hook translated.
    SocketTranslated,
    /// Packets of requests and of replies that were translated.
    Request,
    Reply,
    /// Packets sent into, and received from, the tunnel between nodes.
    TunnelSent,
    TunnelReceived,
    /// New flows answered with RST or ICMP port unreachable: the service has no backend.
    RejectNoBackend,
    /// Packets of stale flows (their backend is gone) answered with RST or ICMP.
    RejectStale,
    /// Packets to a port or of a protocol that a service's address does not have, answered with RST or ICMP; sockets
    /// that asked for one.
    RejectUndefined,
    /// ICMP "packet too big" / "fragmentation needed" sent.
    TooBig,
    /// Below here: packets dropped, by reason.
    DropCtFull,
    DropNoPort,
    DropNoRoute,
    DropMalformed,
    DropTtl,
    DropSpoofed,
    DropUnknownTunnel,
    DropNoOverlay,
    /// A packet for a service that belongs to no known flow and cannot begin one (a RST, a reply that
    /// nobody waits for).
    DropNoFlow,
    /// A request that another node sent through the tunnel, for a service without a backend here.
    DropNotHere,
    /// A service whose traffic policy allows only backends of this node, and there is none.
    DropNoBackend,
    /// A client whose address is not among those that the service allows.
    DropSource,
    /// Passed on by XDP, before there was a socket buffer.
    Xdp,
}

impl Counter {
    pub const COUNT: u32 = Self::Xdp as u32 + 1;

    /// In the order of their indices, with the names that people see.
    pub const ALL: [(Self, &'static str); Self::COUNT as usize] = [
        (Self::FlowNew, "flow_new"),
        (Self::SocketTranslated, "socket_translated"),
        (Self::Request, "request"),
        (Self::Reply, "reply"),
        (Self::TunnelSent, "tunnel_sent"),
        (Self::TunnelReceived, "tunnel_received"),
        (Self::RejectNoBackend, "reject_no_backend"),
        (Self::RejectStale, "reject_stale"),
        (Self::RejectUndefined, "reject_undefined"),
        (Self::TooBig, "too_big"),
        (Self::DropCtFull, "drop_ct_full"),
        (Self::DropNoPort, "drop_no_port"),
        (Self::DropNoRoute, "drop_no_route"),
        (Self::DropMalformed, "drop_malformed"),
        (Self::DropTtl, "drop_ttl"),
        (Self::DropSpoofed, "drop_spoofed"),
        (Self::DropUnknownTunnel, "drop_unknown_tunnel"),
        (Self::DropNoOverlay, "drop_no_overlay"),
        (Self::DropNoFlow, "drop_no_flow"),
        (Self::DropNotHere, "drop_not_here"),
        (Self::DropNoBackend, "drop_no_backend"),
        (Self::DropSource, "drop_source"),
        (Self::Xdp, "xdp"),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_in_order() {
        for (i, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }
}
