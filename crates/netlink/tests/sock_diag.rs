//! Sockets are found by their peer and destroyed one by one.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use heddle_netlink::sock_diag::{SockDiag, Transport};
use heddle_netlink::{NetNs, Socket, link};

fn namespace() -> NetNs {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    link::set_up(&mut socket, lo).unwrap();
    ns
}

fn peer(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn udp(ns: &NetNs, from: &str, to: &str) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(from).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(to).unwrap();
    socket
}

#[test]
fn connected_udp_sockets_of_one_peer_are_destroyed_and_no_other() {
    let ns = namespace();
    let server = ns.run(|| UdpSocket::bind("[::]:5353").unwrap()).unwrap();
    let v4 = udp(&ns, "127.0.0.1:0", "127.0.0.1:5353");
    let mapped = udp(&ns, "[::]:0", "[::ffff:127.0.0.1]:5353");
    let v6 = udp(&ns, "[::1]:0", "[::1]:5353");
    let other = udp(&ns, "127.0.0.1:0", "127.0.0.1:5354");
    let unconnected = ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    unconnected.send_to(b"x", "127.0.0.1:5353").unwrap();

    let mut diag = SockDiag::open_in(&ns).unwrap();
    assert_eq!(diag.namespace_cookie().unwrap(), ns.cookie().unwrap());
    let found = diag.connected_to(Transport::Udp, &[peer("127.0.0.1:5353")]).unwrap();
    let mut locals: Vec<_> = found.iter().map(|socket| socket.local.port()).collect();
    let mut wanted = [&v4, &mapped].map(|socket| socket.local_addr().unwrap().port());
    locals.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(locals, wanted);
    assert!(found.iter().all(|socket| socket.peer == peer("127.0.0.1:5353") && socket.cookie != 0));
    let both = diag.connected_to(Transport::Udp, &[peer("127.0.0.1:5354"), peer("[::1]:5353")]).unwrap();
    assert_eq!(both.len(), 2);
    assert!(diag.connected_to(Transport::Udp, &[peer("127.0.0.2:5353")]).unwrap().is_empty());
    assert!(diag.connected_to(Transport::Tcp, &[peer("127.0.0.1:5353")]).unwrap().is_empty());
    // Elsewhere nothing of this is seen.
    let mut elsewhere = SockDiag::open_in(&namespace()).unwrap();
    assert!(elsewhere.connected_to(Transport::Udp, &[peer("127.0.0.1:5353")]).unwrap().is_empty());

    for socket in &found {
        diag.destroy(socket).unwrap();
        assert!(diag.destroy(socket).unwrap_err().not_found(), "its cookie is nobody's now");
    }
    for dead in [&v4, &mapped] {
        let error = dead.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    }
    for alive in [&v6, &other] {
        alive.send(b"x").unwrap();
        assert!(alive.peer_addr().is_ok());
    }
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut from = Vec::new();
    for _ in 0..2 {
        from.push(server.recv_from(&mut [0; 8]).unwrap().1.port());
    }
    assert_eq!(from, [&unconnected, &v6].map(|socket| socket.local_addr().unwrap().port()));
}

#[test]
fn tcp_connections_to_one_peer_are_reset_and_no_other() {
    let ns = namespace();
    let listen = |at: &str| ns.run(|| TcpListener::bind(at).unwrap()).unwrap();
    let connect = |to: &str| {
        let stream = ns.run(|| TcpStream::connect(to).unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    };
    let (one, two) = (listen("[::]:80"), listen("[::]:81"));
    let mut dead = [connect("127.0.0.1:80"), connect("[::ffff:127.0.0.1]:80"), connect("[::1]:80")];
    let mut accepted = [(); 3].map(|()| one.accept().unwrap().0);
    let mut alive = connect("127.0.0.1:81");
    let mut its = two.accept().unwrap().0;

    let mut diag = SockDiag::open_in(&ns).unwrap();
    let found = diag.connected_to(Transport::Tcp, &[peer("127.0.0.1:80"), peer("[::1]:80")]).unwrap();
    assert_eq!(found.len(), 3, "neither the listener nor the accepted ones: {found:?}");
    for socket in &found {
        diag.destroy(socket).unwrap();
    }
    for stream in &mut dead {
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
    for stream in &mut accepted {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    alive.write_all(b"x").unwrap();
    its.read_exact(&mut [0]).unwrap();
}

#[test]
fn many_peers_are_asked_for_at_once() {
    let ns = namespace();
    let sockets: Vec<_> =
        (1..=300).map(|port| udp(&ns, "127.0.0.1:0", &format!("127.0.0.1:{port}"))).collect();
    let peers: Vec<SocketAddr> = sockets.iter().map(|socket| socket.peer_addr().unwrap()).collect();
    let mut diag = SockDiag::open_in(&ns).unwrap();
    assert_eq!(diag.connected_to(Transport::Udp, &peers).unwrap().len(), 300);
    assert_eq!(diag.connected_to(Transport::Udp, &peers[7..9]).unwrap().len(), 2);
    assert!(diag.connected_to(Transport::Udp, &[]).unwrap().is_empty());
}
