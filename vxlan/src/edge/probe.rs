//! Whether checksums that are left to a device arrive.
//!
//! A datagram is sent to a port of another node's address in the overlay on which nobody listens. The kernel there
//! answers that the port is unreachable, or, if the checksum is wrong, nothing. So nothing is needed of the other node;
//! flannel's answer as well as ours. The same datagram written in two pieces (`MSG_MORE`) has its checksum done by the
//! kernel as it is put together (`__ip_append_data` in net/ipv4/ip_output.c): where those are answered and the others
//! are not, the device is at fault, and not the way.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, setsockopt, socket, sockopt,
};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::checksums::Finding;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// Datagrams of each kind that are sent once there is a suspicion: all with a checksum by the kernel must be answered,
/// and none of the others. (A node answers six at once, then one a second: `icmp_ratelimit`.)
const TRIES: u32 = 3;
/// Rounds in a row with that outcome: loss of packets is no fault of a device.
const ROUNDS: u32 = 2;
/// Between two rounds, as long as nobody has answered or there is a suspicion, and otherwise.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);
/// Above the range that connections take their ports from by default.
const PORTS: std::ops::Range<u16> = 61_001..65_001;

/// What came of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Checksums arrive.
    Well,
    /// Those of the kernel arrive, and those of the device do not.
    Broken,
    /// Nothing can be said.
    Unknown,
}

/// Asks other nodes, one at a time, until checksums turn out not to arrive; that is noted, and `found` is told.
/// `peers`: their addresses in the overlay.
pub async fn watch(
    device: String,
    peers: watch::Receiver<Vec<IpAddr>>,
    finding: Arc<Finding>,
    found: Arc<super::Wake>,
) {
    let mut prober = Prober { device, port: PORTS.start, turn: std::process::id() as usize };
    let (mut pause, mut broken) = (SOON, 0);
    loop {
        sleep(if broken > 0 { SOON } else { pause }).await;
        let peer = {
            let peers = peers.borrow();
            prober.turn = prober.turn.wrapping_add(1);
            peers.get(prober.turn % peers.len().max(1)).copied()
        };
        let Some(peer) = peer else { continue };
        match prober.round(peer).await {
            Outcome::Well => (pause, broken) = (LATER, 0),
            Outcome::Unknown => broken = 0,
            Outcome::Broken if broken + 1 < ROUNDS => broken += 1,
            Outcome::Broken => {
                let why = format!(
                    "{peer} drops what is sent through {} with the checksum left to the device, and answers the rest",
                    prober.device
                );
                tracing::warn!("checksums are not left to the device any more: {why}");
                finding.set(why);
                found.0.notify_one();
                return;
            }
        }
    }
}

#[derive(Debug)]
struct Prober {
    device: String,
    port: u16,
    turn: usize,
}

impl Prober {
    async fn round(&mut self, peer: IpAddr) -> Outcome {
        for _ in 0..2 {
            if self.answered(peer, false).await {
                return Outcome::Well;
            }
        }
        let mut all = true;
        for _ in 0..TRIES {
            all &= self.answered(peer, true).await;
            if self.answered(peer, false).await {
                return Outcome::Well;
            }
        }
        if all { Outcome::Broken } else { Outcome::Unknown }
    }

    /// Whether the kernel of `peer` says that nobody listens there. `summed`: with the checksum done by the kernel.
    async fn answered(&mut self, peer: IpAddr, summed: bool) -> bool {
        self.port = if self.port + 1 < PORTS.end { self.port + 1 } else { PORTS.start };
        let Ok(socket) = ask(&self.device, SocketAddr::new(peer, self.port), summed) else { return false };
        let Ok(socket) = UdpSocket::from_std(socket.into()) else { return false };
        let mut nothing = [0; 1];
        match timeout(PATIENCE, socket.recv(&mut nothing)).await {
            Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            // Somebody listens there, and answers: it has arrived.
            Ok(Ok(_)) => true,
            Err(_) => false,
        }
    }
}

/// Sends the datagram, through the device and no other.
fn ask(device: &str, to: SocketAddr, summed: bool) -> nix::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    const TEXT: &[u8] = b"heddle asks whether checksums arrive";
    if summed {
        let (first, rest) = TEXT.split_at(TEXT.len() / 2);
        send(fd.as_raw_fd(), first, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        send(fd.as_raw_fd(), rest, MsgFlags::empty())?;
    } else {
        send(fd.as_raw_fd(), TEXT, MsgFlags::empty())?;
    }
    Ok(fd)
}
