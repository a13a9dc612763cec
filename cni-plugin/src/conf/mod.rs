//! The network configuration: what the operator wants, checked before anything is done.
//!
//! Each section reads its own keys from the object as it came and says what it means or names the key that makes
//! no sense; here they come together.

mod bridge;

pub use bridge::Bridge;

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_ipam::{Config as Ipam, Pool, RangeConfig};
use serde::Deserialize;
use serde_json::{Map, Value};

use heddle_spec::{Dns, Failure, Network, Version, code, json};

/// The smallest MTU that IPv4 works with (RFC 791), and IPv6 (RFC 8200).
const LEAST_MTU: (u32, u32) = (68, 1280);
/// The largest of a veth (`ETH_MAX_MTU`).
const MOST_MTU: u32 = 65_535;

/// The object as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    name: Option<String>,
    mode: Option<String>,
    mtu: Option<u32>,
    bridge: Option<String>,
    ip_masq: bool,
    ipam: Option<Ipam>,
    dns: Dns,
    args: Option<Args>,
    runtime_config: Runtime,
    /// Where the BPF file system is mounted.
    bpf_root: Option<String>,
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
struct Runtime {
    ips: Vec<String>,
    ip_ranges: Vec<Vec<RangeConfig>>,
}

/// How a pod is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A veth pair, a route of its own on the host, nothing shared with other pods.
    Ptp,
    Bridge(Bridge),
}

/// A configuration that makes sense.
#[derive(Debug)]
pub struct Conf {
    pub network: Network,
    pub mode: Mode,
    /// The kernel's default if not given.
    pub mtu: Option<u32>,
    pub pool: Pool,
    /// Addresses that the runtime asks for.
    pub requested: Vec<IpAddr>,
    pub dns: Dns,
    pub bpf_root: PathBuf,
}

/// What DEL needs: less, so that a configuration that is wrong by now cannot keep anything alive.
#[derive(Debug)]
pub struct Place {
    pub network: Network,
    pub data_dir: PathBuf,
    pub bpf_root: PathBuf,
}

const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";

fn invalid(key: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_CONFIG, format!("{key}: {reason}"))
}

fn network(object: &Map<String, Value>) -> Result<Network, Failure> {
    match object.get("name") {
        Some(Value::String(name)) => Network::new(name).map_err(|error| invalid("name", error)),
        Some(_) => Err(invalid("name", "it is not a string")),
        None => Err(invalid("name", "it is missing")),
    }
}

impl Conf {
    /// Checks a configuration for ADD.
    ///
    /// # Errors
    /// Code 7 for what makes no sense, code 2 for what makes sense and is not built; both name the key.
    pub fn new(object: &Map<String, Value>, version: Version) -> Result<Self, Failure> {
        let network = network(object)?;
        let raw: Raw = json::typed(Value::Object(object.clone()))?;
        raw.refuse_what_is_not_built()?;
        let mode = raw.mode(object)?;
        let mut ipam = raw.ipam.clone().ok_or_else(|| invalid("ipam", "it is missing"))?;
        match ipam.kind.as_str() {
            "host-local" | "heddle-ipam" => {}
            "" => return Err(invalid("ipam.type", "it is missing")),
            other => {
                let shown: String = other.chars().take(64).collect();
                return Err(Failure::new(
                    code::UNSUPPORTED_FIELD,
                    format!("ipam.type: {shown:?} is not built in; host-local and heddle-ipam are"),
                ));
            }
        }
        // As the reference plugin does: what the runtime says comes first.
        ipam.ranges.splice(0..0, raw.runtime_config.ip_ranges.iter().cloned());
        let pool = ipam.pool()?;
        let families = |v4: bool| pool.sets.iter().filter(|set| set.is_ipv4() == v4).count();
        if version.has_one_address_a_family() && (families(true) > 1 || families(false) > 1) {
            return Err(invalid("ipam.ranges", format!("CNI version {version} has one address a family")));
        }
        if let Some(mtu) = raw.mtu {
            let least = if families(false) > 0 { LEAST_MTU.1 } else { LEAST_MTU.0 };
            if mtu != 0 && !(least..=MOST_MTU).contains(&mtu) {
                return Err(invalid("mtu", format!("{mtu} is not between {least} and {MOST_MTU}")));
            }
        }
        if mode == Mode::Ptp && (families(true) > 1 || families(false) > 1) {
            return Err(invalid("ipam.ranges", "mode ptp takes one range set a family"));
        }
        refuse_route_options(&pool)?;
        Ok(Self {
            network,
            mode,
            mtu: raw.mtu.filter(|mtu| *mtu != 0),
            requested: raw.requested()?,
            pool,
            dns: raw.dns,
            bpf_root: raw.bpf_root.unwrap_or_else(|| DEFAULT_BPF_ROOT.into()).into(),
        })
    }
}

