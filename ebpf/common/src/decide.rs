//! The decision: is an address a service's, which backend takes a new flow, and by which way does the flow reach
//! it? One code for the programs (over their maps) and for user space (over the same maps, or over a model of them),
//! so that what is explained is what is done.
//!
//! Nothing here reads a packet or writes a map. Time and chance are passed in.

use core::ops::Deref;

use crate::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODE_PORTS, Addr, Affinity, AffinityKey, BACKEND_ACTIVE,
    BACKEND_DRAINING, Backend, ChoiceKey, Config, FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, FRONTEND_LOCAL,
    FRONTEND_SOURCES, Frontend, FrontendKey, KnownAddr, NET_LOOPBACK, NODE_DOWN, NODE_SELF, REMOTE_DSR,
    REMOTE_SNAT, Tuple,
};

/// Slots of a list tried after the first: all, for any service that there is.
const LONGEST: u32 = 1 << 17;
const SECOND: u64 = 1_000_000_000;

/// The maps that a decision is made from. What they return is whole (not torn).
pub trait Tables: Copy {
    type Backend: Deref<Target = Backend>;

    /// Copies the frontend under exactly this key.
    fn frontend(self, key: &FrontendKey, copy: &mut Frontend) -> Copied;
    /// What is known of an address; all zero: nothing.
    fn addr(self, addr: &Addr) -> KnownAddr;
    /// The content of a slot of `ring`; 0 if there is no such slot.
    fn slot(self, slot: u32) -> u32;
    fn backend(self, index: u32) -> Option<Self::Backend>;
    /// [`Node::state`](crate::Node::state) of an element of `nodes`.
    fn node_state(self, index: u32) -> u32;
    /// Whether a node can be reached by tunnel.
    fn has_overlay(self, index: u32) -> bool;
    fn choice(self, key: ChoiceKey) -> Option<u32>;
    fn affinity(self, key: &AffinityKey) -> Option<Affinity>;
    /// Whether `sources` has this client under this service.
    fn allows(self, service: u32, client: &Addr) -> bool;

    /// Calls [`Search::step`] with 0, 1, ... below `count` until it says true. (The programs cannot loop that long
    /// by themselves.)
    fn search(self, search: &mut Search, count: u32) {
        let _ = (0..count).any(|i| search.step(self, i));
    }
}

/// What came of copying a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    Absent,
    Whole,
    /// It was being written all the while.
    Torn,
}

/// What an address and port are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frontend, which was copied.
    Frontend,
    /// A port that no frontend has, of an address that only services have: rejected.
    Undefined,
    /// Nothing of ours.
    Nothing,
}

/// Which of the nodes' addresses answer on node ports here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    All,
    /// From outside, a node answers for itself only.
    Own,
}

/// Copies the frontend of an address: its own, or the node port's if it is an address of a node that has them.
#[inline(always)]
pub fn find<T: Tables>(
    tables: T,
    addr: &Addr,
    port: u16,
    proto: u8,
    nodes: Nodes,
    copy: &mut Frontend,
) -> Found {
    let known = tables.addr(addr);
    if known.kind == 0 {
        return Found::Nothing;
    }
    let mut key = FrontendKey { addr: *addr, net: 0, port, proto, zero: 0 };
    if known.is(ADDR_CLUSTER_IP | ADDR_EXTERNAL) {
        match tables.frontend(&key, copy) {
            Copied::Whole => return Found::Frontend,
            Copied::Absent if known.is(ADDR_CLUSTER_IP) => return Found::Undefined,
            Copied::Absent => {}
            Copied::Torn => return Found::Nothing,
        }
    }
    if known.is(ADDR_NODE_PORTS) && (nodes == Nodes::All || known.node == NODE_SELF) {
        key.addr = any(addr);
        if tables.frontend(&key, copy) == Copied::Whole {
            return Found::Frontend;
        }
    }
    Found::Nothing
}

/// Copies the frontend of a loopback address, for a socket of the node itself: its own, or (127.0.0.1 and ::1) the
/// node port's. False: there is none.
#[inline(always)]
pub fn find_loopback<T: Tables>(tables: T, addr: &Addr, port: u16, proto: u8, copy: &mut Frontend) -> bool {
    let mut key = FrontendKey { addr: *addr, net: NET_LOOPBACK, port, proto, zero: 0 };
    if tables.frontend(&key, copy) == Copied::Whole {
        return true;
    }
    if addr.is_v4() && addr.as_v4() != u32::from_ne_bytes([127, 0, 0, 1]) {
        return false;
    }
    (key.net, key.addr) = (0, any(addr));
    tables.frontend(&key, copy) == Copied::Whole
}

/// The address of the node ports of a family.
#[inline(always)]
const fn any(addr: &Addr) -> Addr {
    if addr.is_v4() { Addr::ANY4 } else { Addr::ANY6 }
}

