//! The values may be read and written through aya.
#![expect(unsafe_code, reason = "aya's Pod is an unsafe trait")]
use super::*;

macro_rules! pod { ($($t:ty),*) => { $(
    // SAFETY: `repr(C)`, `Copy`, no padding (tested in `tests`), every bit pattern valid.
    unsafe impl aya::Pod for $t {}
)* } }
pod!(
    Addr,
    FrontendKey,
    Frontend,
    Backend,
    Node,
    KnownAddr,
    AffinityKey,
    Affinity,
    SourceKey,
    ChoiceKey,
    Tuple,
    Flow,
    Routes,
    SockKey,
    SockPeer,
    SockChoice,
    Name,
    RingBlock,
    FragKey,
    FragPorts,
    Config
);
