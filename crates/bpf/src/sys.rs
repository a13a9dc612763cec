//! bpf(2), as far as aya does not offer it: links by interface index and their update in place, pins without
//! further questions, batches, test runs with a context.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::libc;

use crate::{Error, Result};

const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: u32 = 25;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;

/// `union bpf_attr`, as words of 64 bits; what is not set is zero, as the kernel demands.
#[repr(C, align(8))]
pub(crate) struct Attr(pub(crate) [u64; 16]);

pub(crate) fn low_high(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

pub(crate) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(crate) fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>().addr() as u64
}

/// SAFETY: the addresses in `attr` must be valid for what `command` does with them.
pub(crate) unsafe fn bpf(command: u32, attr: &mut Attr) -> io::Result<i64> {
    loop {
        // SAFETY: the caller's promise; the size is that of `attr`.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut Attr, size_of::<Attr>()) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

pub(crate) fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just given it to us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// The object that is pinned at `path`.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    let mut attr = Attr([0; 16]);
    attr.0[0] = address(name.as_ptr());
    // SAFETY: `name` is a C string and outlives the call.
    unsafe { bpf(BPF_OBJ_GET, &mut attr) }.map(owned)
}

pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let mut attr = Attr([0; 16]);
    attr.0[0] = address(name.as_ptr());
    attr.0[1] = low_high(raw(fd), 0);
    // SAFETY: `name` is a C string and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// `target`: an interface index (tcx) or the descriptor of a cgroup directory.
/// `flags`: 0, or `XDP_FLAGS_*`.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(program), target);
    attr.0[1] = low_high(attach_type, flags);
    // SAFETY: no addresses.
    unsafe { bpf(BPF_LINK_CREATE, &mut attr) }.map(owned)
}

pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(link), raw(program));
    // SAFETY: no addresses.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// `BPF_LINK_TYPE_*`.
    pub kind: u32,
    pub program_id: u32,
    /// tcx: the interface, 0 if it is gone.
    pub ifindex: u32,
    /// cgroup: its id, 0 if it is gone.
    pub cgroup: u64,
    /// `enum bpf_attach_type`: which hook of it.
    pub attach_type: u32,
}

pub const LINK_CGROUP: u32 = 3;
pub const LINK_XDP: u32 = 6;
pub const LINK_TCX: u32 = 11;

pub(crate) fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut info = [0u32; N];
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(fd), (N * 4) as u32);
    attr.0[1] = address(info.as_mut_ptr());
    // SAFETY: `info` is as long as said and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // struct bpf_link_info: type, id, prog_id, (padding to 8), then per type.
    let words: [u32; 16] = info(link)?;
    Ok(LinkInfo {
        kind: words[0],
        program_id: words[2],
        ifindex: if matches!(words[0], LINK_TCX | LINK_XDP) { words[4] } else { 0 },
        cgroup: if words[0] == LINK_CGROUP { low_high(words[4], words[5]) } else { 0 },
        attach_type: match words[0] {
            LINK_TCX => words[5],
            LINK_CGROUP => words[6],
            LINK_XDP => crate::program::XDP_ATTACH,
            _ => 0,
        },
    })
}

/// Id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: type, id, ...
    let words: [u32; 2] = info(program)?;
    Ok(words[1])
}

/// Instructions that the verifier looked at; it gives up at a million.
pub fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    let words: [u32; 56] = info(program)?;
    Ok(words[54])
}

/// Returns when every program that was running at the time of the call has returned: only then may a slot
/// that no program can find any more be given to another. About 10 ms; once per batch.
pub fn grace_period() -> Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: numbers only. The kernel does synchronize_rcu() (kernel/sched/membarrier.c), and networking
    // programs run inside one RCU section.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0u32, 0i32) } == 0 {
        Ok(())
    } else {
        Err(Error::Grace { source: io::Error::last_os_error() })
    }
}

/// All elements of a hash map whose keys and values have these types, in batches of `batch`.
///
/// Elements that come and go meanwhile may be missed, none is seen twice unless it moved.
pub fn map_entries<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, batch: u32) -> io::Result<Vec<(K, V)>> {
    batches(map, batch, BPF_MAP_LOOKUP_BATCH)
}

/// The same, and they are removed.
pub fn take_entries<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, batch: u32) -> io::Result<Vec<(K, V)>> {
    batches(map, batch, BPF_MAP_LOOKUP_AND_DELETE_BATCH)
}