impl Raw {
    fn mode(&self, object: &Map<String, Value>) -> Result<Mode, Failure> {
        match (self.mode.as_deref(), &self.bridge) {
            (Some("ptp"), _) | (None, None) => Ok(Mode::Ptp),
            (Some("bridge"), _) | (None, Some(_)) => Ok(Mode::Bridge(Bridge::read(object)?)),
            (Some("ipvlan"), _) => {
                Err(Failure::new(code::UNSUPPORTED_FIELD, "mode: ipvlan is not built yet"))
            }
            (Some(other), _) => {
                let shown: String = other.chars().take(32).collect();
                Err(invalid("mode", format!("{shown:?} is not ptp, bridge or ipvlan")))
            }
        }
    }

    /// A key that is known and set, and that we would have to ignore: better said than ignored.
    fn refuse_what_is_not_built(&self) -> Result<(), Failure> {
        let set = [
            ("ipMasq", self.ip_masq),
            ("ipam.resolvConf", self.ipam.as_ref().is_some_and(|ipam| ipam.resolv_conf.is_some())),
        ];
        match set.iter().find(|(_, set)| *set) {
            Some((key, _)) => {
                Err(Failure::new(code::UNSUPPORTED_FIELD, format!("{key}: it is not built yet")))
            }
            None => Ok(()),
        }
    }

    /// Addresses from `args.cni.ips` and from the capability `ips`, with or without prefix length.
    fn requested(&self) -> Result<Vec<IpAddr>, Failure> {
        let args = self.args.iter().filter_map(|args| args.cni.as_ref()).flat_map(|cni| &cni.ips);
        let args = args.map(|ip| ("args.cni.ips", ip));
        let runtime = self.runtime_config.ips.iter().map(|ip| ("runtimeConfig.ips", ip));
        args.chain(runtime)
            .map(|(key, text)| {
                let bare = text.split('/').next().unwrap_or_default();
                bare.parse().map_err(|_| invalid(key, format!("{text:?} is not an IP address")))
            })
            .collect()
    }
}

fn refuse_route_options(pool: &Pool) -> Result<(), Failure> {
    match pool.routes.iter().position(|route| route.advmss.is_some()) {
        Some(n) => Err(Failure::new(
            code::UNSUPPORTED_FIELD,
            format!("ipam.routes[{n}].advmss: it is not built yet"),
        )),
        None => Ok(()),
    }
}

