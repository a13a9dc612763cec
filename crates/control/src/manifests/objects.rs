//! What many files say together, kept up to date file by file.
//!
//! Of two files, or two places in one, that describe one object the first counts, by the file's name and then by
//! line. EndpointSlices are the truth about a service where there are any, as Kubernetes keeps slices that repeat every
//! Endpoints object.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::mem;
use std::path::Path;
use std::sync::Arc;

use heddle_model::{Endpoints, EndpointsName, Object as About, Problem, ServiceName, Slice, What};

use crate::kubernetes::{Key, Object, Value, Words};

/// A place: the hash of the key of what is there, the file, and the number of the object in it. Keys themselves, which
/// are long, stand in the objects.
type Place = (u64, Arc<str>, u32);

#[derive(Debug, Default)]
pub struct Objects {
    files: BTreeMap<Arc<str>, Vec<Object>>,
    places: BTreeSet<Place>,
    /// Hashes of keys that several places may have.
    shared: BTreeSet<u64>,
    /// What counts.
    slice: Slice,
    /// Of Endpoints objects that count, whether or not there are slices of the service.
    mirrored: BTreeMap<ServiceName, Vec<Arc<Endpoints>>>,
    words: Words,
}

impl Objects {
    /// The whole of what a file says now.
    pub fn replace(&mut self, file: &Arc<str>, mut objects: Vec<Object>) {
        let before = self.files.remove(file).unwrap_or_default();
        objects.iter_mut().for_each(|object| self.words.share(&mut object.value));
        keep(&before, &mut objects);
        let keys: BTreeSet<&Key> = before.iter().chain(&objects).map(|object| &object.key).collect();
        // Who counts is found among all places, so these still (and already) need the objects of the file.
        let hashes: BTreeMap<u64, Vec<Key>> = keys.into_iter().fold(BTreeMap::new(), |mut hashes, key| {
            hashes.entry(hash(key)).or_insert_with(Vec::new).push(key.clone());
            hashes
        });
        self.files.insert(Arc::clone(file), before);
        let old: Vec<Option<Value>> = hashes.values().flatten().map(|key| self.winner(key)).collect();
        for object in self.files.remove(file).iter().flatten().enumerate() {
            self.places.remove(&place(file, object));
        }
        for object in objects.iter().enumerate() {
            self.places.insert(place(file, object));
        }
        if !objects.is_empty() {
            self.files.insert(Arc::clone(file), objects);
        }
        let new: Vec<Option<Value>> = hashes.values().flatten().map(|key| self.winner(key)).collect();
        for at in hashes.keys() {
            let several = self.at(*at).nth(1).is_some();
            match several {
                true => self.shared.insert(*at),
                false => self.shared.remove(at),
            };
        }
        let mut services = BTreeSet::new();
        let changed = || old.iter().zip(&new).filter(|(old, new)| !is_same(old.as_ref(), new.as_ref()));
        changed().filter_map(|(old, _)| old.as_ref()).for_each(|old| self.take_out(old, &mut services));
        changed().filter_map(|(_, new)| new.as_ref()).for_each(|new| self.put_in(new, &mut services));
        services.iter().for_each(|service| self.mirror(service));
    }

    /// What all files say. `directory` is where they are.
    pub fn slice(&self, directory: &Path) -> Slice {
        let mut slice = self.slice.clone();
        for hash in &self.shared {
            let mut winners: BTreeMap<&Key, String> = BTreeMap::new();
            for (file, object) in self.at(*hash) {
                let place = format!("{}:{}", directory.join(&**file).display(), object.line);
                match winners.get(&object.key) {
                    None => drop(winners.insert(&object.key, place)),
                    Some(winner) => {
                        let what = What::Duplicate { loser: object.key.to_string(), winner: winner.clone() };
                        slice.problems.insert(Problem::new(About::Input(place), what));
                    }
                }
            }
        }
        slice
    }

    fn winner(&self, key: &Key) -> Option<Value> {
        self.at(hash(key)).find(|(_, object)| object.key == *key).map(|(_, object)| object.value.clone())
    }

    /// The objects whose keys have this hash, the first first.
    fn at(&self, hash: u64) -> impl Iterator<Item = (&Arc<str>, &Object)> {
        let first: Place = (hash, "".into(), 0);
        let places = self.places.range(first..).take_while(move |(at, ..)| *at == hash);
        places.filter_map(|(_, file, number)| {
            Some((file, self.files.get(file)?.get(usize::try_from(*number).ok()?)?))
        })
    }

