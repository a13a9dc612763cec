//! Whether the kernel leaves checksums to a device.
//!
//! By the ioctl of `ethtool` and its oldest requests, which know no bits by name: a device's transmit checksums are all
//! on or all off, as `ethtool -K DEVICE tx on|off` has it (include/uapi/linux/ethtool.h, net/ethtool/ioctl.c).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use crate::link::check_name;
use crate::{Error, Result, Socket};

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
#[derive(Default)]
struct Value {
    cmd: u32,
    data: u32,
}

/// Whether packets are sent by the device with the checksums of TCP and UDP still to be done (by it, or by the device
/// that in the end sends them).
///
/// # Errors
/// `ENODEV` if there is no such device.
pub fn transmit_checksums(socket: &Socket, device: &str) -> Result<bool> {
    let mut value = Value { cmd: ETHTOOL_GTXCSUM, data: 0 };
    ask(socket, "read the checksum offload of", device, &mut value)?;
    Ok(value.data != 0)
}

/// Leaves them to the device, or does them before. What needs them (segmentation) goes with them.
///
/// # Errors
/// `ENODEV` if there is no such device, `EOPNOTSUPP` if it cannot.
pub fn set_transmit_checksums(socket: &Socket, device: &str, on: bool) -> Result<()> {
    let mut value = Value { cmd: ETHTOOL_STXCSUM, data: u32::from(on) };
    ask(socket, "set the checksum offload of", device, &mut value)
}

/// The ioctl is answered by the namespace of any of its sockets (`sock_do_ioctl` in net/socket.c).
fn ask(socket: &Socket, operation: &'static str, device: &str, value: &mut Value) -> Result<()> {
    check_name(operation, device)?;
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(value).cast() },
    };
    // SAFETY: the request and the value that it points to live until the call returns; the kernel reads and writes
    // `struct ethtool_value` there for these two commands.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCETHTOOL as _, &raw const request) };
    if result < 0 {
        return Err(Error::errno_of(operation, format_args!("link {device}"), Errno::last()));
    }
    Ok(())
}
