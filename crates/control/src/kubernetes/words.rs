//! Words that objects have in common.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Value;

/// What endpoints call nodes and zones: a cluster of 100,000 endpoints has few such words, and each is held once.
#[derive(Debug, Default)]
pub struct Words(BTreeSet<Arc<str>>);

/// With so many, those that nobody uses any more are let go.
const MANY: usize = 20_000;

impl Words {
    /// Makes equal words one.
    pub fn share(&mut self, value: &mut Value) {
        let lists = match value {
            Value::Slice(list) => std::slice::from_mut(list),
            Value::Endpoints(parts) => parts.as_mut_slice(),
            _ => return,
        };
        // Nobody else has what was just read.
        for list in lists.iter_mut().filter_map(Arc::get_mut) {
            for endpoint in &mut list.endpoints {
                let node = endpoint.node.as_mut().map(|node| &mut node.0);
                for word in node.into_iter().chain(&mut endpoint.zone) {
                    match self.0.get(word) {
                        Some(known) => *word = Arc::clone(known),
                        None => drop(self.0.insert(Arc::clone(word))),
                    }
                }
            }
        }
        if self.0.len() > MANY {
            self.0.retain(|word| Arc::strong_count(word) > 1);
        }
    }
}
