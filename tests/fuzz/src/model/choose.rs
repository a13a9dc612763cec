//! Which service an address is, and which of its backends takes a new flow.

use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE_PORTS, Addr, BACKEND_ACTIVE, BACKEND_DRAINING, FRONTEND_DROP,
    FRONTEND_DROP_OUTSIDE, FRONTEND_LOCAL, FRONTEND_SOURCES, FrontendKey, NODE_SELF,
};

use super::Model;
use super::begin::Origin;
use crate::table::Front;
use crate::wire::Packet;

/// What an address and port are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Frontend(Front),
    /// A port that no frontend has, of an address that only a service has.
    Undefined,
    Nothing,
}

/// Why nobody gets a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Reject,
    Drop,
    /// The client may not.
    Source,
    /// Another node has sent it, and there is no backend here.
    NotHere,
}

impl Model {
    /// The frontend that a packet is for: its address's own, or the node port's. From `outside` a node answers for
    /// itself only.
    pub(super) fn frontend(&self, packet: &Packet, outside: bool) -> Found {
        let tuple = &packet.tuple;
        let key = FrontendKey { addr: tuple.dst, net: 0, port: tuple.dport, proto: tuple.proto, zero: 0 };
        let owner = self.table.known(tuple.dst);
        if owner.is(ADDR_CLUSTER_IP | ADDR_EXTERNAL)
            && let Some(front) = self.table.frontends.get(&key)
        {
            return Found::Frontend(front.clone());
        }
        if owner.is(ADDR_CLUSTER_IP) {
            return Found::Undefined;
        }
        if !owner.is(ADDR_NODE_PORTS) || (outside && owner.node != NODE_SELF) {
            return Found::Nothing;
        }
        let addr = if tuple.dst.is_v4() { Addr::ANY4 } else { Addr::ANY6 };
        let front = self.table.frontends.get(&FrontendKey { addr, ..key });
        front.map_or(Found::Nothing, |front| Found::Frontend(front.clone()))
    }

    /// The backend for a new flow of this packet.
    pub(super) fn choose(&mut self, packet: &Packet, front: &Front, origin: Origin) -> Result<u32, Refused> {
        let (random, client, v4) = (self.table.config.fixed_random, packet.tuple.src, packet.v4);
        if let Origin::Tunnel { hash, .. } = origin {
            // The entry node has looked at the client; what it says is obeyed if it can be.
            return self
                .obeyed(front.service, hash, v4)
                .or_else(|| self.first(&front.outside, random, v4, true))
                .ok_or(Refused::NotHere);
        }
        if front.flags & FRONTEND_SOURCES != 0 && !self.table.allows(front.service, client) {
            return Err(Refused::Source);
        }
        let outside = origin == Origin::Outside;
        let here = outside && front.flags & FRONTEND_LOCAL != 0;
        if front.affinity != 0
            && let Some(index) = self.remembered(front, client, v4, here)
        {
            return Ok(index);
        }
        let (list, hash, drop) = match (outside, front.affinity) {
            (false, _) => (&front.ring, random, FRONTEND_DROP),
            (true, 0) => (&front.outside, packet.tuple.client_hash(), FRONTEND_DROP_OUTSIDE),
            // All nodes must come to the same answer.
            (true, _) => (&front.outside, client.hash(), FRONTEND_DROP_OUTSIDE),
        };
        self.first(list, hash, v4, here).ok_or(if front.flags & drop != 0 {
            Refused::Drop
        } else {
            Refused::Reject
        })
    }

    /// The backend that has this client's flows, if he came lately and it takes new ones.
    fn remembered(&self, front: &Front, client: Addr, v4: bool, here: bool) -> Option<u32> {
        let (index, generation, seen) = *self.affinity.get(&(client, front.service))?;
        let young =
            self.table.config.fixed_time.saturating_sub(seen) < u64::from(front.affinity) * 1_000_000_000;
        let same = self.table.backend(index)?.generation == generation;
        (young && same && self.takes(index, v4, here)).then_some(index)
    }

    /// The first of `list`, from the place that `hash` points to on and around, that takes new flows.
    fn first(&self, list: &[u32], hash: u32, v4: bool, here: bool) -> Option<u32> {
        let start = ((u64::from(hash) * list.len() as u64) >> 32) as usize;
        let around = list[start..].iter().chain(&list[..start]);
        around.copied().find(|index| self.takes(*index, v4, here))
    }

    fn takes(&self, index: u32, v4: bool, here: bool) -> bool {
        let Some(backend) = self.table.backend(index) else { return false };
        backend.state == BACKEND_ACTIVE
            && backend.addr.is_v4() == v4
            && if here {
                backend.node == NODE_SELF
            } else {
                backend.node == 0 || self.table.is_up(backend.node)
            }
    }

    /// The choice of another node, if it is a living backend of this one.
    fn obeyed(&self, service: u32, hash: u32, v4: bool) -> Option<u32> {
        let index = *self.table.choices.get(&(service, hash))?;
        let backend = self.table.backend(index)?;
        let lives = matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING);
        (lives && backend.node == NODE_SELF && backend.hash == hash && backend.addr.is_v4() == v4)
            .then_some(index)
    }
}
