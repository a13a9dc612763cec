//! What all kinds of objects say together: a slice of the store, changed in place.

use heddle_model::{SharedMap, Slice};

use super::machine::Change;
use crate::kubernetes::Value;

/// Applies a change; it costs what it changes.
pub fn apply(slice: &mut Slice, change: Change) {
    let (mut node, mut service, mut list) = ((None, None), (None, None), (None, None));
    match change.old {
        Some(Value::Node(old)) => node.0 = Some(old.name.clone()),
        Some(Value::Service(old)) => service.0 = Some(old.name.clone()),
        Some(Value::Slice(old)) => list.0 = Some(old.name.clone()),
        // Endpoints objects are not followed: a cluster has slices that repeat them.
        Some(Value::Endpoints(_) | Value::NotOurs) | None => {}
    }
    match change.new {
        Some(Value::Node(new)) => node.1 = Some((new.name.clone(), new)),
        Some(Value::Service(new)) => service.1 = Some((new.name.clone(), new)),
        Some(Value::Slice(new)) => list.1 = Some((new.name.clone(), new)),
        Some(Value::Endpoints(_) | Value::NotOurs) | None => {}
    }
    swap(&mut slice.nodes, node);
    swap(&mut slice.services, service);
    swap(&mut slice.endpoints, list);
}

/// Takes one out and puts one in.
fn swap<K: Ord + Clone, V: Clone>(map: &mut SharedMap<K, V>, (old, new): (Option<K>, Option<(K, V)>)) {
    if let Some(old) = old.filter(|old| new.as_ref().is_none_or(|(new, _)| new != old)) {
        map.remove(&old);
    }
    if let Some((key, value)) = new {
        map.insert(key, value);
    }
}
