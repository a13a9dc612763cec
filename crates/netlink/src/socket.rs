//! A synchronous netlink socket: requests, acknowledgements, dumps.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::wire::{
    Frame, HEADER, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, align, attributes, frames, text,
    u32_at,
};
use crate::{Error, NetNs, Result};

/// How often a dump that changed under our hands is begun anew before we give up.
const DUMP_ATTEMPTS: u32 = 16;
/// The kernel sends dumps in pieces of at most 32 KiB (`netlink_dump` in net/netlink/af_netlink.c).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation (include/uapi/linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A netlink socket of one network namespace: the one that the thread was in when it opened it. It
/// stays with that namespace whatever thread uses it later.
///
/// Dumps are strict (NETLINK_GET_STRICT_CHK): the kernel refuses a filter that it does not know,
/// instead of ignoring it, and errors come with the kernel's explanation (NETLINK_EXT_ACK).
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// Requests that wait to be sent together.
    batch: Option<Batch>,
}

/// Requests that the kernel has not seen yet.
#[derive(Debug, Default)]
struct Batch {
    messages: Vec<u8>,
    /// Where the last one begins in `messages`.
    last: usize,
    /// Of each: its sequence number, and what its error would say.
    requests: Vec<(u32, &'static str, String)>,
}

impl Socket {
    /// Opens an rtnetlink socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Self::open_protocol(NETLINK_ROUTE, "rtnetlink socket")
    }

