//! A veth as the end of a wire whose other end does XDP.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

use crate::error::{Error, Result};
use crate::place::Place;

const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// `union bpf_attr`, as words; what is not set is zero.
type Attr = [u64; 16];

/// Makes `port` take at once what the driver at the other end of its wire sends by itself (XDP_TX), as a network card
/// does. A veth without a program of its own leaves it lying until something else comes
/// (drivers/net/veth.c, `veth_xdp_flush`). The program lets everything pass; it goes with what is returned.
pub(crate) fn take_xdp(place: &Place, port: &str) -> Result<OwnedFd> {
    let attach = || -> io::Result<OwnedFd> {
        let index = nix::net::if_::if_nametoindex(port)?;
        // r0 = XDP_PASS; exit
        let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
        let license = c"GPL";
        let mut attr: Attr = [0; 16];
        attr[0] = u64::from(BPF_PROG_TYPE_XDP) | (instructions.len() as u64) << 32;
        attr[1] = instructions.as_ptr().addr() as u64;
        attr[2] = license.as_ptr().addr() as u64;
        let program = bpf(BPF_PROG_LOAD, &mut attr)?;
        let mut attr: Attr = [0; 16];
        attr[0] = program.as_raw_fd() as u64 | u64::from(index) << 32;
        attr[1] = u64::from(BPF_XDP);
        bpf(BPF_LINK_CREATE, &mut attr)
    };
    place.enter(attach)?.map_err(|e| Error::Oracle(format!("cannot attach an XDP program to {port}: {e}")))
}

fn bpf(command: u32, attr: &mut Attr) -> io::Result<OwnedFd> {
    // SAFETY: both commands only read what `attr` names, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
