//! A cable between a node and the switch that does with frames what a test wants.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use heddle_e2e::Lab;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A frame that this machine sends, as a packet socket sees it (`PACKET_OUTGOING`).
const OUTGOING: u8 = 4;

/// Carries frames by a packet socket. What was still to be done to a frame (its checksum) is forgotten on the way, as by
/// a card that does not do it.
pub struct Cable {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Cable {
    /// In the node's port of the switch. `through`: what comes out of the cable for a frame that goes in; 0: at the
    /// node's end, 1: at the switch's.
    pub fn put(
        lab: &Lab,
        port: &str,
        through: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let switch = lab.switch().place();
        switch.run(format!("ip link set {port} nomaster")).unwrap();
        switch.run("ip link add cable type veth peer name plug").unwrap();
        switch.run("ip link set plug master br0 up").unwrap();
        switch.run("ip link set cable up").unwrap();
        let (ends, over) = ([port.to_owned(), "cable".to_owned()], Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        let thread = switch.thread("cable", move || carry(&ends, &stop, through)).unwrap();
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn carry(ends: &[String; 2], over: &AtomicBool, mut through: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>>) {
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100)).unwrap();
    let ends = [&ends[0], &ends[1]].map(|name| if_nametoindex(name.as_str()).unwrap() as usize);
    // An address to send to is one that something has come from.
    let mut known: [Option<LinkAddr>; 2] = [None; 2];
    let mut frame = vec![0; 65536];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut frame) else { continue };
        let Some(end) = ends.iter().position(|index| *index == from.ifindex()) else { continue };
        if from.pkttype() == OUTGOING {
            continue;
        }
        known[end] = Some(from);
        let Some(to) = known[1 - end] else { continue };
        for frame in through(end, &frame[..length]) {
            // What is too large for the wire is lost.
            let _ = sendto(fd.as_raw_fd(), &frame, &to, MsgFlags::empty());
        }
    }
}
