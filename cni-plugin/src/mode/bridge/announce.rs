//! Tells the others on the bridge where the pod's addresses are now: who talked to the pod that had one of them before
//! would go on talking to that for a minute.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heddle_netlink::packet::Frames;
use heddle_netlink::{MacAddr, NetNs};

use heddle_spec::Failure;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;

/// Says once by the device `link` of `ns` that these addresses are at `mac`: a gratuitous ARP request (RFC 5227,
/// section 3) or an unsolicited neighbour advertisement (RFC 4861, section 7.2.6).
pub fn announce(ns: &NetNs, link: u32, mac: MacAddr, ips: &[IpAddr]) -> Result<(), Failure> {
    let frames = ns.visit(Frames::open)??;
    for ip in ips {
        let frame = match ip {
            IpAddr::V4(ip) => gratuitous(mac, *ip),
            IpAddr::V6(ip) => advertisement(mac, *ip),
        };
        frames.send(link, &frame)?;
    }
    Ok(())
}

fn ethernet(to: MacAddr, from: MacAddr, kind: u16) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

fn gratuitous(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, their lengths, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

fn advertisement(mac: MacAddr, ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const OVERRIDE: u8 = 0x20;
    const TARGET_ADDRESS: u8 = 2;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([TARGET_ADDRESS, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    // RFC 8200, section 8.1: the checksum covers addresses, length and protocol.
    let mut covered = [ip.octets(), ALL_NODES.octets()].concat();
    covered.extend(u32::from(length).to_be_bytes());
    covered.extend([0, 0, 0, ICMPV6]);
    covered.extend(&message);
    let sum = checksum(&covered).to_be_bytes();
    message.splice(2..4, sum);

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
