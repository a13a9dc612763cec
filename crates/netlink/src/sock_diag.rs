//! Sockets of a network namespace that have a peer: finding and destroying them.
//!
//! The kernel shows and destroys sockets of the namespace alone that the [`SockDiag`] was opened in. A destroyed
//! TCP connection sends its peer a RST; its owner gets ECONNABORTED, as the owner of a connected UDP socket does.
//!
//! Source: include/uapi/linux/{sock_diag,inet_diag}.h, net/ipv4/{inet_diag,tcp_diag,udp_diag}.c. Destroying needs
//! CAP_NET_ADMIN there and a kernel with CONFIG_INET_DIAG_DESTROY (since Linux 4.9 for both protocols).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::wire::{Frame, put_attribute};
use crate::{Error, NetNs, Result, Socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Where it begins in `struct inet_diag_msg`, whose first bytes are family and state.
const ID_AT: usize = 4;

const INET_DIAG_REQ_BYTECODE: u16 = 1;
const BC_JMP: u8 = 1;
const BC_D_COND: u8 = 8;
/// Of `struct inet_diag_bc_op`.
const OP: usize = 4;
/// Peers in one request: the kernel checks every jump of its program against all instructions before it.
const AT_ONCE: usize = 128;

/// States as the kernel counts them (include/net/tcp_states.h), as bits. A connected UDP socket is ESTABLISHED.
const ESTABLISHED: u32 = 1 << 1;
const SYN_SENT: u32 = 1 << 2;
const FIN_WAIT1: u32 = 1 << 4;
const FIN_WAIT2: u32 = 1 << 5;
const CLOSE_WAIT: u32 = 1 << 8;
const LAST_ACK: u32 = 1 << 9;
const CLOSING: u32 = 1 << 11;

/// A protocol whose sockets can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }

    /// Those in which a socket has a peer and something to lose. TIME_WAIT has neither.
    const fn states(self) -> u32 {
        match self {
            Self::Tcp => ESTABLISHED | SYN_SENT | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING,
            Self::Udp => ESTABLISHED,
        }
    }
}

/// A socket with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    pub transport: Transport,
    /// The address of an IPv6 socket that speaks IPv4 is given as IPv4.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The kernel's name for it, never given again (`SO_COOKIE`, `bpf_get_socket_cookie`).
    pub cookie: u64,
    /// TCP: how often what waits for an acknowledgement was sent again, without an answer.
    pub retransmits: u8,
    family: u8,
    id: [u8; ID],
}

/// A socket to the socket monitoring of one network namespace.
#[derive(Debug)]
pub struct SockDiag {
    socket: Socket,
}

