//! What is around a host: a neighbour on its network, a network behind it, and servers that say who they are.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::route::{self, Route};
use heddle_netlink::{NetNs, Socket, addr};
use ipnetwork::IpNetwork;

use super::bench::Host;

/// Nothing takes longer that works.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The host's addresses on its network, and a second one of each family.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
pub const SECOND: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];
/// The neighbour's.
pub const NEIGHBOUR: [&str; 2] = ["192.0.2.9", "2001:db8:2::9"];
/// Somebody's to whom the host only forwards.
pub const BEYOND: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];

/// The namespaces around a host. Their default routes lead to it.
pub struct Around {
    pub neighbour: NetNs,
    pub beyond: NetNs,
}

impl Around {
    pub fn of(host: &Host) -> Self {
        let around = Self { neighbour: NetNs::create().unwrap(), beyond: NetNs::create().unwrap() };
        let sides = [
            ("net0", &around.neighbour, [HOST, SECOND].concat(), NEIGHBOUR),
            ("net1", &around.beyond, vec!["198.51.100.1", "2001:db8:51::1"], BEYOND),
        ];
        for (device, ns, near, far) in sides {
            let (mut here, mut there) = (host.socket(), Socket::open_in(ns).unwrap());
            let outer = VethEnd { name: device, ..VethEnd::default() };
            let inner = VethEnd { name: "eth0", ns: Some(ns), ..VethEnd::default() };
            link::create_veth(&mut here, &outer, &inner).unwrap();
            give(&mut here, device, &near);
            give(&mut there, "eth0", &far);
            give(&mut there, "lo", &[]);
            let index = link::by_name(&mut there, "eth0").unwrap().unwrap().index;
            for gateway in &near[..2] {
                let all = if gateway.contains(':') { "::/0" } else { "0.0.0.0/0" };
                let default = Route::via(all.parse().unwrap(), gateway.parse().unwrap(), index);
                route::add(&mut there, &default).unwrap();
            }
        }
        around
    }
}

fn give(socket: &mut Socket, device: &str, addresses: &[&str]) {
    let index = link::by_name(socket, device).unwrap().unwrap().index;
    for address in addresses {
        let ip: IpAddr = address.parse().unwrap();
        let net = IpNetwork::new(ip, if ip.is_ipv4() { 24 } else { 64 }).unwrap();
        addr::add(socket, &addr::Addr { nodad: true, ..addr::Addr::new(index, net) }).unwrap();
    }
    link::set_up(socket, index).unwrap();
}

/// A server of TCP and UDP on one port of one address: tells everybody its name, and the asker's address.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(ns: &NetNs, name: &str, at: (&str, u16)) -> Self {
        let at = SocketAddr::new(at.0.parse().unwrap(), at.1);
        let (listener, socket) =
            ns.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
        // Both are woken up by a packet to themselves when it is over.
        let stop = Arc::new(AtomicBool::new(false));
        let (over, who) = (Arc::clone(&stop), name.to_owned());
        listener.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let datagrams = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(format!("{who} {}", peer.ip()).as_bytes(), peer));
                }
            }
        });
        let (over, who) = (Arc::clone(&stop), name.to_owned());
        listener.set_nonblocking(true).unwrap();
        let streams = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, peer)) => {
                        drop(stream.write_all(format!("{who} {}", peer.ip()).as_bytes()));
                    }
                    Err(_) => wait_readable(&listener),
                }
            }
        });
        Self { stop, threads: vec![datagrams, streams] }
    }
}

fn wait_readable(listener: &TcpListener) {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, poll};
    let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], 50u16);
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Asks by TCP; returns what the server said.
pub fn tcp(from: &NetNs, to: (&str, u16)) -> std::io::Result<String> {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
    .unwrap()
}

/// Asks by UDP once; the answer must come from where the question went.
pub fn udp(from: &NetNs, to: (&str, u16)) -> std::io::Result<String> {
    let socket = client(from, to);
    say(&socket)?;
    hear(&socket, DEADLINE)
}

/// A socket that is connected to a server.
pub fn client(from: &NetNs, to: (&str, u16)) -> UdpSocket {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    from.run(|| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket
    })
    .unwrap()
}

/// An ICMP error that an earlier question met is told by the next call: it is not this one's.
pub fn say(socket: &UdpSocket) -> std::io::Result<()> {
    socket.send(b"who?").or_else(|_| socket.send(b"who?")).map(drop)
}

pub fn hear(socket: &UdpSocket, patience: Duration) -> std::io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
