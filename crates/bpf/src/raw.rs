//! Maps and objects of which nothing is known beforehand: what others have pinned, what another version of Heddle
//! has made.
#![expect(unsafe_code, reason = "system calls")]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;

use crate::sys::{self, Attr, address, low_high, raw};

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;

/// `BPF_NOEXIST`: what is there already stays.
pub(crate) const NOEXIST: u64 = 1;

/// What a descriptor of bpf(2) stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Map,
    Program,
    Link,
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Map => "map",
            Self::Program => "program",
            Self::Link => "attachment",
            Self::Other => "object of another kind",
        })
    }
}

/// The kernel tells by the name of the anonymous inode only (kernel/bpf/syscall.c).
pub(crate) fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let name = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(match name.to_string_lossy().trim_start_matches("anon_inode:").trim_matches(['[', ']']) {
        "bpf-map" => Kind::Map,
        "bpf-prog" => Kind::Program,
        "bpf_link" | "bpf-link" => Kind::Link,
        _ => Kind::Other,
    })
}

/// `struct bpf_map_info`, as far as it tells one map from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
}

/// A map.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    pub id: u32,
    pub shape: Shape,
    pub name: String,
}

/// Keys and values, one behind the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
}

impl RawMap {
    /// `fd` must be one of a map.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let words: [u32; 10] = sys::info(fd.as_fd())?;
        let name = text(&words[6..]);
        let [kind, id, key, value, entries, ..] = words;
        Ok(Self { fd, id, shape: Shape { kind, key, value, entries }, name })
    }

    /// A map that holds `value` under 0, to be pinned.
    pub fn array_of_one(name: &str, value: &[u8]) -> io::Result<Self> {
        const ARRAY: u32 = 2;
        let mut attr = Attr([0; 16]);
        attr.0[0] = low_high(ARRAY, 4);
        attr.0[1] = low_high(value.len() as u32, 1);
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        // map_name stands at byte 28.
        let (first, rest) = bytes.split_at(4);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        attr.0[3] = word(first) << 32;
        attr.0[4] = word(&rest[..8]);
        attr.0[5] = word(&rest[8..]);
        // SAFETY: no addresses.
        let fd = sys::owned(unsafe { sys::bpf(BPF_MAP_CREATE, &mut attr) }?);
        let map = Self::new(fd)?;
        map.set(&0u32.to_ne_bytes(), value, 0)?;
        Ok(map)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0u8; self.shape.value as usize];
        if key.len() != self.shape.key as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = Attr([0; 16]);
        attr.0[0] = low_high(raw(self.fd()), 0);
        attr.0[1] = address(key.as_ptr());
        attr.0[2] = address(value.as_mut_ptr());
        // SAFETY: both are as long as the map's keys and values and outlive the call; it is no map per processor.
        match unsafe { sys::bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets one element. `flags`: 0 or [`NOEXIST`].
    pub fn set(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if key.len() != self.shape.key as usize || value.len() != self.shape.value as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = Attr([0; 16]);
        attr.0[0] = low_high(raw(self.fd()), 0);
        attr.0[1] = address(key.as_ptr());
        attr.0[2] = address(value.as_ptr());
        attr.0[3] = flags;
        // SAFETY: both are as long as the map's keys and values and outlive the call.
        unsafe { sys::bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Everything that it holds. What comes and goes meanwhile may be missed.
    pub fn entries(&self) -> io::Result<Entries> {
        let (key, value) = (self.shape.key as usize, self.shape.value as usize);
        let mut all = Entries::default();
        let mut batch = 4096.min(self.shape.entries.max(1)) as usize;
        // A cursor of a hash map is a number, that of others a key.
        let mut token = vec![0u8; key.max(8)];
        let mut next = token.clone();
        let mut first = true;
        loop {
            let mut keys = vec![0u8; batch * key];
            let mut values = vec![0u8; batch * value];
            let mut attr = Attr([0; 16]);
            attr.0[0] = if first { 0 } else { address(token.as_ptr()) };
            attr.0[1] = address(next.as_mut_ptr());
            attr.0[2] = address(keys.as_mut_ptr());
            attr.0[3] = address(values.as_mut_ptr());
            attr.0[4] = low_high(batch as u32, raw(self.fd()));
            // SAFETY: there is room for `batch` keys and values and for two cursors.
            let result = unsafe { sys::bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let count = ((attr.0[4] & 0xffff_ffff) as usize).min(batch);
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
            all.keys.extend_from_slice(&keys[..count * key]);
            all.values.extend_from_slice(&values[..count * value]);
            if last {
                return Ok(all);
            }
            std::mem::swap(&mut token, &mut next);
            first = false;
        }
    }

    /// Sets all of them, in whichever order.
    pub fn put(&self, entries: &Entries) -> io::Result<()> {
        const BATCH: usize = 4096;
        let (key, value) = (self.shape.key as usize, self.shape.value as usize);
        for (keys, values) in entries.keys.chunks(BATCH * key).zip(entries.values.chunks(BATCH * value)) {
            let mut attr = Attr([0; 16]);
            attr.0[2] = address(keys.as_ptr());
            attr.0[3] = address(values.as_ptr());
            attr.0[4] = low_high((keys.len() / key) as u32, raw(self.fd()));
            // SAFETY: as many keys as values, of the map's sizes, which outlive the call.
            unsafe { sys::bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        }
        Ok(())
    }
}

/// The id and the name of a program.
pub(crate) fn program_name(program: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    // struct bpf_prog_info: the id stands at byte 4, the name at 64.
    let words: [u32; 20] = sys::info(program)?;
    Ok((words[1], text(&words[16..])))
}

/// A name, as the kernel fills it up.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The numbers of the maps that a program uses.
pub(crate) fn map_ids(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // struct bpf_prog_info: nr_map_ids stands at byte 52, map_ids at 56.
    let mut ids = vec![0u32; 64];
    let mut info = [0u64; 8];
    info[6] = low_high(0, ids.len() as u32);
    info[7] = address(ids.as_mut_ptr());
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(raw(program), size_of_val(&info) as u32);
    attr.0[1] = address(info.as_mut_ptr());
    // SAFETY: `info` is as long as said, `ids` has room for as many as it says; both outlive the call.
    unsafe { sys::bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let count = ((info[6] >> 32) as usize).min(ids.len());
    ids.truncate(count);
    Ok(ids)
}

/// The program of this number; needs CAP_SYS_ADMIN.
pub(crate) fn program(id: u32) -> io::Result<OwnedFd> {
    by_id(BPF_PROG_GET_FD_BY_ID, id)
}

/// The map of this number; needs CAP_SYS_ADMIN.
pub(crate) fn map(id: u32) -> io::Result<OwnedFd> {
    by_id(BPF_MAP_GET_FD_BY_ID, id)
}

fn by_id(command: u32, id: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr([0; 16]);
    attr.0[0] = low_high(id, 0);
    // SAFETY: no addresses.
    unsafe { sys::bpf(command, &mut attr) }.map(sys::owned)
}
