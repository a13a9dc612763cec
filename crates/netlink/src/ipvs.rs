//! Virtual services of IPVS: which there are, and taking one away.
//!
//! Source: include/uapi/linux/ip_vs.h, include/uapi/linux/genetlink.h.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::wire::{attributes, put_attribute, u16_at};
use crate::{Error, Result, Socket};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const CMD_DEL_SERVICE: u8 = 3;
const CMD_GET_SERVICE: u8 = 4;
const ATTR_SERVICE: u16 = 1;
const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_FWMARK: u16 = 5;
const NLA_F_NESTED: u16 = 0x8000;
/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;

/// A virtual service. One that is known by a mark of the firewall has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub addr: Option<IpAddr>,
    pub port: u16,
    /// IANA number.
    pub protocol: u16,
    /// The attributes by which the kernel knows it.
    identity: Vec<u8>,
}

/// A socket to IPVS of one network namespace.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Opens a socket in the calling thread's network namespace. `None`: the kernel has no IPVS, or has not loaded it.
    pub fn open() -> Result<Option<Self>> {
        let mut socket = Socket::open_protocol(NETLINK_GENERIC, "generic netlink socket")?;
        let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
        put_attribute(&mut payload, CTRL_ATTR_FAMILY_NAME, b"IPVS\0");
        let object = format_args!("generic netlink family IPVS");
        let sequence = socket.send("find", object, GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        let mut family = None;
        let found = socket.receive("find", object, sequence, |frame| {
            let rest = frame.payload.get(HEADER..).unwrap_or_default();
            family = attributes(rest)
                .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
                .and_then(|(_, id)| u16_at(id, 0));
            Ok(())
        });
        match (found, family) {
            (Ok(()), Some(family)) => Ok(Some(Self { socket, family })),
            (Err(error), _) if !error.not_found() => Err(error),
            _ => Ok(None),
        }
    }

    /// All virtual services.
    pub fn services(&mut self) -> Result<Vec<Service>> {
        let payload = vec![CMD_GET_SERVICE, 1, 0, 0];
        let (object, family) = (format_args!("virtual services"), self.family);
        self.socket.consistent("list", object, |socket| {
            let sequence = socket.send("list", object, family, NLM_F_REQUEST | NLM_F_DUMP, &payload)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump("list", object, sequence, |frame| {
                let rest =
                    frame.payload.get(HEADER..).ok_or_else(|| Error::answer("list", object, "too short"))?;
                found.extend(service(rest));
                Ok(())
            })?;
            Ok(whole.then_some(found))
        })
    }

    /// Takes a virtual service away; its connections end.
    pub fn delete(&mut self, service: &Service) -> Result<()> {
        let mut payload = vec![CMD_DEL_SERVICE, 1, 0, 0];
        put_attribute(&mut payload, ATTR_SERVICE | NLA_F_NESTED, &service.identity);
        let object = format_args!("virtual service of port {}", service.port);
        let sequence =
            self.socket.send("delete", object, self.family, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        self.socket.receive("delete", object, sequence, |_| Ok(()))
    }
}

fn service(message: &[u8]) -> Option<Service> {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let said = find(message, ATTR_SERVICE)?;
    let v4 = u16_at(find(said, SVC_AF)?, 0)? == libc::AF_INET as u16;
    let addr = find(said, SVC_ADDR).and_then(|addr| {
        if v4 {
            Some(IpAddr::from(<[u8; 4]>::try_from(addr.get(..4)?).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 16]>::try_from(addr).ok()?))
        }
    });
    let mut identity = Vec::new();
    for (kind, value) in attributes(said) {
        if [SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK].contains(&kind) {
            put_attribute(&mut identity, kind, value);
        }
    }
    Some(Service {
        addr,
        port: find(said, SVC_PORT)
            .and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?)))
            .unwrap_or(0),
        protocol: find(said, SVC_PROTOCOL).and_then(|protocol| u16_at(protocol, 0)).unwrap_or(0),
        identity,
    })
}