/// Where a request was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of this node sent it.
    Pod,
    /// A process of this node's own network sent it, and no socket hook saw it.
    Host,
    /// It came in by an underlay device.
    Outside,
    /// Another node sent it through the tunnel. `entry`: its index in `nodes`; `hash`: of the backend that it
    /// chose; `dsr`: the client is answered directly.
    Tunnel { entry: u32, hash: u32, dsr: bool },
}

/// Why it is this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Any of the list, with equal chances.
    Random,
    /// The client's address and port, by the Maglev table (or the list of this node's own).
    ClientHash,
    /// The client's address alone: the first flow of a client under session affinity.
    AddressHash,
    /// It had the client's flows before.
    Affinity,
    /// The entry node chose it.
    EntryNode,
    /// What the entry node chose is not here: another one that is.
    EntryNodeErred,
}

/// Why there is none.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The service has no backend for this client: RST, ICMP port unreachable.
    Reject,
    /// The same, where the client is to get no answer.
    Drop,
    /// The client's address is not among those that the service allows.
    Source,
    /// Another node sent the request, and there is no backend here: the nodes disagree for a moment.
    NotHere,
}

/// The answer for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Element of `backends`.
    Backend(u32, By),
    Refused(Refusal),
}

/// What a choice may fall on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    /// Backends of this node only.
    Local,
}

/// May this backend be given a new flow?
#[inline(always)]
fn takes_new<T: Tables>(tables: T, backend: &Backend, v4: bool, scope: Scope) -> bool {
    if backend.state != BACKEND_ACTIVE || backend.addr.is_v4() != v4 {
        return false;
    }
    if scope == Scope::Local {
        return backend.node == NODE_SELF;
    }
    backend.node == 0 || is_up(tables, backend.node)
}

/// A node that is not known to be down.
#[inline(always)]
pub fn is_up<T: Tables>(tables: T, node: u32) -> bool {
    tables.node_state(node) != NODE_DOWN
}

/// `hash * len / 2^32`: below `len`, evenly, without a division.
#[inline(always)]
fn scale(hash: u32, len: u32) -> u32 {
    ((hash as u64 * len as u64) >> 32) as u32
}

/// A search over an extent of `ring`, from the slot that a hash points to.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    start: u32,
    len: u32,
    first: u32,
    v4: bool,
    scope: Scope,
    /// The index of the backend; 0: none.
    found: u32,
}

impl Search {
    /// The candidate `i` slots after the first; 0: none.
    #[inline(always)]
    fn at<T: Tables>(&self, tables: T, i: u32) -> u32 {
        let at = self.first.wrapping_add(i);
        let at = if at >= self.len { at.wrapping_sub(self.len) } else { at };
        let index = tables.slot(self.start.wrapping_add(at));
        match tables.backend(index) {
            Some(backend) if takes_new(tables, &backend, self.v4, self.scope) => index,
            _ => 0,
        }
    }

    /// Looks at the slot `i + 1` after the first. True: that is it.
    #[inline(always)]
    pub fn step<T: Tables>(&mut self, tables: T, i: u32) -> bool {
        self.found = self.at(tables, i.wrapping_add(1));
        self.found != 0
    }
}

/// The first backend of a list that takes new flows, from where `hash` points; 0: none. Only the first is looked at
/// in line: that it does not do is rare (a node has died, few of many backends are on this node), and the verifier
/// would walk through each of the others wherever a backend is chosen.
#[inline(always)]
fn search<T: Tables>(tables: T, (start, len): (u32, u32), hash: u32, v4: bool, scope: Scope) -> u32 {
    if len == 0 {
        return 0;
    }
    let mut search = Search { start, len, first: scale(hash, len), v4, scope, found: 0 };
    let index = search.at(tables, 0);
    if index != 0 {
        return index;
    }
    let more = len - 1;
    tables.search(&mut search, if more > LONGEST { LONGEST } else { more });
    search.found
}

/// The backend that has this client's flows, if the client came lately and the backend still takes new ones.
#[inline(always)]
fn remembered<T: Tables>(
    tables: T,
    frontend: &Frontend,
    client: &Addr,
    v4: bool,
    scope: Scope,
    now: u64,
) -> u32 {
    let key = AffinityKey { client: *client, service: frontend.service, zero: 0 };
    let Some(affinity) = tables.affinity(&key) else { return 0 };
    if now.saturating_sub(affinity.seen) >= frontend.affinity as u64 * SECOND {
        return 0;
    }
    match tables.backend(affinity.backend) {
        Some(backend)
            if backend.generation == affinity.generation && takes_new(tables, &backend, v4, scope) =>
        {
            affinity.backend
        }
        _ => 0,
    }
}

/// For a client inside the cluster: a pod, a node. `client`: its address, or what stands for it in `affinity`
/// ([`AffinityKey::client`]). Source ranges are not looked at.
#[inline(always)]
pub fn choose_inside<T: Tables>(
    tables: T,
    frontend: &Frontend,
    client: &Addr,
    v4: bool,
    random: u32,
    now: u64,
) -> Choice {
    if frontend.affinity != 0 {
        let index = remembered(tables, frontend, client, v4, Scope::Cluster, now);
        if index != 0 {
            return Choice::Backend(index, By::Affinity);
        }
    }
    match search(tables, (frontend.ring, frontend.ring_len), random, v4, Scope::Cluster) {
        0 if frontend.flags & FRONTEND_DROP != 0 => Choice::Refused(Refusal::Drop),
        0 => Choice::Refused(Refusal::Reject),
        index => Choice::Backend(index, By::Random),
    }
}

