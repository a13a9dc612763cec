//! What can be written to the maps, and what can be read from them.

use heddle_ebpf_common::{Addr, Backend, ChoiceKey, Frontend, FrontendKey, KnownAddr, Node};
use ipnetwork::IpNetwork;

/// One write. `None` deletes; deleting what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Backend(u32, Backend),
    Service(u32, Option<String>),
    Choice(ChoiceKey, Option<u32>),
    /// The slots from this one on.
    Ring(u32, Vec<u32>),
    Frontend(FrontendKey, Option<Frontend>),
    Node(u32, Node),
    NodeName(u32, Option<String>),
    KnownAddr(Addr, Option<KnownAddr>),
    Range(IpNetwork, Option<u32>),
    /// Wait until every program that runs now has ended.
    Grace,
}

/// Everything that the maps hold and that a [`State`](super::state::State) is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// The whole array.
    pub ring: Vec<u32>,
    /// From slot 0 up to the last that was ever used.
    pub backends: Vec<Backend>,
    pub choices: Vec<(ChoiceKey, u32)>,
    pub services: Vec<(u32, String)>,
    /// From index 0 up to the last that is in use.
    pub nodes: Vec<Node>,
    pub node_names: Vec<(u32, String)>,
    pub addrs: Vec<(Addr, KnownAddr)>,
    pub ranges: Vec<(IpNetwork, u32)>,
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Elements of `frontends` and of `services`.
    pub frontends: u32,
    /// Elements of `backends` (slot 0 among them) and of `choices`.
    pub backends: u32,
    /// Slots of `ring`.
    pub ring: u32,
    /// Elements of `nodes` (0 among them).
    pub nodes: u32,
}

/// The maps, or in tests something that behaves like them.
pub trait Maps {
    /// Why a write failed.
    type Error: std::fmt::Display;

    /// Does one write.
    fn write(&mut self, write: &Write) -> Result<(), Self::Error>;
}
