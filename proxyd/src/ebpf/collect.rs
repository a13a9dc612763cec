//! Collects flows that are over: the map `ct` forgets nothing by itself.
//!
//! A thread of its own goes through the map every [`INTERVAL`]; the loop never waits for it. Nothing is
//! lost when it does not run (the daemon is dead): a full map refuses new flows and counts them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heddle_bpf::{Maps, Pins};
use heddle_ebpf_common::{
    BACKEND_ACTIVE, BACKEND_DRAINING, Backend, CT_ANSWERED, CT_DSR, CT_ENTRY, CT_FIN, CT_REPLY, CT_RST, Flow,
    NODE_DOWN, Tuple,
};
use heddle_model::Protocol;
use nix::time::{ClockId, clock_gettime};

use crate::worker::Worker;

/// Time between two passes.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How long a flow without a packet is kept, by what it is. The programs note the time of a packet in steps of
/// about a second.
pub mod idle {
    use std::time::Duration;

    /// An established TCP connection: one that speaks once a day lives.
    pub const TCP_ESTABLISHED: Duration = Duration::from_secs(25 * 60 * 60);
    /// A SYN without an answer: the client's last retry comes after 63 s (tcp_syn_retries 6: 127 s in all).
    pub const TCP_UNANSWERED: Duration = Duration::from_secs(130);
    /// One side has sent its FIN: the other may go on sending for as long as it does send.
    pub const TCP_HALF_CLOSED: Duration = Duration::from_secs(15 * 60);
    /// Both have: retransmissions of the last segments (TIME_WAIT takes as long).
    pub const TCP_CLOSED: Duration = Duration::from_secs(60);
    /// A RST ends it at once; late segments of the other side still find their way.
    pub const TCP_RESET: Duration = Duration::from_secs(10);
    /// Its backend is gone: kept to answer the client's next segment with a RST.
    pub const TCP_STALE: Duration = Duration::from_secs(15 * 60);
    /// The backend's node is down, and the client goes on asking without an answer for so long.
    pub const TCP_STALLED: Duration = Duration::from_secs(3);
    /// A datagram without an answer, and a conversation (as nf_conntrack_udp_timeout and _stream).
    pub const UDP_UNANSWERED: Duration = Duration::from_secs(30);
    pub const UDP_ANSWERED: Duration = Duration::from_secs(180);
}

/// What became of a flow's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// Its node is down, as far as the cluster knows; it may only be cut off from those who say so.
    NodeDown,
    Gone,
}

/// A flow of no backend (a pod's own connection that a service's flow made way for) has nothing to outlive.
fn fate(flow: &Flow, backends: &impl Fn(u32) -> Option<(Backend, bool)>) -> Fate {
    if flow.backend == 0 {
        return Fate::Lives;
    }
    match backends(flow.backend) {
        Some((backend, node_down))
            if backend.generation == flow.generation
                && matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING) =>
        {
            if node_down {
                Fate::NodeDown
            } else {
                Fate::Lives
            }
        }
        _ => Fate::Gone,
    }
}

/// How long the flow may be without a packet. `flags` are those of both directions together.
fn patience(proto: u8, flags: u32, fins: usize, fate: Fate) -> Duration {
    let answered = flags & CT_ANSWERED != 0;
    match Protocol::from_number(proto) {
        Some(Protocol::Tcp | Protocol::Sctp) if fate == Fate::Gone => idle::TCP_STALE,
        Some(Protocol::Tcp | Protocol::Sctp) => tcp_patience(flags, fins, answered),
        _ if fate != Fate::Lives => Duration::ZERO,
        _ if answered => idle::UDP_ANSWERED,
        _ => idle::UDP_UNANSWERED,
    }
}

