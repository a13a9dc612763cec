//! Packets: who reaches whom, and as whom.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use heddle_netlink::NetNs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// After this, a packet has not come.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// How soon a server sees that it is not needed any more.
const TICK: u16 = 20;

/// A server in a namespace; over TCP and UDP it tells each client its address. Ends with the value.
#[derive(Debug)]
pub struct Echo {
    pub at: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// On `address`, at the same port of TCP and UDP.
    pub fn new(ns: &NetNs, address: IpAddr) -> Self {
        let tcp = ns.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
        let at = tcp.local_addr().unwrap();
        let udp = ns.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || serve(&tcp, &udp, &ended));
        Self { at, over, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn serve(tcp: &TcpListener, udp: &UdpSocket, over: &AtomicBool) {
    let mut buffer = [0; 64];
    while !over.load(Ordering::Relaxed) {
        let mut both =
            [PollFd::new(tcp.as_fd(), PollFlags::POLLIN), PollFd::new(udp.as_fd(), PollFlags::POLLIN)];
        if poll(&mut both, PollTimeout::from(TICK)).unwrap() == 0 {
            continue;
        }
        let ready = both.map(|fd| fd.any().unwrap_or_default());
        if ready[0]
            && let Ok((mut stream, peer)) = tcp.accept()
        {
            drop(stream.write_all(peer.ip().to_string().as_bytes()));
        }
        if ready[1]
            && let Ok((_, peer)) = udp.recv_from(&mut buffer)
        {
            drop(udp.send_to(peer.ip().to_string().as_bytes(), peer));
        }
    }
}

/// Connects from `ns`; the address that the server saw.
pub fn tcp(ns: &NetNs, to: SocketAddr) -> std::io::Result<String> {
    ns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
    .unwrap()
}

/// Sends a datagram from `ns`; the address that the server saw, if the answer came from where it was asked.
pub fn udp(ns: &NetNs, to: SocketAddr) -> std::io::Result<String> {
    ns.run(|| {
        let any: SocketAddr =
            if to.is_ipv4() { "0.0.0.0:0".parse().unwrap() } else { "[::]:0".parse().unwrap() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.send(b"who am I")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        String::from_utf8(buffer[..length].to_vec()).map_err(|_| ErrorKind::InvalidData.into())
    })
    .unwrap()
}
