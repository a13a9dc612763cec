//! Capability `portMappings`, and the keys of the reference portmap plugin.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use heddle_spec::{Failure, code, json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::invalid;

const KEY: &str = "runtimeConfig.portMappings";

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Which of the node's addresses a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    /// All of both families.
    Any,
    /// All of one family: `0.0.0.0` or `::`.
    Family {
        v4: bool,
    },
    One(IpAddr),
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub on: On,
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
    /// Its place in the list, for messages.
    pub position: usize,
}

/// What a pod publishes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    pub mappings: Vec<Mapping>,
    /// Translate the client's address where the answer would not come back through the host otherwise: the pod
    /// itself, pods on its bridge.
    pub snat: bool,
    /// Translate every client's address.
    pub masquerade_all: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: Option<String>,
}

impl HostPorts {
    /// Reads the keys of this section.
    ///
    /// # Errors
    /// Code 7 names the entry that makes no sense; code 2 what cannot be done.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        refuse_what_is_iptables(object)?;
        let switch = |key: &str, default: bool| match object.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(invalid(key, "it is neither true nor false")),
        };
        let (snat, masquerade_all) = (switch("snat", true)?, switch("masqAll", false)?);
        let list = object.get("runtimeConfig").and_then(|runtime| runtime.get("portMappings"));
        let list = match list {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(list)) => list,
            Some(_) => return Err(invalid(KEY, "it is not a list")),
        };
        let mappings = mappings(list)?;
        Ok(Self { mappings, snat, masquerade_all })
    }
}

/// Keys of the reference plugin that are words of iptables. `markMasqBit` is borne: no packet is marked, so there is
/// no bit to choose.
fn refuse_what_is_iptables(object: &Map<String, Value>) -> Result<(), Failure> {
    for key in ["conditionsV4", "conditionsV6", "externalSetMarkChain"] {
        if object.get(key).is_some_and(|value| !value.is_null()) {
            let reason =
                "host ports are elements of nf_tables maps, which have no iptables conditions or chains";
            return Err(Failure::new(code::UNSUPPORTED_FIELD, format!("{key}: {reason}")));
        }
    }
    match object.get("backend") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(backend)) if backend == "nftables" => Ok(()),
        Some(_) => Err(Failure::new(code::UNSUPPORTED_FIELD, "backend: it is always nftables")),
    }
}

fn mappings(list: &[Value]) -> Result<Vec<Mapping>, Failure> {
    let mut mappings: Vec<Mapping> = Vec::with_capacity(list.len());
    let mut seen: BTreeMap<(On, Protocol, u16), usize> = BTreeMap::new();
    for (position, entry) in list.iter().enumerate() {
        let mapping = mapping(position, entry)?;
        match seen.insert((mapping.on, mapping.protocol, mapping.host_port), position) {
            // Said twice with the same words.
            Some(before) if list.get(before) == Some(entry) => {}
            Some(before) => {
                return Err(invalid(
                    &format!("{KEY}[{position}]"),
                    format!("{} port {} is in entry {before} already", mapping.protocol, mapping.host_port),
                ));
            }
            None => mappings.push(mapping),
        }
    }
    Ok(mappings)
}

fn mapping(position: usize, entry: &Value) -> Result<Mapping, Failure> {
    let entry_key = format!("{KEY}[{position}]");
    let raw: Raw = json::typed(entry.clone()).map_err(|failure| invalid(&entry_key, failure.msg))?;
    let port = |name: &str, number: i64| match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(invalid(&format!("{entry_key}.{name}"), format!("{number} is not between 1 and 65535"))),
    };
    let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let shown: String = raw.protocol.chars().take(16).collect();
            return Err(invalid(
                &format!("{entry_key}.protocol"),
                format!("{shown:?} is not tcp, udp or sctp"),
            ));
        }
    };
    Ok(Mapping {
        on: on(&format!("{entry_key}.hostIP"), raw.host_ip.as_deref().unwrap_or_default())?,
        protocol,
        host_port: port("hostPort", raw.host_port)?,
        container_port: port("containerPort", raw.container_port)?,
        position,
    })
}

