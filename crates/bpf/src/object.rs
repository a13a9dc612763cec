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

pub(crate) fn bytes() -> crate::Result<&'static [u8]> {
    if is_embedded() { Ok(OBJECT) } else { Err(crate::Error::NotEmbedded) }
}
