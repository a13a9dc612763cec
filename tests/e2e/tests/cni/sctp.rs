//! SCTP through a host port: raw packets, for kernels without SCTP have no sockets of it.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::json;

use super::around::{Around, HOST, NEIGHBOUR};
use super::bench::{Host, Pod};
use super::hostport::{conf, with_ports};

/// The checksum of SCTP: CRC-32C (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// An INIT chunk (RFC 9260, section 3.3.2): what a connection begins with.
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x1234_5678u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The packet with its IP header.
fn over_ip(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};
    let mut packet = Vec::new();
    if let (Ok(from), Ok(to)) = (from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>()) {
        let length = u16::try_from(payload.len()).unwrap();
        let header = Ipv4Header::new(length, 64, IpNumber::SCTP, from.octets(), to.octets()).unwrap();
        header.write(&mut packet).unwrap();
    } else {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(payload.len()).unwrap(),
            next_header: IpNumber::SCTP,
            hop_limit: 64,
            source: address(from),
            destination: address(to),
        };
        header.write(&mut packet).unwrap();
    }
    packet.extend(payload);
    packet
}

#[test]
fn sctp_is_translated_with_its_checksum() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
    };
    let (host, one) = (Host::new(), Pod::new("one"));
    let around = Around::of(&host);
    let ports = json!([{"hostPort": 2905, "containerPort": 36412, "protocol": "sctp"}]);
    let conf = with_ports(&conf(&host, "ptp"), ports);
    let ips = host.add(&one, &conf).ips();
    let ear = one.ns.run(|| {
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
    });
    let ear = std::fs::File::from(ear.unwrap().unwrap());
    for family in 0..2 {
        let (from, to) = (NEIGHBOUR[family], HOST[family]);
        let packet = over_ip(from, to, &sctp_init(40_000, 2905));
        let kind = if family == 0 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        // With IPPROTO_RAW the header is part of what is sent.
        let mouth =
            around.neighbour.run(|| socket(kind, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw));
        let mouth = mouth.unwrap().unwrap();
        let sent = match to.parse::<SocketAddr>().or_else(|_| format!("[{to}]:0").parse()) {
            Ok(SocketAddr::V6(to)) => {
                sendto(mouth.as_raw_fd(), &packet, &SockaddrIn6::from(to), MsgFlags::empty())
            }
            _ => {
                let to = SocketAddrV4::new(to.parse().unwrap(), 0);
                sendto(mouth.as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty())
            }
        };
        assert_eq!(sent.unwrap(), packet.len());
        let wanted = sctp_init(40_000, 36_412);
        let mut buffer = [0; 2048];
        loop {
            assert_eq!(
                poll(&mut [PollFd::new(ear.as_fd(), PollFlags::POLLIN)], 10_000u16).unwrap(),
                1,
                "{to}"
            );
            let length = (&ear).read(&mut buffer).unwrap();
            let header = if family == 0 { 20 } else { 40 };
            if length > header && buffer[header..length].starts_with(&40_000u16.to_be_bytes()) {
                let ip: IpAddr = ips[family].parse().unwrap();
                let at = match ip {
                    IpAddr::V4(ip) => buffer[16..20] == ip.octets(),
                    IpAddr::V6(ip) => buffer[24..40] == ip.octets(),
                };
                assert!(at, "{to}: it went elsewhere");
                assert_eq!(buffer[header..length], wanted, "{to}");
                break;
            }
        }
    }
}
