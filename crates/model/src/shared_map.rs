//! A sorted map that is cheap to copy: copies share what is equal in them.
//!
//! A cluster's objects are told again and again with one of them changed. Entries lie in pieces of at most
//! [`LARGEST`]; a copy shares all pieces, a change makes one anew, and two maps of which one came from the other are
//! compared by what they do not share. So a change costs the same among ten objects and, but for a pointer for each
//! piece, among a hundred thousand.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most entries of a piece.
const LARGEST: usize = 64;

/// The map. Keys are unique and in order.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    /// None is empty.
    pieces: Vec<Arc<Vec<(K, V)>>>,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<K, V> SharedMap<K, V> {
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    pub const fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let (piece, place) = self.place(key);
        Some(&self.pieces.get(piece)?.get(place.ok()?)?.1)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The entries from this key on.
    pub fn starting_at<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let (piece, place) = self.place(key);
        let (Ok(place) | Err(place)) = place;
        let first = self.pieces.get(piece).map_or(&[][..], |piece| &piece[place.min(piece.len())..]);
        let others = self.pieces.get(piece + 1..).unwrap_or_default().iter().flat_map(|piece| piece.iter());
        first.iter().chain(others).map(|(key, value)| (key, value))
    }

    /// The piece that the key belongs to, and where in it the key is, or would be.
    fn place(&self, key: &K) -> (usize, Result<usize, usize>) {
        let after = self.pieces.partition_point(|piece| piece.first().is_some_and(|(first, _)| first <= key));
        let piece = after.saturating_sub(1);
        let place =
            self.pieces.get(piece).map_or(Err(0), |piece| piece.binary_search_by(|(k, _)| k.cmp(key)));
        (piece, place)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (index, place) = self.place(&key);
        let Some(shared) = self.pieces.get_mut(index) else {
            self.pieces.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let piece = Arc::make_mut(shared);
        match place {
            Ok(place) => Some(std::mem::replace(&mut piece[place].1, value)),
            Err(place) => {
                if piece.len() == piece.capacity() {
                    // A few at a time: most pieces stay as they are for ever.
                    piece.reserve_exact(LARGEST / 8);
                }
                piece.insert(place, (key, value));
                if piece.len() > LARGEST {
                    // Entries that come in order fill one piece after the other.
                    let last = index + 1 == self.pieces.len() && place == LARGEST;
                    let piece = Arc::make_mut(&mut self.pieces[index]);
                    let rest = piece.split_off(if last { LARGEST } else { LARGEST / 2 });
                    piece.shrink_to_fit();
                    self.pieces.insert(index + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// The value, to be changed in this map alone.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (index, place) = self.place(key);
        let piece = Arc::make_mut(self.pieces.get_mut(index)?);
        Some(&mut piece.get_mut(place.ok()?)?.1)
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (index, place) = self.place(key);
        let place = place.ok()?;
        let piece = Arc::make_mut(self.pieces.get_mut(index)?);
        let (_, value) = piece.remove(place);
        if piece.is_empty() {
            self.pieces.remove(index);
        }
        // Small neighbours become one, so that pieces do not outnumber what is in them.
        for first in [index, index.saturating_sub(1)] {
            if let Some([one, other]) = self.pieces.get_mut(first..first + 2)
                && one.len() + other.len() <= LARGEST / 2
            {
                Arc::make_mut(one).extend(other.iter().cloned());
                self.pieces.remove(first + 1);
            }
        }
        Some(value)
    }

    /// Keeps the entries for which it is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        *self = self
            .iter()
            .filter(|(key, value)| keep(key, value))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
    }
}

/// The keys whose values differ, those that only one map has included, in order. What is shared costs nothing.
pub fn changed<'a, K: Ord, V: PartialEq>(old: &'a SharedMap<K, V>, new: &'a SharedMap<K, V>) -> Vec<&'a K> {
    differences(old, new).into_iter().map(|(key, ..)| key).collect()
}

/// A key, and its value in the one and in the other map.
pub type Difference<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// [`changed`], with the old and the new value of each key.
pub fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a SharedMap<K, V>,
    new: &'a SharedMap<K, V>,
) -> Vec<Difference<'a, K, V>> {
    let mut all = Vec::new();
    differ(old, new, |difference| {
        all.push(difference);
        true
    });
    all
}

/// Calls `found` with all that differs, until it returns false.
fn differ<'a, K: Ord, V: PartialEq>(
    old: &'a SharedMap<K, V>,
    new: &'a SharedMap<K, V>,
    mut found: impl FnMut(Difference<'a, K, V>) -> bool,
) {
    // Piece, and entry in it, of each.
    let (mut a, mut b) = ((0, 0), (0, 0));
    let at = |map: &'a SharedMap<K, V>, at: (usize, usize)| map.pieces.get(at.0)?.get(at.1);
    let next = |map: &SharedMap<K, V>, at: (usize, usize)| match at.1 + 1 < map.pieces[at.0].len() {
        true => (at.0, at.1 + 1),
        false => (at.0 + 1, 0),
    };
    loop {
        if (a.1, b.1) == (0, 0)
            && let (Some(one), Some(other)) = (old.pieces.get(a.0), new.pieces.get(b.0))
            && Arc::ptr_eq(one, other)
        {
            (a.0, b.0) = (a.0 + 1, b.0 + 1);
            continue;
        }
        let (one, other) = (at(old, a), at(new, b));
        let order = match (one, other) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let one = one.filter(|_| order != Ordering::Greater);
        let other = other.filter(|_| order != Ordering::Less);
        if one.is_some() {
            a = next(old, a);
        }
        if other.is_some() {
            b = next(new, b);
        }
        let value = |entry: Option<&'a (K, V)>| entry.map(|(_, value)| value);
        if value(one) != value(other)
            && let Some((key, _)) = one.or(other)
            && !found((key, value(one), value(other)))
        {
            return;
        }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut equal = true;
        differ(self, other, |_| {
            equal = false;
            false
        });
        equal
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord, V> FromIterator<(K, V)> for SharedMap<K, V> {
    /// Of two with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let sorted: std::collections::BTreeMap<K, V> = entries.into_iter().collect();
        let mut pieces = Vec::new();
        let mut entries = sorted.into_iter().peekable();
        while entries.peek().is_some() {
            // Not full: the next to come has room.
            pieces.push(Arc::new(entries.by_ref().take(LARGEST * 3 / 4).collect()));
        }
        Self { pieces }
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Ord, V> Index<&K> for SharedMap<K, V> {
    type Output = V;

    /// # Panics
    /// If there is none.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the caller knows that the key is there")
    }
}

/// As a list of pairs, as keys may be anything.
impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &SharedMap<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        assert!(
            map.iter().eq(model.iter()) && map.keys().eq(model.keys()) && map.values().eq(model.values())
        );
        assert!(map.pieces.iter().all(|piece| (1..=LARGEST).contains(&piece.len())));
        assert!(map.pieces.windows(2).all(|pair| pair[0].len() + pair[1].len() > LARGEST / 4));
    }

    proptest! {
        #[test]
        fn it_is_a_map(
            start in prop::collection::btree_map(0u16..600, any::<u8>(), 0..400),
            changes in prop::collection::vec((0u16..600, prop::option::weighted(0.4, any::<u8>())), 0..600),
        ) {
            let mut map: SharedMap<u16, u8> = start.clone().into_iter().collect();
            let mut model = start;
            let (mut before, mut before_model) = (map.clone(), model.clone());
            for (number, (key, value)) in changes.into_iter().enumerate() {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert!(map.starting_at(&key).eq(model.range(key..)));
                if number % 50 == 7 {
                    check(&map, &model);
                    check(&before, &before_model);
                    let differ = before_model.keys().chain(model.keys()).collect::<std::collections::BTreeSet<_>>();
                    let differ: Vec<&u16> =
                        differ.into_iter().filter(|key| before_model.get(key) != model.get(key)).collect();
                    prop_assert_eq!(changed(&before, &map), differ);
                    prop_assert_eq!(before == map, before_model == model);
                    (before, before_model) = (map.clone(), model.clone());
                }
            }
            check(&map, &model);
            map.retain(|key, _| key % 2 == 0);
            model.retain(|key, _| key % 2 == 0);
            check(&map, &model);
            let other: SharedMap<u16, u8> = model.clone().into_iter().collect();
            prop_assert!(other == map, "whatever the pieces are");
        }
    }

    /// Counts how often it is compared.
    struct Looked<'a>(&'a std::cell::Cell<usize>);

    impl PartialEq for Looked<'_> {
        fn eq(&self, _: &Self) -> bool {
            self.0.set(self.0.get() + 1);
            true
        }
    }

    #[test]
    fn what_is_shared_is_not_looked_at() {
        let looked = std::cell::Cell::new(0);
        let map: SharedMap<u32, std::rc::Rc<Looked<'_>>> =
            (0..100_000).map(|n| (n, std::rc::Rc::new(Looked(&looked)))).collect();
        let mut other = map.clone();
        other.insert(5_000, std::rc::Rc::new(Looked(&looked)));
        other.insert(100_001, std::rc::Rc::new(Looked(&looked)));
        other.remove(&77_777);
        assert_eq!(changed(&map, &other), [&77_777, &100_001]);
        assert!(looked.get() <= 3 * LARGEST, "{}", looked.get());
    }
}