fn tcp_patience(flags: u32, fins: usize, answered: bool) -> Duration {
    // Of a flow whose answers go their own way only the client's end is seen.
    let all = if flags & CT_DSR != 0 && flags & CT_ENTRY != 0 { 1 } else { 2 };
    match fins {
        _ if flags & CT_RST != 0 => idle::TCP_RESET,
        fins if fins >= all => idle::TCP_CLOSED,
        _ if !answered => idle::TCP_UNANSWERED,
        1 => idle::TCP_HALF_CLOSED,
        _ => idle::TCP_ESTABLISHED,
    }
}

/// The client has sent since the backend was heard of last, and for some time.
fn is_stalled(one: &Flow, other: &Flow) -> bool {
    let (request, reply) = if one.flags & CT_REPLY != 0 { (other, one) } else { (one, other) };
    Duration::from_nanos(request.seen.saturating_sub(reply.seen)) > idle::TCP_STALLED
}

/// Of `entries`, those that are over at `now` (nanoseconds of CLOCK_MONOTONIC), both entries of a flow
/// together. `backends` tells of a slot what is in it, and whether the node of that is down. An entry without its other one is over too, if it did not appear this moment.
pub fn over(
    entries: &[(Tuple, Flow)],
    now: u64,
    backends: impl Fn(u32) -> Option<(Backend, bool)>,
) -> Vec<(Tuple, Flow)> {
    let index: BTreeMap<&Tuple, &Flow> = entries.iter().map(|(key, flow)| (key, flow)).collect();
    let ended = entries.iter().filter(|(key, flow)| {
        let peer = index.get(&flow.peer()).filter(|peer| peer.peer() == *key);
        let both = [Some(flow), peer.copied()];
        let flags = both.iter().flatten().fold(0, |flags, flow| flags | flow.flags);
        let fins = both.iter().flatten().filter(|flow| flow.flags & CT_FIN != 0).count();
        let seen = both.iter().flatten().map(|flow| flow.seen).max().unwrap_or(0);
        let fate = fate(flow, &backends);
        let patience = match peer {
            // The next segment of the client finds no flow, and is answered with a RST.
            Some(peer) if fate == Fate::NodeDown && is_stalled(flow, peer) => Duration::ZERO,
            Some(_) => patience(key.proto, flags, fins, fate),
            None => idle::TCP_RESET,
        };
        Duration::from_nanos(now.saturating_sub(seen)) > patience
    });
    ended.copied().collect()
}

/// How full the conntrack maps were at the last pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    /// Entries (two a flow) whose backend has answered, and of flows whose backend has not.
    pub answered: u64,
    pub unanswered: u64,
}

/// What the thread tells.
#[derive(Debug, Default)]
pub(super) struct Shared {
    answered: AtomicU64,
    unanswered: AtomicU64,
    collected: AtomicU64,
    error: Mutex<Option<String>>,
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    _worker: Worker<mpsc::Sender<()>>,
    shared: Arc<Shared>,
}

impl Collector {
    /// Starts it over the pinned maps.
    pub fn start(pins: &Pins) -> Result<Self, heddle_bpf::Error> {
        // Seen once before the thread starts; then anew in each pass, as maps that grow are replaced.
        Maps::open(pins)?;
        let at = pins.clone();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = mpsc::channel();
        let theirs = shared.clone();
        let work = move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let pass = Maps::open(&at).and_then(|mut maps| pass(&mut maps, &theirs));
                let error = pass.err().map(|error| error.to_string());
                *theirs.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
            }
        };
        let worker = Worker::start("collect", stop, work).map_err(|source| heddle_bpf::Error::Pin {
            operation: "start the thread that collects flows of",
            path: pins.dir(),
            source,
        })?;
        Ok(Self { _worker: worker, shared })
    }

    pub fn sizes(&self) -> Sizes {
        Sizes {
            answered: self.shared.answered.load(Ordering::Relaxed),
            unanswered: self.shared.unanswered.load(Ordering::Relaxed),
        }
    }

    /// Flows' entries collected since the start.
    pub fn collected(&self) -> u64 {
        self.shared.collected.load(Ordering::Relaxed)
    }

    /// What the last pass failed of.
    pub fn error(&self) -> Option<String> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Goes through both maps once.