    fn take_out(&mut self, value: &Value, services: &mut BTreeSet<ServiceName>) {
        match value {
            Value::Node(node) => drop(self.slice.nodes.remove(&node.name)),
            Value::Service(service) => drop(self.slice.services.remove(&service.name)),
            Value::Slice(list) => {
                self.slice.endpoints.remove(&list.name);
                services.insert(list.name.service.clone());
            }
            Value::Endpoints(parts) => {
                for part in parts {
                    self.mirrored.remove(&part.name.service);
                    services.insert(part.name.service.clone());
                }
            }
            Value::NotOurs => {}
        }
    }

    fn put_in(&mut self, value: &Value, services: &mut BTreeSet<ServiceName>) {
        match value {
            Value::Node(node) => drop(self.slice.nodes.insert(node.name.clone(), Arc::clone(node))),
            Value::Service(service) => {
                self.slice.services.insert(service.name.clone(), Arc::clone(service));
            }
            Value::Slice(list) => {
                self.slice.endpoints.insert(list.name.clone(), Arc::clone(list));
                services.insert(list.name.service.clone());
            }
            Value::Endpoints(parts) => {
                if let Some(part) = parts.first() {
                    self.mirrored.insert(part.name.service.clone(), parts.clone());
                    services.insert(part.name.service.clone());
                }
            }
            Value::NotOurs => {}
        }
    }

    /// Lets the Endpoints object of a service count where there is no slice of it.
    fn mirror(&mut self, service: &ServiceName) {
        let first = EndpointsName { service: service.clone(), part: "".into() };
        let lists = self.slice.endpoints.starting_at(&first).map(|(name, _)| name);
        let lists: Vec<EndpointsName> = lists.take_while(|name| name.service == *service).cloned().collect();
        // No name of a slice has such a sign in it.
        let (old, sliced): (Vec<_>, Vec<_>) = lists.into_iter().partition(|name| name.part.contains('#'));
        old.iter().for_each(|name| drop(self.slice.endpoints.remove(name)));
        for part in self.mirrored.get(service).filter(|_| sliced.is_empty()).into_iter().flatten() {
            self.slice.endpoints.insert(part.name.clone(), Arc::clone(part));
        }
    }
}

/// Whether they are one, not only equal: of two copies of an object only one is kept.
fn is_same(one: Option<&Value>, other: Option<&Value>) -> bool {
    match (one, other) {
        (Some(Value::Node(one)), Some(Value::Node(other))) => Arc::ptr_eq(one, other),
        (Some(Value::Service(one)), Some(Value::Service(other))) => Arc::ptr_eq(one, other),
        (Some(Value::Slice(one)), Some(Value::Slice(other))) => Arc::ptr_eq(one, other),
        _ => one == other,
    }
}

/// What is equal stays the very same: nobody after us needs to look at it.
fn keep(before: &[Object], objects: &mut [Object]) {
    // Of two with one key the first counts.
    let values = before.iter().rev().map(|object| (&object.key, &object.value));
    let mut values: BTreeMap<&Key, &Value> = values.collect();
    for object in objects {
        if let Some(value) = values.remove(&object.key)
            && *value == object.value
        {
            drop(mem::replace(&mut object.value, value.clone()));
        }
    }
}

fn place(file: &Arc<str>, (number, object): (usize, &Object)) -> Place {
    (hash(&object.key), Arc::clone(file), u32::try_from(number).unwrap_or(u32::MAX))
}

