//! The flows that the node knows. One object is a flow; that it is two entries of a map is told only when they are
//! compared ([`Flows::entries`]).

use std::collections::BTreeMap;

use heddle_ebpf_common::{CT_ANSWERED, CT_DSR, CT_ENTRY, CT_FIN, CT_REPLY, CT_RST, Flow as Entry, Tuple};

use crate::wire::Packet;

/// What was seen of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    pub fin: bool,
    pub rst: bool,
    /// The pod's device that this direction was seen to come from.
    pub ifindex: u32,
    pub seen: u64,
    /// From the IP header on.
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The requests as they come, and as they go on.
    pub from: Tuple,
    pub to: Tuple,
    pub backend: u32,
    pub generation: u32,
    pub service: u32,
    /// `CT_HOST`, `CT_TUNNEL`, `CT_ENTRY`, `CT_DSR`, `CT_OWN`.
    pub way: u32,
    pub node: u32,
    pub answered: bool,
    pub request: Side,
    pub reply: Side,
}

impl Flow {
    /// The replies as they come.
    pub fn back(&self) -> Tuple {
        self.to.reversed()
    }

    pub fn has(&self, way: u32) -> bool {
        self.way & way != 0
    }

    pub fn side(&mut self, is_reply: bool) -> &mut Side {
        if is_reply { &mut self.reply } else { &mut self.request }
    }

    /// Both ends have said all, or one has broken it off. Where the replies go another way only the client is heard.
    pub fn is_closed(&self) -> bool {
        let (a, b) = (&self.request, &self.reply);
        a.rst || b.rst || (a.fin && (b.fin || (self.has(CT_DSR) && self.has(CT_ENTRY))))
    }
}

#[derive(Clone, Debug, Default)]
pub struct Flows {
    all: BTreeMap<u32, Flow>,
    /// Tuple of requests or of replies (true).
    by: BTreeMap<Tuple, (u32, bool)>,
    next: u32,
}

impl Flows {
    /// The flow to which packets of this tuple belong, and whether they are its replies.
    pub fn find(&self, tuple: &Tuple) -> Option<(u32, bool)> {
        self.by.get(tuple).copied()
    }

    /// The same as the packet hooks look: a segment of a TCP connection that stands is looked for among the answered
    /// flows, and elsewhere only when it is clear that it is for a service.
    pub fn of(&self, packet: &Packet) -> Option<(u32, bool)> {
        self.find(&packet.tuple).filter(|(id, _)| !packet.is_segment() || self.get(*id).answered)
    }

    pub fn get(&self, id: u32) -> &Flow {
        &self.all[&id]
    }

    pub fn get_mut(&mut self, id: u32) -> &mut Flow {
        self.all.get_mut(&id).expect("found by its tuple")
    }

    pub fn add(&mut self, flow: Flow) -> u32 {
        self.next += 1;
        self.by.insert(flow.from, (self.next, false));
        self.by.insert(flow.back(), (self.next, true));
        self.all.insert(self.next, flow);
        self.next
    }

    pub fn remove(&mut self, id: u32) {
        if let Some(flow) = self.all.remove(&id) {
            self.by.remove(&flow.from);
            self.by.remove(&flow.back());
        }
    }

    /// Flows that have had a reply.
    pub fn answered(&self) -> usize {
        self.all.values().filter(|flow| flow.answered).count()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn nth(&self, n: usize) -> Option<&Flow> {
        self.all.values().nth(n)
    }

    /// As the maps hold them: those that were answered, or those that were not.
    pub fn entries(&self, answered: bool) -> BTreeMap<Tuple, Entry> {
        let mut entries = BTreeMap::new();
        for flow in self.all.values().filter(|flow| flow.answered == answered) {
            for (key, to, side, reply) in [
                (flow.from, flow.to, flow.request, 0),
                (flow.back(), flow.from.reversed(), flow.reply, CT_REPLY),
            ] {
                let bit = |is: bool, bit| if is { bit } else { 0 };
                let mut entry = Entry {
                    to,
                    backend: flow.backend,
                    generation: flow.generation,
                    service: flow.service,
                    flags: flow.way
                        | reply
                        | bit(side.fin, CT_FIN)
                        | bit(side.rst, CT_RST)
                        | bit(answered, CT_ANSWERED),
                    node: flow.node,
                    ifindex: side.ifindex,
                    seen: side.seen,
                    packets: side.packets,
                    bytes: side.bytes,
                    ..Entry::default()
                };
                entry.check = entry.sum(&key);
                entries.insert(key, entry);
            }
        }
        entries
    }
}
