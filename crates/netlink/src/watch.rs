//! Waiting for a device, without a runtime: for programs that run for milliseconds.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::link::{self, Link};
use crate::socket::decode;
use crate::{Error, Result, Socket};

/// `RTNLGRP_LINK` (include/uapi/linux/rtnetlink.h).
const LINK_GROUP: u32 = 1;

/// Hears of every change of a device in its namespace from the moment it is opened.
#[derive(Debug)]
pub struct LinkWatch {
    events: Socket,
}

impl LinkWatch {
    /// Begins to listen in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let events = Socket::open_protocol(NETLINK_ROUTE, "netlink event socket")?;
        let failed = |source| Error::io("listen to", "link events", source);
        events.raw().set_non_blocking(true).map_err(failed)?;
        events.raw().add_membership(LINK_GROUP).map_err(failed)?;
        Ok(Self { events })
    }

    /// Waits until the device with this index is as `wanted` says; `socket` is one of the same namespace.
    /// `false`: it was not in time, or is gone.
    pub fn until(
        &mut self,
        socket: &mut Socket,
        index: u32,
        patience: Duration,
        wanted: impl Fn(&Link) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut seen = link::by_index(socket, index)?;
        loop {
            match &seen {
                None => return Ok(false),
                Some(link) if wanted(link) => return Ok(true),
                Some(_) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a rest of less than a millisecond is not waited for in circles.
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, left) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::errno_of("wait for", format_args!("link {index}"), errno)),
            }
            seen = match self.read(index)? {
                Heard::Of(link) => Some(*link),
                Heard::Nothing => seen,
                Heard::Lost => link::by_index(socket, index)?,
            };
            if Instant::now() > deadline {
                return Ok(seen.is_some_and(|link| wanted(&link)));
            }
        }
    }

    /// The last that one datagram says of the device.
    fn read(&mut self, index: u32) -> Result<Heard> {
        let what = format_args!("link events");
        match self.events.fill("read", what) {
            Ok(()) => {}
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                return Ok(Heard::Nothing);
            }
            Err(error) if error.errno() == Some(Errno::ENOBUFS) => return Ok(Heard::Lost),
            Err(error) => return Err(error),
        }
        let mut heard = Heard::Nothing;
        for frame in self.events.filled() {
            let message = decode("read", what, &frame)?;
            // Whether one that went was ours, and whether its number is another's by now, is asked anew.
            if matches!(message, RouteNetlinkMessage::DelLink(_)) {
                return Ok(Heard::Lost);
            }
            match link::from_message(&message) {
                Some(link) if link.index == index => heard = Heard::Of(Box::new(link)),
                _ => {}
            }
        }
        Ok(heard)
    }
}

enum Heard {
    Of(Box<Link>),
    Nothing,
    Lost,
}
