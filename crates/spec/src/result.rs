//! The answer to ADD (section 5, "Success"), in the shape of each version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::{Dns, Route, Version};

/// An interface that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Empty where Ethernet addresses mean nothing.
    pub mac: String,
    pub mtu: Option<u32>,
    /// The path of its namespace; `None` on the host.
    pub sandbox: Option<String>,
    /// Not of ours; other plugins of a chain say it.
    pub socket_path: Option<String>,
    /// Likewise.
    pub pci_id: Option<String>,
}

/// An address that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub address: IpNetwork,
    pub gateway: Option<IpAddr>,
    /// Index in [`Success::interfaces`]; an IPAM plugin knows of none.
    pub interface: Option<usize>,
}

/// What was done. Of an IPAM plugin: "abbreviated", without interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Success {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

impl Success {
    /// The object that `version` wants on standard output.
    pub fn to_json(&self, version: Version) -> Value {
        if version.has_one_address_a_family() {
            return self.to_json_0_2_0(version);
        }
        let interfaces: Vec<_> = self
            .interfaces
            .iter()
            .map(|interface| {
                let mut object = json!({ "name": interface.name });
                if !interface.mac.is_empty() {
                    object["mac"] = interface.mac.clone().into();
                }
                if let Some(sandbox) = &interface.sandbox {
                    object["sandbox"] = sandbox.clone().into();
                }
                if version >= Version::V1_1_0 {
                    if let Some(mtu) = interface.mtu {
                        object["mtu"] = mtu.into();
                    }
                    for (key, text) in [("socketPath", &interface.socket_path), ("pciID", &interface.pci_id)]
                    {
                        if let Some(text) = text {
                            object[key] = text.clone().into();
                        }
                    }
                }
                object
            })
            .collect();
        let ips: Vec<_> = self
            .ips
            .iter()
            .map(|ip| {
                let mut object = json!({ "address": ip.address.to_string() });
                if let Some(interface) = ip.interface {
                    object["interface"] = interface.into();
                }
                // Until 1.0.0, which reads it off the address.
                if version < Version::V1_0_0 {
                    object["version"] = if ip.address.is_ipv4() { "4" } else { "6" }.into();
                }
                if let Some(gateway) = ip.gateway {
                    object["gateway"] = gateway.to_string().into();
                }
                object
            })
            .collect();
        let routes: Vec<_> = self.routes.iter().map(|route| self::route(route, version)).collect();
        let mut object = json!({
            "cniVersion": version.as_str(),
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        });
        if !interfaces.is_empty() {
            object["interfaces"] = interfaces.into();
        }
        object
    }

    fn to_json_0_2_0(&self, version: Version) -> Value {
        let mut object = json!({ "cniVersion": version.as_str(), "dns": self.dns });
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let routes: Vec<_> = self
                .routes
                .iter()
                .filter(|route| route.dst.is_ipv4() == v4)
                .map(|route| self::route(route, version))
                .collect();
            let mut family = json!({ "ip": ip.address.to_string(), "routes": routes });
            if let Some(gateway) = ip.gateway {
                family["gateway"] = gateway.to_string().into();
            }
            object[key] = family;
        }
        object
    }
}

fn route(route: &Route, version: Version) -> Value {
    let mut object = json!({ "dst": route.dst.to_string() });
    if let Some(gw) = route.gw {
        object["gw"] = gw.to_string().into();
    }
    if version >= Version::V1_1_0 {
        let numbers = [
            ("mtu", route.mtu),
            ("advmss", route.advmss),
            ("priority", route.priority),
            ("table", route.table),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                object[key] = number.into();
            }
        }
        if let Some(scope) = route.scope {
            object["scope"] = scope.into();
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SUPPORTED;

    fn success() -> Success {
        let route = |dst: &str, gw: Option<&str>| Route {
            dst: dst.parse().unwrap(),
            gw: gw.map(|gw| gw.parse().unwrap()),
            mtu: Some(1400),
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        };
        let ip = |address: &str, gateway: &str| Ip {
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
            interface: Some(1),
        };
        Success {
            interfaces: vec![
                Interface {
                    name: "hdl0".into(),
                    mac: "06:00:00:00:00:01".into(),
                    mtu: Some(1450),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: Some(1450),
                    sandbox: Some("/ns".into()),
                    ..Interface::default()
                },
            ],
            ips: vec![ip("10.1.0.2/32", "10.1.0.1"), ip("fd00::2/128", "fe80::1")],
            routes: vec![route("0.0.0.0/0", None), route("::/0", Some("fe80::1"))],
            dns: Dns::default(),
        }
    }

    #[test]
    fn fault_011_every_version_has_its_own_shape() {
        for version in SUPPORTED {
            let json = success().to_json(version);
            assert_eq!(json["cniVersion"], version.as_str());
            assert!(json["dns"].is_object());
            if version <= Version::V0_2_0 {
                assert_eq!(
                    json["ip4"],
                    json!({"ip":"10.1.0.2/32","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]})
                );
                assert_eq!(json["ip6"]["routes"][0]["gw"], "fe80::1");
                assert!(json.get("ips").is_none() && json.get("interfaces").is_none());
                continue;
            }
            assert_eq!(json["interfaces"][1]["sandbox"], "/ns");
            assert!(json["interfaces"][0].get("sandbox").is_none());
            assert_eq!(json["ips"][1]["interface"], 1);
            assert_eq!(json["ips"][1].get("version").is_some(), version < Version::V1_0_0);
            assert_eq!(json["interfaces"][0].get("mtu").is_some(), version >= Version::V1_1_0);
            assert_eq!(json["routes"][0].get("mtu").is_some(), version >= Version::V1_1_0);
            assert_eq!(json["routes"][1]["gw"], "fe80::1");
        }
    }

    #[test]
    fn an_address_of_one_family_is_enough() {
        let mut one = success();
        one.ips.truncate(1);
        assert!(one.to_json(Version::V0_2_0).get("ip6").is_none());
    }
}