impl Place {
    /// Reads as much of a configuration as DEL needs; the rest may be nonsense.
    pub fn new(object: &Map<String, Value>) -> Result<Self, Failure> {
        let text = |value: Option<&Value>, default: &str| {
            value.and_then(Value::as_str).filter(|text| text.starts_with('/')).unwrap_or(default).to_owned()
        };
        let data_dir = object.get("ipam").and_then(|ipam| ipam.get("dataDir"));
        Ok(Self {
            network: network(object)?,
            data_dir: text(data_dir, heddle_ipam::DEFAULT_DATA_DIR).into(),
            bpf_root: text(object.get("bpfRoot"), DEFAULT_BPF_ROOT).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conf(value: Value) -> Result<Conf, Failure> {
        Conf::new(value.as_object().unwrap(), Version::V1_1_0)
    }

    fn with(key: &str, value: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "heddle", "type": "heddle", "unknown": {"x": 1},
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
        });
        conf[key] = value;
        conf
    }

    #[test]
    fn the_owners_configuration_is_a_bridge() {
        let conf = conf(json!({
            "cniVersion": "0.2.0", "name": "myplugin", "type": "heddle", "bridge": "br0", "isGateway": true,
            "ipam": {"type": "host-local", "subnet": "10.244.1.0/24", "gateway": "10.244.1.1",
                     "routes": [{"dst": "1.1.1.1/32", "gw": "10.244.1.254"}]}
        }))
        .unwrap();
        let wanted = Bridge { name: "br0".into(), is_gateway: true, is_default_gateway: false };
        assert_eq!(conf.mode, Mode::Bridge(wanted));
        assert_eq!(conf.pool.routes[0].gw, "10.244.1.254".parse().ok());
    }

    #[test]
    fn fault_007_and_013_and_031_what_makes_no_sense_is_refused_by_key() {
        let cases = [
            (with("mtu", json!("1500")), "mtu: "),
            (with("mtu", json!(-1)), "mtu: "),
            (with("mtu", json!(1u64 << 33)), "mtu: "),
            (with("mtu", json!(1.5)), "mtu: "),
            (with("mtu", json!(67)), "mtu: "),
            (with("mtu", json!(1279)), "mtu: 1279 is not between 1280"),
            (with("mtu", json!(65536)), "mtu: "),
            (with("name", json!("")), "name: "),
            (with("name", json!("../../etc")), "name: "),
            (with("name", json!("a/b")), "name: "),
            (with("name", json!("x".repeat(4096))), "name: "),
            (with("name", json!("ñ")), "name: "),
            (with("name", json!(7)), "name: "),
            (with("name", Value::Null), "name: "),
            (with("mode", json!("macvlan")), "mode: "),
            (with("bridge", json!("a/b")), "bridge: "),
            (with("bridge", json!("0123456789abcdef")), "bridge: "),
            (with("ipam", Value::Null), "ipam: it is missing"),
            (with("ipam", json!({"subnet": "10.0.0.0/24"})), "ipam.type: it is missing"),
            (with("ipam", json!({"type": "host-local"})), "ipam.ranges: "),
            (with("ipam", json!({"type": "host-local", "subnet": 7})), "ipam.subnet: "),
            (with("ipam", json!({"type": "host-local", "ranges": [{"subnet": "x"}]})), "ipam.ranges[0]: "),
            (with("runtimeConfig", json!({"ips": ["x"]})), "runtimeConfig.ips: "),
            (with("args", json!({"cni": {"ips": ["10.0.0.0.1"]}})), "args.cni.ips: "),
        ];
        for (case, wanted) in cases {
            let failure = conf(case.clone()).unwrap_err();
            assert_eq!(failure.code, 7, "{case}: {failure:?}");
            assert!(failure.msg.starts_with(wanted), "{case}: {failure:?}");
        }
    }

    #[test]
    fn fault_008_what_is_known_and_not_built_is_refused_and_the_unknown_ignored() {
        for (key, value) in [
            ("ipMasq", json!(true)),
            ("mode", json!("ipvlan")),
            ("ipam", json!({"type": "dhcp"})),
            ("ipam", json!({"type": "../../bin/sh"})),
        ] {
            let failure = conf(with(key, value)).unwrap_err();
            assert_eq!(failure.code, 2, "{key}: {failure:?}");
        }
        assert!(conf(with("ipMasq", json!(false))).is_ok());
    }

    #[test]
    fn requested_addresses_come_from_both_places() {
        let mut value = with("args", json!({"cni": {"ips": ["10.1.0.9"]}}));
        value["runtimeConfig"] = json!({"ips": ["fd00::9/64"]});
        let wanted: Vec<IpAddr> = ["10.1.0.9", "fd00::9"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(conf(value).unwrap().requested, wanted);
    }

    #[test]
    fn delete_needs_a_name_and_nothing_else() {
        let place = |value: Value| Place::new(value.as_object().unwrap());
        assert!(place(json!({"name": "net", "ipam": {"subnet": []}, "mtu": "x"})).is_ok());
        let there = place(json!({"name": "net", "ipam": {"dataDir": "/x"}})).unwrap();
        assert_eq!(there.data_dir, PathBuf::from("/x"));
        assert_eq!(place(json!({})).unwrap_err().code, 7);
    }
}
