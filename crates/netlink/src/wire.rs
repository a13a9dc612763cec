//! Netlink framing: messages in a datagram, attributes in a message.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

pub(crate) const NLMSG_NOOP: u16 = 1;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLMSG_OVERRUN: u16 = 4;

pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages of a datagram, in order. Ends at the first header that does not fit.
pub(crate) fn frames(datagram: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        if length < HEADER || length > rest.len() {
            return None;
        }
        let frame = Frame {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(align(length)..).unwrap_or_default();
        Some(frame)
    })
}

/// The attributes of a message: type without flag bits, and value.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16_at(rest, 0)? as usize;
        if length < ATTRIBUTE_HEADER || length > rest.len() {
            return None;
        }
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Writes an attribute, padded.
pub(crate) fn put_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are names and small structures of ours; lists are split by the callers.
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(align(bytes.len()), 0);
}

/// A 16-bit number of the host's byte order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A 32-bit number of the host's byte order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string attribute, without its final zero.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_stop_at_a_length_that_does_not_fit() {
        let mut datagram = Vec::new();
        for (length, kind) in [(18u32, 7u16), (400, 8)] {
            datagram.extend(length.to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 10]);
            datagram.extend([0xaa; 4]);
        }
        let seen: Vec<_> = frames(&datagram).map(|f| (f.kind, f.payload.len())).collect();
        assert_eq!(seen, [(7, 2)]);
    }

    #[test]
    fn attributes_survive_garbage() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "a length below the header's");
        assert_eq!(attributes(&[5, 0, 1, 0x80, 9]).collect::<Vec<_>>(), [(1, &[9u8][..])]);
        assert_eq!(attributes(&[8, 0, 1, 0]).count(), 0, "a length past the end");
    }
}
