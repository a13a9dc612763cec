//! "The error message must contain the key and value of the unsupported field" (section 5, code 2).

use heddle_spec::{Failure, code};
use serde_json::{Map, Value};

/// Longer values are no help (characters).
const LONGEST: usize = 64;

/// Puts the value of the key that a message of code 2 begins with behind the key, if it is not in the message.
pub fn with_value(failure: Failure, object: &Map<String, Value>) -> Failure {
    if failure.code != code::UNSUPPORTED_FIELD {
        return failure;
    }
    let Some((key, rest)) = failure.msg.split_once(": ") else { return failure };
    let Some(value) = find(key, object) else { return failure };
    let value: String = value.to_string().chars().take(LONGEST).collect();
    if rest.contains(&value) {
        return failure;
    }
    let msg = format!("{key}: {value}: {rest}");
    Failure { msg, ..failure }
}

/// `a.b[0].c`, from the top.
fn find<'a>(key: &str, object: &'a Map<String, Value>) -> Option<&'a Value> {
    let mut words = key.split(['.', '[']).map(|word| word.trim_end_matches(']'));
    let mut found = object.get(words.next()?)?;
    for word in words {
        found = match found {
            Value::Array(list) => list.get(word.parse::<usize>().ok()?)?,
            other => other.get(word)?,
        };
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_value_is_told_with_the_key() {
        let object = json!({
            "backend": "iptables", "on": true, "ipam": {"type": "dhcp"},
            "runtimeConfig": {"portMappings": [{"hostIP": "127.0.0.1"}]}, "long": "x".repeat(1000)
        });
        let told = |msg: &str| with_value(Failure::new(2, msg), object.as_object().unwrap()).msg;
        assert_eq!(told("backend: it is always nftables"), "backend: \"iptables\": it is always nftables");
        assert_eq!(told("on: no"), "on: true: no");
        assert_eq!(
            told("runtimeConfig.portMappings[0].hostIP: no"),
            "runtimeConfig.portMappings[0].hostIP: \"127.0.0.1\": no"
        );
        assert!(told("long: no").len() < 100);
        for whole in ["ipam.type: \"dhcp\" asks", "bandwidth: no", "on", "a.b: no", "on.x: no", "on[0]: no"] {
            assert_eq!(told(whole), whole);
        }
        let other = with_value(Failure::new(7, "on: no"), object.as_object().unwrap());
        assert_eq!(other.msg, "on: no");
    }
}
