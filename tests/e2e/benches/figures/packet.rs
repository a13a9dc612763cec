//! Packets to run programs on.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use etherparse::PacketBuilder;

/// A TCP segment without payload from `src` to `dst`; `syn` or else `ack` is set.
pub fn tcp(src: SocketAddr, dst: SocketAddr, syn: bool) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 64),
        _ => bail!("{src} and {dst} are of two families"),
    };
    let tcp = ip.tcp(src.port(), dst.port(), 1, 64_000);
    let tcp = if syn { tcp.syn() } else { tcp.ack(1) };
    let mut packet = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut packet, &[])?;
    Ok(packet)
}
