//! Packets to run programs on.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use etherparse::{NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    Syn,
    SynAck,
    Ack,
}

fn ip(src: IpAddr, dst: IpAddr) -> Result<PacketBuilderStep<etherparse::IpHeaders>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ok(ethernet.ipv4(src.octets(), dst.octets(), 64)),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ok(ethernet.ipv6(src.octets(), dst.octets(), 64)),
        _ => bail!("{src} and {dst} are of two families"),
    }
}

/// A TCP segment without options and payload.
pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: Flags) -> Result<Vec<u8>> {
    let tcp = ip(src.ip(), dst.ip())?.tcp(src.port(), dst.port(), 1, 64_000);
    let tcp = match flags {
        Flags::Syn => tcp.syn(),
        Flags::SynAck => tcp.syn().ack(1),
        Flags::Ack => tcp.ack(1),
    };
    let mut packet = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut packet, &[])?;
    Ok(packet)
}

/// Where a TCP segment comes from and goes to.
pub fn ends(packet: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let sliced = SlicedPacket::from_ethernet(packet)?;
    let (src, dst): (IpAddr, IpAddr) = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => bail!("not an IP packet"),
    };
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            Ok(((src, tcp.source_port()).into(), (dst, tcp.destination_port()).into()))
        }
        _ => bail!("not a TCP segment"),
    }
}

/// The packet with the source MAC of mesh packets.
pub fn from_mac(mut packet: Vec<u8>, kind: [u8; 2], hash: u32) -> Vec<u8> {
    packet[6..8].copy_from_slice(&kind);
    packet[8..12].copy_from_slice(&hash.to_be_bytes());
    packet
}

/// A frame in VXLAN (RFC 7348), VNI 1.
pub fn vxlan(src: IpAddr, dst: IpAddr, port: u16, frame: &[u8]) -> Result<Vec<u8>> {
    let udp = ip(src, dst)?.udp(50_000, port);
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0], frame].concat();
    let mut packet = Vec::with_capacity(udp.size(payload.len()));
    udp.write(&mut packet, &payload)?;
    Ok(packet)
}
