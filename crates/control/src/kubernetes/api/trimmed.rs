//! An object as it comes from the API, as a tree of what may matter of it. The rest, by far the larger part, is passed
//! over while it is read and never held.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::kubernetes::flannel;
use crate::tree::{At, Tree, Value};

/// Fields that nothing is made of, wherever they stand.
const PASSED_OVER: [&str; 14] = [
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selector",
    "targetRef",
    "images",
    "nodeInfo",
    "capacity",
    "allocatable",
    "daemonEndpoints",
    "runtimeHandlers",
    "volumesAttached",
    "volumesInUse",
    "features",
];

/// The tree of an object. Where it stood is not known: nobody sees the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trimmed(pub Tree);

impl<'de> Deserialize<'de> for Trimmed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Part { key: "" }.deserialize(from).map(Self)
    }
}

/// What stands under this key.
#[derive(Clone, Copy)]
struct Part<'a> {
    key: &'a str,
}

impl Part<'_> {
    /// Whether a field of this part may matter.
    fn keeps(self, field: &str) -> bool {
        match self.key {
            // Annotations are anybody's, and long.
            "annotations" => field.starts_with(flannel::PREFIX),
            "labels" => true,
            _ => !PASSED_OVER.contains(&field),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Tree, D::Error> {
        let value = from.deserialize_any(self)?;
        Ok(Tree { at: At::default(), value })
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Bool(truth))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(tree) = from.next_element_seed(self)? {
            list.push(Rc::new(tree));
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = from.next_key::<String>()? {
            if self.keeps(&key) {
                let tree = from.next_value_seed(Part { key: &key })?;
                if map.insert(key, Rc::new(tree)).is_some() {
                    return Err(A::Error::custom("a key stands there twice"));
                }
            } else {
                from.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_not_held() {
        let text = r#"{"kind":"Node","metadata":{"name":"n1","managedFields":[{"a":{"b":1}}],"labels":{"images":"x"},
            "annotations":{"flannel.alpha.coreos.com/public-ip":"10.0.0.1","other":"y"}},
            "status":{"images":[{"names":["a"]}],"n":[1,-2,1.5,null,true,{"x":"\u00e9"}]}}"#;
        let Trimmed(tree) = serde_json::from_str(text).unwrap();
        let shown = format!("{tree:?}");
        for gone in ["managedFields", "\"y\"", "names"] {
            assert!(!shown.contains(gone), "{gone}: {shown}");
        }
        for kept in ["\"images\"", "10.0.0.1", "Number(\"-2\")", "Number(\"1.5\")", "\u{e9}"] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        assert!(serde_json::from_str::<Trimmed>(&"[".repeat(1_000_000)).is_err(), "depth is bounded");
        assert!(serde_json::from_str::<Trimmed>(r#"{"a":1,"a":2}"#).is_err());
    }
}
