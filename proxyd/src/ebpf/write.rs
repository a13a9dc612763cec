//! What can be written to the maps, and what can be read from them.

use heddle_ebpf_common::{Addr, Backend, ChoiceKey, Frontend, FrontendKey, KnownAddr, Node};
use ipnetwork::IpNetwork;

/// One write. `None` deletes; deleting what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Service(u32, Option<String>),
    /// A range of addresses that a service allows; or no more.
    Source(u32, IpNetwork, bool),
    Backend(u32, Backend),
    /// The slot's new backend has served nobody.
    Unused(u32),
    Choice(ChoiceKey, Option<u32>),
    /// The slots from this one on.
    Ring(u32, Vec<u32>),
    /// An element of `ports`.
    Ports(u32, u64),
    KnownAddr(Addr, Option<KnownAddr>),
    Frontend(FrontendKey, Option<Frontend>),
    Node(u32, Node),
    NodeName(u32, Option<String>),
    Range(IpNetwork, Option<u32>),
    /// Wait until every program that runs now has ended.
    Grace,
}

impl Write {
    /// Writes of one kind that differ in their elements may be done together.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Service(..) => 0,
            Self::Source(..) => 1,
            Self::Backend(..) => 2,
            Self::Choice(..) => 3,
            Self::Ring(..) => 4,
            Self::Ports(..) => 5,
            Self::KnownAddr(..) => 6,
            Self::Frontend(..) => 7,
            Self::Node(..) => 8,
            Self::NodeName(..) => 9,
            Self::Range(..) => 10,
            Self::Grace => 11,
            Self::Unused(..) => 12,
        }
    }
}

/// Everything that the maps hold and that a [`State`](super::state::State) is read from, but the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// From slot 0 up to the last that was ever used.
    pub backends: Vec<Backend>,
    pub choices: Vec<(ChoiceKey, u32)>,
    pub services: Vec<(u32, String)>,
    pub sources: Vec<(u32, IpNetwork)>,
    /// From index 0 up to the last that is in use.
    pub nodes: Vec<Node>,
    pub node_names: Vec<(u32, String)>,
    pub addrs: Vec<(Addr, KnownAddr)>,
    pub ranges: Vec<(IpNetwork, u32)>,
    /// The whole array.
    pub ports: Vec<u64>,
    /// The ports that `snat` takes, both inclusive, as the configuration says; 0: none.
    pub snat_ports: (u16, u16),
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
    /// Elements of `addrs`.
    pub addrs: u32,
    /// Elements of `sources`.
    pub sources: u32,
}

/// The maps, or in tests something that behaves like them.
pub trait Maps {
    /// Why a write failed.
    type Error: std::fmt::Display;

    /// Does one write.
    fn write(&mut self, write: &Write) -> Result<(), Self::Error>;

    /// Does the writes in their order, or as if. On failure, how many of them were done.
    fn write_all(&mut self, writes: &[&Write]) -> Result<(), (usize, Self::Error)> {
        for (done, write) in writes.iter().enumerate() {
            self.write(write).map_err(|error| (done, error))?;
        }
        Ok(())
    }

    /// An extent of `ring`: `len` slots from slot `start` on.
    fn read_list(&mut self, start: u32, len: u32) -> Result<Vec<u32>, Self::Error>;
}
