//! The socket hooks, with real sockets in a cgroup of their own: connected and not, TCP and UDP, IPv4, IPv6 and
//! mapped addresses.
//!
//! A process can only be put into a cgroup as a whole, so the test starts this program again: the parent makes the
//! namespaces, the cgroup and the BPF file system, the child joins the cgroup and does the rest.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use heddle_bpf::{Attached, Datapath, Maps, Pins, Sizes};
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODE_PORTS, Addr, BACKEND_ACTIVE, BACKEND_DOWN,
    BACKEND_DRAINING, Backend, Config, Counter, FRONTEND_DROP, FRONTEND_EXTERNAL, FRONTEND_SOURCES, Frontend,
    FrontendKey, KnownAddr, NET_LOOPBACK, NODE_SELF, NODE_UP, Node, SourceKey,
};
use heddle_netlink::{NetNs, Socket, link};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// In the child's environment: the cgroup that it joins.
const CGROUP: &str = "HEDDLE_TEST_CGROUP";
const BPF_ROOT: &str = "/mnt";

#[test]
fn socket_hooks() {
    if let Some(cgroup) = env::var_os(CGROUP) {
        fs::write(Path::new(&cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
        return child();
    }
    let cgroup = cgroup2().join(format!("heddle-sockets-{}", std::process::id()));
    fs::create_dir(&cgroup).unwrap();
    let dir = cgroup.clone();
    // Asked here: from another mount namespace the answer in a chroot is a path outside of it.
    let own = env::current_exe().unwrap();
    let done = thread::spawn(move || {
        NetNs::create().unwrap().enter().unwrap();
        let mut socket = Socket::open().unwrap();
        let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
        link::set_up(&mut socket, lo).unwrap();
        for pod in ["10.244.1.9/32", "fd00:10:244:1::9/128"] {
            heddle_netlink::addr::add(
                &mut socket,
                &heddle_netlink::addr::Addr::new(lo, pod.parse().unwrap()),
            )
            .unwrap();
        }
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), BPF_ROOT, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let small = Sizes {
            frontends: 256,
            ring: 256,
            backends: 256,
            nodes: 8,
            addrs: 64,
            choices: 8,
            ct_new: 64,
            ct: 64,
            affinity: 64,
            sources: 64,
            sockets: 256,
        };
        let open = || Datapath::open(Pins::new(Path::new(BPF_ROOT)), &small).unwrap();
        let attach = |datapath: &Datapath| datapath.attach_cgroup(&dir).unwrap();
        assert_eq!(attach(&open()), [Attached::Created; 8]);
        // A daemon of the same build finds its programs there, one of another swaps its own in.
        assert_eq!(attach(&open()), [Attached::AsItWas; 8]);
        let other = [heddle_bpf::object().unwrap(), b"another build"].concat();
        let datapath = Datapath::open_object(Pins::new(Path::new(BPF_ROOT)), &small, &other).unwrap();
        assert_eq!(attach(&datapath), [Attached::Swapped; 8]);
        assert_eq!(attach(&datapath), [Attached::AsItWas; 8]);
        assert_eq!(datapath.pins.pinned_links().unwrap().len(), 8);
        let mut child = Command::new(own);
        child.args(["--exact", "socket_hooks", "--nocapture"]).env(CGROUP, &dir);
        let status = child.status().unwrap();
        drop(datapath);
        umount(BPF_ROOT).unwrap();
        status
    })
    .join();
    fs::remove_dir(&cgroup).unwrap();
    assert!(done.unwrap().success(), "see above");
}

/// Where the cgroup2 file system is mounted.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(line.expect("cgroup2 is mounted").split(' ').nth(1).unwrap())
}

fn child() {
    let mut world = World::new();
    for family in ["127.0.0.1", "::1"] {
        let local: IpAddr = family.parse().unwrap();
        world.connections(local);
        world.datagrams(local);
        world.two_services_of_one_socket(local);
        world.nobody(local);
        world.node_port(local);
        world.loopback(local);
        world.node_port_on_loopback(local);
        world.nobody_under_a_policy(local);
        world.undefined(local);
        world.affinity(local);
        world.sources(local);
        world.draining(local);
    }
    world.loopback_mapped();
    world.mapped();
}

struct World {
    maps: Maps,
    next: u32,
}

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            Addr([0, 4, 8, 12].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())))
        }
    }
}

/// The address of service `n`, which no interface has and no route leads to.
fn service(local: IpAddr, n: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = if local.is_ipv4() {
        [10, 96, 0, n].into()
    } else {
        [0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()].into()
    };
    SocketAddr::new(ip, port)
}

