//! Reading results of other plugins: `prevResult` of a chain, and what an IPAM plugin answered.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{Dns, Interface, Ip, Route, Success, Version};

/// A list that may be absent or null (Go writes an empty one as null).
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// 0.3.0 and newer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    #[serde(deserialize_with = "list")]
    interfaces: Vec<RawInterface>,
    #[serde(deserialize_with = "list")]
    ips: Vec<RawIp>,
    #[serde(deserialize_with = "list")]
    routes: Vec<RawRoute>,
    dns: Option<Dns>,
}

#[derive(Debug, Deserialize)]
struct RawInterface {
    name: String,
    #[serde(default)]
    mac: String,
    mtu: Option<u32>,
    sandbox: Option<String>,
    #[serde(rename = "socketPath")]
    socket_path: Option<String>,
    #[serde(rename = "pciID")]
    pci_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawIp {
    address: String,
    gateway: Option<String>,
    interface: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct RawRoute {
    dst: String,
    gw: Option<String>,
    mtu: Option<u32>,
    advmss: Option<u32>,
    priority: Option<u32>,
    table: Option<u32>,
    scope: Option<u8>,
}

/// 0.1.0 and 0.2.0.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawOld {
    ip4: Option<RawFamily>,
    ip6: Option<RawFamily>,
    dns: Option<Dns>,
}

#[derive(Debug, Deserialize)]
struct RawFamily {
    ip: String,
    gateway: Option<String>,
    #[serde(default, deserialize_with = "list")]
    routes: Vec<RawRoute>,
}

impl Success {
    /// Reads a result. It says itself in which version's shape it is; `version` counts if it does not.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn from_json(value: &Value, version: Version) -> Result<Self, String> {
        let own = match value.get("cniVersion") {
            None | Some(Value::Null) => version,
            Some(Value::String(text)) if text.is_empty() => version,
            Some(Value::String(text)) => Version::parse(Some(text)).map_err(|failure| failure.msg)?,
            Some(_) => return Err("cniVersion: it is not a string".into()),
        };
        if !value.is_object() {
            return Err("it is not an object".into());
        }
        if own.has_one_address_a_family() { Self::from_old(value) } else { Self::from_new(value) }
    }

    fn from_new(value: &Value) -> Result<Self, String> {
        let raw: Raw = typed(value)?;
        let mut success = Self { dns: raw.dns.unwrap_or_default(), ..Self::default() };
        for interface in raw.interfaces {
            success.interfaces.push(Interface {
                name: interface.name,
                mac: interface.mac,
                mtu: interface.mtu,
                sandbox: interface.sandbox.filter(|path| !path.is_empty()),
                socket_path: interface.socket_path.filter(|path| !path.is_empty()),
                pci_id: interface.pci_id.filter(|id| !id.is_empty()),
            });
        }
        for (n, ip) in raw.ips.into_iter().enumerate() {
            let key = format!("ips[{n}]");
            if let Some(interface) = ip.interface
                && interface >= success.interfaces.len()
            {
                return Err(format!("{key}.interface: there is no interface {interface}"));
            }
            success.ips.push(address(&ip.address, ip.gateway, ip.interface, &key)?);
        }
        for (n, wanted) in raw.routes.into_iter().enumerate() {
            success.routes.push(route(wanted, &format!("routes[{n}]"))?);
        }
        Ok(success)
    }

    fn from_old(value: &Value) -> Result<Self, String> {
        let raw: RawOld = typed(value)?;
        let mut success = Self { dns: raw.dns.unwrap_or_default(), ..Self::default() };
        for (key, v4, family) in [("ip4", true, raw.ip4), ("ip6", false, raw.ip6)] {
            let Some(family) = family else { continue };
            let ip = address(&family.ip, family.gateway, None, key)?;
            if ip.address.is_ipv4() != v4 {
                return Err(format!("{key}: {} is not of this family", ip.address));
            }
            success.ips.push(ip);
            for (n, wanted) in family.routes.into_iter().enumerate() {
                success.routes.push(route(wanted, &format!("{key}.routes[{n}]"))?);
            }
        }
        Ok(success)
    }

    /// How many addresses of a family there are.
    pub fn count(&self, v4: bool) -> usize {
        self.ips.iter().filter(|ip| ip.address.is_ipv4() == v4).count()
    }

    /// Takes what a later plugin of the chain did behind what this result says.
    pub fn extend(&mut self, later: Self) {
        let before = self.interfaces.len();
        self.interfaces.extend(later.interfaces);
        self.ips
            .extend(later.ips.into_iter().map(|ip| Ip { interface: ip.interface.map(|n| n + before), ..ip }));
        self.routes.extend(later.routes);
        self.dns = std::mem::take(&mut self.dns).merged(later.dns);
    }
}

fn typed<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| format!("{}: {}", error.path(), error.inner()))
}

fn address(text: &str, gateway: Option<String>, interface: Option<usize>, key: &str) -> Result<Ip, String> {
    let address: IpNetwork = prefix(text).ok_or_else(|| format!("{key}: {} is no address", shown(text)))?;
    let gateway = self::gateway(gateway, address, &format!("{key}.gateway"))?;
    Ok(Ip { address, gateway, interface })
}

