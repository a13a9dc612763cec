//! What a runtime asks for one pod (`runtimeConfig`), in the spelling of the conventions (CONVENTIONS.md, "Dynamic
//! plugin specific fields").
//!
//! containerd's library leaves the names of its own structs in the JSON and every field in place: `HostPort` for
//! `hostPort`, `"RangeStart": ""` and `"Servers": null` for what nobody asked for (go-cni, types.go). The reference
//! plugins take it, because Go decodes without regard to case, a null as nothing and an empty address as none.

use serde_json::{Map, Value};

/// The keys inside of the capabilities that have any.
const KEYS: [&str; 17] = [
    // portMappings
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    // bandwidth
    "ingressRate",
    "ingressBurst",
    "egressRate",
    "egressBurst",
    "shapedSubnets",
    "unshapedSubnets",
    // ipRanges
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    // dns
    "servers",
    "searches",
    "options",
];

/// Of these an empty text is none.
const ADDRESSES: [&str; 4] = ["hostIP", "rangeStart", "rangeEnd", "gateway"];

/// Writes the capabilities of a configuration as the conventions have them. What is written so already is left as
/// it is, and wins over what is the same but for case.
pub fn respell(object: &mut Map<String, Value>) {
    if let Some(Value::Object(capabilities)) = object.get_mut("runtimeConfig") {
        // The names of the capabilities themselves are the configuration's words.
        capabilities.values_mut().for_each(inside);
    }
}

fn inside(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(inside),
        Value::Object(object) => {
            let (known, other): (Vec<_>, Vec<_>) =
                std::mem::take(object).into_iter().partition(|(key, _)| KEYS.contains(&key.as_str()));
            object.extend(known);
            for (key, value) in other {
                let meant = KEYS.into_iter().find(|known| known.eq_ignore_ascii_case(&key));
                object.entry(meant.map_or(key, str::to_owned)).or_insert(value);
            }
            let none = |key: &str, value: &Value| value.as_str() == Some("") && ADDRESSES.contains(&key);
            object.retain(|key, value| !(value.is_null() || none(key, value)));
            object.values_mut().for_each(inside);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn respelled(runtime_config: &Value) -> Value {
        let mut object = Map::from_iter([("runtimeConfig".to_owned(), runtime_config.clone())]);
        respell(&mut object);
        object.remove("runtimeConfig").unwrap()
    }

    #[test]
    fn what_containerd_writes_is_what_the_conventions_mean() {
        let containerds = json!({
            "portMappings": [{ "HostPort": 30080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" }],
            "bandwidth": { "IngressRate": 1, "IngressBurst": 2, "EgressRate": 3, "EgressBurst": 4 },
            "ipRanges": [[{ "Subnet": "10.1.0.0/24", "RangeStart": "", "RangeEnd": "", "Gateway": "10.1.0.1" }]],
            "dns": { "Servers": ["10.96.0.10"], "Searches": null, "Options": [] },
        });
        let conventions = json!({
            "portMappings": [{ "hostPort": 30080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4 },
            "ipRanges": [[{ "subnet": "10.1.0.0/24", "gateway": "10.1.0.1" }]],
            "dns": { "servers": ["10.96.0.10"], "options": [] },
        });
        assert_eq!(respelled(&containerds), conventions);
        assert_eq!(respelled(&conventions), conventions);
    }

    #[test]
    fn what_is_spelled_right_wins_and_what_is_unknown_stays() {
        let twice = json!({ "portMappings": [{ "HOSTPORT": 1, "hostPort": 2, "hostport": 3, "Other": "" }] });
        assert_eq!(respelled(&twice), json!({ "portMappings": [{ "hostPort": 2, "Other": "" }] }));
        for odd in [json!(null), json!([]), json!("x"), json!({ "mac": "", "ips": [null, 1], "x": {} })] {
            assert_eq!(respelled(&odd), odd);
        }
    }
}
