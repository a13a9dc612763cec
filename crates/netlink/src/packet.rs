//! Ethernet frames sent as they are, past the network stack.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{Error, NetNs, Result};

/// Sends frames in one network namespace. Receives nothing.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
}

impl Frames {
    /// Opens a packet socket (packet(7)) in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        // Without a protocol nothing is received.
        let opened = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        let socket = opened.map_err(|errno| Error::errno_of("open", "packet socket", errno))?;
        Ok(Self { socket })
    }

    /// Opens one in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Sends one frame, which begins with its Ethernet header, by the device with this index.
    ///
    /// # Errors
    /// `ENETDOWN` if the device is down, `EMSGSIZE` if the frame is longer than its MTU allows.
    pub fn send(&self, link: u32, frame: &[u8]) -> Result<()> {
        let object: fmt::Arguments<'_> = format_args!("frame dev {link}");
        // SAFETY: all bits zero is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = link.cast_signed();
        // SAFETY: the kernel reads `frame.len()` bytes of `frame` and the size of `to`; both outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(sent).map(drop).map_err(|errno| Error::errno_of("send", object, errno))
    }
}