/// An address of this machine's that is not loopback.
fn pod_address(local: IpAddr) -> IpAddr {
    if local.is_ipv4() { [10, 244, 1, 9].into() } else { "fd00:10:244:1::9".parse().unwrap() }
}

/// A server that tells its own port to whoever connects.
fn tcp_server(ip: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(&addr.port().to_be_bytes()).unwrap();
        }
    });
    addr
}

/// A server that answers a datagram with its own port.
fn udp_server(ip: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&addr.port().to_be_bytes(), from).unwrap();
        }
    });
    addr
}

fn ask_tcp(to: SocketAddr) -> std::io::Result<(u16, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok((u16::from_be_bytes(port), stream.peer_addr()?))
}

fn udp_socket(ip: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// The port of the server that answered, and whom the answer seems to come from.
fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(u16, SocketAddr)> {
    socket.send_to(b"?", to)?;
    let mut port = [0; 2];
    let (_, from) = socket.recv_from(&mut port)?;
    Ok((u16::from_be_bytes(port), from))
}

impl World {
    fn new() -> Self {
        let mut maps = Maps::open(&Pins::new(Path::new(BPF_ROOT))).unwrap();
        let node = Node { state: NODE_UP, ..Node::default() };
        maps.nodes.set(NODE_SELF, node, 0).unwrap();
        maps.config.set(0, Config::default(), 0).unwrap();
        Self { maps, next: 1 }
    }

    fn change(&mut self, key: FrontendKey, change: impl FnOnce(&mut Frontend)) {
        let mut frontend = self.maps.frontends.get(&key, 0).unwrap();
        change(&mut frontend);
        self.maps.frontends.insert(key, frontend.sealed(&key), 0).unwrap();
    }

    /// A service at this address; the indices of its backends.
    fn serve(&mut self, at: FrontendKey, backends: &[SocketAddr]) -> Vec<u32> {
        let mut indices = Vec::new();
        for to in backends {
            let backend = Backend {
                addr: addr(to.ip()),
                generation: self.next,
                node: NODE_SELF,
                port: to.port().to_be(),
                proto: at.proto,
                state: BACKEND_ACTIVE,
                hash: self.next,
            };
            self.maps.backends.set(self.next, backend, 0).unwrap();
            indices.push(self.next);
            self.next += 1;
        }
        let ring = self.next * 16;
        self.next += 1;
        self.maps.write_ring(ring, &indices).unwrap();
        let frontend = Frontend {
            ring,
            ring_len: indices.len() as u32,
            service: self.next,
            flags: FRONTEND_EXTERNAL,
            ..Frontend::default()
        };
        self.maps.frontends.insert(at, frontend.sealed(&at), 0).unwrap();
        if at.net == 0 && at.addr != Addr::ANY4 && at.addr != Addr::ANY6 {
            let known = KnownAddr { node: 0, kind: ADDR_CLUSTER_IP };
            self.maps.addrs.insert(at.addr, known, 0).unwrap();
        }
        indices
    }

    fn key(at: SocketAddr, proto: u8) -> FrontendKey {
        let net = if at.ip().is_loopback() { NET_LOOPBACK } else { 0 };
        FrontendKey { addr: addr(at.ip()), net, port: at.port().to_be(), proto, zero: 0 }
    }

    fn set_state(&mut self, index: u32, state: u8) {
        let backend = self.maps.backends.get(&index, 0).unwrap();
        self.maps.backends.set(index, Backend { state, ..backend }, 0).unwrap();
    }

    fn connections(&mut self, local: IpAddr) {
        let at = service(local, 1, 80);
        let servers = [tcp_server(local), tcp_server(local), tcp_server(local)];
        let indices = self.serve(Self::key(at, TCP), &servers);
        let mut met = [0; 3];
        for _ in 0..60 {
            let (port, peer) = ask_tcp(at).unwrap();
            assert_eq!(peer, at, "getpeername gives the address that was asked for");
            met[servers.iter().position(|server| server.port() == port).unwrap()] += 1;
        }
        assert!(met.iter().all(|count| *count > 5), "{met:?}");
        self.set_state(indices[0], BACKEND_DOWN);
        self.set_state(indices[2], BACKEND_DOWN);
        for _ in 0..20 {
            assert_eq!(ask_tcp(at).unwrap().0, servers[1].port());
        }
        // What is no frontend is left alone: another port, another protocol, the backend itself.
        let (port, peer) = ask_tcp(servers[0]).unwrap();
        assert_eq!((port, peer), (servers[0].port(), servers[0]));
        assert!(UdpSocket::bind((local, 0)).unwrap().send_to(b"?", at).is_err(), "no route");
    }

    fn datagrams(&mut self, local: IpAddr) {
        let at = service(local, 2, 53);
        let servers = [udp_server(local), udp_server(local)];
        let indices = self.serve(Self::key(at, UDP), &servers);

        // Connected: one backend for good, and recvfrom gives the service's address.
        let connected = udp_socket(local);
        connected.connect(at).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), at);
        let mut port = [0; 2];
        for _ in 0..3 {
            connected.send(b"?").unwrap();
            let (_, from) = connected.recv_from(&mut port).unwrap();
            assert_eq!(from, at);
        }

        // Not connected: a socket keeps its backend from datagram to datagram; sockets differ.
        let mut met = [0; 2];
        for _ in 0..20 {
            let socket = udp_socket(local);
            let (first, from) = ask_udp(&socket, at).unwrap();
            assert_eq!(from, at);
            for _ in 0..5 {
                assert_eq!(ask_udp(&socket, at).unwrap(), (first, at));
            }
            met[usize::from(first == servers[1].port())] += 1;
        }
        assert!(met.iter().all(|count| *count > 0), "{met:?}");

        // Its backend goes: the next datagram moves. Directly, the server answers for itself.
        let socket = udp_socket(local);
        let (first, _) = ask_udp(&socket, at).unwrap();
        let first = usize::from(first == servers[1].port());
        self.set_state(indices[first], BACKEND_DOWN);
        assert_eq!(ask_udp(&socket, at).unwrap(), (servers[1 - first].port(), at));
        let other = udp_socket(local);
        assert_eq!(ask_udp(&other, servers[0]).unwrap(), (servers[0].port(), servers[0]));
    }

    /// One socket, two services with the same two backends: the answers of each name the right one.
    fn two_services_of_one_socket(&mut self, local: IpAddr) {
        let (one, two) = (service(local, 3, 53), service(local, 4, 53));
        let servers = [udp_server(local), udp_server(local)];
        self.serve(Self::key(one, UDP), &servers);
        self.serve(Self::key(two, UDP), &servers);
        let mut right = 0;
        for _ in 0..20 {
            let socket = udp_socket(local);
            let (first, _) = ask_udp(&socket, one).unwrap();
            let (second, from) = ask_udp(&socket, two).unwrap();
            assert_eq!(from, two);
            if first != second {
                assert_eq!(ask_udp(&socket, one).unwrap(), (first, one));
                right += 1;
            }
        }
        // Four tries in a row for a free one of two fail once in 16 times.
        assert!(right >= 12, "{right} of 20");
    }

    fn nobody(&mut self, local: IpAddr) {
        let at = service(local, 5, 80);
        self.serve(Self::key(at, TCP), &[]);
        self.serve(Self::key(at, UDP), &[]);
        let before = self.maps.counter(Counter::RejectNoBackend).unwrap();
        let start = Instant::now();
        assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(udp_socket(local).connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(ask_udp(&udp_socket(local), at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(start.elapsed() < Duration::from_secs(1), "at once");
        assert_eq!(self.maps.counter(Counter::RejectNoBackend).unwrap(), before + 3);
    }

    /// The node port on an address of any node, not on others.
    fn node_port(&mut self, local: IpAddr) {
        let server = tcp_server(local);
        let any = if local.is_ipv4() { Addr::ANY4 } else { Addr::ANY6 };
        let key = FrontendKey { addr: any, net: 0, port: 30080u16.to_be(), proto: TCP, zero: 0 };
        self.serve(key, &[server]);
        for n in [6, 7] {
            let owner = KnownAddr { node: n, kind: ADDR_NODE | ADDR_NODE_PORTS };
            let node = service(local, n as u8, 30080);
            self.maps.addrs.insert(addr(node.ip()), owner, 0).unwrap();
            assert_eq!(ask_tcp(node).unwrap(), (server.port(), node));
        }
        assert!(ask_tcp(service(local, 8, 30080)).is_err(), "no node's address");
    }

    /// Which network namespace is the node's; 0: that is not known.
    fn node_is(&mut self, host_netns: u64) {
        self.maps.config.set(0, Config { host_netns, ..Config::default() }, 0).unwrap();
    }

    /// A frontend on loopback is for sockets of the node's own network namespace, whatever listens there itself.
    fn loopback(&mut self, local: IpAddr) {
        let own = Socket::open().unwrap().namespace_cookie().unwrap();
        let (at, pod) = (SocketAddr::new(local, 8080), pod_address(local));
        let (stream, datagram) = (tcp_server(pod), udp_server(pod));
        self.serve(Self::key(at, TCP), &[stream]);
        self.serve(Self::key(at, UDP), &[datagram]);
        // What no frontend is for stays.
        let (there, _) = (tcp_server(local), self.node_is(own));
        assert_eq!(ask_tcp(there).unwrap(), (there.port(), there));

        let any = if local.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        assert_eq!(ask_tcp(at).unwrap(), (stream.port(), at));
        assert_eq!(ask_udp(&udp_socket(any), at).unwrap(), (datagram.port(), at));
        let connected = udp_socket(any);
        connected.connect(at).unwrap();
        connected.send(b"?").unwrap();
        assert_eq!(connected.recv_from(&mut [0; 2]).unwrap(), (2, at));

        // From a loopback address there is no way to a pod: told at once.
        let bound = udp_socket(local);
        assert_eq!(ask_udp(&bound, at).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        assert_eq!(bound.connect(at).unwrap_err().kind(), ErrorKind::AddrNotAvailable);

        // Elsewhere, or where the node's is not known, loopback is what it always was.
        for node in [own + 1, 0] {
            self.node_is(node);
            assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::ConnectionRefused, "node {node}");
            let listener = TcpListener::bind(at).unwrap();
            let stream = TcpStream::connect(at).unwrap();
            assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
            let ear = UdpSocket::bind(at).unwrap();
            udp_socket(any).send_to(b"?", at).unwrap();
            ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(ear.recv(&mut [0; 9]).unwrap(), 1);
        }
    }

    /// 127.0.0.1:nodePort and [::1]:nodePort, for the node's own sockets.
    fn node_port_on_loopback(&mut self, local: IpAddr) {
        let own = Socket::open().unwrap().namespace_cookie().unwrap();
        let pod = pod_address(local);
        let (stream, datagram) = (tcp_server(pod), udp_server(pod));
        let any = if local.is_ipv4() { Addr::ANY4 } else { Addr::ANY6 };
        for (proto, server) in [(TCP, stream), (UDP, datagram)] {
            let key = FrontendKey { addr: any, net: 0, port: 30090u16.to_be(), proto, zero: 0 };
            self.serve(key, &[server]);
        }
        let at = SocketAddr::new(local, 30090);
        self.node_is(own);
        assert_eq!(ask_tcp(at).unwrap(), (stream.port(), at));
        let any = if local.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        assert_eq!(ask_udp(&udp_socket(any), at).unwrap(), (datagram.port(), at));
        assert_eq!(ask_udp(&udp_socket(local), at).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        if local.is_ipv4() {
            let other = SocketAddr::new([127, 0, 0, 2].into(), 30090);
            assert_eq!(ask_tcp(other).unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody's");
        }
        self.node_is(own + 1);
        assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::ConnectionRefused, "a pod's own loopback");
        self.node_is(0);
    }

    /// A policy that allows only backends of this node, and there is none.
    fn nobody_under_a_policy(&mut self, local: IpAddr) {
        let at = service(local, 11, 80);
        for proto in [TCP, UDP] {
            self.serve(Self::key(at, proto), &[]);
            self.change(Self::key(at, proto), |frontend| frontend.flags |= FRONTEND_DROP);
        }
        let before = self.maps.counter(Counter::DropNoBackend).unwrap();
        assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(ask_udp(&udp_socket(local), at).unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(self.maps.counter(Counter::DropNoBackend).unwrap(), before + 2);
    }

    /// A port of a service's address that no service has.
    fn undefined(&mut self, local: IpAddr) {
        let at = service(local, 12, 80);
        self.serve(Self::key(at, TCP), &[tcp_server(local)]);
        let before = self.maps.counter(Counter::RejectUndefined).unwrap();
        let other = SocketAddr::new(at.ip(), 81);
        assert_eq!(ask_tcp(other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        for port in [80, 81] {
            let other = SocketAddr::new(at.ip(), port);
            let socket = udp_socket(local);
            assert_eq!(ask_udp(&socket, other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(socket.connect(other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(self.maps.counter(Counter::RejectUndefined).unwrap(), before + 5);
        // Of an external address, which may be a machine's, other ports are not ours.
        self.maps.addrs.insert(addr(at.ip()), KnownAddr { node: 0, kind: ADDR_EXTERNAL }, 0).unwrap();
        let _ = ask_tcp(other).unwrap_err();
        assert!(ask_tcp(at).is_ok());
        assert_eq!(self.maps.counter(Counter::RejectUndefined).unwrap(), before + 5);
    }

    /// All sockets of a network namespace are one client.
    fn affinity(&mut self, local: IpAddr) {
        let at = service(local, 13, 80);
        let servers = [tcp_server(local), tcp_server(local), tcp_server(local), tcp_server(local)];
        let indices = self.serve(Self::key(at, TCP), &servers);
        self.change(Self::key(at, TCP), |frontend| frontend.affinity = 3600);
        let (first, _) = ask_tcp(at).unwrap();
        for _ in 0..20 {
            assert_eq!(ask_tcp(at).unwrap().0, first);
        }
        let index = servers.iter().position(|server| server.port() == first).unwrap();
        assert_eq!(self.maps.conns.get(&indices[index], 0).unwrap(), 21, "and each was counted");
        // Its backend goes: another one, and that for good.
        self.set_state(indices[index], BACKEND_DOWN);
        let (second, _) = ask_tcp(at).unwrap();
        assert_ne!(second, first);
        self.set_state(indices[index], BACKEND_ACTIVE);
        for _ in 0..20 {
            assert_eq!(ask_tcp(at).unwrap().0, second);
        }
    }

    /// The node's own sockets are known by the node's address; a pod's are left to the hook of its packets.
    fn sources(&mut self, local: IpAddr) {
        let own = Socket::open().unwrap().namespace_cookie().unwrap();
        let at = service(local, 14, 80);
        self.serve(Self::key(at, TCP), &[tcp_server(local)]);
        let mut number = 0;
        self.change(Self::key(at, TCP), |frontend| {
            frontend.flags |= FRONTEND_SOURCES;
            number = frontend.service;
        });
        let node = addr(pod_address(local));
        let config = Config { host_netns: own, underlay4: node, underlay6: node, ..Config::default() };
        self.maps.config.set(0, config, 0).unwrap();
        let before = self.maps.counter(Counter::DropSource).unwrap();
        assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(self.maps.counter(Counter::DropSource).unwrap(), before + 1);
        let key = SourceKey { service: number, addr: node.0 };
        self.maps.sources.insert(&aya::maps::lpm_trie::Key::new(160, key), 1, 0).unwrap();
        assert!(ask_tcp(at).is_ok());
        let translated = self.maps.counter(Counter::SocketTranslated).unwrap();
        self.node_is(own + 1);
        assert_eq!(ask_tcp(at).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "as it is");
        assert_eq!(self.maps.counter(Counter::SocketTranslated).unwrap(), translated);
        self.node_is(0);
    }

    /// An unconnected UDP socket keeps a backend that drains; a new one gets another.
    fn draining(&mut self, local: IpAddr) {
        let at = service(local, 15, 53);
        let servers = [udp_server(local), udp_server(local)];
        let indices = self.serve(Self::key(at, UDP), &servers);
        let socket = udp_socket(local);
        let (first, _) = ask_udp(&socket, at).unwrap();
        let index = usize::from(first == servers[1].port());
        self.set_state(indices[index], BACKEND_DRAINING);
        for _ in 0..5 {
            assert_eq!(ask_udp(&socket, at).unwrap(), (first, at));
            assert_eq!(ask_udp(&udp_socket(local), at).unwrap().0, servers[1 - index].port());
        }
    }

    /// An IPv6 socket that asks for ::ffff:127.0.0.1.
    fn loopback_mapped(&mut self) {
        let own = Socket::open().unwrap().namespace_cookie().unwrap();
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let at = SocketAddr::new(local, 8081);
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), 8081);
        let server = tcp_server(pod_address(local));
        self.serve(Self::key(at, TCP), &[server]);
        self.node_is(own);
        assert_eq!(ask_tcp(mapped).unwrap(), (server.port(), mapped));
        self.node_is(0);
        assert!(ask_tcp(mapped).is_err());
    }

    /// An IPv6 socket that talks to an IPv4 service by its mapped address, as dual-stack programs do.
    fn mapped(&mut self) {
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let at = service(local, 9, 80);
        let IpAddr::V4(ip) = at.ip() else { unreachable!() };
        let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), 80);
        let (stream, datagram) = (tcp_server(local), udp_server(local));
        self.serve(Self::key(at, TCP), &[stream]);
        self.serve(Self::key(at, UDP), &[datagram]);
        assert_eq!(ask_tcp(mapped).unwrap(), (stream.port(), mapped));
        let socket = udp_socket("::".parse().unwrap());
        assert_eq!(ask_udp(&socket, mapped).unwrap(), (datagram.port(), mapped));
    }
}
