//! Destroying sockets, in all namespaces.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use heddle_netlink::NetNs;
use heddle_netlink::sock_diag::{self, SockDiag};

use super::protocol::{Answer, Gone, Transport};

/// More are not told: they would say the same.
const PROBLEMS: usize = 8;
/// Sent again so often, a segment waits for more than a second.
const STALLED: u8 = 3;

/// Destroys the sockets of `gone` wherever they are among `places`: each must have both the cookie and the peer.
pub fn destroy(gone: &[Gone], places: &[NetNs]) -> Answer {
    let mut work = Work::new(gone);
    for place in places {
        if work.left == 0 || work.answer.unsupported {
            break;
        }
        if let Err(error) = work.visit(place) {
            work.problem(&error);
        }
    }
    work.answer.namespaces = places.len();
    work.answer
}

struct Work<'a> {
    /// Cookies, and whether only a socket that is stalled is meant.
    wanted: BTreeMap<(Transport, SocketAddr), BTreeMap<&'a u64, bool>>,
    peers: BTreeMap<Transport, Vec<SocketAddr>>,
    left: usize,
    answer: Answer,
}

impl<'a> Work<'a> {
    fn new(gone: &'a [Gone]) -> Self {
        let mut wanted: BTreeMap<_, BTreeMap<&u64, bool>> = BTreeMap::new();
        let mut peers: BTreeMap<_, Vec<SocketAddr>> = BTreeMap::new();
        for gone in gone {
            let backend = SocketAddr::new(gone.backend.ip().to_canonical(), gone.backend.port());
            let cookies = gone.sockets.iter().map(|cookie| (cookie, gone.if_stalled));
            wanted.entry((gone.transport, backend)).or_default().extend(cookies);
            peers.entry(gone.transport).or_default().push(backend);
        }
        let left = wanted.values().map(BTreeMap::len).sum();
        Self { wanted, peers, left, answer: Answer::default() }
    }

    fn visit(&mut self, place: &NetNs) -> heddle_netlink::Result<()> {
        let mut diag = SockDiag::open_in(place)?;
        for (transport, peers) in &self.peers {
            let kernels = match transport {
                Transport::Tcp => sock_diag::Transport::Tcp,
                Transport::Udp => sock_diag::Transport::Udp,
            };
            for socket in diag.connected_to(kernels, peers)? {
                let wanted = self.wanted.get(&(*transport, socket.peer));
                match wanted.and_then(|cookies| cookies.get(&socket.cookie)) {
                    Some(if_stalled) if !if_stalled || socket.retransmits >= STALLED => {}
                    _ => continue,
                }
                match diag.destroy(&socket) {
                    Ok(()) => {
                        self.answer.destroyed.insert(socket.cookie);
                        self.left = self.left.saturating_sub(1);
                    }
                    // It closed by itself.
                    Err(error) if error.not_found() => {}
                    Err(error) => {
                        self.answer.unsupported |= error.is_unsupported();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn problem(&mut self, error: &heddle_netlink::Error) {
        tracing::warn!("{error}");
        if self.answer.problems.len() < PROBLEMS {
            self.answer.problems.push(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::UdpSocket;

    use heddle_netlink::{Socket, link};

    use super::*;

    fn namespace() -> NetNs {
        let ns = NetNs::create().unwrap();
        let mut socket = Socket::open_in(&ns).unwrap();
        let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
        link::set_up(&mut socket, lo).unwrap();
        ns
    }

    fn client(ns: &NetNs, to: &str) -> (UdpSocket, u64) {
        let socket = ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        socket.connect(to).unwrap();
        let local = socket.local_addr().unwrap();
        let peer = [to.parse().unwrap()];
        let mut diag = SockDiag::open_in(ns).unwrap();
        let found = diag.connected_to(sock_diag::Transport::Udp, &peer).unwrap();
        let cookie = found.iter().find(|found| found.local == local).unwrap().cookie;
        (socket, cookie)
    }

    fn alive(socket: &UdpSocket) -> bool {
        socket.set_nonblocking(true).unwrap();
        match socket.recv(&mut [0; 4]).unwrap_err().kind() {
            ErrorKind::WouldBlock => true,
            ErrorKind::ConnectionAborted => false,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn only_what_has_both_cookie_and_peer_is_destroyed_wherever_it_is() {
        let (one, two, away) = (namespace(), namespace(), namespace());
        let old = client(&one, "127.0.0.1:53");
        let there = client(&two, "127.0.0.1:53");
        // Another's, to the same address: a direct connection, or one to the next pod that has it.
        let young = client(&one, "127.0.0.1:53");
        let moved = client(&one, "127.0.0.1:54");
        let unseen = client(&away, "127.0.0.1:53");
        let gone = Gone {
            transport: Transport::Udp,
            backend: "127.0.0.1:53".parse().unwrap(),
            sockets: [old.1, there.1, moved.1, unseen.1, u64::MAX].into(),
            if_stalled: false,
        };
        let places = [one, two];
        let patient = Gone { if_stalled: true, ..gone.clone() };
        assert_eq!(destroy(&[patient], &places).destroyed, [].into());
        let answer = destroy(&[gone], &places);
        assert_eq!(answer.problems, [""; 0]);
        assert_eq!(answer.destroyed, [old.1, there.1].into());
        assert_eq!(answer.namespaces, 2);
        assert!(!alive(&old.0) && !alive(&there.0));
        assert!(alive(&young.0) && alive(&moved.0) && alive(&unseen.0));
    }
}