fn route(raw: RawRoute, key: &str) -> Result<Route, String> {
    let dst = prefix(&raw.dst).ok_or_else(|| format!("{key}.dst: {} is no prefix", shown(&raw.dst)))?;
    let gw = gateway(raw.gw, dst, &format!("{key}.gw"))?;
    Ok(Route {
        dst,
        gw,
        mtu: raw.mtu,
        advmss: raw.advmss,
        priority: raw.priority,
        table: raw.table,
        scope: raw.scope,
    })
}

fn gateway(text: Option<String>, of: IpNetwork, key: &str) -> Result<Option<IpAddr>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let gateway: IpAddr = text.parse().map_err(|_| format!("{key}: {} is no address", shown(&text)))?;
    if gateway.is_ipv4() != of.is_ipv4() {
        return Err(format!("{key}: {gateway} is not of the family of {of}"));
    }
    Ok(Some(gateway))
}

/// An address with its prefix length, which must be written.
fn prefix(text: &str) -> Option<IpNetwork> {
    if text.contains('/') { text.parse().ok() } else { None }
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::SUPPORTED;

    fn read(value: &Value) -> Result<Success, String> {
        Success::from_json(value, Version::V1_1_0)
    }

    fn whole() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "eth0", "mac": "00:11:22:33:44:66", "mtu": 1400, "sandbox": "/ns",
                 "socketPath": "/s", "pciID": "0000:00:1f.6"}
            ],
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
                    {"address": "fd00::5/64"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1200, "priority": 7,
                        "table": 100, "scope": 0}, {"dst": "::/0"}],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "a", "search": ["b"], "options": ["c"]}
        })
    }

    #[test]
    fn what_is_read_is_written_again() {
        assert_eq!(read(&whole()).unwrap().to_json(Version::V1_1_0), whole());
        let old = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
            "dns": {"nameservers": ["10.1.0.1"]}
        });
        assert_eq!(read(&old).unwrap().to_json(Version::V0_2_0), old);
        for version in SUPPORTED {
            let written = read(&whole()).unwrap().to_json(version);
            let again = read(&written).unwrap();
            assert_eq!(again.to_json(version), written, "{version}");
        }
    }

    #[test]
    fn a_result_that_does_not_say_is_of_the_configurations_version() {
        let old = json!({"ip4": {"ip": "10.1.0.5/16"}});
        assert_eq!(Success::from_json(&old, Version::V0_2_0).unwrap().ips.len(), 1);
        assert!(Success::from_json(&old, Version::V1_0_0).unwrap().ips.is_empty());
        let nulls = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
        assert_eq!(read(&nulls), Ok(Success::default()));
    }

    #[test]
    fn fault_023_what_is_no_result_is_told_by_its_place() {
        let with = |key: &str, value: Value| {
            let mut object = whole();
            object[key] = value;
            object
        };
        let cases = [
            (json!("nonsense"), "it is not an object"),
            (json!([]), "it is not an object"),
            (with("cniVersion", json!("9.9.9")), "cniVersion \"9.9.9\""),
            (with("cniVersion", json!(1)), "cniVersion: "),
            (with("interfaces", json!({})), "interfaces: "),
            (with("interfaces", json!([{}])), "interfaces[0]: "),
            (with("ips", json!([{"address": "10.1.0.5"}])), "ips[0]: "),
            (with("ips", json!([{"address": "10.1.0.5/33"}])), "ips[0]: "),
            (with("ips", json!([{"address": "10.1.0.5/16", "interface": 2}])), "ips[0].interface: "),
            (with("ips", json!([{"address": "10.1.0.5/16", "interface": -1}])), "ips[0].interface: "),
            (with("ips", json!([{"address": "10.1.0.5/16", "gateway": "fd00::1"}])), "ips[0].gateway: "),
            (with("routes", json!([{"dst": "x"}])), "routes[0].dst: "),
            (with("routes", json!([{"dst": "10.0.0.0/8", "gw": "x"}])), "routes[0].gw: "),
            (with("dns", json!({"nameservers": "x"})), "dns.nameservers: "),
            (json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}), "ip4: "),
            (json!({"cniVersion": "0.1.0", "ip6": {"ip": "x"}}), "ip6: "),
        ];
        for (case, wanted) in cases {
            let error = read(&case).unwrap_err();
            assert!(error.starts_with(wanted), "{case}: {error}");
        }
    }

    #[test]
    fn a_later_plugins_interfaces_come_behind_and_are_meant_by_its_addresses() {
        let mut chain = read(&whole()).unwrap();
        chain.extend(read(&whole()).unwrap());
        let indices: Vec<_> = chain.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indices, [Some(1), None, Some(3), None]);
        assert_eq!((chain.interfaces.len(), chain.routes.len(), chain.dns.nameservers.len()), (4, 4, 1));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[0-9a-f.:/]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 32, 4, |inner| {
            let key = prop::sample::select(vec![
                "cniVersion",
                "interfaces",
                "ips",
                "ip4",
                "ip6",
                "ip",
                "address",
                "gateway",
                "interface",
                "routes",
                "dst",
                "gw",
                "name",
                "dns",
                "x",
            ]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(value in json()) {
            for version in SUPPORTED {
                drop(Success::from_json(&value, version));
            }
        }
    }
}