    /// Opens an rtnetlink socket in `ns`.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    pub(crate) fn open_protocol(protocol: isize, what: &'static str) -> Result<Self> {
        let failed = |source| Error::io("open", what, source);
        let mut inner = netlink_sys::Socket::new(protocol).map_err(failed)?;
        inner.bind_auto().map_err(failed)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        inner.set_ext_ack(true).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        inner.set_netlink_get_strict_chk(true).map_err(failed)?;
        Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER), batch: None })
    }

    /// Does `work`, whose changes (not its questions) go to the kernel together: one system call, one answer.
    ///
    /// The kernel carries them out in order, also those after one that it refuses; so this is for changes that are
    /// taken back together. A question in between is asked after the changes before it.
    ///
    /// # Errors
    /// Those of `work`, and the first refusal.
    pub fn together<T, E: From<Error>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.batch = Some(Batch::default());
        let done = work(self);
        let sent = self.send_batch();
        self.batch = None;
        let done = done?;
        sent?;
        Ok(done)
    }

    /// Sends what waits, and reads what became of it.
    fn send_batch(&mut self) -> Result<()> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let Batch { mut messages, last, requests } = std::mem::take(batch);
        let Some((sequence, operation, object)) = requests.last() else { return Ok(()) };
        // Only the last one is acknowledged. Refusals are told in any case, and come before.
        if let Some(flags) = messages.get_mut(last + 6..last + 8) {
            flags.copy_from_slice(&(NLM_F_ACK | flags_of(flags)).to_ne_bytes());
        }
        self.send_bytes(operation, format_args!("{object}"), &messages)?;
        let mut refused = None;
        loop {
            self.fill(operation, format_args!("{object}"))?;
            for frame in frames(&self.buffer).filter(|frame| frame.kind == NLMSG_ERROR) {
                let Some(request) = requests.iter().find(|request| request.0 == frame.sequence) else {
                    continue;
                };
                let answer = acknowledged(request.1, format_args!("{}", request.2), &frame);
                refused = refused.or(answer.err());
                if frame.sequence == *sequence {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends `message` and waits for the kernel's acknowledgement; [together](Self::together) with others it only joins
    /// them.
    pub(crate) fn request(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        if self.batch.is_some() {
            let sequence = self.next_sequence();
            let mut payload = vec![0; message.buffer_len()];
            message.emit(&mut payload);
            if let Some(batch) = &mut self.batch {
                batch.last = batch.messages.len();
                let kind = message.message_type();
                put(&mut batch.messages, kind, NLM_F_REQUEST | flags, sequence, &payload);
                batch.requests.push((sequence, operation, object.to_string()));
            }
            return Ok(());
        }
        let sequence = self.send_route(operation, object, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(operation, object, sequence, |_| Ok(()))
    }

    /// Sends `message` and returns the one object that the kernel answers with.
    pub(crate) fn get(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage> {
        let sequence = self.send_route(operation, object, message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        self.receive(operation, object, sequence, |frame| {
            found = Some(decode(operation, object, &frame)?);
            Ok(())
        })?;
        found.ok_or_else(|| Error::answer(operation, object, "no object in it"))
    }

    /// Sends `message` as a dump request and returns all objects. A dump that the kernel could not give
    /// as one consistent picture is asked for again.
    pub(crate) fn dump(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.consistent(operation, object, |socket| {
            let sequence = socket.send_route(operation, object, message, NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            let whole = socket.receive_dump(operation, object, sequence, |frame| {
                found.push(decode(operation, object, &frame)?);
                Ok(())
            })?;
            Ok(whole.then_some(found))
        })
    }

    /// Repeats `attempt` until it gives a whole picture.
    pub(crate) fn consistent<T>(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        mut attempt: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            match attempt(self) {
                Ok(Some(whole)) => return Ok(whole),
                Ok(None) => {}
                // Since 6.x the kernel ends some interrupted dumps with EINTR instead of the flag.
                Err(Error::Kernel { errno: Errno::EINTR, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::errno_of(operation, object, Errno::EINTR))
    }

    fn send_route(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32> {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        self.send(operation, object, message.message_type(), flags, &payload)
    }

    /// Sends one message; returns the sequence number that its answers will carry.
    pub(crate) fn send(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<u32> {
        // What is asked now must see what was changed before.
        self.send_batch()?;
        let sequence = self.next_sequence();
        let mut message = Vec::with_capacity(HEADER + payload.len());
        put(&mut message, kind, flags, sequence, payload);
        self.send_bytes(operation, object, &message)?;
        Ok(sequence)
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    pub(crate) fn send_bytes(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        bytes: &[u8],
    ) -> Result<()> {
        loop {
            match self.inner.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(operation, object, error)),
            }
        }
    }

    /// Reads answers to `sequence` until its acknowledgement.
    pub(crate) fn receive(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        sequence: u32,
        mut each: impl FnMut(Frame<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut failed = None;
        loop {
            self.fill(operation, object)?;
            for frame in frames(&self.buffer).filter(|f| f.sequence == sequence) {
                match frame.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => {
                        acknowledged(operation, object, &frame)?;
                        return failed.map_or(Ok(()), Err);
                    }
                    NLMSG_OVERRUN => {
                        return Err(Error::errno_of(operation, object, Errno::ENOBUFS));
                    }
                    // An answer that we do not understand: the acknowledgement must be read all the same.
                    _ => {
                        if let Err(error) = each(frame) {
                            failed = Some(error);
                        }
                    }
                }
            }
        }
    }

    /// Reads the answers of a dump to its end. `false`: the kernel's tables changed meanwhile.
    pub(crate) fn receive_dump(
        &mut self,
        operation: &'static str,
        object: fmt::Arguments<'_>,
        sequence: u32,
        mut each: impl FnMut(Frame<'_>) -> Result<()>,
    ) -> Result<bool> {
        let mut whole = true;
        let mut failed = None;
        loop {
            self.fill(operation, object)?;
            for frame in frames(&self.buffer).filter(|f| f.sequence == sequence) {
                whole &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.kind {
                    NLMSG_NOOP => {}
                    NLMSG_DONE => {
                        acknowledged(operation, object, &frame)?;
                        return failed.map_or(Ok(whole), Err);
                    }
                    NLMSG_ERROR => {
                        acknowledged(operation, object, &frame)?;
                        return failed.map_or(Ok(whole), Err);
                    }
                    NLMSG_OVERRUN => {
                        return Err(Error::errno_of(operation, object, Errno::ENOBUFS));
                    }
                    _ => {
                        if let Err(error) = each(frame) {
                            failed = Some(error);
                        }
                    }
                }
            }
        }
    }

    /// Reads one datagram into the buffer.
    pub(crate) fn fill(&mut self, operation: &'static str, object: fmt::Arguments<'_>) -> Result<()> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(Error::answer(operation, object, "it is longer than any dump"));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(operation, object, error)),
            }
        }
    }

    /// The messages of the datagram that was read last.
    pub(crate) fn filled(&self) -> impl Iterator<Item = Frame<'_>> {
        frames(&self.buffer)
    }

    pub(crate) fn raw(&self) -> &netlink_sys::Socket {
        &self.inner
    }
}

/// Appends a message and what it takes to align the next one.
fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(align(bytes.len()), 0);
}

fn flags_of(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_ne_bytes)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// Reads an acknowledgement or the end of a dump: an error number, then (where the flag says so) the
/// header of our request and attributes.
pub(crate) fn acknowledged(
    operation: &'static str,
    object: fmt::Arguments<'_>,
    frame: &Frame<'_>,
) -> Result<()> {
    let code = u32_at(frame.payload, 0).unwrap_or(0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    let message = if frame.flags & NLM_F_ACK_TLVS == 0 {
        None
    } else {
        let skip = if frame.kind == NLMSG_ERROR { 4 + HEADER } else { 4 };
        frame.payload.get(skip..).and_then(|rest| {
            attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, value)| text(value))
        })
    };
    Err(Error::kernel(operation, object, Errno::from_raw(-code), message))
}

pub(crate) fn decode(
    operation: &'static str,
    object: fmt::Arguments<'_>,
    frame: &Frame<'_>,
) -> Result<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = frame.kind;
    header.flags = frame.flags;
    RouteNetlinkMessage::deserialize(&header, frame.payload)
        .map_err(|error| Error::answer(operation, object, error))
}
