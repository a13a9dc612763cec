//! The network namespaces of this node in which there may be clients.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use heddle_netlink::NetNs;

/// The node's own, those that leases below `leases` went to, and those that are mounted anywhere (as runtimes do with
/// pods', whoever gave them their addresses). One that is gone is left out.
pub fn all(leases: &[PathBuf]) -> Vec<NetNs> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let leased = leases.iter().flat_map(|dir| heddle_ipam::namespaces(dir)).filter_map(|noted| noted.open());
    let mounted = mounted(&mounts).into_iter().filter_map(|path| NetNs::open(path).ok());
    let mut found = BTreeMap::new();
    let mut order = Vec::new();
    for ns in NetNs::current().into_iter().chain(leased).chain(mounted) {
        if found.insert(ns.id(), ()).is_none() {
            order.push(ns);
        }
    }
    order
}

/// Where network namespaces are mounted (proc_pid_mountinfo(5)).
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (kind.starts_with("nsfs ") && root.starts_with("net:[")).then(|| unescaped(at))
    };
    mountinfo.lines().filter_map(path).collect()
}

/// Spaces and the like are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    Path::new(&OsString::from_vec(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn namespaces_are_found_among_the_mounts() {
        let text = "\
22 28 0:21 / /proc rw,nosuid - proc proc rw
90 28 0:4 net:[4026532290] /run/netns/cni-1 rw shared:3 - nsfs nsfs rw
91 28 0:4 mnt:[4026532291] /run/mnt/x rw - nsfs nsfs rw
92 28 0:4 net:[4026532292] /run/net\\040ns/a\\134b rw - nsfs nsfs rw
93 28 0:4 net:[1] /run/fake rw - tmpfs tmpfs rw
garbage
";
        assert_eq!(mounted(text), [Path::new("/run/netns/cni-1"), Path::new("/run/net ns/a\\b")]);
        assert_eq!(unescaped("a\\9zz\\1").as_os_str().as_bytes(), b"a\\9zz\\1");
    }

    #[test]
    fn our_own_is_the_first() {
        let found = all(&["/nowhere".into()]);
        assert_eq!(found.first(), NetNs::current().ok().as_ref());
    }
}