fn batches<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    batch: u32,
    command: u32,
) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let (mut token_in, mut token_out) = (0u64, 0u64);
    let mut first = true;
    let mut batch = batch.max(1);
    loop {
        let mut keys = Vec::<K>::with_capacity(batch as usize);
        let mut values = Vec::<V>::with_capacity(batch as usize);
        let mut attr = Attr([0; 16]);
        attr.0[0] = if first { 0 } else { address(&raw const token_in) };
        attr.0[1] = address(&raw mut token_out);
        attr.0[2] = address(keys.as_mut_ptr());
        attr.0[3] = address(values.as_mut_ptr());
        attr.0[4] = low_high(batch, raw(map));
        // SAFETY: both vectors have room for `batch` elements of the map's sizes (the types are the caller's
        // promise, checked when the map was opened); the tokens are 32-bit cursors of hash maps.
        let result = unsafe { bpf(command, &mut attr) };
        let count = (attr.0[4] & 0xffff_ffff) as usize;
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket holds more than fits.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                batch *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has written `count` elements of plain data.
        unsafe {
            keys.set_len(count.min(batch as usize));
            values.set_len(count.min(batch as usize));
        }
        found.extend(keys.into_iter().zip(values));
        if last {
            return Ok(found);
        }
        token_in = token_out;
        first = false;
    }
}

/// The result of a test run.
#[derive(Clone, Debug)]
pub struct TestRun {
    /// What the program returned (`TC_ACT_*`, or 0 and 1 of a cgroup hook).
    pub result: u32,
    /// The packet afterwards.
    pub data: Vec<u8>,
    /// The context afterwards.
    pub context: Vec<u8>,
    /// Mean time of one run.
    pub duration: Duration,
}

/// Runs a loaded program over `data` with the context `context` (`struct __sk_buff`, or empty), `repeat` times.
/// The packet is not restored between the runs.
pub fn test_run(program: BorrowedFd<'_>, data: &[u8], context: &[u8], repeat: u32) -> Result<TestRun> {
    let mut data_out = vec![0u8; data.len() + 512];
    let mut context_out = vec![0u8; context.len()];
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(program), 0);
    attr.0[1] = low_high(data.len() as u32, data_out.len() as u32);
    attr.0[2] = address(data.as_ptr());
    attr.0[3] = address(data_out.as_mut_ptr());
    attr.0[4] = low_high(repeat, 0);
    attr.0[5] = low_high(context.len() as u32, context_out.len() as u32);
    if !context.is_empty() {
        attr.0[6] = address(context.as_ptr());
        attr.0[7] = address(context_out.as_mut_ptr());
    }
    // SAFETY: all four buffers are as long as said and outlive the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.map_err(|source| Error::TestRun { source })?;
    data_out.truncate((attr.0[1] >> 32) as usize);
    Ok(TestRun {
        result: (attr.0[0] >> 32) as u32,
        data: data_out,
        context: context_out,
        duration: Duration::from_nanos(attr.0[4] >> 32),
    })
}

/// Of `test_run_into`: the packet comes as from a card that has summed it up, and the sum is compared with the
/// packet afterwards (BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.18; EINVAL before. A sum that does not fit is
/// EBADMSG).
pub const TEST_SUMMED: u32 = 1 << 2;

/// [`test_run`] once, without allocating: the packet and the context afterwards are written to `data_out` and
/// `context`. Returns what the program returned and the packet's length.
pub fn test_run_into(
    program: BorrowedFd<'_>,
    data: &[u8],
    data_out: &mut [u8],
    context: &mut [u32; 48],
    flags: u32,
) -> io::Result<(u32, usize)> {
    let size = size_of_val(context) as u32;
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(program), 0);
    attr.0[1] = low_high(data.len() as u32, data_out.len() as u32);
    attr.0[2] = address(data.as_ptr());
    attr.0[3] = address(data_out.as_mut_ptr());
    attr.0[4] = low_high(1, 0);
    attr.0[5] = low_high(size, size);
    attr.0[6] = address(context.as_ptr());
    attr.0[7] = address(context.as_mut_ptr());
    attr.0[8] = low_high(flags, 0);
    // SAFETY: all buffers are as long as said and outlive the call; the kernel copies the context in before the
    // program runs, and out afterwards.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(((attr.0[0] >> 32) as u32, (attr.0[1] >> 32) as usize))
}
