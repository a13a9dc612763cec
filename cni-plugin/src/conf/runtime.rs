//! What the runtime asks for one pod: capabilities (`runtimeConfig`), and `args.cni`.

use std::net::IpAddr;

use heddle_ipam::RangeConfig;
use heddle_netlink::MacAddr;
use heddle_spec::{Dns, Failure, code, json, mac};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invalid;

/// The keys as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
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
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Capabilities {
    ips: Vec<String>,
    mac: String,
    ip_ranges: Vec<Vec<RangeConfig>>,
    dns: Option<CapabilityDns>,
    #[serde(rename = "deviceID")]
    device_id: String,
    #[serde(rename = "infinibandGUID")]
    infiniband_guid: String,
    aliases: Vec<String>,
}

/// The capability's keys are not the result's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CapabilityDns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Default)]
pub struct Runtime {
    /// Addresses, with or without prefix length where they were written.
    pub ips: Vec<IpAddr>,
    /// Ranges before those of the configuration.
    pub ranges: Vec<Vec<RangeConfig>>,
    /// The Ethernet address of the pod's interface.
    pub mac: Option<MacAddr>,
    pub dns: Dns,
}

impl Runtime {
    /// Reads the keys. `cgroupPath` is taken and not needed; what is not known at all is ignored.
    ///
    /// # Errors
    /// Code 2 for a capability that is another plugin's work: the operator has declared it for us, and a pod
    /// that goes without would not be told.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        if !object.contains_key("runtimeConfig") && !object.contains_key("args") {
            return Ok(Self::default());
        }
        let keys = ["args", "runtimeConfig"].into_iter();
        let own = keys.filter_map(|key| Some((key.to_owned(), object.get(key)?.clone()))).collect();
        let raw: Raw = json::typed(Value::Object(own))?;
        let args = raw.args.and_then(|args| args.cni).unwrap_or_default();
        let asked = raw.runtime_config.unwrap_or_default();
        let foreign = [
            ("deviceID", !asked.device_id.is_empty(), &asked.device_id),
            ("infinibandGUID", !asked.infiniband_guid.is_empty(), &asked.infiniband_guid),
            ("aliases", !asked.aliases.is_empty(), &asked.aliases.join(" ")),
        ];
        if let Some((key, _, value)) = foreign.iter().find(|(_, set, _)| *set) {
            let shown: String = value.chars().take(64).collect();
            return Err(Failure::new(
                code::UNSUPPORTED_FIELD,
                format!("runtimeConfig.{key}: {shown:?} is nothing that heddle can give a pod"),
            )
            .with_details(format!("leave {key} out of the capabilities of this plugin")));
        }
        let args_mac = mac_of("args.cni.mac", &args.mac)?;
        let dns = asked.dns.unwrap_or_default();
        Ok(Self {
            ips: addresses(&args.ips, &asked.ips)?,
            ranges: asked.ip_ranges,
            // As in the reference plugin `bridge`.
            mac: mac_of("runtimeConfig.mac", &asked.mac)?.or(args_mac),
            dns: Dns {
                nameservers: dns.servers,
                search: dns.searches,
                options: dns.options,
                ..Dns::default()
            },
        })
    }

    /// The Ethernet address, as far as it can be read: for DEL.
    pub fn mac_of(object: &Map<String, Value>) -> Option<MacAddr> {
        let asked = object.get("runtimeConfig").and_then(|config| config.get("mac"));
        let args = || object.get("args")?.get("cni")?.get("mac");
        mac::parse(asked.or_else(args)?.as_str()?).ok()
    }
}

fn mac_of(key: &str, text: &str) -> Result<Option<MacAddr>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    mac::parse(text).map(Some).map_err(|reason| invalid(key, reason))
}

fn addresses(args: &[String], asked: &[String]) -> Result<Vec<IpAddr>, Failure> {
    let args = args.iter().map(|ip| ("args.cni.ips", ip));
    let asked = asked.iter().map(|ip| ("runtimeConfig.ips", ip));
    args.chain(asked)
        .map(|(key, text)| {
            let bare = text.split('/').next().unwrap_or_default();
            bare.parse().map_err(|_| invalid(key, format!("{text:?} is not an IP address")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Runtime, Failure> {
        Runtime::read(value.as_object().unwrap())
    }

    #[test]
    fn addresses_come_from_both_places_and_one_ethernet_address_from_the_capability() {
        let asked = json!({
            "args": {"cni": {"ips": ["10.1.0.9"], "mac": "02:00:00:00:00:01", "labels": []}},
            "runtimeConfig": {
                "ips": ["fd00::9/64"], "mac": "02:00:00:00:00:02", "cgroupPath": "/kubepods/x",
                "dns": {"servers": ["10.96.0.10"], "searches": ["svc"], "options": ["ndots:5"]},
                "unknown": {}
            }
        });
        let runtime = read(asked.clone()).unwrap();
        let wanted: Vec<IpAddr> = ["10.1.0.9", "fd00::9"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(runtime.ips, wanted);
        assert_eq!(runtime.mac, Some([2, 0, 0, 0, 0, 2]));
        assert_eq!(runtime.mac, Runtime::mac_of(asked.as_object().unwrap()));
        let dns = json!({"nameservers": ["10.96.0.10"], "search": ["svc"], "options": ["ndots:5"]});
        assert_eq!(serde_json::to_value(runtime.dns).unwrap(), dns);
        let args =
            read(json!({"args": {"cni": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig": null})).unwrap();
        assert_eq!(args.mac, Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_makes_no_sense_or_is_anothers_work_is_refused_by_key() {
        let cases = [
            (json!({"runtimeConfig": {"ips": ["x"]}}), 7, "runtimeConfig.ips: "),
            (json!({"runtimeConfig": {"ips": "10.0.0.1"}}), 7, "runtimeConfig.ips: "),
            (json!({"runtimeConfig": {"mac": "x"}}), 7, "runtimeConfig.mac: "),
            (json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), 7, "runtimeConfig.mac: "),
            (json!({"args": {"cni": {"ips": ["10.0.0.0.1"]}}}), 7, "args.cni.ips: "),
            (json!({"args": {"cni": {"mac": "00:00:00:00:00:00"}}}), 7, "args.cni.mac: "),
            (
                json!({"runtimeConfig": {"deviceID": "0000:00:1f.6"}}),
                2,
                "runtimeConfig.deviceID: \"0000:00:1f.6\"",
            ),
            (json!({"runtimeConfig": {"infinibandGUID": "x"}}), 2, "runtimeConfig.infinibandGUID: \"x\""),
            (json!({"runtimeConfig": {"aliases": ["a", "b"]}}), 2, "runtimeConfig.aliases: \"a b\""),
        ];
        for (case, code, wanted) in cases {
            let failure = read(case.clone()).unwrap_err();
            assert_eq!(failure.code, code, "{case}: {failure:?}");
            assert!(failure.msg.starts_with(wanted), "{case}: {failure:?}");
        }
        assert!(read(json!({"runtimeConfig": {"aliases": [], "deviceID": ""}})).is_ok());
    }
}
