//! One question, one answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect as connect_fd, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Result};
use crate::place::Place;

/// What a server of the lab answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server's name.
    pub server: String,
    /// Where the server saw the question come from.
    pub client: SocketAddr,
    /// What the server was asked, as it came back.
    pub text: String,
    /// Where this end was during the conversation.
    pub local: SocketAddr,
}

impl Reply {
    /// Takes `NAME CLIENT TEXT` apart.
    pub(crate) fn parse(line: &str, local: SocketAddr) -> io::Result<Self> {
        let mut words = line.trim_end().splitn(3, ' ');
        let parsed = (|| {
            let (server, client) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            Some(Self { server, client, text: words.next().unwrap_or_default().to_owned(), local })
        })();
        parsed.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("no server of the lab: `{line}`"))
        })
    }
}

/// A question to a server of the lab.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    to: SocketAddr,
    from: Option<u16>,
    limit: Duration,
}

impl Ask {
    /// Asks `to`, from any port, and waits 2 s.
    pub fn new(to: impl Into<SocketAddr>) -> Self {
        Self { to: to.into(), from: None, limit: Duration::from_secs(2) }
    }

    /// From this port, also when another connection of this machine has it to another destination.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Self {
        self.from = Some(port);
        self
    }

    /// How long it waits for a connection and for the answer, each.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Asks over TCP, in `place`.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] with what the client saw; [`Error::kind`] tells it.
    pub fn tcp(self, place: &Place) -> Result<Reply> {
        let answer = place.enter(|| -> io::Result<Reply> {
            let stream = connect(self.to, self.from, self.limit)?;
            let local = canonical(stream.local_addr()?);
            (&stream).write_all(b"ask\n")?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.from.is_some() {
                break_off(&stream)?;
            }
            Reply::parse(&line, local)
        })?;
        self.judge("tcp", place, answer)
    }

    /// Asks over UDP, in `place`, from a connected socket.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn udp(self, place: &Place) -> Result<Reply> {
        let answer = place.enter(|| -> io::Result<Reply> {
            let socket = datagram_socket(self.to, self.from, self.limit)?;
            socket.connect(self.to)?;
            socket.send(b"ask")?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            let local = canonical(socket.local_addr()?);
            Reply::parse(&String::from_utf8_lossy(&buffer[..length]), local)
        })?;
        self.judge("udp", place, answer)
    }

    fn judge(self, proto: &'static str, place: &Place, answer: io::Result<Reply>) -> Result<Reply> {
        answer.map_err(|source| Error::NoAnswer { to: self.to, proto, place: place.name().into(), source })
    }
}

/// Ends a connection by a RST, now, so that the next one may have its port: who closes first has the port in
/// TIME_WAIT, and a close waits for the children that other threads are just forking, which hold the descriptor
/// until they exec.
fn break_off(stream: &TcpStream) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the descriptor is open, the address is of the length that is given.
    let result = unsafe {
        libc::connect(
            stream.as_raw_fd(),
            &raw const unspecified,
            size_of_val(&unspecified) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn family(addr: &SocketAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn any(like: &SocketAddr, port: u16) -> SocketAddr {
    let ip: IpAddr = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, port)
}

fn time(limit: Duration) -> TimeVal {
    TimeVal::microseconds(i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1))
}

fn new_socket(kind: SockType, to: &SocketAddr, from: Option<u16>, limit: Duration) -> io::Result<OwnedFd> {
    let fd = socket(family(to), kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::SendTimeout, &time(limit))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &time(limit))?;
    if let Some(port) = from {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        match any(to, port) {
            SocketAddr::V4(addr) => bind(fd.as_raw_fd(), &SockaddrIn::from(addr))?,
            SocketAddr::V6(addr) => bind(fd.as_raw_fd(), &SockaddrIn6::from(addr))?,
        }
    }
    Ok(fd)
}

/// A TCP connection of this thread's namespace, from a given port if need be. `limit` is that of connecting
/// and of every later read and write.
///
/// # Errors
/// What a client sees; [`io::ErrorKind::TimedOut`] after `limit`.
pub fn connect(to: SocketAddr, from: Option<u16>, limit: Duration) -> io::Result<TcpStream> {
    let fd = new_socket(SockType::Stream, &to, from, limit)?;
    let connected = match to {
        SocketAddr::V4(addr) => connect_fd(fd.as_raw_fd(), &SockaddrIn::from(addr)),
        SocketAddr::V6(addr) => connect_fd(fd.as_raw_fd(), &SockaddrIn6::from(addr)),
    };
    // connect(2) reports the end of SO_SNDTIMEO as EINPROGRESS.
    match connected {
        Err(nix::errno::Errno::EINPROGRESS | nix::errno::Errno::EAGAIN) => {
            Err(io::ErrorKind::TimedOut.into())
        }
        Err(e) => Err(e.into()),
        Ok(()) => {
            let stream = TcpStream::from(fd);
            stream.set_nodelay(true)?;
            Ok(stream)
        }
    }
}

/// A UDP socket for talking to addresses of the family of `to`; reads end after `limit`.
///
/// # Errors
/// The kernel's, e.g. when the port is taken.
pub fn datagram_socket(to: SocketAddr, from: Option<u16>, limit: Duration) -> io::Result<UdpSocket> {
    Ok(new_socket(SockType::Datagram, &to, from, limit)?.into())
}

/// A raw socket of an IP protocol, for talking to addresses of the family of `to`; reads end after `limit`.
///
/// # Errors
/// The kernel's.
pub fn raw_socket(to: SocketAddr, proto: u8, limit: Duration) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is a new descriptor or -1.
    let fd = unsafe { libc::socket(family(&to) as i32, kind, i32::from(proto)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    setsockopt(&fd, sockopt::ReceiveTimeout, &time(limit))?;
    if to.is_ipv6() {
        // An unrecognized next header is no error to a socket that does not ask (net/ipv6/icmp.c).
        setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(fd)
}