fn hash(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use heddle_model::{Node, NodeName, Service};
    use proptest::prelude::*;

    use super::*;

    /// Everything at once: first by name of the file and then by place, slices before mirrors.
    fn plainly(files: &BTreeMap<Arc<str>, Vec<Object>>) -> Slice {
        let mut slice = Slice::default();
        let mut owners: BTreeMap<&Key, String> = BTreeMap::new();
        let mut mirrored = Vec::new();
        for (file, objects) in files {
            for object in objects {
                let place = format!("/m/{file}:{}", object.line);
                if let Some(winner) = owners.get(&object.key) {
                    let what = What::Duplicate { loser: object.key.to_string(), winner: winner.clone() };
                    slice.problems.insert(Problem::new(About::Input(place), what));
                    continue;
                }
                owners.insert(&object.key, place);
                match &object.value {
                    Value::Node(node) => drop(slice.nodes.insert(node.name.clone(), Arc::clone(node))),
                    Value::Service(service) => {
                        slice.services.insert(service.name.clone(), Arc::clone(service));
                    }
                    Value::Slice(list) => drop(slice.endpoints.insert(list.name.clone(), Arc::clone(list))),
                    Value::Endpoints(parts) => mirrored.extend(parts.iter().cloned()),
                    Value::NotOurs => {}
                }
            }
        }
        let sliced: BTreeSet<_> = slice.endpoints.keys().map(|name| name.service.clone()).collect();
        for list in mirrored.into_iter().filter(|list| !sliced.contains(&list.name.service)) {
            slice.endpoints.insert(list.name.clone(), list);
        }
        slice
    }

    fn list(service: &ServiceName, part: String, count: u8) -> Arc<Endpoints> {
        let endpoints = (0..count).map(|n| heddle_model::Endpoint::new([10, 0, 0, n].into())).collect();
        Arc::new(Endpoints {
            name: EndpointsName { service: service.clone(), part: part.into() },
            ports: Vec::new(),
            endpoints,
        })
    }

    fn any_object() -> impl Strategy<Value = Object> {
        (0u8..5, 0u8..3, 0u8..3, 1usize..9).prop_map(|(kind, name, other, line)| {
            let service = ServiceName::new("default", format!("s{name}"));
            let (key, value) = match kind {
                0 => {
                    let node = Node {
                        name: NodeName(format!("n{name}").into()),
                        down: other > 0,
                        ..Node::default()
                    };
                    (Key::Node(node.name.0.clone()), Value::Node(Arc::new(node)))
                }
                1 => {
                    let value =
                        Service { name: service.clone(), affinity: Some(other.into()), ..Service::default() };
                    (Key::Service(service), Value::Service(Arc::new(value)))
                }
                // The label of a slice may come to name another service.
                2 | 3 => {
                    let of = ServiceName::new("default", format!("s{other}"));
                    let key =
                        Key::EndpointSlice { namespace: "default".into(), name: format!("e{name}").into() };
                    let value = if kind == 3 && other == 2 {
                        Value::NotOurs
                    } else {
                        Value::Slice(list(&of, format!("e{name}"), kind))
                    };
                    (key, value)
                }
                _ => {
                    let parts = (0..other).map(|n| list(&service, format!("s{name}#{n}"), n)).collect();
                    (Key::Endpoints(service), Value::Endpoints(parts))
                }
            };
            Object { key, line, value }
        })
    }

    proptest! {
        #[test]
        fn file_by_file_is_everything_at_once(
            steps in prop::collection::vec((0u8..4, prop::collection::vec(any_object(), 0..6)), 0..12),
        ) {
            let (mut objects, mut files) = (Objects::default(), BTreeMap::new());
            for (file, said) in steps {
                let file: Arc<str> = format!("{file}.yaml").into();
                objects.replace(&file, said.clone());
                let last = Arc::clone(&file);
                files.insert(file, said.clone());
                let slice = objects.slice(Path::new("/m"));
                prop_assert_eq!(&slice, &plainly(&files));
                // What is told is what is kept, not a copy that is as good.
                for (name, told) in &slice.services {
                    let Some(Value::Service(kept)) = objects.winner(&Key::Service(name.clone())) else { panic!() };
                    prop_assert!(Arc::ptr_eq(told, &kept));
                }
                // And what is read again and equal is not made anew.
                let again = said.iter().map(|object| match &object.value {
                    Value::Service(same) => {
                        Object { value: Value::Service(Arc::new(Service::clone(same))), ..object.clone() }
                    }
                    _ => object.clone(),
                });
                objects.replace(&last, again.collect());
                for (name, told) in &objects.slice(Path::new("/m")).services {
                    prop_assert!(Arc::ptr_eq(told, &slice.services[name]));
                }
            }
            for file in files.keys().cloned().collect::<Vec<_>>() {
                objects.replace(&file, Vec::new());
            }
            prop_assert_eq!(objects.slice(Path::new("/m")), Slice::default());
            prop_assert!(objects.places.is_empty() && objects.shared.is_empty() && objects.mirrored.is_empty());
        }
    }
}
