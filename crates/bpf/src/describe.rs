//! What of the maps is carried from one layout to another, and where it stands in them.
//!
//! Every daemon pins the description of its own layout beside its maps, as text: a line for each field, `map part
//! field offset length`. So a daemon that knows nothing of a layout, one that is older than it, can still take flows
//! over. Two rules make it work: a field keeps its meaning as long as it keeps its name, and one that is not there
//! counts as zero.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::str;

use heddle_ebpf_common::{
    Affinity, AffinityKey, Backend, Flow, Frontend, FrontendKey, LAYOUT_VERSION, Node, SockChoice, SockKey,
    SockPeer, Tuple,
};

use crate::pins::{inspect, remove_any};
use crate::raw::{Kind, RawMap};
use crate::{Error, Pins, Result, layout1, sys};

/// Room for the text.
const LENGTH: usize = 8192;

macro_rules! describe { ($($map:ident $part:ident $type:ty: $($($field:ident).+),*;)*) => {
    /// The layout of this build.
    fn own() -> String {
        let mut text = String::new();
        $({
            let value = <$type>::default();
            $(
                let field = concat!($(".", stringify!($field)),+).trim_start_matches('.');
                let offset = std::mem::offset_of!($type, $($field).+);
                let length = size_of_val(&value.$($field).+);
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{} {} {field} {offset} {length}", stringify!($map), stringify!($part));
            )*
        })*
        text
    }
} }

describe! {
    frontends key FrontendKey: addr, net, port, proto;
    frontends value Frontend: service;
    backends value Backend: addr, generation, port, proto, state;
    nodes value Node: mac, overlay;
    ct key Tuple: src, dst, sport, dport, proto;
    ct value Flow: to.src, to.dst, to.sport, to.dport, to.proto, backend, generation, service, flags, node, ifindex, seen;
    affinity key AffinityKey: client, service;
    affinity value Affinity: backend, generation, seen;
    sock_rev key SockKey: cookie, addr, port, proto;
    sock_rev value SockPeer: addr, port;
    sock_udp key SockKey: cookie, addr, port, proto;
    sock_udp value SockChoice: backend, generation, service;
}

/// A layout, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    fields: BTreeMap<String, (usize, usize)>,
}

impl Layout {
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = BTreeMap::new();
        for line in text.lines() {
            let (name, place) = line.rsplit_once(' ').and_then(|(rest, length)| {
                let (name, offset) = rest.rsplit_once(' ')?;
                Some((name, (offset.parse().ok()?, length.parse().ok()?)))
            })?;
            fields.insert(name.to_owned(), place);
        }
        Some(Self { fields })
    }

    /// This build's.
    pub fn own() -> Self {
        Self::parse(&own()).unwrap_or(Self { fields: BTreeMap::new() })
    }

    /// The layout of what is pinned there. `None`: nobody knows it.
    pub fn of(pins: &Pins) -> Option<Self> {
        match pins.layout() {
            LAYOUT_VERSION => Some(Self::own()),
            1 => Self::parse(layout1::DESCRIPTION),
            _ => {
                let map = RawMap::new(inspect(&pins.description(), Kind::Map).ok()??).ok()?;
                let value = map.get(&0u32.to_ne_bytes()).ok()??;
                let text = value.split(|byte| *byte == 0).next()?;
                Self::parse(str::from_utf8(text).ok()?)
            }
        }
    }

    /// Reads fields of one record: a key or a value of a map.
    pub fn record<'a>(&'a self, what: &'static str, bytes: &'a [u8]) -> Record<'a> {
        Record { layout: self, what, bytes }
    }
}

/// A key or a value.
pub(crate) struct Record<'a> {
    layout: &'a Layout,
    /// `map part`.
    what: &'static str,
    bytes: &'a [u8],
}