/// For a client outside.
#[inline(always)]
fn choose_outside<T: Tables>(tables: T, frontend: &Frontend, tuple: &Tuple, now: u64) -> Choice {
    let v4 = tuple.dst.is_v4();
    let scope = if frontend.flags & FRONTEND_LOCAL != 0 { Scope::Local } else { Scope::Cluster };
    let (hash, by) = if frontend.affinity == 0 {
        (tuple.client_hash(), By::ClientHash)
    } else {
        let index = remembered(tables, frontend, &tuple.src, v4, scope, now);
        if index != 0 {
            return Choice::Backend(index, By::Affinity);
        }
        // Every node comes to the same answer.
        (tuple.src.hash(), By::AddressHash)
    };
    match search(tables, (frontend.outside, frontend.outside_len), hash, v4, scope) {
        0 if frontend.flags & FRONTEND_DROP_OUTSIDE != 0 => Choice::Refused(Refusal::Drop),
        0 => Choice::Refused(Refusal::Reject),
        index => Choice::Backend(index, by),
    }
}

/// For a request that another node has chosen the backend `hash` for: that one if it is here and lives, else
/// another one of this node. Never one that is elsewhere.
#[inline(always)]
fn choose_tunnelled<T: Tables>(tables: T, frontend: &Frontend, hash: u32, v4: bool, random: u32) -> Choice {
    if let Some(index) = tables.choice(ChoiceKey { service: frontend.service, hash })
        && let Some(backend) = tables.backend(index)
        && backend.node == NODE_SELF
        && backend.hash == hash
        && (backend.state == BACKEND_ACTIVE || backend.state == BACKEND_DRAINING)
        && backend.addr.is_v4() == v4
    {
        return Choice::Backend(index, By::EntryNode);
    }
    match search(tables, (frontend.outside, frontend.outside_len), random, v4, Scope::Local) {
        0 => Choice::Refused(Refusal::NotHere),
        index => Choice::Backend(index, By::EntryNodeErred),
    }
}

/// Which backend gets the flow that begins with a packet of `tuple`? `random`: a random number, `now`: nanoseconds as
/// in [`Affinity::seen`].
#[inline(always)]
pub fn choose<T: Tables>(
    tables: T,
    frontend: &Frontend,
    tuple: &Tuple,
    origin: Origin,
    random: u32,
    now: u64,
) -> Choice {
    let v4 = tuple.dst.is_v4();
    if let Origin::Tunnel { hash, .. } = origin {
        // The entry node has looked at the client.
        return choose_tunnelled(tables, frontend, hash, v4, random);
    }
    if frontend.flags & FRONTEND_SOURCES != 0 && !tables.allows(frontend.service, &tuple.src) {
        return Choice::Refused(Refusal::Source);
    }
    if origin == Origin::Outside {
        choose_outside(tables, frontend, tuple, now)
    } else {
        choose_inside(tables, frontend, &tuple.src, v4, random, now)
    }
}

/// How a flow reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A pod of this node.
    Pod,
    /// The pod that asks is the backend: another source, as it would not take its own address for its own packet.
    Hairpin,
    /// A process in the host network of this node.
    Host,
    /// A pod of another node, as if the client, a pod, had asked for it itself.
    Overlay,
    /// Through the tunnel, untouched: the backend's node translates, and answers through the tunnel.
    Tunnel,
    /// The same, and it answers the client directly.
    Dsr,
    /// With a source of this node's: its address in the overlay, or in the underlay.
    Snat { overlay: bool },
}

/// The way of a flow that asked for the address `frontend` to its backend.
#[inline(always)]
pub fn way<T: Tables>(
    tables: T,
    config: &Config,
    backend: &Backend,
    frontend: &Addr,
    client: &Addr,
    origin: Origin,
) -> Way {
    let host = tables.addr(&backend.addr).is(ADDR_NODE);
    if backend.node == NODE_SELF {
        return if host {
            Way::Host
        } else if backend.addr == *client {
            Way::Hairpin
        } else {
            Way::Pod
        };
    }
    let overlay = backend.node != 0 && config.vxlan_ifindex != 0 && tables.has_overlay(backend.node);
    match origin {
        Origin::Pod if overlay && !host => Way::Overlay,
        // The other end learns who asks from the address of a node, or (external) from the outer source.
        Origin::Outside
            if overlay
                && config.remote != REMOTE_SNAT
                && tables.addr(frontend).is(ADDR_NODE | ADDR_EXTERNAL) =>
        {
            if config.remote == REMOTE_DSR {
                Way::Dsr
            } else {
                Way::Tunnel
            }
        }
        _ => Way::Snat { overlay: overlay && !host },
    }
}
