//! Many elements of a map in one system call (BPF_MAP_UPDATE_BATCH, BPF_MAP_LOOKUP_BATCH; Linux 5.6).
#![expect(unsafe_code, reason = "system calls")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

use crate::sys::{Attr, address, bpf, low_high, raw};

const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;

/// Writes the elements in their order. On failure, how many were written before it.
///
/// The types must be those of the map.
pub fn update<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    let len = keys.len().min(values.len());
    let mut done = 0;
    while done < len {
        let (keys, values) = (&keys[done..len], &values[done..len]);
        let mut attr = Attr([0; 16]);
        attr.0[2] = address(keys.as_ptr());
        attr.0[3] = address(values.as_ptr());
        attr.0[4] = low_high(keys.len() as u32, raw(map));
        // SAFETY: both slices have as many elements as said, of the map's sizes (the caller's promise).
        let result = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) };
        // The kernel says how many elements it has written, also when it stops.
        let count = (attr.0[4] & 0xffff_ffff) as usize;
        match result {
            Ok(_) => done += count.min(keys.len()),
            Err(error) => {
                // What is refused before anything is looked at leaves the count as it was.
                let none = count >= keys.len();
                return Err((done + if none { 0 } else { count }, error));
            }
        }
        if count == 0 {
            return Err((done, io::Error::from_raw_os_error(libc::EIO)));
        }
    }
    Ok(())
}

/// Reads all elements, `batch` at a time, and hands each batch to `each`.
///
/// Elements of a hash that come and go meanwhile may be missed, none is seen twice unless it moved. The types must be
/// those of the map.
pub fn read<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    batch: u32,
    mut each: impl FnMut(&[K], &[V]),
) -> io::Result<()> {
    let (mut token_in, mut token_out) = (0u64, 0u64);
    let mut first = true;
    let mut batch = batch.max(1);
    let mut keys = Vec::<K>::with_capacity(batch as usize);
    let mut values = Vec::<V>::with_capacity(batch as usize);
    loop {
        let from = (!first).then_some(&raw const token_in);
        // SAFETY: both vectors have room for `batch` elements of the map's sizes (the caller's promise); the tokens
        // are 32-bit cursors.
        let (count, result) = unsafe {
            keys.set_len(0);
            values.set_len(0);
            lookup(map, from.map_or(0, address), &raw mut token_out, &mut keys, &mut values, batch)
        };
        let last = match result {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket of a hash holds more than fits.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                batch *= 2;
                keys.reserve(batch as usize);
                values.reserve(batch as usize);
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = count.min(batch as usize);
        // SAFETY: the kernel has written `count` elements of plain data.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        each(&keys, &values);
        if last {
            return Ok(());
        }
        token_in = token_out;
        first = false;
    }
}

/// Appends the elements `start .. start + len` of an array to `values`.
pub fn read_array<V: aya::Pod>(
    map: BorrowedFd<'_>,
    start: u32,
    len: u32,
    values: &mut Vec<V>,
) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let mut keys = Vec::<u32>::with_capacity(len as usize);
    let mut read = Vec::<V>::with_capacity(len as usize);
    // The cursor is the key before the first.
    let before = start.wrapping_sub(1);
    let from = if start == 0 { 0 } else { address(&raw const before) };
    let mut token = 0u64;
    // SAFETY: room for `len` elements of the map's sizes (the caller's promise).
    let (count, result) = unsafe { lookup(map, from, &raw mut token, &mut keys, &mut read, len) };
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ if count < len as usize => return Err(io::Error::from_raw_os_error(libc::ERANGE)),
        _ => {}
    }
    // SAFETY: the kernel has written them.
    unsafe { read.set_len(len as usize) };
    values.append(&mut read);
    Ok(())
}

/// SAFETY: `keys` and `values` must have room for `batch` elements, of the map's sizes; `from` and `to` must be
/// addresses of cursors, `from` perhaps 0.
unsafe fn lookup<K, V>(
    map: BorrowedFd<'_>,
    from: u64,
    to: *mut u64,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    batch: u32,
) -> (usize, io::Result<()>) {
    let mut attr = Attr([0; 16]);
    attr.0[0] = from;
    attr.0[1] = address(to);
    attr.0[2] = address(keys.as_mut_ptr());
    attr.0[3] = address(values.as_mut_ptr());
    attr.0[4] = low_high(batch, raw(map));
    // SAFETY: the caller's promise.
    let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    ((attr.0[4] & 0xffff_ffff) as usize, result.map(drop))
}

/// Bytes of kernel memory that a map takes, as the kernel reckons it (`memlock` in its fdinfo; exact since Linux 6.4).
pub fn memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let value = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    value
        .and_then(|value| value.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo has no line memlock"))
}
