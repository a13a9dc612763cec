//! The network configuration, as far as an IPAM plugin reads it.

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_ipam::{Config, DEFAULT_DATA_DIR, Pool, RangeConfig};
use heddle_spec::{Failure, Network, Version, invalid, json};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The keys as they are written. Those of the plugin that calls us are its own business.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    ipam: Option<Config>,
    args: Option<Args>,
    runtime_config: Option<Capabilities>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Option<CniArgs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Capabilities {
    ips: Vec<String>,
    ip_ranges: Vec<Vec<RangeConfig>>,
}

/// A configuration that makes sense.
#[derive(Debug)]
pub struct Conf {
    pub network: Network,
    pub pool: Pool,
    /// Addresses that are asked for by name, of `args.cni.ips` and of the capability `ips`.
    pub requested: Vec<IpAddr>,
}

/// What DEL and GC need: less, so that a configuration that is wrong by now cannot keep anything alive.
#[derive(Debug)]
pub struct Place {
    pub network: Network,
    pub data_dir: PathBuf,
}

impl Conf {
    /// Checks a configuration.
    ///
    /// # Errors
    /// Code 7, naming the key.
    pub fn new(object: &Map<String, Value>, version: Version) -> Result<Self, Failure> {
        let network = Network::of(object)?;
        // What the caller's own keys hold must not keep us from reading ours.
        let ours = ["ipam", "args", "runtimeConfig"];
        let keys = object.iter().filter(|(key, _)| ours.contains(&key.as_str()));
        let object = keys.map(|(key, value)| (key.clone(), value.clone())).collect();
        let raw: Raw = json::typed(Value::Object(object))?;
        let mut ipam = raw.ipam.ok_or_else(|| invalid("ipam", "it is missing"))?;
        let runtime = raw.runtime_config.unwrap_or_default();
        // As the reference plugin does: what the runtime says comes first.
        ipam.ranges.splice(0..0, runtime.ip_ranges);
        let pool = ipam.pool()?;
        let families = |v4: bool| pool.sets.iter().filter(|set| set.is_ipv4() == v4).count();
        if version.has_one_address_a_family() && (families(true) > 1 || families(false) > 1) {
            return Err(invalid("ipam.ranges", format!("CNI version {version} has one address a family")));
        }
        let args = raw.args.and_then(|args| args.cni).unwrap_or_default().ips;
        let requested = args
            .iter()
            .map(|ip| ("args.cni.ips", ip))
            .chain(runtime.ips.iter().map(|ip| ("runtimeConfig.ips", ip)))
            .map(|(key, text)| address(key, text))
            .collect::<Result<_, _>>()?;
        Ok(Self { network, pool, requested })
    }
}

/// An address with or without a prefix length.
fn address(key: &str, text: &str) -> Result<IpAddr, Failure> {
    let bare = text.split('/').next().unwrap_or_default();
    let ip: IpAddr = bare.parse().map_err(|_| invalid(key, format!("{text:?} is not an IP address")))?;
    Ok(ip.to_canonical())
}

impl Place {
    /// Reads as much of a configuration as DEL needs; the rest may be nonsense.
    pub fn new(object: &Map<String, Value>) -> Result<Self, Failure> {
        let data_dir = object.get("ipam").and_then(|ipam| ipam.get("dataDir")).and_then(Value::as_str);
        let data_dir = data_dir.filter(|path| path.starts_with('/')).unwrap_or(DEFAULT_DATA_DIR);
        Ok(Self { network: Network::of(object)?, data_dir: data_dir.into() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conf(value: &Value, version: Version) -> Result<Conf, Failure> {
        Conf::new(value.as_object().unwrap(), version)
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_key() {
        let cases = [
            (json!({}), "name: it is missing"),
            (json!({"name": 7}), "name: it is not a string"),
            (json!({"name": "../x"}), "name: "),
            (json!({"name": "n"}), "ipam: it is missing"),
            (json!({"name": "n", "ipam": {}}), "ipam.ranges: there is no range"),
            (json!({"name": "n", "ipam": {"subnet": 7}}), "ipam.subnet: "),
            (json!({"name": "n", "ipam": {"subnet": "127.0.0.0/24"}}), "ipam.subnet: no pod can have"),
            (
                json!({"name": "n", "ipam": {"subnet": "10.0.0.0/24"}, "args": {"cni": {"ips": ["x"]}}}),
                "args.cni.ips: ",
            ),
            (
                json!({"name": "n", "ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": ["x"]}}),
                "runtimeConfig.ips: ",
            ),
            (
                json!({"name": "n", "ipam": {}, "runtimeConfig": {"ipRanges": [[{"subnet": "x"}]]}}),
                "ipam.ranges[0][0].subnet: ",
            ),
        ];
        for (case, wanted) in cases {
            let failure = conf(&case, Version::V1_1_0).unwrap_err();
            assert!(failure.code == 7 && failure.msg.starts_with(wanted), "{case}: {failure:?}");
        }
    }

    #[test]
    fn the_keys_of_the_calling_plugin_are_its_own() {
        let object = json!({"name": "n", "mtu": "many", "dns": 7, "ipam": {"subnet": "10.0.0.0/24"}});
        assert!(conf(&object, Version::V1_1_0).is_ok());
    }

    #[test]
    fn containerd_writes_ranges_as_go_calls_them() {
        let object = json!({"name": "n", "ipam": {}, "runtimeConfig": {"ipRanges": [[{
            "Subnet": "10.1.0.0/24", "RangeStart": "10.1.0.9", "RangeEnd": "10.1.0.20", "Gateway": "10.1.0.254"
        }]]}});
        let range = conf(&object, Version::V1_1_0).unwrap().pool.sets[0].ranges()[0].clone();
        let said = (range.start.to_string(), range.end.to_string(), range.gateway.to_string());
        assert_eq!(said, ("10.1.0.9".into(), "10.1.0.20".into(), "10.1.0.254".into()));
    }

    #[test]
    fn what_the_runtime_says_comes_first() {
        let object = json!({
            "name": "n", "ipam": {"ranges": [[{"subnet": "10.2.0.0/24"}]]},
            "args": {"cni": {"ips": ["10.1.0.9"]}},
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]], "ips": ["::ffff:10.2.0.9", "fd00::9/64"]}
        });
        let read = conf(&object, Version::V1_1_0).unwrap();
        assert_eq!(read.pool.sets[0].ranges()[0].subnet.to_string(), "10.1.0.0/24");
        let wanted: Vec<IpAddr> = ["10.1.0.9", "10.2.0.9", "fd00::9"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(read.requested, wanted);
        let failure = conf(&object, Version::V0_2_0).unwrap_err();
        assert!(failure.msg.contains("one address a family"), "{failure:?}");
    }

    #[test]
    fn delete_needs_a_name_and_nothing_else() {
        let place = |value: Value| Place::new(value.as_object().unwrap());
        assert!(place(json!({"name": "n", "ipam": 7})).is_ok());
        assert_eq!(
            place(json!({"name": "n", "ipam": {"dataDir": "/x"}})).unwrap().data_dir,
            PathBuf::from("/x")
        );
        let default = PathBuf::from(DEFAULT_DATA_DIR);
        assert_eq!(place(json!({"name": "n", "ipam": {"dataDir": "x"}})).unwrap().data_dir, default);
        assert_eq!(place(json!({})).unwrap_err().code, 7);
    }
}
