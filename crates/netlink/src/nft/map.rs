//! Maps, and elements that say whose they are.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use super::read::{comment, payload, split};
use super::write::Attributes;
use super::{Batch, Family, Nft, SetKey, msg};
use crate::Result;
use crate::wire::attributes;

const SET_MAP: u32 = 8;
/// `NFT_DATA_VERDICT`.
const DATA_VERDICT: u32 = 0xffff_ff00;
/// Elements a message: an attribute holds 64 KiB, an element with a long comment 400 bytes.
const ELEMENTS: usize = 128;
/// Longest comment that libnftnl reads (`NFTNL_UDATA_COMMENT_MAXLEN`), with its final zero.
const COMMENT: usize = 128;

/// What a map's keys lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapData {
    /// An IPv4 address and a port, padded to 4 bytes.
    Ipv4Port,
    /// An IPv6 address and a port.
    Ipv6Port,
    /// A chain to go on in ([`Goto`](super::Goto)).
    Verdict,
}

impl MapData {
    /// The kernel knows how long a verdict is.
    const fn kind_and_length(self) -> (u32, Option<u32>) {
        match self {
            Self::Ipv4Port => (7 << 6 | 13, Some(8)),
            Self::Ipv6Port => (8 << 6 | 13, Some(20)),
            Self::Verdict => (DATA_VERDICT, None),
        }
    }
}

/// An element of a set or, with data, of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    /// Empty in a set.
    pub data: Vec<u8>,
    /// Shown by `nft list ruleset`; cut off after 127 bytes.
    pub comment: String,
}

impl Batch {
    /// Creates a map if it is not there.
    pub fn add_map(&mut self, family: Family, table: &str, map: &str, key: SetKey, data: MapData) {
        self.sets += 1;
        let id = self.sets;
        let object = format!("map {family} {table} {map}");
        self.push((msg::NEWSET, NLM_F_CREATE, "add"), family, object, |a| {
            a.text(1, table);
            a.text(2, map);
            a.number(3, SET_MAP);
            let (kind, length) = key.kind_and_length();
            a.number(4, kind);
            a.number(5, length);
            let (kind, length) = data.kind_and_length();
            a.number(6, kind);
            if let Some(length) = length {
                a.number(7, length);
            }
            a.number(10, id);
        });
    }

    /// Adds elements to a set or map of single values.
    ///
    /// `exclusive`: that none of them is there yet is part of the transaction (`EEXIST`). Else one that is
    /// there with the same data stays as it is, comment included; other data is refused all the same (`EBUSY` or
    /// `EEXIST`, as the kernel is old or new).
    pub fn add_entries(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        entries: &[Entry],
        exclusive: bool,
    ) {
        let flags = NLM_F_CREATE | if exclusive { NLM_F_EXCL } else { 0 };
        for part in entries.chunks(ELEMENTS) {
            let object = format!("{} elements of set {family} {table} {set}", part.len());
            self.push((msg::NEWSETELEM, flags, "add"), family, object, |a| {
                a.text(1, table);
                a.text(2, set);
                a.nested(3, |list| part.iter().for_each(|entry| list.nested(1, |a| entry.write(a))));
            });
        }
    }
}

impl Entry {
    fn write(&self, element: &mut Attributes) {
        element.data(1, &self.key);
        if !self.data.is_empty() {
            element.data(2, &self.data);
        }
        if !self.comment.is_empty() {
            element.bytes(6, &user_data(&self.comment));
        }
    }

    fn read(element: &[u8]) -> Option<Self> {
        let mut entry = Self::default();
        for (kind, value) in attributes(element) {
            let data = || attributes(value).find(|(kind, _)| *kind == 1).map(|(_, value)| value.to_vec());
            match kind {
                1 => entry.key = data()?,
                2 => entry.data = data().unwrap_or_default(),
                6 => entry.comment = comment(value).unwrap_or_default(),
                _ => {}
            }
        }
        Some(entry)
    }

    fn list(frame: &[u8]) -> Vec<Self> {
        let list = attributes(frame).find(|(kind, _)| *kind == 3).map(|(_, list)| list).unwrap_or_default();
        attributes(list).filter_map(|(_, element)| Self::read(element)).collect()
    }
}

/// The user data of an element: its comment (`NFTNL_UDATA_SET_ELEM_COMMENT`), length, text.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let mut text = comment.as_bytes().to_vec();
    text.truncate(COMMENT - 1);
    text.push(0);
    let mut user = vec![0, text.len() as u8];
    user.extend(text);
    user
}

impl Nft {
    /// The elements of a set or map of single values, with data and comments. `None`: there is none.
    pub fn entries(&mut self, family: Family, table: &str, set: &str) -> Result<Option<Vec<Entry>>> {
        let mut wanted = Attributes::default();
        wanted.text(1, table);
        wanted.text(2, set);
        let dumped = self.dump(msg::GETSETELEM, family, "nf_tables elements", &wanted, |_, frame| {
            Some(Entry::list(frame))
        });
        match dumped {
            Ok(parts) => Ok(Some(parts.into_iter().flatten().collect())),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The element of a set or map with this key.
    pub fn entry(&mut self, family: Family, table: &str, set: &str, key: &[u8]) -> Result<Option<Entry>> {
        let mut wanted = Attributes::default();
        wanted.text(1, table);
        wanted.text(2, set);
        wanted.nested(3, |list| list.nested(1, |element| element.data(1, key)));
        let object = format!("element of set {family} {table} {set}");
        let object = format_args!("{object}");
        let payload = payload(family, &wanted);
        let sequence =
            self.socket.send("find", object, msg::GETSETELEM, NLM_F_REQUEST | NLM_F_ACK, &payload)?;
        let mut found = None;
        let result = self.socket.receive("find", object, sequence, |frame| {
            if let Some((_, rest)) = split(&frame) {
                found = Entry::list(rest).into_iter().next();
            }
            Ok(())
        });
        match result {
            Ok(()) => Ok(found),
            Err(error) if error.not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
