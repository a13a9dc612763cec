//! What rules say of the packets that leave by one device (tables of the netdev family, since Linux 5.16): the last
//! look at a packet before the driver has it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expr::{Expr, Op};
use super::{Batch, Family, msg};
use crate::MacAddr;

const NLM_F_CREATE: u16 = 0x400;
/// `enum nf_dev_hooks`.
const NF_NETDEV_EGRESS: u32 = 1;
const PAYLOAD_LINK: u32 = 0;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;

impl Batch {
    /// Creates a chain that every packet leaving by `device` goes through, but for what a socket sends past the
    /// queue (`PACKET_QDISC_BYPASS`). What no rule accepts is dropped.
    pub fn add_egress_chain(&mut self, table: &str, chain: &str, device: &str) {
        let object = format!("chain netdev {table} {chain} for {device}");
        self.push((msg::NEWCHAIN, NLM_F_CREATE, "add"), Family::Netdev, object, |a| {
            a.text(1, table);
            a.text(3, chain);
            a.nested(4, |hook| {
                hook.number(1, NF_NETDEV_EGRESS);
                hook.number(2, 0);
                hook.text(3, device);
            });
            a.number(5, 0);
            a.text(7, "filter");
        });
    }
}

/// `ether saddr != MAC`.
pub fn not_from(mac: MacAddr) -> Vec<Expr> {
    compared((PAYLOAD_LINK, 6), Op::Neq, &mac)
}

/// `arp saddr ether != MAC`, where ARP is known already.
pub fn arp_not_from(mac: MacAddr) -> Vec<Expr> {
    compared((PAYLOAD_NETWORK, 8), Op::Neq, &mac)
}

/// `ip saddr ADDRESS`, where IPv4 is known already.
pub fn sender4(address: Ipv4Addr) -> Vec<Expr> {
    compared((PAYLOAD_NETWORK, 12), Op::Eq, &address.octets())
}

/// The address that a neighbour advertisement is about (RFC 4861, section 4.4), where that is known already.
pub fn neighbour_target(address: Ipv6Addr) -> Vec<Expr> {
    compared((PAYLOAD_TRANSPORT, 8), Op::Eq, &address.octets())
}

fn compared((base, offset): (u32, u32), op: Op, data: &[u8]) -> Vec<Expr> {
    vec![Expr::Payload { base, offset, length: data.len() as u32 }, Expr::Cmp { op, data: data.to_vec() }]
}
