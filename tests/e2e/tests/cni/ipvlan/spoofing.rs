//! Nothing but the truth about its addresses leaves a pod.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use heddle_netlink::addr;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendmsg, setsockopt,
    socket, sockopt,
};

use super::{Lan, ROUTER, by_name, patient};
use crate::bench::Pod;

#[test]
fn a_pod_that_lies_about_its_address_is_not_heard() {
    let Some(lan) = Lan::new() else { return };
    let (host, liar) = (&lan.host, Pod::new("liar"));
    let honest = host.add(&liar, &lan.l2()).ips();
    let mut socket = liar.socket();
    let far = by_name(&mut socket, "eth0").index;
    for (family, lie) in ["192.168.50.77", "fd50::77"].into_iter().enumerate() {
        let to: IpAddr = ROUTER[family].parse().unwrap();
        let receiver = lan.router.run(|| UdpSocket::bind((to, 0))).unwrap().unwrap();
        receiver.set_read_timeout(Some(patient())).unwrap();
        let to = receiver.local_addr().unwrap();
        let bits = if family == 0 { 32 } else { 128 };
        let other = ipnetwork::IpNetwork::new(lie.parse().unwrap(), bits).unwrap();
        addr::add(&mut socket, &addr::Addr { nodad: true, ..addr::Addr::new(far, other) }).unwrap();
        for from in [lie, &honest[family]] {
            let from: IpAddr = from.parse().unwrap();
            let sent = liar.ns.run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to)));
            sent.unwrap().ok();
        }
        let (_, from) = receiver.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip().to_string(), honest[family], "only the truth arrives");
        // Nor does it answer who asks for another's address.
        let asked =
            lan.router.run(|| TcpStream::connect_timeout(&(other.ip(), 1).into(), Duration::from_secs(1)));
        let asked = asked.unwrap().unwrap_err();
        assert_ne!(asked.kind(), std::io::ErrorKind::ConnectionRefused, "{lie} was answered");
        addr::delete(&mut socket, far, other).unwrap();
    }
    advertisements(&lan, &liar, &honest[1]);
    host.del(&liar, &lan.l2());
    lan.assert_gone(&liar);
}

/// Of router advertisements, redirects and advertisements of others' addresses nothing arrives.
fn advertisements(lan: &Lan, liar: &Pod, honest: &str) {
    let raw = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).unwrap()
    };
    let (ears, mouth): (OwnedFd, OwnedFd) = (lan.router.run(raw).unwrap(), liar.ns.run(raw).unwrap());
    let limit = nix::sys::time::TimeVal::new(patient().as_secs().cast_signed(), 0);
    setsockopt(&ears, sockopt::ReceiveTimeout, &limit).unwrap();
    // The checksum is the kernel's.
    setsockopt(&mouth, sockopt::Ipv6MulticastHops, &255).ok();
    let to = SockaddrIn6::from(SocketAddrV6::new(ROUTER[1].parse().unwrap(), 0, 0, 0));
    let say = |kind: u8, about: &str| {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(about.parse::<Ipv6Addr>().unwrap().octets());
        message.resize(48, 0);
        let parts = [IoSlice::new(&message)];
        // What the filter drops is an error to whoever sends it (EPERM).
        sendmsg(mouth.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&to)).ok();
    };
    say(134, "fd50::1");
    say(137, "fd50::1");
    say(136, "fd50::1");
    say(136, honest);
    let mut buffer = [0; 128];
    loop {
        let length = recv(ears.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("the truth arrives");
        match buffer[0] {
            134 | 137 => panic!("type {} was heard", buffer[0]),
            136 if length == 48 => {
                assert_eq!(buffer[8..24], honest.parse::<Ipv6Addr>().unwrap().octets());
                break;
            }
            _ => {}
        }
    }
}
