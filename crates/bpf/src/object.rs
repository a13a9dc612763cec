//! The embedded eBPF object.

/// Aligned as the ELF parser wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/heddle.bpf.o"));

/// Was the eBPF object there when this program was built?
pub fn is_embedded() -> bool {
    !OBJECT.is_empty()
}

/// The object, for tests that change something in it.
pub fn object() -> crate::Result<&'static [u8]> {
    bytes()
}

/// Lets go of the memory that the object is in: it has been read, and is read from the program's file if it is needed again.
pub(crate) fn release() {
    const PAGE: usize = 4096;
    let start = OBJECT.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + OBJECT.len()) / PAGE * PAGE);
    if first < end {
        // SAFETY: whole pages of a constant, which nobody ever writes: what is read there later is read from the file again,
        // and is the same (madvise(2), MADV_DONTNEED on a private mapping of a file). If it fails, nothing happens.
        unsafe {
            nix::libc::madvise(first as *mut nix::libc::c_void, end - first, nix::libc::MADV_DONTNEED);
        }
    }
}

pub(crate) fn bytes() -> crate::Result<&'static [u8]> {
    if is_embedded() { Ok(OBJECT) } else { Err(crate::Error::NotEmbedded) }
}
