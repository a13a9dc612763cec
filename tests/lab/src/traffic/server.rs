//! A server that says who it is and whom it saw.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::error::{Context, Result};
use crate::place::Place;
use crate::traffic::ask::canonical;

/// Answers on one port, of every address of the place, both families, to
/// - TCP: each line `TEXT` by `NAME CLIENT TEXT`;
/// - HTTP on the same port: `GET /` by `NAME CLIENT` and a line end, `GET /bytes/N` by N bytes;
/// - UDP: each datagram `TEXT` by `NAME CLIENT TEXT`, from the address that it was sent to.
///
/// Dropped, its sockets are closed, as when the process had died.
#[derive(Debug)]
pub struct Server {
    name: String,
    port: u16,
    stop: Arc<EventFd>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Place {
    /// Starts a [`Server`] here.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, name: &str, port: u16) -> Result<Server> {
        let open = || -> io::Result<(TcpListener, UdpSocket)> {
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
            let (tcp, udp) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true)?;
            Ok((tcp, udp))
        };
        let (tcp, udp) = self.enter(open)?.context(|| format!("listen on port {port} in {}", self.name()))?;
        let stop = Arc::new(EventFd::new().context(|| "create an eventfd".into())?);
        let answered = Arc::new(AtomicU64::new(0));
        let mut serving = Serving {
            name: name.into(),
            tcp,
            udp,
            connections: HashMap::new(),
            stop: Arc::clone(&stop),
            answered: Arc::clone(&answered),
        };
        let thread = self.thread(&format!("serve-{name}"), move || serving.run())?;
        Ok(Server { name: name.into(), port, stop, answered, thread: Some(thread) })
    }
}

impl Server {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many questions it has answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Close it once `output` is written.
    last: bool,
}

struct Serving {
    name: String,
    tcp: TcpListener,
    udp: UdpSocket,
    connections: HashMap<RawFd, Connection>,
    stop: Arc<EventFd>,
    answered: Arc<AtomicU64>,
}

impl Serving {
    fn run(&mut self) {
        loop {
            let mut fds = vec![
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.udp.as_fd(), PollFlags::POLLIN),
            ];
            let order: Vec<RawFd> = self.connections.keys().copied().collect();
            for key in &order {
                let connection = &self.connections[key];
                let wait = if connection.output.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
                fds.push(PollFd::new(connection.stream.as_fd(), wait));
            }
            if let Err(e) = poll(&mut fds, PollTimeout::NONE)
                && e != nix::errno::Errno::EINTR
            {
                eprintln!("lab: server {}: poll: {e}", self.name);
                return;
            }
            let happened: Vec<bool> =
                fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
            drop(fds);
            if happened[0] {
                return;
            }
            if happened[1] {
                self.accept();
            }
            if happened[2] {
                self.datagrams();
            }
            for (key, _) in order.iter().zip(&happened[3..]).filter(|(_, happened)| **happened) {
                let connection = self.connections.get_mut(key).expect("it was listed");
                if !connection.go_on(&self.name, &self.answered) {
                    self.connections.remove(key);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, peer)) = self.tcp.accept() {
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok() {
                let peer = canonical(peer);
                let connection =
                    Connection { peer, input: Vec::new(), output: Vec::new(), last: false, stream };
                self.connections.insert(connection.stream.as_raw_fd(), connection);
            }
        }
    }

    fn datagrams(&self) {
        loop {
            match self.datagram() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // Another error is the ICMP answer to an earlier reply; reading it has cleared it.
                _ => {}
            }
        }
    }

    /// Answers one datagram.
    fn datagram(&self) -> io::Result<()> {
        let mut buffer = vec![0; 65536];
        let mut space = nix::cmsg_space!(libc::in6_pktinfo);
        let (length, peer, to) = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<SockaddrIn6>(
                self.udp.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::empty(),
            )?;
            let to = message.cmsgs()?.find_map(|c| match c {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
                _ => None,
            });
            (message.bytes, message.address, to)
        };
        let Some(peer) = peer else { return Ok(()) };
        let shown = canonical(SocketAddr::V6(peer.into()));
        let answer = [format!("{} {shown} ", self.name).as_bytes(), &buffer[..length]].concat();
        // From the address that was asked, over whichever device leads to the client.
        let from = to.map(|to| libc::in6_pktinfo { ipi6_ifindex: 0, ..to });
        let control: Vec<_> = from.iter().map(ControlMessage::Ipv6PacketInfo).collect();
        // Counted before: who has the answer sees it counted.
        self.answered.fetch_add(1, Ordering::Relaxed);
        let to = Some(&peer);
        let sent = sendmsg(self.udp.as_raw_fd(), &[IoSlice::new(&answer)], &control, MsgFlags::empty(), to);
        if let Err(error) = sent {
            self.answered.fetch_sub(1, Ordering::Relaxed);
            return Err(error.into());
        }
        Ok(())
    }
}

impl Connection {
    /// Reads, answers, writes what it can; whether the connection lives.
    fn go_on(&mut self, name: &str, answered: &AtomicU64) -> bool {
        if self.output.is_empty() {
            let mut buffer = [0; 16384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
            self.answer(name, answered);
        }
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
        }
        !self.last
    }

    fn answer(&mut self, name: &str, answered: &AtomicU64) {
        let http = [&b"GET "[..], b"HEAD "].iter().any(|verb| self.input.starts_with(verb));
        let end: &[u8] = if http { b"\r\n\r\n" } else { b"\n" };
        while let Some(at) = self.input.windows(end.len()).position(|part| part == end) {
            let question: Vec<u8> = self.input.drain(..at + end.len()).collect();
            if http {
                self.answer_http(name, &String::from_utf8_lossy(&question));
            } else {
                self.output.extend_from_slice(format!("{name} {} ", self.peer).as_bytes());
                self.output.extend_from_slice(&question);
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answer_http(&mut self, name: &str, question: &str) {
        let mut words = question.split_whitespace();
        let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = match path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
            Some(length) => vec![b'x'; length],
            None => format!("{name} {}\n", self.peer).into_bytes(),
        };
        self.last = question.contains("HTTP/1.0") || question.to_lowercase().contains("connection: close");
        let connection = if self.last { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        self.output.extend_from_slice(head.as_bytes());
        if verb != "HEAD" {
            self.output.extend_from_slice(&body);
        }
    }
}
