//! What a ClusterIP does not have: its other ports, other protocols.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use heddle_lab::addresses::cluster_ip;
use heddle_lab::traffic::raw_socket;
use heddle_lab::{Ask, Error, Place, Proto, Result, Service};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, connect, recv, send};

use super::{FAMILIES, Setting, TARGET, assert_error, assert_only, service};

/// For experiments (RFC 3692).
const UNKNOWN: u8 = 253;

/// What comes back for a packet of a protocol that no service speaks.
fn unknown_protocol(place: &Place, to: SocketAddr) -> Result<Errno> {
    let ask = || -> io::Result<Errno> {
        let socket = raw_socket(to, UNKNOWN, Duration::from_secs(2))?;
        let fd = socket.as_raw_fd();
        match to {
            // A raw socket has no ports.
            SocketAddr::V4(to) => connect(fd, &SockaddrIn::from(std::net::SocketAddrV4::new(*to.ip(), 0)))?,
            SocketAddr::V6(to) => {
                connect(fd, &SockaddrIn6::from(std::net::SocketAddrV6::new(*to.ip(), 0, 0, 0)))?
            }
        }
        // Of less than 8 bytes there is nothing to quote (RFC 792): dropped.
        send(fd, b"a question", MsgFlags::empty())?;
        match recv(fd, &mut [0; 256], MsgFlags::empty()) {
            Ok(length) => Err(io::Error::other(format!("{length} bytes of answer"))),
            Err(errno) => Ok(errno),
        }
    };
    place.enter(ask)?.map_err(|e| Error::Oracle(format!("{to} from {}: {e}", place.name())))
}

/// Refused at once: another port, the protocol that the port does not have, a protocol that no service speaks.
#[test]
fn rule_undefined_ports_and_protocols_of_a_cluster_ip() -> Result<()> {
    let setting = Setting::start(&[])?;
    setting.publish(&service("both", 20), &[1])?;
    let (v4, v6) = (cluster_ip(21, true), cluster_ip(21, false));
    let stream = Service::new("stream").cluster_ip(v4).cluster_ip(v6).port("tcp", Proto::Tcp, 80, TARGET);
    setting.publish(&stream, &[1])?;
    for asker in setting.insiders()? {
        for v4 in FAMILIES {
            assert_error((cluster_ip(20, v4), 81).into(), &asker.place, ErrorKind::ConnectionRefused);
            let at = SocketAddr::new(cluster_ip(21, v4), 80);
            assert_eq!(Ask::new(at).tcp(&asker.place)?.server, "p1");
            let error = Ask::new(at).udp(&asker.place).map_err(|error| error.kind());
            assert_eq!(
                error,
                Err(Some(ErrorKind::ConnectionRefused)),
                "{at} by UDP from {}",
                asker.place.name()
            );
            // Protocol unreachable; unrecognized next header.
            let wanted = if v4 { Errno::ENOPROTOOPT } else { Errno::EPROTO };
            assert_eq!(unknown_protocol(&asker.place, at)?, wanted, "{at} from {}", asker.place.name());
        }
    }
    // With the service its address goes: it is nobody's now.
    setting.cluster.manifests().remove("service-stream.yaml")?;
    setting.carried_out()?;
    for asker in setting.pod(2)? {
        super::assert_silence((cluster_ip(21, true), 80).into(), &asker.place);
        assert_only((cluster_ip(20, true), 80).into(), &asker.place, 1, &["p1"])?;
    }
    Ok(())
}
