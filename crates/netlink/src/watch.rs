//! Waiting for the kernel, without a runtime: for programs that run for milliseconds.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Error, Result, Socket};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV6_IFADDR` and `RTNLGRP_IPV6_ROUTE` (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 3] = [1, 9, 11];
/// What can change the way of a packet: links, addresses (IPv4, IPv6), routes (IPv4, IPv6), rules (IPv4, IPv6), next
/// hops (`RTNLGRP_NEXTHOP`).
const WAYS: [u32; 8] = [1, 5, 9, 7, 11, 8, 19, 32];

/// Hears that a device, an IPv6 address or an IPv6 route of its namespace changes, from the moment it is opened.
#[derive(Debug)]
pub struct Watch {
    events: Socket,
}

impl Watch {
    /// Begins to listen in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Self::listen(&GROUPS)
    }

    /// The same for whatever can change the way that packets of the namespace go.
    pub fn of_ways() -> Result<Self> {
        Self::listen(&WAYS)
    }

    fn listen(groups: &[u32]) -> Result<Self> {
        let events = Socket::open_protocol(NETLINK_ROUTE, "netlink event socket")?;
        let failed = |source| Error::io("listen to", "netlink events", source);
        events.raw().set_non_blocking(true).map_err(failed)?;
        for group in groups {
            events.raw().add_membership(*group).map_err(failed)?;
        }
        Ok(Self { events })
    }

    /// Asks `met`, and again whenever something changed, until it says yes. `false`: not in time.
    pub fn until(&mut self, patience: Duration, mut met: impl FnMut() -> Result<bool>) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if met()? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up: a rest of less than a millisecond is not waited for in circles.
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::errno_of("wait for", "netlink events", errno)),
            }
            while self.read()? {}
        }
    }

    /// Waits until something has changed (`true`), for `patience` at most, or until `stop` can be read or is closed at its
    /// other end.
    pub fn changed(&mut self, patience: Duration, stop: BorrowedFd<'_>) -> Result<bool> {
        let patience = PollTimeout::try_from(patience.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut ready =
            [PollFd::new(self.events.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
        match poll(&mut ready, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::errno_of("wait for", "netlink events", errno)),
        }
        let mut changed = false;
        while self.read()? {
            changed = true;
        }
        Ok(changed)
    }

    /// Reads one datagram away. What it says is not needed: the tables are asked.
    fn read(&mut self) -> Result<bool> {
        match self.events.fill("read", format_args!("netlink events")) {
            Ok(()) => Ok(true),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.errno() == Some(Errno::ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
