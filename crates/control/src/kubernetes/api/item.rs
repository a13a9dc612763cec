//! Lists and events, from bytes to objects that are understood.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::failure::{Failure, Status};
use super::trimmed::Trimmed;
use crate::kubernetes::{self, Key, Lenient, Value};

/// The kinds of objects that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Service,
    EndpointSlice,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Node, Self::Service, Self::EndpointSlice];

    /// The name of the resource.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }

    /// Where the API has it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Node => "/api/v1/nodes",
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }

    /// Which of them: what kube-proxy leaves alone as well need not come (and an object that gets such a label is
    /// told as deleted).
    pub const fn selector(self) -> Option<&'static str> {
        match self {
            Self::Node => None,
            // !service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name
            Self::Service | Self::EndpointSlice => {
                Some("%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name")
            }
        }
    }

    /// Objects of a page: some megabytes at most.
    pub const fn page(self) -> u32 {
        match self {
            Self::Service => 500,
            Self::Node | Self::EndpointSlice => 250,
        }
    }

    const fn version_and_kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("v1", "Node"),
            Self::Service => ("v1", "Service"),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
        }
    }
}

/// A resource version: a number that grows with every change (Kubernetes 1.35 says so; before it was so). One that is no
/// number can only be given back to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version(pub Arc<str>);

impl Version {
    fn number(&self) -> Option<u64> {
        self.0.parse().ok()
    }

    /// Whether it is known to be older.
    pub fn is_before(&self, other: &Self) -> bool {
        matches!((self.number(), other.number()), (Some(one), Some(other)) if one < other)
    }

    /// Whether it is known not to be newer.
    pub fn is_not_after(&self, other: &Self) -> bool {
        matches!((self.number(), other.number()), (Some(one), Some(other)) if one <= other)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: Key,
    pub version: Version,
    /// What it is, or why nothing can be made of it.
    pub value: Result<Value, String>,
    /// What of it is not known here, and left out.
    pub notes: Vec<String>,
}

/// What a stream tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// ADDED or MODIFIED: level counts, not edge.
    Is(Item),
    Deleted(Key, Version),
    /// Nothing happened until here.
    Bookmark(Version),
    /// A kind of event that is not known here.
    Other,
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub version: Version,
    /// Where the next page begins; none after the last.
    pub token: Option<String>,
    /// How many are to come, if it says so.
    pub remaining: u64,
    pub items: Vec<Item>,
}

/// An event, from its line.
pub fn event(kind: Kind, line: &[u8]) -> Result<Event, Failure> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type", borrow)]
        what: std::borrow::Cow<'a, str>,
        object: Trimmed,
    }
    let malformed = |error: serde_json::Error| Failure::Malformed(format!("an event: {error}"));
    let Line { what, object } = serde_json::from_slice(line).map_err(malformed)?;
    let item = || item(kind, &object).map_err(Failure::Malformed);
    match &*what {
        "ADDED" | "MODIFIED" => item().map(Event::Is),
        "DELETED" => item().map(|item| Event::Deleted(item.key, item.version)),
        "BOOKMARK" => Ok(Event::Bookmark(version(&object))),
        "ERROR" => {
            // It is a `Status`, and comes seldom: read once more, as one.
            #[derive(serde::Deserialize)]
            struct Error {
                object: Status,
            }
            let Error { object } = serde_json::from_slice(line).map_err(malformed)?;
            Err(Failure::of(object.code, &object, None))
        }
        _ => Ok(Event::Other),
    }
}

/// A page of a list. Its objects are understood one by one while it is read.
pub fn page(kind: Kind, body: &[u8]) -> Result<Page, Failure> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let page = List(kind).deserialize(&mut json).and_then(|page| json.end().map(|()| page));
    page.map_err(|error| Failure::Malformed(format!("a list: {error}")))
}

fn version(tree: &Trimmed) -> Version {
    Version(kubernetes::resource_version(&tree.0).unwrap_or_default().into())
}

/// An object without a name is none, and an error.
fn item(kind: Kind, tree: &Trimmed) -> Result<Item, String> {
    let (api, name) = kind.version_and_kind();
    let Lenient { key, value, notes } =
        kubernetes::lenient(&tree.0, api, name).map_err(|error| error.message)?;
    Ok(Item { key, version: version(tree), value: value.map_err(|error| error.message), notes })
}

