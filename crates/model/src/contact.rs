//! How a source is in touch with the one it asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// For people and metrics: what a source says does not depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The source's name.
    pub source: String,
    /// When the other side last said anything.
    pub heard: Option<Instant>,
    /// Since when it does not tell everything that was asked for. `None`: it does.
    pub away: Option<Instant>,
    /// How far it has told, by kind of object.
    pub versions: BTreeMap<&'static str, Arc<str>>,
    /// How often it had to be asked anew, by reason.
    pub reconnects: BTreeMap<&'static str, u64>,
}

impl Contact {
    /// Not in touch yet.
    pub const fn new(source: String) -> Self {
        Self { source, heard: None, away: None, versions: BTreeMap::new(), reconnects: BTreeMap::new() }
    }
}
