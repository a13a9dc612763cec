//! Reading JSON that somebody sent: once through, keys once each, not deep, not large.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Number, Value};

use crate::{Failure, code};

/// More than this is no network configuration (bytes).
pub const LARGEST: usize = 1 << 20;

/// A JSON value in which no key occurs twice in an object. (serde_json takes the last silently; two
/// programs that read the same configuration differently are a way round a check.)
#[derive(Debug)]
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number without a value"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} occurs twice")));
            }
            let Unique(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Reads an object.
///
/// # Errors
/// Code 6 for what is not JSON (or too large, or deeper than 128), 7 for what is, but no object with
/// unique keys.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, Failure> {
    if bytes.len() > LARGEST {
        return Err(Failure::new(
            code::DECODE,
            format!("the network configuration is larger than {} KiB", LARGEST / 1024),
        ));
    }
    if bytes.is_empty() {
        return Err(Failure::new(code::DECODE, "standard input is empty: a network configuration is needed"));
    }
    let Unique(value) = serde_json::from_slice(bytes).map_err(|error| {
        // A number beyond all types is well-formed JSON, if an odd configuration.
        let meaning = error.is_data() || error.to_string().starts_with("number out of range");
        let code = if meaning { code::INVALID_CONFIG } else { code::DECODE };
        Failure::new(code, format!("cannot read the network configuration: {error}"))
    })?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Failure::new(code::INVALID_CONFIG, "the network configuration is not an object")),
    }
}

/// Reads a type out of a value; an error names the key.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| Failure::new(code::INVALID_CONFIG, format!("{}: {}", error.path(), error.inner())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_001_to_006_what_is_not_a_configuration() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(LARGEST));
        let cases: [(&[u8], u32); 12] = [
            (b"", 6),
            (b"{", 6),
            (b"{\"a\":1", 6),
            (b"\xff\xfe", 6),
            (b"\xef\xbb\xbf{}", 6),
            (b"{}\0", 6),
            (b"{\"a\":\"\xff\"}", 6),
            (large.as_bytes(), 6),
            (deep.as_bytes(), 6),
            (b"[]", 7),
            (br#"{"a":1,"a":2}"#, 7),
            (br#"{"ipam":{"subnet":"a","subnet":"b"}}"#, 7),
        ];
        for (bytes, code) in cases {
            let failure = object(bytes).unwrap_err();
            assert_eq!(failure.code, code, "{:?}: {failure:?}", &bytes[..bytes.len().min(40)]);
        }
        assert!(object(br#"{"a":[1,-2,3.5,null,true,{"b":"c"}]}"#).is_ok());
    }

    #[test]
    fn an_error_of_a_type_names_the_key() {
        #[derive(Debug, Deserialize)]
        struct Inner {
            #[expect(dead_code, reason = "only its type matters")]
            mtu: u32,
        }
        let value = serde_json::json!({ "mtu": "1500" });
        let failure = typed::<Inner>(value).unwrap_err();
        assert!(failure.msg.starts_with("mtu: invalid type: string"), "{failure:?}");
    }
}
