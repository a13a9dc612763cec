//! Chains of the old iptables (x_tables), which no netlink shows: read only. They are replaced whole by `iptables-legacy`
//! and by nobody else here.
//!
//! Source: include/uapi/linux/netfilter_ipv4/ip_tables.h, net/ipv4/netfilter/ip_tables.c.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const NAME: usize = 32;
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Where `struct ipt_getinfo` says how many bytes the entries have.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries` without its entries, which are aligned to 8 bytes.
const ENTRIES: usize = 40;
/// More than any table of rules that somebody has.
const MOST: usize = 1 << 28;

/// A chain that has a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub ipv4: bool,
    pub table: String,
    pub name: String,
}

/// All named chains of both families whose name begins so. Only tables that are there are looked at: to ask for another
/// would make it.
///
/// # Errors
/// The kernel's.
pub fn chains(prefix: &str) -> io::Result<Vec<Chain>> {
    let mut found = Vec::new();
    for ipv4 in [true, false] {
        let list = if ipv4 { "/proc/self/net/ip_tables_names" } else { "/proc/self/net/ip6_tables_names" };
        // No such file: no such module.
        let tables = fs::read_to_string(list).unwrap_or_default();
        for table in tables.lines().filter(|name| !name.is_empty() && name.len() < NAME) {
            let entries = entries(ipv4, table)?;
            found.extend(names(&entries, prefix).into_iter().map(|name| Chain {
                ipv4,
                table: table.to_owned(),
                name,
            }));
        }
    }
    Ok(found)
}

/// Whatever looks like such a name: a chain begins with a target ERROR that bears it, and jumps hold offsets, not names.
fn names(entries: &[u8], prefix: &str) -> BTreeSet<String> {
    let prefix = prefix.as_bytes();
    let starts = entries.windows(prefix.len()).enumerate().filter(|(_, window)| *window == prefix);
    let name = |(at, _): (usize, &[u8])| {
        let rest = entries.get(at..)?;
        let end = rest.iter().take(NAME).position(|byte| *byte == 0)?;
        // After the name of the target, which fills its field; not in the middle of a comment.
        let begins = at.checked_sub(1).is_none_or(|before| entries[before] == 0);
        begins.then(|| String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    starts.filter_map(name).collect()
}

fn entries(ipv4: bool, table: &str) -> io::Result<Vec<u8>> {
    let (family, level) = if ipv4 { (libc::AF_INET, libc::SOL_IP) } else { (libc::AF_INET6, libc::SOL_IPV6) };
    // SAFETY: numbers; the descriptor is new and ours.
    let socket = unsafe {
        let fd = libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let ask = |option, buffer: &mut [u8]| {
        buffer[..table.len()].copy_from_slice(table.as_bytes());
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, all of which are ours.
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // The table may be replaced between the two questions: the kernel then says so.
    for _ in 0..16 {
        let mut info = [0; INFO];
        ask(GET_INFO, &mut info)?;
        let size = u32::from_ne_bytes([
            info[INFO_SIZE],
            info[INFO_SIZE + 1],
            info[INFO_SIZE + 2],
            info[INFO_SIZE + 3],
        ]);
        let size = (size as usize).min(MOST);
        let mut buffer = vec![0; ENTRIES + size];
        buffer[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        match ask(GET_ENTRIES, &mut buffer) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(buffer.split_off(ENTRIES)),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_chains_are_found_among_entries() {
        let mut entries = vec![0; 8];
        entries.extend(b"KUBE-SERVICES\0\0\0comment about KUBE-SEP-X\0KUBE-SEP-ABC\0");
        let found: Vec<String> = names(&entries, "KUBE-").into_iter().collect();
        assert_eq!(found, ["KUBE-SEP-ABC", "KUBE-SERVICES"]);
        assert!(names(b"KUBE-", "KUBE-").is_empty(), "no end");
    }
}
