//! Node ports on 127.0.0.1 and ::1: for the node's own processes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use heddle_lab::{Error, Place, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, socket};

use super::{FAMILIES, NODE_PORT, Setting, assert_error, assert_only, published};

fn loopback(v4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    (ip, port).into()
}

/// What sockets that are bound to a loopback address are told: by TCP, connected UDP, UDP that is not connected.
fn bound(place: &Place, to: SocketAddr) -> Result<[Option<i32>; 3]> {
    let from = loopback(to.is_ipv4(), 0);
    let ask = || -> io::Result<[Option<i32>; 3]> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let connected = match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => bind(fd.as_raw_fd(), &SockaddrIn::from(from))
                .and_then(|()| connect(fd.as_raw_fd(), &SockaddrIn::from(to))),
            (SocketAddr::V6(from), SocketAddr::V6(to)) => bind(fd.as_raw_fd(), &SockaddrIn6::from(from))
                .and_then(|()| connect(fd.as_raw_fd(), &SockaddrIn6::from(to))),
            _ => return Err(io::Error::other("two families")),
        };
        let datagrams = UdpSocket::bind(from)?;
        let sent = datagrams.send_to(b"ask", to);
        let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
        Ok([
            errno(connected.map_err(Into::into)),
            errno(UdpSocket::bind(from)?.connect(to)),
            errno(sent.map(drop)),
        ])
    };
    place.enter(ask)?.map_err(|e| Error::Oracle(format!("{to} from {}: {e}", place.name())))
}

#[test]
fn rule_node_ports_on_loopback() -> Result<()> {
    let setting = Setting::start(&[])?;
    let declared = published("web", 20);
    setting.publish(&declared, &[1, 2])?;
    for v4 in FAMILIES {
        let at = loopback(v4, NODE_PORT);
        for index in 1..=3 {
            let [hooked, unhooked] = setting.host(index)?;
            assert_only(at, &hooked.place, 5, &["p1", "p2"])?;
            // Nothing but the hook sees what goes to loopback.
            assert_error(at, &unhooked.place, ErrorKind::ConnectionRefused);
            // What has a loopback address as its source cannot leave the node.
            let told = bound(&hooked.place, at)?;
            assert_eq!(told, [Some(Errno::EADDRNOTAVAIL as i32); 3], "{at} on {}", hooked.place.name());
        }
        // Another port of loopback is not touched.
        assert_error(loopback(v4, NODE_PORT + 1), setting.cluster.node(1), ErrorKind::ConnectionRefused);
    }
    // A pod's loopback is its own.
    let pod = setting.pods[0].pod();
    for v4 in FAMILIES {
        assert_error(loopback(v4, NODE_PORT), pod, ErrorKind::ConnectionRefused);
    }
    let own = pod.serve("own", NODE_PORT)?;
    for asker in setting.pod(1)? {
        for v4 in FAMILIES {
            assert_only(loopback(v4, NODE_PORT), &asker.place, 5, &["own"])?;
        }
    }
    drop(own);
    // With nobody behind it, it is refused; when it is gone, it is the kernel's again.
    setting.publish(&declared, &[])?;
    for v4 in FAMILIES {
        assert_error(loopback(v4, NODE_PORT), setting.cluster.node(3), ErrorKind::ConnectionRefused);
    }
    setting.cluster.manifests().remove("service-web.yaml")?;
    setting.carried_out()?;
    let server = setting.cluster.node(1).serve("node", NODE_PORT)?;
    for v4 in FAMILIES {
        assert_only(loopback(v4, NODE_PORT), setting.cluster.node(1), 2, &["node"])?;
    }
    drop(server);
    Ok(())
}
