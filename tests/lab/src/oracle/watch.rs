//! Sees every write to the network of a place: what a second reconcile must not do.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::error::{Context, Error, Result};
use crate::place::Place;

/// RTMGRP_* (linux/rtnetlink.h): link, neigh, tc, IPv4 address, route and rule, IPv6 address and route, and
/// RTNLGRP_IPV6_RULE.
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 1 << 6;

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
/// NUD_NOARP | NUD_PERMANENT: what the kernel does not change by itself.
const NUD_STATIC: u16 = 0x40 | 0x80;

/// Listens to the changes of links, addresses, routes, rules, static neighbours, FDB entries, queueing and
/// nf_tables of a place.
#[derive(Debug)]
pub struct Watch {
    route: OwnedFd,
    netfilter: OwnedFd,
}

impl Watch {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(place: &Place) -> Result<Self> {
        let open = |protocol, groups| -> io::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            Ok(fd)
        };
        place.enter(|| {
            let route =
                open(SockProtocol::NetlinkRoute, ROUTE_GROUPS).context(|| "watch rtnetlink".into())?;
            let netfilter =
                open(SockProtocol::NetlinkNetFilter, NFTABLES_GROUP).context(|| "watch nf_tables".into())?;
            Ok(Self { route, netfilter })
        })?
    }

    /// What was written since the start or the last call: message types (`rtnetlink 24` is RTM_NEWROUTE,
    /// `nf_tables 12` NFT_MSG_NEWSETELEM).
    ///
    /// # Errors
    /// When the kernel had to drop some.
    pub fn writes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        read(&self.route, |kind, payload| {
            let neighbour = kind == RTM_NEWNEIGH || kind == RTM_DELNEIGH;
            // struct ndmsg: the state is at byte 8. Neighbours that the kernel learns come and go.
            let state = payload.get(8..10).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
            if !neighbour || state & NUD_STATIC != 0 {
                found.push(format!("rtnetlink {kind}"));
            }
        })?;
        read(&self.netfilter, |kind, _| found.push(format!("nf_tables {}", kind & 0xff)))?;
        Ok(found)
    }
}

/// Takes apart what waits at a netlink socket: type and payload of each message.
fn read(fd: &OwnedFd, mut message: impl FnMut(u16, &[u8])) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::ENOBUFS) => {
                return Err(Error::Oracle("more was written than the watch could take".into()));
            }
            Err(e) => return Err(e).context(|| "read netlink events".into()),
        };
        let mut rest = &buffer[..length];
        // struct nlmsghdr: length (4 bytes), type (2), flags (2), sequence (4), port (4).
        while let Some((head, _)) = rest.split_first_chunk::<16>() {
            let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let Some(payload) = rest.get(16..size) else { break };
            message(u16::from_ne_bytes([head[4], head[5]]), payload);
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
