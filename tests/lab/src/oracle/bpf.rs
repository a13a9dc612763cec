//! What of BPF is attached where, and which objects the machine has; asked of the kernel itself.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc;

// linux/bpf.h, enum bpf_cmd.
const PROG_GET_NEXT_ID: u32 = 11;
const MAP_GET_NEXT_ID: u32 = 12;
const PROG_QUERY: u32 = 16;
const LINK_GET_NEXT_ID: u32 = 31;

/// `BPF_CGROUP_*` (enum bpf_attach_type) of sockets, by name.
const CGROUP_HOOKS: [(&str, u32); 18] = [
    ("inet_ingress", 0),
    ("inet_egress", 1),
    ("inet_sock_create", 2),
    ("sock_ops", 3),
    ("inet4_bind", 8),
    ("inet6_bind", 9),
    ("inet4_connect", 10),
    ("inet6_connect", 11),
    ("inet4_post_bind", 12),
    ("inet6_post_bind", 13),
    ("udp4_sendmsg", 14),
    ("udp6_sendmsg", 15),
    ("udp4_recvmsg", 19),
    ("udp6_recvmsg", 20),
    ("inet4_getpeername", 29),
    ("inet6_getpeername", 30),
    ("inet_sock_release", 34),
    ("getsockopt", 21),
];

/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
const TCX_HOOKS: [(&str, u32); 2] = [("tcx ingress", 46), ("tcx egress", 47)];

/// `union bpf_attr` as far as `BPF_PROG_QUERY` reads it.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
    _rest: [u64; 4],
}

/// The same for `BPF_*_GET_NEXT_ID`.
#[repr(C)]
#[derive(Default)]
struct NextId {
    start: u32,
    next: u32,
    _flags: [u32; 2],
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is a struct of plain numbers, laid out as the kernel's union for this command, and lives
    // through the call; the kernel writes no more than the size it is told. Pointers in it are the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The ids of the programs at one hook. A hook that this kernel does not know has none.
fn attached(target: u32, attach_type: u32) -> Vec<u32> {
    let mut ids = [0u32; 64];
    let mut query = Query {
        target,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(ids.len()).expect("a small array"),
        ..Query::default()
    };
    // The kernel fills `ids`, which outlives the call, up to `prog_cnt` elements.
    match bpf(PROG_QUERY, &mut query) {
        Ok(()) => ids[..(query.prog_cnt as usize).min(ids.len())].to_vec(),
        Err(_) => Vec::new(),
    }
}

/// How many programs are attached to the cgroup `dir`, by hook.
pub(crate) fn at_cgroup(dir: &Path) -> Vec<String> {
    let Ok(file) = File::open(dir) else { return Vec::new() };
    let fd = u32::try_from(file.as_raw_fd()).unwrap_or(0);
    let hooks = CGROUP_HOOKS.iter().map(|(name, hook)| (name, attached(fd, *hook).len()));
    hooks.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}: {n}")).collect()
}

/// How many programs are attached by tcx to a device of this thread's network namespace.
pub(crate) fn at_device(index: u32) -> Vec<String> {
    let hooks = TCX_HOOKS.iter().map(|(name, hook)| (name, attached(index, *hook).len()));
    hooks.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}: {n}")).collect()
}

/// The ids of all BPF objects of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
}

impl BpfObjects {
    /// How many are here that `before` did not have: programs, maps, links.
    pub fn new_since(&self, before: &Self) -> (usize, usize, usize) {
        let count = |now: &BTreeSet<u32>, then: &BTreeSet<u32>| now.difference(then).count();
        (
            count(&self.programs, &before.programs),
            count(&self.maps, &before.maps),
            count(&self.links, &before.links),
        )
    }
}

/// The BPF objects that the machine has now, everybody's.
pub fn bpf_objects() -> BpfObjects {
    BpfObjects { programs: ids(PROG_GET_NEXT_ID), maps: ids(MAP_GET_NEXT_ID), links: ids(LINK_GET_NEXT_ID) }
}

fn ids(command: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut next = NextId::default();
    while bpf(command, &mut next).is_ok() {
        found.insert(next.next);
        next = NextId { start: next.next, ..NextId::default() };
    }
    found
}