struct List(Kind);

impl<'de> DeserializeSeed<'de> for List {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Page, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for List {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.0.plural())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Page, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Meta {
            resource_version: String,
            r#continue: Option<String>,
            remaining_item_count: Option<i64>,
        }
        let mut page = Page::default();
        let (mut meta, mut items) = (None, None);
        while let Some(key) = from.next_key::<String>()? {
            match key.as_str() {
                "metadata" => meta = Some(from.next_value::<Meta>()?),
                "items" => items = Some(from.next_value_seed(Items(self.0))?),
                _ => drop(from.next_value::<IgnoredAny>()?),
            }
        }
        // Without either it is something else: a list that is empty has an empty list of items.
        let meta = meta.ok_or_else(|| A::Error::missing_field("metadata"))?;
        page.items = items.ok_or_else(|| A::Error::missing_field("items"))?;
        page.version = Version(meta.resource_version.into());
        page.token = meta.r#continue.filter(|token| !token.is_empty());
        page.remaining = meta.remaining_item_count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
        Ok(page)
    }
}

struct Items(Kind);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Item>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Item>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.plural())
    }

    /// Go writes an empty list as `null` where nobody minds.
    fn visit_unit<E>(self) -> Result<Vec<Item>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(tree) = from.next_element::<Trimmed>()? {
            items.push(item(self.0, &tree).map_err(A::Error::custom)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"{"metadata":{"name":"n1","resourceVersion":"7"},"spec":{"podCIDR":"10.0.0.0/24"}}"#;

    #[test]
    fn events_are_read() {
        let of = |what: &str, object: &str| {
            event(Kind::Node, format!(r#"{{"type":"{what}","object":{object}}}"#).as_bytes())
        };
        let Event::Is(item) = of("ADDED", NODE).unwrap() else { panic!() };
        assert_eq!((item.key, item.version), (Key::Node("n1".into()), Version("7".into())));
        assert!(matches!(item.value, Ok(Value::Node(_))) && item.notes.is_empty());
        assert_eq!(of("DELETED", NODE).unwrap(), Event::Deleted(Key::Node("n1".into()), Version("7".into())));
        let mark = r#"{"kind":"Node","metadata":{"resourceVersion":"9","creationTimestamp":null},"spec":{}}"#;
        assert_eq!(of("BOOKMARK", mark).unwrap(), Event::Bookmark(Version("9".into())));
        let gone = of("ERROR", r#"{"kind":"Status","code":410,"reason":"Expired","message":"old"}"#);
        assert_eq!(gone.unwrap_err(), Failure::Gone("old".into()));
        assert_eq!(of("ARCHIVED", NODE).unwrap(), Event::Other, "who knows what will come");
        assert!(of("ADDED", "{}").is_err() && event(Kind::Node, b"{").is_err());
    }

    #[test]
    fn pages_are_read() {
        let text = format!(
            r#"{{"kind":"NodeList","apiVersion":"v1","metadata":{{"resourceVersion":"12","continue":"abc",
            "remainingItemCount":3}},"items":[{NODE}],"new":{{}}}}"#
        );
        let read = page(Kind::Node, text.as_bytes()).unwrap();
        assert_eq!(
            (read.version.to_string().as_str(), read.token.as_deref(), read.remaining),
            ("12", Some("abc"), 3)
        );
        assert_eq!(read.items.len(), 1);
        let empty = br#"{"metadata":{"resourceVersion":"1"},"items":null}"#;
        assert_eq!(page(Kind::Node, empty).unwrap().items, []);
        for bad in ["{}", r#"{"kind":"Status"}"#, "[]", r#"{"metadata":{},"items":[{}]}"#, &text[..200]] {
            assert!(page(Kind::Node, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_are_numbers_or_nothing_is_known() {
        let version = |text: &str| Version(text.into());
        assert!(version("9").is_before(&version("10")) && !version("10").is_before(&version("9")));
        assert!(version("9").is_not_after(&version("9")) && !version("9").is_before(&version("9")));
        assert!(!version("a").is_before(&version("b")) && !version("").is_not_after(&version("9")));
    }
}
