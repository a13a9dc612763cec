//! Mode `ipvlan`: the keys of the reference plugin.
//!
//! Its key `mode` is what is `ipvlanMode` here, because `mode` says ptp, bridge or ipvlan. Its values l2, l3 and l3s are
//! none of those, so `"mode": "l3"` means what it means there.

use heddle_netlink::ipvlan::Mode;
use heddle_netlink::link;
use heddle_spec::{Failure, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invalid;

/// The keys as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    mode: Option<String>,
    ipvlan_mode: Option<String>,
    master: Option<String>,
    link_in_container: bool,
}

/// What a pod's device hangs on, and how its packets travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvlan {
    pub mode: Mode,
    /// The interface that is shared. `None`: the one that the plugin before made, else that of the default route.
    pub master: Option<String>,
    /// It is in the pod's namespace already.
    pub in_container: bool,
}

impl Ipvlan {
    /// Whether this value of `mode` means this mode.
    pub fn is_meant(mode: &str) -> bool {
        mode == "ipvlan" || parse(mode).is_some()
    }

    /// Reads the keys of this mode.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        let raw: Raw = json::typed(Value::Object(object.clone()))?;
        let short = raw.mode.as_deref().and_then(parse);
        let long = match raw.ipvlan_mode.as_deref() {
            None | Some("") => None,
            Some(text) => Some(parse(text).ok_or_else(|| {
                let shown: String = text.chars().take(32).collect();
                invalid("ipvlanMode", format!("{shown:?} is not l2, l3 or l3s"))
            })?),
        };
        if let (Some(short), Some(long)) = (short, long)
            && short != long
        {
            return Err(invalid("ipvlanMode", format!("{long} contradicts mode, which is {short}")));
        }
        let master = raw.master.filter(|name| !name.is_empty());
        if let Some(name) = master.as_ref().filter(|name| !link::name_is_valid(name)) {
            return Err(invalid("master", format!("{name:?} cannot be the name of an interface")));
        }
        Ok(Self { mode: short.or(long).unwrap_or(Mode::L2), master, in_container: raw.link_in_container })
    }
}

fn parse(text: &str) -> Option<Mode> {
    [Mode::L2, Mode::L3, Mode::L3s].into_iter().find(|mode| mode.as_str() == text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Ipvlan, Failure> {
        Ipvlan::read(value.as_object().unwrap())
    }

    #[test]
    fn the_mode_is_read_in_our_words_and_in_the_reference_plugins() {
        for (value, wanted) in [
            (json!({"mode": "ipvlan"}), Mode::L2),
            (json!({"mode": "ipvlan", "ipvlanMode": ""}), Mode::L2),
            (json!({"mode": "ipvlan", "ipvlanMode": "l3"}), Mode::L3),
            (json!({"mode": "l2"}), Mode::L2),
            (json!({"mode": "l3"}), Mode::L3),
            (json!({"mode": "l3s", "ipvlanMode": "l3s"}), Mode::L3s),
        ] {
            assert!(Ipvlan::is_meant(value["mode"].as_str().unwrap()));
            assert_eq!(read(value.clone()).unwrap().mode, wanted, "{value}");
        }
        assert!(!Ipvlan::is_meant("ptp") && !Ipvlan::is_meant("l4") && !Ipvlan::is_meant(""));
    }

    #[test]
    fn fault_031_what_cannot_be_meant_is_refused_by_key() {
        for (value, key) in [
            (json!({"mode": "ipvlan", "ipvlanMode": "l4"}), "ipvlanMode: \"l4\" is not l2"),
            (json!({"mode": "ipvlan", "ipvlanMode": "L2"}), "ipvlanMode: "),
            (json!({"mode": "ipvlan", "ipvlanMode": 2}), "ipvlanMode: "),
            (json!({"mode": "l2", "ipvlanMode": "l3"}), "ipvlanMode: l3 contradicts mode"),
            (json!({"mode": "l2", "master": "../eth0"}), "master: "),
            (json!({"mode": "l2", "master": "0123456789abcdef"}), "master: "),
            (json!({"mode": "l2", "linkInContainer": "yes"}), "linkInContainer: "),
        ] {
            let failure = read(value.clone()).unwrap_err();
            assert!(failure.code == 7 && failure.msg.starts_with(key), "{value}: {failure:?}");
        }
        let all = read(json!({"mode": "l2", "master": "eth1", "linkInContainer": true})).unwrap();
        assert_eq!((all.master.as_deref(), all.in_container), (Some("eth1"), true));
        assert_eq!(read(json!({"mode": "l2", "master": ""})).unwrap().master, None);
    }
}