impl Record<'_> {
    /// The field as it stands there, filled up with zeros or cut to `N` bytes.
    pub fn bytes<const N: usize>(&self, field: &str) -> [u8; N] {
        let mut value = [0; N];
        if let Some((offset, length)) = self.layout.fields.get(&format!("{} {field}", self.what))
            && let Some(found) = self.bytes.get(*offset..offset + length)
        {
            let length = found.len().min(N);
            value[..length].copy_from_slice(&found[..length]);
        }
        value
    }

    pub fn u8(&self, field: &str) -> u8 {
        self.bytes::<1>(field)[0]
    }

    pub fn u16(&self, field: &str) -> u16 {
        u16::from_ne_bytes(self.bytes(field))
    }

    pub fn u32(&self, field: &str) -> u32 {
        u32::from_ne_bytes(self.bytes(field))
    }

    pub fn u64(&self, field: &str) -> u64 {
        u64::from_ne_bytes(self.bytes(field))
    }

    pub fn addr(&self, field: &str) -> heddle_ebpf_common::Addr {
        let bytes: [u8; 16] = self.bytes(field);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        heddle_ebpf_common::Addr(words)
    }
}

/// A line of the description that says from which object the pinned programs are.
pub(crate) fn build(object: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    format!("object {} {}\n", hasher.finish(), object.len())
}

/// Are the programs that are pinned said to be of this object?
pub(crate) fn is_of(pins: &Pins, build: &str) -> bool {
    let text = || {
        let map = RawMap::new(inspect(&pins.description(), Kind::Map).ok()??).ok()?;
        map.get(&0u32.to_ne_bytes()).ok()?
    };
    text().is_some_and(|text| text.starts_with((own() + build).as_bytes()))
}

/// Pins the description of this build's layout. `build`: once its programs are pinned.
pub(crate) fn publish(pins: &Pins, build: Option<&str>) -> Result<()> {
    let path = pins.description();
    let fail =
        |source| Error::Pin { operation: "pin the description of the layout at", path: path.clone(), source };
    let mut text = (own() + build.unwrap_or_default()).into_bytes();
    text.resize(LENGTH, 0);
    if let Ok(Some(fd)) = inspect(&path, Kind::Map)
        && let Ok(map) = RawMap::new(fd)
        && map.get(&0u32.to_ne_bytes()).ok().flatten().as_ref() == Some(&text)
    {
        return Ok(());
    }
    remove_any(&path)?;
    let map = RawMap::array_of_one("layout", &text).map_err(fail)?;
    sys::pin(map.fd().as_fd(), &path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_describes_itself() {
        let text = own();
        assert!(text.len() < LENGTH, "{}", text.len());
        let own = Layout::own();
        assert_eq!(own.fields.len(), text.lines().count());
        assert_eq!(own.fields["ct value to.dport"], (34, 2));
        let mut flow = vec![0; size_of::<Flow>()];
        let at = std::mem::offset_of!(Flow, service);
        flow[at..at + 4].copy_from_slice(&7u32.to_ne_bytes());
        assert_eq!(own.record("ct value", &flow).u32("service"), 7);
        assert_eq!(own.record("ct value", &flow).u32("never heard of"), 0);
        assert_eq!(own.record("ct value", &flow[..8]).u32("service"), 0, "a record that is too short");
    }

    /// What one version wrote down the next one looks for.
    #[test]
    fn the_first_layout_says_all_that_is_asked_for_but_what_it_did_not_have() {
        let (first, own) = (Layout::parse(layout1::DESCRIPTION).unwrap(), Layout::own());
        let missing: Vec<_> = own.fields.keys().filter(|field| !first.fields.contains_key(*field)).collect();
        assert!(missing.iter().all(|field| field.starts_with("affinity ")), "{missing:?}");
        for (name, (_, length)) in &first.fields {
            assert_eq!(own.fields[name].1, *length, "{name}");
        }
    }

    #[test]
    fn nonsense_is_no_layout() {
        assert_eq!(Layout::parse("ct value to.src 0"), None);
        assert_eq!(Layout::parse("ct value to.src 0 x"), None);
    }
}
