//! The reference: what must become of a packet, written from the documents ([architecture](../../../docs/architecture.md))
//! and in nothing from the programs. Of `heddle-ebpf-common` it uses the forms of the state and the two hashes on
//! which nodes must agree; it decides by itself.

mod begin;
mod choose;
mod flows;
mod hooks;
mod send;
mod tunnel;
mod xdp;

use std::collections::BTreeMap;

use heddle_bpf::{TcHook, XdpMode};
use heddle_ebpf_common::{Addr, Counter, FragKey};

pub use flows::{Flow, Flows, Side};
pub use xdp::Sent;

use crate::place::Dev;
use crate::rewrite::Frame;
use crate::table::{Change, Table};

/// A packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stimulus {
    pub hook: TcHook,
    pub dev: Dev,
    pub frame: Vec<u8>,
    /// `skb->mark`.
    pub mark: u32,
    /// Size of the segments that the card will cut it into; 0: none.
    pub gso: u32,
    /// Another program of ours has dealt with it already.
    pub done: bool,
    /// A card has summed it up, and the sum is compared afterwards (where the packet stays what it is).
    pub summed: bool,
    /// The packet meets XDP first.
    pub xdp: Option<XdpMode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    To(Dev),
}

/// What became of it. Of a packet that is dropped, only that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub frame: Frame,
    pub mark: u32,
    /// A sum that a card computed stays right. Not of answers that are made in a packet's place, nor of datagrams
    /// without a checksum: nobody asks for either.
    pub sum_stays: bool,
}

/// In `skb->mark`: a packet on its way to the host by an underlay device.
pub const MARK_HOST: u32 = 0x4864_6c01;
/// In `skb->mark`, with the index of the node that has sent what is unwrapped.
pub const MARK_ENTRY: u32 = 0x4900_0000;

/// Where an answer goes that is made in a packet's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// Out by the device that the packet came in by.
    Device,
    /// Through the tunnel, to the node that had sent it.
    Node(u32),
    /// To this node, which was about to send it.
    Own,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub table: Table,
    pub flows: Flows,
    /// Ports of fragmented datagrams that were translated.
    pub frags: BTreeMap<FragKey, [u16; 2]>,
    /// (Client, service) -> backend, its generation, time of the last new flow.
    pub affinity: BTreeMap<(Addr, u32), (u32, u32, u64)>,
    /// There has been a flow to the host network, of a pod.
    host_flows: bool,
    pod_flows: bool,
    /// Of the node itself.
    own_flows: bool,
    back: Back,
    /// Flows that each backend was given.
    pub conns: BTreeMap<u32, u64>,
    /// Elements of the map of answered flows.
    room: usize,
    pub counted: [u64; Counter::COUNT as usize],
}

impl Model {
    /// `room`: entries of answered flows that there may be; a flow has two.
    pub fn new(table: Table, room: usize) -> Self {
        Self {
            table,
            flows: Flows::default(),
            frags: BTreeMap::new(),
            affinity: BTreeMap::new(),
            host_flows: false,
            pod_flows: false,
            own_flows: false,
            back: Back::Device,
            conns: BTreeMap::new(),
            room,
            counted: [0; Counter::COUNT as usize],
        }
    }

    pub fn change(&mut self, change: &Change) {
        self.table.apply(change);
    }

    fn count(&mut self, counter: Counter) {
        self.counted[counter as usize] += 1;
    }

    /// In steps of 2^30 ns.
    fn now(&self) -> u64 {
        self.table.config.fixed_time >> 30 << 30
    }

    /// Other programs are being followed: what nobody knows yet waits.
    fn is_settling(&self) -> bool {
        self.table.config.settling != 0 && self.table.config.fixed_time < self.table.config.settling
    }

    fn drop(&mut self, reason: Counter) -> Outcome {
        self.count(reason);
        dropped()
    }
}

fn dropped() -> Outcome {
    Outcome { verdict: Verdict::Drop, frame: Frame::of(Vec::new()), mark: 0, sum_stays: false }
}

fn pass(stimulus: &Stimulus) -> Outcome {
    let frame = Frame::of(stimulus.frame.clone());
    Outcome { verdict: Verdict::Pass, frame, mark: stimulus.mark, sum_stays: true }
}