impl SockDiag {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open_protocol(NETLINK_SOCK_DIAG, "socket monitoring socket")? })
    }

    /// Opens a socket in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// The cookie of the namespace: [`NetNs::cookie`] for less.
    pub fn namespace_cookie(&self) -> Result<u64> {
        self.socket.namespace_cookie()
    }

    /// The sockets whose peer is one of `peers`, IPv6 sockets that speak IPv4 among them. The kernel looks for them
    /// itself; one that is made or closed meanwhile may be missed.
    pub fn connected_to(&mut self, transport: Transport, peers: &[SocketAddr]) -> Result<Vec<Connected>> {
        let mut found = Vec::new();
        for peers in peers.chunks(AT_ONCE) {
            let wanted = program(peers);
            // IPv6 sockets may have IPv4 peers, not the other way round.
            let v4 = peers.iter().any(SocketAddr::is_ipv4).then_some(libc::AF_INET);
            for family in v4.into_iter().chain([libc::AF_INET6]) {
                let mut payload = request(family as u8, transport, transport.states(), &[0; ID]);
                put_attribute(&mut payload, INET_DIAG_REQ_BYTECODE, &wanted);
                found.extend(self.dump(transport, &payload)?);
            }
        }
        Ok(found)
    }

    fn dump(&mut self, transport: Transport, payload: &[u8]) -> Result<Vec<Connected>> {
        let object = format_args!("sockets with a peer");
        self.socket.consistent("list", object, |socket| {
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let sequence = socket.send("list", object, SOCK_DIAG_BY_FAMILY, flags, payload)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump("list", object, sequence, |frame| {
                let socket = parse(transport, &frame);
                found.push(socket.ok_or_else(|| Error::answer("list", object, "too short"))?);
                Ok(())
            })?;
            Ok(whole.then_some(found))
        })
    }

    /// Destroys this very socket: it is known by its cookie.
    ///
    /// # Errors
    /// [`Error::not_found`] if it is closed by now; [`Error::is_unsupported`] if the kernel was built without.
    pub fn destroy(&mut self, socket: &Connected) -> Result<()> {
        let object = format_args!("socket from {} to {}", socket.local, socket.peer);
        let payload = request(socket.family, socket.transport, u32::MAX, &socket.id);
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let sequence = self.socket.send("destroy", object, SOCK_DESTROY, flags, &payload)?;
        self.socket.receive("destroy", object, sequence, |_| Ok(()))
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, transport: Transport, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = vec![family, transport.number(), 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// The kernel's program for "the peer is one of these": a condition each, and behind all but the last a jump to the
/// end, which is where a socket is accepted. What jumps past the end is refused.
fn program(peers: &[SocketAddr]) -> Vec<u8> {
    let conditions: Vec<Vec<u8>> = peers.iter().map(condition).collect();
    let mut left: usize = conditions.iter().map(|c| OP + c.len() + OP).sum::<usize>().saturating_sub(OP);
    let mut bytes = Vec::with_capacity(left);
    for (n, condition) in conditions.iter().enumerate() {
        let length = OP + condition.len();
        bytes.extend(op(BC_D_COND, length, length + OP));
        bytes.extend(condition);
        left -= length;
        if n + 1 < conditions.len() {
            bytes.extend(op(BC_JMP, OP, left));
            left -= OP;
        }
    }
    bytes
}

/// `struct inet_diag_bc_op`: how far to the next instruction if it holds, and if not.
fn op(code: u8, yes: usize, no: usize) -> [u8; OP] {
    // The longest condition has 24 bytes, the longest program less than 4 KiB.
    let [a, b] = (no as u16).to_ne_bytes();
    [code, yes as u8, a, b]
}

/// `struct inet_diag_hostcond`.
fn condition(peer: &SocketAddr) -> Vec<u8> {
    let (family, address): (i32, Vec<u8>) = match peer.ip().to_canonical() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let mut bytes = vec![family as u8, address.len() as u8 * 8, 0, 0];
    bytes.extend(i32::from(peer.port()).to_ne_bytes());
    bytes.extend(address);
    bytes
}

/// From a `struct inet_diag_msg`.
fn parse(transport: Transport, frame: &Frame<'_>) -> Option<Connected> {
    let family = *frame.payload.first()?;
    let id: [u8; ID] = frame.payload.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(id.get(at..at + 4)?).ok()?).into());
        }
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(id.get(at..at + 16)?).ok()?);
        Some(IpAddr::V6(ip).to_canonical())
    };
    Some(Connected {
        transport,
        local: SocketAddr::new(address(4)?, port(0)?),
        peer: SocketAddr::new(address(20)?, port(2)?),
        // Two words, the lower first.
        cookie: {
            let word = |at: usize| Some(u32::from_ne_bytes(id.get(at..at + 4)?.try_into().ok()?));
            u64::from(word(40)?) | u64::from(word(44)?) << 32
        },
        // Behind family, state and timer.
        retransmits: *frame.payload.get(3)?,
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_of_a_program_leads_to_an_instruction_or_the_end() {
        let peers: Vec<SocketAddr> = ["10.0.0.1:80", "[fd00::1]:53", "[::ffff:10.0.0.2]:1"]
            .iter()
            .map(|p| p.parse().unwrap())
            .collect();
        let bytes = program(&peers);
        let (mut at, mut starts, mut jumps) = (0, Vec::new(), Vec::new());
        while at < bytes.len() {
            starts.push(at);
            let no = u16::from_ne_bytes([bytes[at + 2], bytes[at + 3]]) as usize;
            jumps.push((bytes[at], at + no));
            at += bytes[at + 1] as usize;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(starts.len(), 5);
        for (code, to) in &jumps[..jumps.len() - 1] {
            assert_eq!(*code == BC_JMP, *to == bytes.len(), "{jumps:?}");
            assert!(starts.contains(to) || *to == bytes.len());
        }
        assert_eq!(jumps.last(), Some(&(BC_D_COND, bytes.len() + OP)), "what fits none is refused");
    }

    #[test]
    fn a_mapped_peer_is_an_ipv4_one() {
        let [mapped, plain] = ["[::ffff:10.0.0.2]:1", "10.0.0.2:1"].map(|p| program(&[p.parse().unwrap()]));
        assert_eq!(mapped, plain);
    }
}
