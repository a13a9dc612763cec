//! The machine that keeps what is held of one kind of object equal to what the API server has: lists and events in,
//! changes out. No I/O, and no clock but the one that is passed in.
//!
//! - A list counts when all of its pages are there; what is held and not in it, is gone then (so a deletion that was
//!   missed is found).
//! - Nothing goes back in time: events and lists that are older than what is held are passed over. If the API server
//!   says for a while that the newest it has is older, then it was restored from a backup, and is believed.
//! - A list that lacks most of what is held, or all, is doubted: what is new in it counts, what is missing goes when
//!   another list, a while later, lacks it still, or when it is told as deleted one by one.
//! - An object that cannot be understood stays as it was, and is told of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use super::item::{Event, Item, Page, Version};
use crate::kubernetes::{Key, Value};

/// How long a list that lacks most of what is held is doubted. As `--removal-delay` of proxyd.
pub const DOUBT: Duration = Duration::from_secs(60);
/// Fewer that are missing are never doubted, unless they are all.
const FEWEST: usize = 10;
/// How long, and how often, the API server must say that the newest it has is older than what is held.
const RESTORED: (Duration, u32) = (Duration::from_secs(10), 3);
/// After so many lists that did not come to their end because they took too long the next is one page.
const TOO_LONG: u32 = 2;

/// What is held, and what is to be asked next.
#[derive(Debug)]
pub struct Machine {
    held: HashMap<Key, Value>,
    /// Everything until here is known. `None`: nothing is.
    version: Option<Version>,
    /// A list is needed before the next event counts.
    must_list: bool,
    listing: Option<Listing>,
    /// Lists in a row that expired between two pages.
    expired: u32,
    doubt: Option<Doubt>,
    /// Since when, and how often, lists were older than what is held.
    older: Option<(Instant, u32)>,
    /// Why nothing, or not everything, could be made of an object.
    broken: BTreeMap<String, String>,
    delay: Duration,
}

#[derive(Debug)]
struct Listing {
    version: Version,
    token: Option<String>,
    items: HashMap<Key, Item>,
}

#[derive(Debug)]
struct Doubt {
    until: Instant,
    missing: HashSet<Key>,
}

/// What is to be asked of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// `paged`: in pages; `token`: the next of them.
    List { paged: bool, token: Option<String> },
    /// Events after this version.
    Watch(Version),
}

/// An object that is another one now, or gone, or new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub old: Option<Value>,
    pub new: Option<Value>,
}

impl Machine {
    /// `delay`: how long a list that lacks most is doubted ([`DOUBT`]).
    pub fn new(delay: Duration) -> Self {
        Self {
            held: HashMap::new(),
            version: None,
            must_list: true,
            listing: None,
            expired: 0,
            doubt: None,
            older: None,
            broken: BTreeMap::new(),
            delay,
        }
    }

    pub fn want(&self) -> Want {
        match (&self.version, &self.listing) {
            (_, Some(listing)) => Want::List { paged: true, token: listing.token.clone() },
            (Some(version), None) if !self.must_list => Want::Watch(version.clone()),
            _ => Want::List { paged: self.expired < TOO_LONG, token: None },
        }
    }

    /// Everything that existed has been told once.
    pub const fn is_synced(&self) -> bool {
        self.version.is_some()
    }

    pub const fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// When the doubt is to be settled by another list: then the stream of events is to be left.
    pub fn deadline(&self) -> Option<Instant> {
        self.doubt.as_ref().filter(|_| !self.must_list).map(|doubt| doubt.until)
    }

    /// It is time to settle the doubt.
    pub fn settle(&mut self) {
        self.must_list = true;
    }

    /// How many objects are held although a list lacked them, of how many.
    pub fn doubted(&self) -> Option<(usize, usize)> {
        self.doubt.as_ref().map(|doubt| (doubt.missing.len(), self.held.len()))
    }

    /// What could not be understood, by the object.
    pub const fn broken(&self) -> &BTreeMap<String, String> {
        &self.broken
    }

    /// A page has come.
    ///
    /// # Errors
    /// Why the list does not count. The next one begins at its beginning.
    pub fn page(&mut self, page: Page, now: Instant, out: &mut Vec<Change>) -> Result<(), Failure> {
        let first = self.listing.is_none();
        let mut listing = self.listing.take().unwrap_or_else(|| Listing {
            version: page.version.clone(),
            token: None,
            items: HashMap::new(),
        });
        if !first && page.version != listing.version && !page.version.0.is_empty() {
            // The rest of another list ("inconsistent continue"): what changed in between may be in neither part.
            let why = format!("it is of {} and of {}", listing.version, page.version);
            return Err(Failure::Partial(why));
        }
        for item in page.items {
            listing.items.insert(item.key.clone(), item);
        }
        if page.token.is_some() {
            if page.token == listing.token {
                return Err(Failure::Partial("a page leads to itself".into()));
            }
            listing.token = page.token;
            self.listing = Some(listing);
            return Ok(());
        }
        if page.remaining > 0 {
            return Err(Failure::Partial(format!(
                "{} are still to come, and no page follows",
                page.remaining
            )));
        }
        if listing.version.0.is_empty() || &*listing.version.0 == "0" {
            return Err(Failure::Partial("it has no resource version".into()));
        }
        self.complete(listing, now, out)
    }

