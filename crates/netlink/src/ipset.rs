//! Sets of the ipset module: which there are, and taking one away.
//!
//! Source: include/uapi/linux/netfilter/ipset/ip_set.h, net/netfilter/ipset/ip_set_core.c.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::wire::{attributes, put_attribute, text};
use crate::{Result, Socket};

const SUBSYSTEM: u16 = 6 << 8;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;

const PROTOCOL: u16 = 1;
const SETNAME: u16 = 2;
const FLAGS: u16 = 6;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;
/// The oldest protocol that kernels still speak.
const VERSION: u8 = 6;
const LIST_SETNAME: u32 = 1 << 1;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A socket to the sets of one network namespace.
#[derive(Debug)]
pub struct Sets {
    socket: Socket,
}

impl Sets {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open_protocol(NETLINK_NETFILTER, "ipset socket")? })
    }

    /// The names of all sets. None where the kernel has no such module.
    pub fn names(&mut self) -> Result<Vec<String>> {
        let mut payload = header();
        put_attribute(&mut payload, FLAGS | NLA_F_NET_BYTEORDER, &LIST_SETNAME.to_be_bytes());
        let object = format_args!("ipsets");
        let listed = self.socket.consistent("list", object, |socket| {
            let sequence = socket.send("list", object, LIST, NLM_F_REQUEST | NLM_F_DUMP, &payload)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump("list", object, sequence, |frame| {
                let rest = frame.payload.get(HEADER..).unwrap_or_default();
                found.extend(attributes(rest).find(|(kind, _)| *kind == SETNAME).map(|(_, name)| text(name)));
                Ok(())
            })?;
            Ok(whole.then_some(found))
        });
        match listed {
            Err(error) if error.is_unsupported() || error.not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Takes a set away, which no rule may use.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        let mut payload = header();
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        put_attribute(&mut payload, SETNAME, &value);
        let object = format_args!("ipset {name}");
        let sequence = self.socket.send("destroy", object, DESTROY, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        self.socket.receive("destroy", object, sequence, |_| Ok(()))
    }
}

fn header() -> Vec<u8> {
    let mut payload = vec![libc::AF_INET as u8, 0, 0, 0];
    put_attribute(&mut payload, PROTOCOL, &[VERSION]);
    payload
}
