//! The network configuration: what the operator wants, checked before anything is done.
//!
//! Each section reads its own keys from the object as it came and says what it means or names the key that makes
//! no sense; here they come together.

mod bandwidth;
mod bridge;
mod deletion;
mod hostport;
mod ipam;
mod ipvlan;
mod masquerade;
mod runtime;
mod told;
mod tuning;

pub use bandwidth::{Bandwidth, Limit};
pub use bridge::{Bridge, Vlans};
pub use deletion::Deletion;
pub use hostport::{HostPorts, On, Protocol};
pub use ipam::Ipam;
pub use ipvlan::Ipvlan;
pub use runtime::Runtime;
pub use told::with_value;
pub use tuning::{Setting, Tuning};

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_netlink::MacAddr;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::mode::ptp;
use heddle_spec::{Dns, Failure, Network, Success, Version, code, invalid, json};

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
    master: Option<String>,
    dns: Dns,
    /// Where the BPF file system is mounted.
    bpf_root: Option<String>,
    /// Where what does not outlive the boot is kept.
    run_dir: Option<String>,
}

/// How a pod is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A veth pair, a route of its own on the host, nothing shared with other pods.
    Ptp,
    Bridge(Bridge),
    /// The host's interface, shared; no side of it on the host.
    Ipvlan(Ipvlan),
}

/// A configuration that makes sense.
#[derive(Debug)]
pub struct Conf {
    pub network: Network,
    pub mode: Mode,
    /// The kernel's default if not given.
    pub mtu: Option<u32>,
    pub ipam: Ipam,
    /// Addresses that the runtime asks for.
    pub requested: Vec<IpAddr>,
    /// The Ethernet address of the pod's interface, if it is not to be ours to choose.
    pub mac: Option<MacAddr>,
    /// What leaves the pod's network leaves in the node's name.
    pub masquerade: bool,
    pub dns: Dns,
    /// What the plugins before this one did.
    pub previous: Option<Success>,
    pub tuning: Tuning,
    pub bandwidth: Bandwidth,
    pub host_ports: HostPorts,
    pub bpf_root: PathBuf,
    pub run_dir: PathBuf,
}

/// What DEL needs: less, so that a configuration that is wrong by now cannot keep anything alive.
#[derive(Debug)]
pub struct Place {
    pub network: Network,
    pub data_dir: PathBuf,
    /// Who gave the addresses, if it was not we.
    pub delegate: Option<String>,
    pub mac: Option<MacAddr>,
    pub bpf_root: PathBuf,
    /// Where records are that end with the boot.
    pub run_dir: PathBuf,
    pub deletion: Deletion,
}

const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";
const DEFAULT_RUN_DIR: &str = "/run/heddle";