    fn complete(&mut self, listing: Listing, now: Instant, out: &mut Vec<Change>) -> Result<(), Failure> {
        self.expired = 0;
        if let Some(held) = self.version.as_ref().filter(|held| listing.version.is_before(held)) {
            let (since, times) = self.older.map_or((now, 1), |(since, times)| (since, times + 1));
            self.older = Some((since, times));
            if now < since + RESTORED.0 || times < RESTORED.1 {
                return Err(Failure::Older { listed: listing.version.to_string(), held: held.to_string() });
            }
            tracing::warn!(
                listed = %listing.version, %held,
                "the API server's state is an older one (restored from a backup?): followed from there"
            );
        }
        self.older = None;
        self.must_list = false;
        self.version = Some(listing.version);
        let missing: HashSet<Key> =
            self.held.keys().filter(|key| !listing.items.contains_key(*key)).cloned().collect();
        let great = missing.len() >= FEWEST && missing.len() * 2 > self.held.len();
        let is_doubtful = great || (listing.items.is_empty() && !missing.is_empty());
        for item in listing.items.into_values() {
            self.put(item, out);
        }
        let until = self.doubt.take().map_or(now + self.delay, |doubt| doubt.until);
        if is_doubtful && now < until {
            self.doubt = Some(Doubt { until, missing });
        } else {
            missing.iter().for_each(|key| self.take(key, out));
        }
        Ok(())
    }

    /// Something has happened.
    ///
    /// # Errors
    /// When the API server does not know as much as is held: then it tells nothing until it does.
    pub fn event(&mut self, event: Event, out: &mut Vec<Change>) -> Result<(), Failure> {
        let version = match &event {
            Event::Is(item) => &item.version,
            Event::Deleted(_, version) | Event::Bookmark(version) => version,
            Event::Other => return Ok(()),
        };
        if let Some(known) = &self.version {
            if matches!(event, Event::Bookmark(_)) && version.is_before(known) {
                return Err(Failure::Behind(format!("it is at {version}, and {known} is held")));
            }
            // Told once more, or too late.
            if version.is_not_after(known) {
                return Ok(());
            }
        }
        if !version.0.is_empty() {
            self.version = Some(version.clone());
        }
        match event {
            Event::Is(item) => {
                self.sure(&item.key);
                self.put(item, out);
            }
            Event::Deleted(key, _) => {
                self.sure(&key);
                self.take(&key, out);
            }
            Event::Bookmark(_) | Event::Other => {}
        }
        Ok(())
    }

    /// A request, or the stream, has failed.
    pub fn failed(&mut self, failure: &Failure) {
        if self.listing.take().is_some() && matches!(failure, Failure::Gone(_)) {
            self.expired += 1;
        }
        // What cannot be understood in the stream may be in a list; and else it would come again and again.
        if matches!(failure, Failure::Gone(_) | Failure::Behind(_) | Failure::Malformed(_)) {
            self.must_list = true;
        }
    }

    /// There is news of this object: no doubt about it is left.
    fn sure(&mut self, key: &Key) {
        if let Some(doubt) = &mut self.doubt {
            doubt.missing.remove(key);
            if doubt.missing.is_empty() {
                self.doubt = None;
            }
        }
    }

    fn put(&mut self, item: Item, out: &mut Vec<Change>) {
        let Item { key, value, notes, .. } = item;
        let why = match &value {
            Ok(_) => notes.join("; "),
            Err(why) => why.clone(),
        };
        if !why.is_empty() {
            self.broken.insert(key.to_string(), why);
        } else if !self.broken.is_empty() {
            self.broken.remove(&key.to_string());
        }
        let old = self.held.get(&key);
        let Ok(value) = value else {
            // There is such an object, whatever it is.
            self.held.entry(key).or_insert(Value::NotOurs);
            return;
        };
        if old != Some(&value) {
            let old = self.held.insert(key, value.clone());
            out.push(Change { old, new: Some(value) });
        }
    }

    fn take(&mut self, key: &Key, out: &mut Vec<Change>) {
        if !self.broken.is_empty() {
            self.broken.remove(&key.to_string());
        }
        if let Some(old) = self.held.remove(key) {
            out.push(Change { old: Some(old), new: None });
        }
    }
}

#[cfg(test)]
mod tests;
