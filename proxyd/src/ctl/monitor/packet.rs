//! The headers of a packet, as far as they were kept.

use std::net::IpAddr;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// What is shown of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    pub src: Option<IpAddr>,
    pub dst: Option<IpAddr>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    pub proto: String,
    /// Of TCP: `S`, `SA`, `F`, ...; of ICMP: type and code.
    pub detail: String,
    pub ttl: Option<u8>,
}

/// Reads `frame`, of which the end may be missing.
pub fn headers(frame: &[u8]) -> Headers {
    let mut headers = Headers::default();
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return headers };
    let mut transport: &[u8] = &[];
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            transport = ip.payload().payload;
            let header = ip.header();
            headers.src = Some(header.source_addr().into());
            headers.dst = Some(header.destination_addr().into());
            headers.ttl = Some(header.ttl());
            headers.proto = protocol(ip.payload().ip_number.0);
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            transport = ip.payload().payload;
            headers.src = Some(ip.header().source_addr().into());
            headers.dst = Some(ip.header().destination_addr().into());
            headers.ttl = Some(ip.header().hop_limit());
            headers.proto = protocol(ip.payload().ip_number.0);
        }
        _ => {}
    }
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (headers.sport, headers.dport) = (Some(tcp.source_port()), Some(tcp.destination_port()));
            let flags = [
                (tcp.syn(), 'S'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.ack(), 'A'),
                (tcp.urg(), 'U'),
            ];
            headers.detail = flags.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
        }
        Some(TransportSlice::Udp(udp)) => {
            (headers.sport, headers.dport) = (Some(udp.source_port()), Some(udp.destination_port()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            headers.detail = format!("type {} code {}", icmp.type_u8(), icmp.code_u8());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            headers.detail = format!("type {} code {}", icmp.type_u8(), icmp.code_u8());
        }
        // Of a header that is not all there, what is.
        _ => part(&mut headers, transport),
    }
    headers
}

/// Ports, and TCP's flags.
fn part(headers: &mut Headers, transport: &[u8]) {
    let port = |at: usize| Some(u16::from_be_bytes([*transport.get(at)?, *transport.get(at + 1)?]));
    if ["tcp", "udp", "sctp"].contains(&headers.proto.as_str()) {
        (headers.sport, headers.dport) = (port(0), port(2));
    }
    if let Some(flags) = transport.get(13).filter(|_| headers.proto == "tcp") {
        let letters = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (16, 'A'), (32, 'U')];
        headers.detail =
            letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect();
    }
}

pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn headers_are_read_of_whole_packets_and_of_parts() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [10, 96, 0, 1], 7)
            .tcp(4242, 80, 1, 1024)
            .syn()
            .write(&mut frame, &[0; 200])
            .unwrap();
        for cut in [frame.len(), 96, 54] {
            let headers = headers(&frame[..cut]);
            assert_eq!((headers.sport, headers.dport, headers.ttl), (Some(4242), Some(80), Some(7)), "{cut}");
            assert_eq!((headers.proto.as_str(), headers.detail.as_str()), ("tcp", "S"));
            assert_eq!(headers.dst, Some([10, 96, 0, 1].into()));
        }
        // With options that are cut off.
        let mut frame = Vec::new();
        let syn =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 7).tcp(4242, 80, 1, 1024).syn();
        let options = [etherparse::TcpOptionElement::Timestamp(1, 2)];
        syn.options(&options).unwrap().write(&mut frame, &[]).unwrap();
        let part = headers(&frame[..74]);
        assert_eq!((part.sport, part.dport, part.detail.as_str()), (Some(4242), Some(80), "S"));
        assert_eq!(headers(&frame[..20]), Headers::default());
        assert_eq!(headers(&[]), Headers::default());
    }
}