impl Conf {
    /// Checks a configuration for ADD.
    ///
    /// # Errors
    /// Code 7 for what makes no sense, code 2 for what makes sense and is not built; both name the key.
    pub fn new(object: &Map<String, Value>, version: Version) -> Result<Self, Failure> {
        let network = Network::of(object)?;
        let raw: Raw = json::typed(Value::Object(object.clone()))?;
        let mode = raw.mode(object)?;
        let runtime = Runtime::read(object)?;
        let ipam = Ipam::read(object, version, &runtime.ranges)?;
        match (&ipam, &mode) {
            (Ipam::None, Mode::Ptp) => return Err(invalid("ipam", "it is missing, and mode ptp needs it")),
            (Ipam::None, Mode::Bridge(bridge)) if bridge.is_gateway => {
                let key = if bridge.is_default_gateway { "isDefaultGateway" } else { "isGateway" };
                return Err(invalid(key, "without ipam there is no address for a gateway"));
            }
            (Ipam::None, Mode::Ipvlan(_)) if object.get("prevResult").is_none() => {
                return Err(invalid("ipam", "it is missing, and no plugin before has chosen addresses"));
            }
            _ => {}
        }
        if Deletion::read(object)? == Deletion::WithNamespace && matches!(mode, Mode::Ipvlan(_)) {
            let reason = "deleteInterface: mode ipvlan has none that could stay without its address";
            return Err(Failure::new(code::UNSUPPORTED_FIELD, reason));
        }
        let conf = Self {
            network,
            mode,
            mtu: raw.mtu.filter(|mtu| *mtu != 0),
            requested: runtime.ips,
            mac: runtime.mac,
            masquerade: masquerade::read(object)?,
            ipam,
            // What is said of one pod counts more than what is said of all.
            dns: if runtime.dns.is_empty() { raw.dns } else { runtime.dns },
            previous: previous(object, version)?,
            tuning: Tuning::read(object)?,
            bandwidth: Bandwidth::read(object)?,
            host_ports: HostPorts::read(object)?,
            bpf_root: raw.bpf_root.unwrap_or_else(|| DEFAULT_BPF_ROOT.into()).into(),
            run_dir: raw.run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into()).into(),
        };
        let pool = conf.ipam.pool();
        conf.check_ipvlan()?;
        if let (Mode::Ptp, Some(pool)) = (&conf.mode, pool) {
            ptp::check_pool(pool)?;
        }
        conf.check_mtu(pool.is_some_and(|pool| pool.sets.iter().any(|set| !set.is_ipv4())))?;
        Ok(conf)
    }

    /// Refuses what an interface without a side on the host, and without an Ethernet address of its own, cannot have.
    fn check_ipvlan(&self) -> Result<(), Failure> {
        let Mode::Ipvlan(_) = self.mode else { return Ok(()) };
        let refused = |key: &str, reason: &str| {
            Err(Failure::new(code::UNSUPPORTED_FIELD, format!("{key}: in mode ipvlan {reason}")))
        };
        match self {
            Self { masquerade: true, .. } => refused("ipMasq", "pods do not come by this host's NAT"),
            _ if !self.host_ports.mappings.is_empty() => {
                refused("runtimeConfig.portMappings", "the node and its pods do not reach each other")
            }
            _ if self.bandwidth != Bandwidth::default() => {
                refused("bandwidth", "a pod has no host side that could limit it")
            }
            Self { mac: Some(_), .. } => refused("mac", "a pod has the Ethernet address of its master"),
            _ => Ok(()),
        }
    }

    /// Refuses an MTU that the addresses cannot live with.
    pub fn check_mtu(&self, ipv6: bool) -> Result<(), Failure> {
        let least = if ipv6 { LEAST_MTU.1 } else { LEAST_MTU.0 };
        match self.mtu {
            Some(mtu) if !(least..=MOST_MTU).contains(&mtu) => {
                Err(invalid("mtu", format!("{mtu} is not between {least} and {MOST_MTU}")))
            }
            _ => Ok(()),
        }
    }
}

/// Reads `prevResult`, if there is one (an empty one, which a runtime may have kept of nothing, is none).
pub fn previous(object: &Map<String, Value>, version: Version) -> Result<Option<Success>, Failure> {
    match object.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(value) if value.as_object().is_some_and(Map::is_empty) => Ok(None),
        Some(value) => {
            let success =
                Success::from_json(value, version).map_err(|reason| invalid("prevResult", reason))?;
            Ok(Some(success))
        }
    }
}

