//! Connection tracking: finding and forgetting flows.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::wire::{attributes, put_attribute};
use crate::{Error, NetNs, Result, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_ZONE: u16 = 18;
const CTA_STATUS_MASK: u16 = 26;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_DST: [u16; 2] = [2, 4];
const CTA_IP_SRC: [u16; 2] = [1, 3];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
/// What of a tuple is compared (`CTA_FILTER_F_CTA_*` in net/netfilter/nf_internals.h).
const COMPARE_PROTO: u32 = 1 << 3;
const COMPARE_DST_PORT: u32 = 1 << 5;

/// `IPS_DST_NAT` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const DST_NAT: u32 = 1 << 5;
/// `TCP_CONNTRACK_LAST_ACK`: from here on both sides have said all.
const TCP_LAST_ACK: u8 = 6;
const TCP: u8 = 6;

/// A flow as the kernel tracks it, as far as anybody here asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its first packet was addressed to.
    pub destination: IpAddr,
    /// The port that it was opened to.
    pub port: u16,
    /// IANA number.
    pub protocol: u8,
    /// Something may still be said: no TCP connection that both sides have closed.
    pub alive: bool,
    /// Who answers: another than `destination` if that was translated.
    pub replies_from: IpAddr,
    dst_nat: bool,
    ipv4: bool,
    /// The attributes by which the kernel knows it.
    identity: Vec<u8>,
}

/// A socket to the connection tracking of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open_protocol(NETLINK_NETFILTER, "connection tracking socket")? })
    }

    /// Opens a socket in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// The flows of a family that were opened to this port, or to any. The kernel looks for them itself, through its
    /// whole table. (By addresses it would, too, but it takes IPv6 addresses that are equal for different ones.)
    pub fn opened_to(&mut self, ipv4: bool, protocol: u8, port: Option<u16>) -> Result<Vec<Flow>> {
        let mut wanted = Vec::new();
        put_attribute(&mut wanted, CTA_PROTO_NUM, &[protocol]);
        let mut compare = COMPARE_PROTO;
        if let Some(port) = port {
            put_attribute(&mut wanted, CTA_PROTO_DST_PORT, &port.to_be_bytes());
            compare |= COMPARE_DST_PORT;
        }
        let mut tuple = Vec::new();
        put_attribute(&mut tuple, CTA_TUPLE_PROTO | NLA_F_NESTED, &wanted);
        let mut filter = Vec::new();
        put_attribute(&mut filter, CTA_FILTER_ORIG_FLAGS, &compare.to_ne_bytes());
        let mut payload = header(ipv4);
        put_attribute(&mut payload, CTA_TUPLE_ORIG | NLA_F_NESTED, &tuple);
        put_attribute(&mut payload, CTA_FILTER | NLA_F_NESTED, &filter);
        self.dump(ipv4, &payload)
    }

    /// The flows of a family whose destination the kernel translates. Since Linux 5.15 it looks for them itself; an older
    /// one tells of all, and they are sorted out here.
    pub fn translated(&mut self, ipv4: bool) -> Result<Vec<Flow>> {
        let mut payload = header(ipv4);
        put_attribute(&mut payload, CTA_STATUS, &DST_NAT.to_be_bytes());
        put_attribute(&mut payload, CTA_STATUS_MASK, &DST_NAT.to_be_bytes());
        let mut found = self.dump(ipv4, &payload)?;
        found.retain(|flow| flow.dst_nat);
        Ok(found)
    }

    fn dump(&mut self, ipv4: bool, payload: &[u8]) -> Result<Vec<Flow>> {
        let object = format_args!("tracked flows");
        self.socket.consistent("list", object, |socket| {
            let sequence = socket.send("list", object, GET, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump("list", object, sequence, |frame| {
                let rest =
                    frame.payload.get(HEADER..).ok_or_else(|| Error::answer("list", object, "too short"))?;
                found.extend(parse(ipv4, rest));
                Ok(())
            })?;
            Ok(whole.then_some(found))
        })
    }

    /// Forgets a flow: its next packet is looked at as the first of a new one.
    pub fn forget(&mut self, flow: &Flow) -> Result<()> {
        let mut payload = header(flow.ipv4);
        payload.extend(&flow.identity);
        let object = format_args!("flow to {}", flow.destination);
        let sequence = self.socket.send("delete", object, DELETE, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        self.socket.receive("delete", object, sequence, |_| Ok(()))
    }
}

fn header(ipv4: bool) -> Vec<u8> {
    vec![if ipv4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }, 0, 0, 0]
}

fn parse(ipv4: bool, message: &[u8]) -> Option<Flow> {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let address = |tuple, kinds: [u16; 2]| {
        let ips = find(tuple, CTA_TUPLE_IP)?;
        if ipv4 {
            Some(IpAddr::from(<[u8; 4]>::try_from(find(ips, kinds[0])?).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 16]>::try_from(find(ips, kinds[1])?).ok()?))
        }
    };
    let original = find(message, CTA_TUPLE_ORIG)?;
    let mut identity = Vec::new();
    put_attribute(&mut identity, CTA_TUPLE_ORIG | NLA_F_NESTED, original);
    if let Some(zone) = find(message, CTA_ZONE) {
        put_attribute(&mut identity, CTA_ZONE, zone);
    }
    let layer4 = find(original, CTA_TUPLE_PROTO)?;
    let port = find(layer4, CTA_PROTO_DST_PORT)?;
    let protocol = *find(layer4, CTA_PROTO_NUM)?.first()?;
    let state = find(message, CTA_PROTOINFO)
        .and_then(|info| find(info, CTA_PROTOINFO_TCP))
        .and_then(|tcp| find(tcp, CTA_PROTOINFO_TCP_STATE)?.first());
    let status = find(message, CTA_STATUS).and_then(|status| status.try_into().ok());
    Some(Flow {
        protocol,
        alive: protocol != TCP || state.is_none_or(|state| *state < TCP_LAST_ACK),
        dst_nat: status.is_some_and(|status| u32::from_be_bytes(status) & DST_NAT != 0),
        destination: address(original, CTA_IP_DST)?,
        port: u16::from_be_bytes(port.try_into().ok()?),
        replies_from: address(find(message, CTA_TUPLE_REPLY)?, CTA_IP_SRC)?,
        ipv4,
        identity,
    })
}
