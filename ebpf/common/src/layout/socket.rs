//! What is kept of translated sockets.

use super::{Addr, pair, sum};

/// Key of the LRU hash `sock_rev`: the service's address of a translated socket, for `getpeername` and
/// `recvmsg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SockKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The backend's address (`sock_rev`) or the frontend's (`sock_udp`).
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    pub proto: u8,
    pub zero: [u8; 5],
}

/// The value of `sock_rev`: the address that the application asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SockPeer {
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    pub zero: u16,
    /// [`SockPeer::sum`].
    pub check: u32,
}

impl SockPeer {
    #[inline(always)]
    pub const fn sum(&self, key: &SockKey) -> u32 {
        let [a0, a1] = self.addr.words();
        let [k0, k1] = key.addr.words();
        (sum(&[a0, a1, pair(self.port as u32, key.port as u32), key.cookie, k0, k1]) >> 32) as u32
    }
}

/// The value of the LRU hash `sock_udp`: the backend that an unconnected UDP socket keeps for a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SockChoice {
    pub backend: u32,
    pub generation: u32,
    pub service: u32,
    /// [`SockChoice::sum`].
    pub check: u32,
}

impl SockChoice {
    #[inline(always)]
    pub const fn sum(&self, key: &SockKey) -> u32 {
        let [k0, k1] = key.addr.words();
        let ids = pair(self.backend, self.generation);
        (sum(&[ids, pair(self.service, key.port as u32), key.cookie, k0, k1]) >> 32) as u32
    }
}