fn on(key: &str, text: &str) -> Result<On, Failure> {
    if text.is_empty() {
        return Ok(On::Any);
    }
    let shown: String = text.chars().take(64).collect();
    let ip: IpAddr = text.parse().map_err(|_| invalid(key, format!("{shown:?} is not an IP address")))?;
    // An IPv4 address in IPv6 clothes: which family it is for would be anybody's guess.
    let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_multicast() || mapped || link_local || broadcast {
        return Err(invalid(key, format!("{ip} cannot be reached as an address of the node's own")));
    }
    if ip.is_loopback() {
        let reason = format!("{ip}: a pod cannot be reached from a loopback address without route_localnet");
        return Err(Failure::new(code::UNSUPPORTED_FIELD, format!("{key}: {reason}"))
            .with_details("route_localnet would open every port of 127.0.0.1 to the node's neighbours"));
    }
    Ok(if ip.is_unspecified() { On::Family { v4: ip.is_ipv4() } } else { On::One(ip) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<HostPorts, Failure> {
        HostPorts::read(value.as_object().unwrap())
    }

    fn one(entry: Value) -> Result<HostPorts, Failure> {
        read(json!({"runtimeConfig": {"portMappings": [entry]}}))
    }

    #[test]
    fn what_runtimes_send_is_understood() {
        let ports =
            read(json!({"markMasqBit": 13, "backend": "nftables", "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "0.0.0.0"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "0.0.0.0"},
                {"hostPort": 65535, "containerPort": 1, "protocol": "sctp", "hostIP": "fd00::1"},
            ]}}))
            .unwrap();
        let [a, b, c] = ports.mappings[..] else { panic!("{ports:?}") };
        assert_eq!((a.on, a.protocol, a.host_port, a.container_port), (On::Any, Protocol::Tcp, 8080, 80));
        assert_eq!((b.on, b.protocol), (On::Family { v4: true }, Protocol::Udp));
        assert_eq!((c.on, c.host_port), (On::One("fd00::1".parse().unwrap()), 65535));
        assert!(ports.snat && !ports.masquerade_all);
        assert!(read(json!({})).unwrap().mappings.is_empty());
        assert!(read(json!({"runtimeConfig": {"portMappings": null}})).unwrap().mappings.is_empty());
    }

    #[test]
    fn an_entry_that_makes_no_sense_is_named() {
        let with = |key: &str, value: Value| {
            let mut entry = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
            entry[key] = value;
            entry
        };
        for (entry, wanted) in [
            (with("hostPort", json!(0)), "[0].hostPort: 0 is not between 1 and 65535"),
            (with("hostPort", json!(65536)), "[0].hostPort: "),
            (with("hostPort", json!(-1)), "[0].hostPort: "),
            (with("hostPort", json!("80")), "[0]: hostPort: "),
            (with("hostPort", Value::Null), "[0]: hostPort: "),
            (with("containerPort", json!(0)), "[0].containerPort: "),
            (with("containerPort", json!(99999)), "[0].containerPort: "),
            (with("protocol", json!("icmp")), "[0].protocol: \"icmp\" is not tcp"),
            (with("protocol", json!("")), "[0].protocol: "),
            (with("hostIP", json!("1.2.3")), "[0].hostIP: "),
            (with("hostIP", json!("224.0.0.1")), "[0].hostIP: "),
            (with("hostIP", json!("::ffff:10.0.0.1")), "[0].hostIP: "),
            (with("hostIP", json!("fe80::1")), "[0].hostIP: "),
            (with("hostIP", json!("eth0")), "[0].hostIP: "),
            (json!(7), "[0]: "),
        ] {
            let failure = one(entry.clone()).unwrap_err();
            assert_eq!(failure.code, 7, "{entry}: {failure:?}");
            let key = format!("{KEY}{wanted}");
            assert!(failure.msg.starts_with(&key), "{entry}: {failure:?} instead of {key}");
        }
        let twice = read(json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 81, "protocol": "TCP"}]}}));
        assert!(
            twice.unwrap_err().msg.starts_with("runtimeConfig.portMappings[1]: tcp port 8080 is in entry 0")
        );
        for value in
            [json!({"snat": 1}), json!({"masqAll": "yes"}), json!({"runtimeConfig": {"portMappings": {}}})]
        {
            assert_eq!(read(value).unwrap_err().code, 7);
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for value in [
            json!({"conditionsV4": ["-d", "1.2.3.4"]}),
            json!({"conditionsV6": []}),
            json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}),
            json!({"backend": "iptables"}),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().code, 2, "{value}");
        }
        for ip in ["127.0.0.1", "127.9.9.9", "::1"] {
            let failure =
                one(json!({"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": ip})).unwrap_err();
            assert!(failure.code == 2 && failure.msg.contains("route_localnet"), "{failure:?}");
        }
    }
}