pub(super) fn pass(maps: &mut Maps, shared: &Shared) -> Result<(), heddle_bpf::Error> {
    let now = now();
    let answered = maps.flows()?;
    let unanswered = maps.new_flows()?;
    shared.answered.store(answered.len() as u64, Ordering::Relaxed);
    shared.unanswered.store(unanswered.len() as u64, Ordering::Relaxed);
    for (entries, is_new) in [(answered, false), (unanswered, true)] {
        let backends = |slot: u32| {
            let backend = maps.backends.get(&slot, 0).ok()?;
            let node = if backend.node == 0 { None } else { maps.nodes.get(&backend.node, 0).ok() };
            Some((backend, node.is_some_and(|node| node.state == NODE_DOWN)))
        };
        let mut ended: BTreeMap<Tuple, Flow> = over(&entries, now, backends).into_iter().collect();
        let map = if is_new { &mut maps.ct_new } else { &mut maps.ct };
        while let Some((key, flow)) = ended.pop_first() {
            let peer = flow.peer();
            let other = ended.remove(&peer);
            // Either may have been seen since it was read, or be another flow by now: then both stay.
            let still = |key: &Tuple, flow: &Flow| map.get(key, 0).is_ok_and(|again| again == *flow);
            if !still(&key, &flow) || other.is_some_and(|other| !still(&peer, &other)) {
                continue;
            }
            for key in [Some(key), other.map(|_| peer)].into_iter().flatten() {
                if map.remove(&key).is_ok() {
                    shared.collected.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    Ok(())
}

/// The clock of `bpf_ktime_get_ns`.
pub(super) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn tuple(sport: u16, proto: u8) -> Tuple {
        Tuple { sport, proto, dport: 80, ..Tuple::default() }
    }

    /// The two entries of a flow, last seen at 0.
    fn flow(sport: u16, proto: u8, request: u32, reply: u32) -> [(Tuple, Flow); 2] {
        let key = tuple(sport, proto);
        let to = Tuple { dport: 8080, ..key };
        let common = Flow { backend: 1, generation: 1, ..Flow::default() };
        [
            (key, Flow { to, flags: request, ..common }),
            (to.reversed(), Flow { to: key.reversed(), flags: reply | CT_REPLY, ..common }),
        ]
    }

    fn alive() -> Backend {
        Backend { generation: 1, state: BACKEND_ACTIVE, ..Backend::default() }
    }

    #[test]
    fn on_a_node_that_is_down_only_what_gets_no_answer_ends() {
        let down = |_| Some((alive(), true));
        let mut tcp = flow(1, 6, CT_ANSWERED, CT_ANSWERED);
        assert!(over(&tcp, 3600 * SECOND, down).is_empty(), "nobody asks");
        tcp[0].1.seen = 100 * SECOND;
        tcp[1].1.seen = 98 * SECOND;
        assert!(over(&tcp, 101 * SECOND, down).is_empty(), "it answers");
        tcp[0].1.seen = 102 * SECOND;
        assert_eq!(over(&tcp, 103 * SECOND, down).len(), 2);
        assert!(over(&tcp, 103 * SECOND, |_| Some((alive(), false))).is_empty(), "the node is up");
        let udp = flow(1, 17, CT_ANSWERED, CT_ANSWERED);
        assert_eq!(over(&udp, SECOND, down).len(), 2);
    }

    fn lives(proto: u8, request: u32, reply: u32, generation: u32, state: u8) -> u64 {
        let entries = flow(1, proto, request, reply);
        let backends = |_| Some((Backend { generation, state, ..Backend::default() }, false));
        let end = (0..200_000).find(|s| !over(&entries, s * SECOND, backends).is_empty());
        let end = end.expect("every flow ends");
        assert_eq!(over(&entries, end * SECOND, backends).len(), 2, "both entries go together");
        end - 1
    }

    #[test]
    fn every_flow_has_its_time() {
        let (tcp, udp) = (6, 17);
        let life = |proto, request, reply| lives(proto, request, reply, 1, BACKEND_ACTIVE);
        assert_eq!(life(tcp, CT_ANSWERED, CT_ANSWERED), 25 * 3600);
        assert_eq!(life(tcp, 0, 0), 130);
        assert_eq!(life(tcp, CT_ANSWERED | CT_FIN, CT_ANSWERED), 900);
        assert_eq!(life(tcp, CT_ANSWERED | CT_FIN, CT_ANSWERED | CT_FIN), 60);
        assert_eq!(life(tcp, CT_ANSWERED, CT_ANSWERED | CT_RST), 10);
        assert_eq!(life(udp, 0, 0), 30);
        assert_eq!(life(udp, CT_ANSWERED, CT_ANSWERED), 180);
        assert_eq!(lives(udp, CT_ANSWERED, CT_ANSWERED, 2, BACKEND_ACTIVE), 0, "another generation");
        assert_eq!(lives(udp, CT_ANSWERED, CT_ANSWERED, 1, 0), 0, "a free slot");
        assert_eq!(lives(tcp, CT_ANSWERED, CT_ANSWERED, 2, BACKEND_ACTIVE), 900);
        assert_eq!(lives(udp, CT_ANSWERED, CT_ANSWERED, 1, BACKEND_DRAINING), 180);
    }

    #[test]
    fn of_a_direct_answer_the_clients_end_is_all_that_is_seen() {
        let (here, there) = (CT_ANSWERED | CT_DSR | CT_ENTRY, CT_ANSWERED | CT_DSR);
        assert_eq!(lives(6, here | CT_FIN, here, 1, BACKEND_ACTIVE), 60);
        assert_eq!(lives(6, there | CT_FIN, there, 1, BACKEND_ACTIVE), 900);
        assert_eq!(lives(132, CT_ANSWERED, CT_ANSWERED | CT_RST, 1, BACKEND_ACTIVE), 10, "SCTP as TCP");
    }

    #[test]
    fn fault_075_a_client_that_vanished_half_way_is_forgotten() {
        assert_eq!(lives(6, 0, 0, 1, BACKEND_ACTIVE), 130, "a SYN alone");
        assert_eq!(lives(6, CT_ANSWERED, CT_ANSWERED | CT_FIN, 1, BACKEND_ACTIVE), 900, "its FIN never came");
    }

    #[test]
    fn fault_076_a_connection_that_is_silent_for_a_day_lives() {
        assert!(lives(6, CT_ANSWERED, CT_ANSWERED, 1, BACKEND_ACTIVE) >= 24 * 3600);
        assert!(lives(6, CT_ANSWERED, CT_ANSWERED, 1, BACKEND_DRAINING) >= 24 * 3600, "also while it drains");
    }

    #[test]
    fn a_packet_in_one_direction_keeps_both_entries() {
        let mut entries = flow(1, 17, CT_ANSWERED, CT_ANSWERED);
        entries[1].1.seen = 170 * SECOND;
        let backends = |_| Some((alive(), false));
        assert!(over(&entries, 340 * SECOND, backends).is_empty());
        assert_eq!(over(&entries, 351 * SECOND, backends).len(), 2);
    }

    #[test]
    fn a_flow_of_no_backend_has_its_time_too() {
        let entries = flow(1, 17, CT_ANSWERED, CT_ANSWERED).map(|(key, f)| (key, Flow { backend: 0, ..f }));
        assert!(over(&entries, 179 * SECOND, |_| None).is_empty());
        assert_eq!(over(&entries, 182 * SECOND, |_| None).len(), 2);
    }

    #[test]
    fn an_entry_alone_goes() {
        let [request, _] = flow(1, 6, CT_ANSWERED, CT_ANSWERED);
        let backends = |_| Some((alive(), false));
        assert!(over(&[request], 9 * SECOND, backends).is_empty());
        assert_eq!(over(&[request], 11 * SECOND, backends).len(), 1);
    }
}
