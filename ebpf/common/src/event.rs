//! What the programs tell whoever listens (`proxyd monitor`).

use crate::Tuple;

/// Bytes of a packet that are shown: Ethernet, IPv6 with an option or two, TCP.
pub const EVENT_HEAD: usize = 96;

/// An element of the ring buffer `events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// The [`Counter`](crate::Counter) that says why, where there is one.
    pub reason: u32,
    /// `bpf_ktime_get_ns`.
    pub time: u64,
    /// Flows and sockets: what was asked for; `src` of a socket is zero.
    pub tuple: Tuple,
    /// What it becomes; where a flow goes on through the tunnel, the same.
    pub to: Tuple,
    /// [`Frontend::service`](crate::Frontend::service); 0: not known here.
    pub service: u32,
    /// Packets: where it was met.
    pub ifindex: u32,
    /// Packets: length in bytes. Flows: element of `backends`.
    pub len: u32,
    /// Packets: how many bytes are in `head`.
    pub head_len: u32,
    /// The packet as it is at that moment, from its Ethernet header on.
    pub head: [u8; EVENT_HEAD],
}

/// A packet was dropped.
pub const EVENT_DROP: u32 = 1;
/// A packet or a connect was answered with a refusal.
pub const EVENT_REJECT: u32 = 2;
/// A flow begins.
pub const EVENT_FLOW: u32 = 3;
/// A socket was given a backend.
pub const EVENT_SOCKET: u32 = 4;

/// Bytes of the ring buffer `events`.
pub const EVENTS_SIZE: u32 = 1 << 18;

/// Elements of the array `listening`: until when somebody listens (`bpf_ktime_get_ns` in steps of 2^30, and at least
/// 1; 0: nobody), and how many events there was no room for.
pub const LISTENING_UNTIL: u32 = 0;
pub const LISTENING_LOST: u32 = 1;
pub const LISTENING_LEN: u32 = 2;

#[cfg(feature = "user")]
impl Event {
    /// An element of the ring buffer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: as many bytes as it has; plain data, every bit pattern valid; alignment does not matter.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// What is there of the packet.
    pub fn packet(&self) -> &[u8] {
        &self.head[..(self.head_len as usize).min(EVENT_HEAD)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_no_padding() {
        assert_eq!(size_of::<Event>(), 2 * 4 + 8 + 2 * size_of::<Tuple>() + 4 * 4 + EVENT_HEAD);
    }
}