impl Raw {
    fn mode(&self, object: &Map<String, Value>) -> Result<Mode, Failure> {
        match (self.mode.as_deref(), &self.bridge) {
            (None, None) if self.master.is_some() => {
                Err(invalid("master", "it belongs to mode ipvlan, and there is no mode"))
            }
            (Some("ptp"), _) | (None, None) => Ok(Mode::Ptp),
            (Some("bridge"), _) | (None, Some(_)) => Ok(Mode::Bridge(Bridge::read(object)?)),
            (Some(mode), _) if Ipvlan::is_meant(mode) => Ok(Mode::Ipvlan(Ipvlan::read(object)?)),
            (Some(other), _) => {
                let shown: String = other.chars().take(32).collect();
                Err(invalid("mode", format!("{shown:?} is not ptp, bridge or ipvlan")))
            }
        }
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
            network: Network::of(object)?,
            data_dir: text(data_dir, heddle_ipam::DEFAULT_DATA_DIR).into(),
            delegate: Ipam::delegate_of(object),
            mac: Runtime::mac_of(object),
            bpf_root: text(object.get("bpfRoot"), DEFAULT_BPF_ROOT).into(),
            run_dir: text(object.get("runDir"), DEFAULT_RUN_DIR).into(),
            deletion: Deletion::read(object).unwrap_or_default(),
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
        let wanted =
            Bridge { name: "br0".into(), is_gateway: true, preserve_default_vlan: true, ..Bridge::default() };
        assert_eq!(conf.mode, Mode::Bridge(wanted));
        assert_eq!(conf.ipam.pool().unwrap().routes[0].gw, "10.244.1.254".parse().ok());
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
            (with("ipam", json!([])), "ipam: "),
            (with("ipam", json!({"type": 7})), "ipam.type: "),
            (with("ipam", json!({"type": "../../bin/sh"})), "ipam.type: \"../../bin/sh\" cannot be"),
            (with("runtimeConfig", json!({"ips": ["x"]})), "runtimeConfig.ips: "),
            (with("args", json!({"cni": {"ips": ["10.0.0.0.1"]}})), "args.cni.ips: "),
            (with("dns", json!({"nameservers": "x"})), "dns.nameservers: "),
            (with("prevResult", json!({"ips": [{"address": "x"}]})), "prevResult: ips[0]: "),
            (with("prevResult", json!("x")), "prevResult: "),
        ];
        for (case, wanted) in cases {
            let failure = conf(case.clone()).unwrap_err();
            assert_eq!(failure.code, 7, "{case}: {failure:?}");
            assert!(failure.msg.starts_with(wanted), "{case}: {failure:?}");
        }
    }

    #[test]
    fn fault_008_what_is_known_and_not_built_is_refused_and_the_unknown_ignored() {
        let mut ipvlan = with("mode", json!("ipvlan"));
        let mut limited = ipvlan.clone();
        limited["ingressRate"] = json!(1000);
        let mut published = ipvlan.clone();
        published["runtimeConfig"] =
            json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]});
        ipvlan["ipMasq"] = json!(true);
        for refused in [ipvlan, limited, published, with("ipam", json!({"type": "dhcp"}))] {
            let failure = conf(refused.clone()).unwrap_err();
            assert_eq!(failure.code, 2, "{refused}: {failure:?}");
        }
        for (key, value) in [("ipMasq", json!(true)), ("ipMasqBackend", json!("iptables"))] {
            assert!(conf(with(key, value)).is_ok());
        }
    }

    #[test]
    fn without_ipam_there_is_a_bridge_and_nothing_that_needs_addresses() {
        let l2 = json!({"cniVersion": "1.1.0", "name": "lan", "type": "heddle", "mode": "bridge"});
        for ipam in [Value::Null, json!({})] {
            let mut wanted = l2.clone();
            wanted["ipam"] = ipam;
            assert!(matches!(conf(wanted.clone()).unwrap().ipam, Ipam::None));
            for key in ["isGateway", "isDefaultGateway"] {
                wanted[key] = json!(true);
                let failure = conf(wanted.clone()).unwrap_err();
                assert!(failure.code == 7 && failure.msg.starts_with(key), "{failure:?}");
            }
        }
        let delegated = conf(with("ipam", json!({"type": "static", "addresses": 7}))).unwrap();
        assert!(
            matches!(delegated.ipam, Ipam::Delegate(name) if name == "static"),
            "the rest is not ours to judge"
        );
    }

    #[test]
    fn delete_finds_a_delegate_in_a_configuration_that_is_broken() {
        let place = |ipam: Value| {
            Place::new(json!({"name": "net", "mtu": "x", "ipam": ipam}).as_object().unwrap())
                .unwrap()
                .delegate
        };
        assert_eq!(place(json!({"type": "static", "addresses": 7})).as_deref(), Some("static"));
        for none in [json!({"type": "host-local"}), json!({"type": "../x"}), json!({"type": 7}), json!(null)]
        {
            assert_eq!(place(none), None);
        }
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
