//! What happens to the kernel's tables, as a stream: for loops that put right what others undo.
//!
//! An event says that something changed, not what is true now: read that with the `list` functions.
//! Our own changes come back as events too; a loop that then finds nothing to do comes to rest.

use std::collections::VecDeque;
use std::io::ErrorKind;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::addr::{self, Addr};
use crate::fdb::{self, Fdb};
use crate::link::{self, Link};
use crate::neigh::{self, Neigh};
use crate::route::{self, Route};
use crate::socket::decode;
use crate::wire::{Frame, attributes, text};
use crate::{Error, NetNs, Result, Socket};

/// `RTNLGRP_*` (include/uapi/linux/rtnetlink.h): links, neighbours (with FDB), addresses and routes of
/// both families.
const ROUTE_GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN`: closes a transaction whose parts were told before.
const NEWGEN: u16 = (10 << 8) | 15;
/// Room for bursts: a thousand routes are about half of it.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Whether a thing came (or changed) or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    New,
    Gone,
}

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Link(Turn, Box<Link>),
    Addr(Turn, Addr),
    Route(Turn, Route),
    Neigh(Turn, Neigh),
    Fdb(Turn, Fdb),
    /// nf_tables: the name of the table that was touched.
    Nft(String),
    /// Events were lost or not understood: anything may have changed.
    Lost,
}

/// The events of one network namespace.
#[derive(Debug)]
pub struct Monitor {
    route: AsyncFd<Socket>,
    nft: AsyncFd<Socket>,
    pending: VecDeque<Event>,
}

impl Monitor {
    /// Listens in the calling thread's network namespace. What happens after this returns is not
    /// missed. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self> {
        Self::from_sockets(listen_route()?, listen_nft()?)
    }

    /// Listens in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        let (route, nft) = ns.run(|| Ok::<_, Error>((listen_route()?, listen_nft()?)))??;
        Self::from_sockets(route, nft)
    }

    fn from_sockets(route: Socket, nft: Socket) -> Result<Self> {
        let watch = |socket| {
            // SAFETY: a `Socket` keeps its one descriptor open, and the same, until it is dropped, which
            // only the `AsyncFd` that owns it does.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
                .map_err(|error| Error::io("watch", "netlink socket", error.into()))
        };
        Ok(Self { route: watch(route)?, nft: watch(nft)?, pending: VecDeque::new() })
    }

    /// Waits for the next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let ready = |source| Error::io("wait for", "netlink events", source);
            tokio::select! {
                guard = self.route.readable_mut() => {
                    let mut guard = guard.map_err(ready)?;
                    if !read(guard.get_inner_mut(), &mut self.pending, route_event)? {
                        guard.clear_ready();
                    }
                }
                guard = self.nft.readable_mut() => {
                    let mut guard = guard.map_err(ready)?;
                    if !read(guard.get_inner_mut(), &mut self.pending, nft_event)? {
                        guard.clear_ready();
                    }
                }
            }
        }
    }
}

fn listen_route() -> Result<Socket> {
    listen(NETLINK_ROUTE, &ROUTE_GROUPS)
}

fn listen_nft() -> Result<Socket> {
    listen(NETLINK_NETFILTER, &[NFTABLES_GROUP])
}

fn listen(protocol: isize, groups: &[u32]) -> Result<Socket> {
    let socket = Socket::open_protocol(protocol, "netlink event socket")?;
    let failed = |source| Error::io("listen to", "netlink events", source);
    let raw = socket.raw();
    raw.set_non_blocking(true).map_err(failed)?;
    raw.set_rx_buf_sz(RECEIVE_BUFFER as u32).map_err(failed)?;
    for group in groups {
        raw.add_membership(*group).map_err(failed)?;
    }
    Ok(socket)
}

/// Reads one datagram. `false`: there is none.
fn read(
    socket: &mut Socket,
    pending: &mut VecDeque<Event>,
    parse: fn(&Frame<'_>) -> Option<Event>,
) -> Result<bool> {
    match socket.fill("read", format_args!("netlink events")) {
        Ok(()) => {
            pending.extend(socket.filled().filter_map(|frame| parse(&frame)));
            Ok(true)
        }
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(false),
        // The buffer overflowed: the kernel says so once, and what follows is readable again.
        Err(error) if error.errno() == Some(Errno::ENOBUFS) => {
            pending.push_back(Event::Lost);
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

fn route_event(frame: &Frame<'_>) -> Option<Event> {
    let Ok(message) = decode("read", format_args!("netlink events"), frame) else {
        return Some(Event::Lost);
    };
    let turn = match message {
        RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::DelNeighbour(_) => Turn::Gone,
        _ => Turn::New,
    };
    None.or_else(|| link::from_message(&message).map(|link| Event::Link(turn, Box::new(link))))
        .or_else(|| addr::from_message(&message).map(|addr| Event::Addr(turn, addr)))
        .or_else(|| route::from_message(&message).map(|route| Event::Route(turn, route)))
        .or_else(|| fdb::from_message(&message).map(|entry| Event::Fdb(turn, entry)))
        .or_else(|| neigh::from_message(&message).map(|neigh| Event::Neigh(turn, neigh)))
}

fn nft_event(frame: &Frame<'_>) -> Option<Event> {
    if frame.kind == NEWGEN {
        return None;
    }
    // In every message that belongs to a table, attribute 1 is its name; `struct nfgenmsg` comes before.
    let table = attributes(frame.payload.get(4..)?).find(|(kind, _)| *kind == 1)?;
    Some(Event::Nft(text(table.1)))
}
