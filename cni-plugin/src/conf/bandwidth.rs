//! Capability `bandwidth`, and the same keys in the configuration itself, as the reference bandwidth plugin has them.

use heddle_spec::{Failure, code};
use serde_json::{Map, Value};

use super::invalid;

/// What containerd (2^32-1) and CRI-O (2^31-1) say of the burst when nobody told them of one: they have to say
/// something. Taken at its word, the first half gigabyte would pass without a limit.
const NOT_SAID: [u64; 2] = [u32::MAX as u64, i32::MAX as u64];

/// A limit in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits; `None` if nobody said.
    pub burst: Option<u64>,
}

/// Limits of what a pod receives and sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    pub ingress: Option<Limit>,
    pub egress: Option<Limit>,
}

impl Bandwidth {
    /// Reads the keys of this section. What the runtime says replaces what the configuration says, as a whole.
    ///
    /// # Errors
    /// Code 7 names the key that makes no sense; code 2 what cannot be done.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        for key in ["shapedSubnets", "unshapedSubnets"] {
            let runtime = object.get("runtimeConfig").and_then(|runtime| runtime.get("bandwidth"));
            let values = [object.get(key), runtime.and_then(|runtime| runtime.get(key))];
            let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if values.into_iter().flatten().any(|value| !empty(value)) {
                return Err(Failure::new(
                    code::UNSUPPORTED_FIELD,
                    format!("{key}: a limit is for all of a pod's traffic"),
                ));
            }
        }
        let bandwidth = match object.get("runtimeConfig").and_then(|runtime| runtime.get("bandwidth")) {
            None | Some(Value::Null) => Self::section("", object)?,
            Some(Value::Object(section)) => Self::section("runtimeConfig.bandwidth.", section)?,
            Some(_) => return Err(invalid("runtimeConfig.bandwidth", "it is not an object")),
        };
        Ok(bandwidth)
    }

    fn section(prefix: &str, section: &Map<String, Value>) -> Result<Self, Failure> {
        let number = |key: &str| match section.get(key) {
            None | Some(Value::Null) => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| {
                invalid(&format!("{prefix}{key}"), format!("{value} is not a number of bits"))
            }),
        };
        let limit = |rate_key: &str, burst_key: &str| {
            let (rate, burst) = (number(rate_key)?, number(burst_key)?);
            let burst = Some(burst).filter(|burst| *burst != 0 && !NOT_SAID.contains(burst));
            match (rate, burst) {
                (0, Some(_)) => Err(invalid(&format!("{prefix}{burst_key}"), format!("it needs {rate_key}"))),
                (0, None) => Ok(None),
                (1..8, _) => {
                    Err(invalid(&format!("{prefix}{rate_key}"), "it is less than 8 bits per second"))
                }
                (rate, burst) => Ok(Some(Limit { rate, burst })),
            }
        };
        Ok(Self {
            ingress: limit("ingressRate", "ingressBurst")?,
            egress: limit("egressRate", "egressBurst")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Bandwidth, Failure> {
        Bandwidth::read(value.as_object().unwrap())
    }

    #[test]
    fn the_runtimes_words_replace_the_configurations() {
        let conf =
            json!({"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 3000, "egressBurst": 4000});
        let both = read(conf.clone()).unwrap();
        assert_eq!(both.ingress, Some(Limit { rate: 1000, burst: Some(2000) }));
        assert_eq!(both.egress, Some(Limit { rate: 3000, burst: Some(4000) }));
        let mut with_runtime = conf;
        // As containerd asks for a pod with the annotation kubernetes.io/egress-bandwidth alone.
        with_runtime["runtimeConfig"] = json!({"bandwidth": {"egressRate": 9000, "egressBurst": u32::MAX}});
        let runtime = read(with_runtime).unwrap();
        assert_eq!(runtime, Bandwidth { ingress: None, egress: Some(Limit { rate: 9000, burst: None }) });
        assert_eq!(read(json!({})).unwrap(), Bandwidth::default());
        let none = json!({"runtimeConfig": {"bandwidth": null}, "unshapedSubnets": []});
        assert_eq!(read(none).unwrap(), Bandwidth::default());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (value, wanted) in [
            (json!({"ingressRate": -1}), "ingressRate: "),
            (json!({"ingressRate": "10M"}), "ingressRate: "),
            (json!({"egressRate": 1.5}), "egressRate: "),
            (json!({"egressRate": 7, "egressBurst": 9}), "egressRate: "),
            (json!({"egressBurst": 9000}), "egressBurst: it needs egressRate"),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressBurst": 1}}}),
                "runtimeConfig.bandwidth.ingressBurst: ",
            ),
            (json!({"runtimeConfig": {"bandwidth": 7}}), "runtimeConfig.bandwidth: "),
        ] {
            let failure = read(value.clone()).unwrap_err();
            assert!(failure.code == 7 && failure.msg.starts_with(wanted), "{value}: {failure:?}");
        }
        for value in [
            json!({"unshapedSubnets": ["10.0.0.0/8"]}),
            json!({"runtimeConfig": {"bandwidth": {"shapedSubnets": ["10.0.0.0/8"]}}}),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().code, 2, "{value}");
        }
    }
}
