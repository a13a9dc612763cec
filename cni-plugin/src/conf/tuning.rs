//! The keys of the reference tuning plugin: kernel parameters of the pod's namespace, and what its interface is to be.
//! (`mac` and `mtu` are keys of the modes.)

use std::collections::BTreeMap;

use heddle_netlink::sysctl::Key;
use heddle_spec::Failure;
use serde_json::{Map, Value};

use super::invalid;

/// In a parameter's name: the pod's interface.
const PLACEHOLDER: &str = "IFNAME";
/// No parameter takes more (`proc_do*` work on one page).
const LONGEST_VALUE: usize = 4095;

/// A kernel parameter that the pod is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As it was written, for messages and for the list of what is allowed.
    pub name: String,
    components: Vec<String>,
    pub value: String,
}

impl Setting {
    /// The parameter, for a pod whose interface is called `ifname`.
    pub fn key(&self, ifname: &str) -> Key {
        Key::new(self.components.iter().map(|component| component.replace(PLACEHOLDER, ifname)))
    }
}

/// What is to be changed in the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    pub sysctls: Vec<Setting>,
    pub promiscuous: Option<bool>,
    pub all_multicast: Option<bool>,
    /// Packets.
    pub queue: Option<u32>,
}

impl Tuning {
    /// Reads the keys of this section; `args.cni` comes after the configuration, and wins.
    ///
    /// # Errors
    /// Code 7 names the key that makes no sense.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        let mut tuning = Self::default();
        let mut settings = BTreeMap::new();
        tuning.section("", object, &mut settings)?;
        if let Some(Value::Object(args)) = object.get("args").and_then(|args| args.get("cni")) {
            tuning.section("args.cni.", args, &mut settings)?;
        }
        tuning.sysctls = settings.into_values().collect();
        Ok(tuning)
    }

    fn section(
        &mut self,
        prefix: &str,
        section: &Map<String, Value>,
        settings: &mut BTreeMap<Vec<String>, Setting>,
    ) -> Result<(), Failure> {
        let switch = |key: &str| match section.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(invalid(&format!("{prefix}{key}"), "it is neither true nor false")),
        };
        // `false` is what a new interface is.
        self.promiscuous = switch("promisc")?.or(self.promiscuous);
        self.all_multicast = switch("allmulti")?.or(self.all_multicast);
        // The plugin's name for it and everybody's.
        for key in ["txqueuelen", "txQLen"] {
            if let Some(value) = section.get(key).filter(|value| !value.is_null()) {
                let queue = value.as_u64().and_then(|queue| u32::try_from(queue).ok());
                let queue = queue.filter(|queue| i32::try_from(*queue).is_ok());
                self.queue = Some(queue.ok_or_else(|| {
                    invalid(&format!("{prefix}{key}"), format!("{value} is not a number of packets"))
                })?);
            }
        }
        let list = match section.get("sysctl") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(list)) => list,
            Some(_) => return Err(invalid(&format!("{prefix}sysctl"), "it is not an object")),
        };
        let mut own = BTreeMap::new();
        for (name, value) in list {
            let shown: String = name.chars().take(128).collect();
            let wrong = |reason: &str| invalid(&format!("{prefix}sysctl"), format!("{shown:?}: {reason}"));
            let components = components(name).map_err(wrong)?;
            let value = value.as_str().ok_or_else(|| wrong("its value is not a string"))?;
            if value.is_empty() || value.len() > LONGEST_VALUE || value.contains('\0') {
                return Err(wrong("its value is empty, too long, or has a zero in it"));
            }
            let setting = Setting { name: name.clone(), components: components.clone(), value: value.into() };
            if own.insert(components, setting).is_some() {
                return Err(wrong("it is there twice, written differently"));
            }
        }
        settings.extend(own);
        Ok(())
    }
}

/// The components of a parameter's path below /proc/sys.
///
/// As sysctl(8) reads it: whichever of `.` and `/` comes first separates; after a `.`, a `/` stands for a dot within a
/// component (`net.ipv4.conf.eth0/100.rp_filter`).
fn components(name: &str) -> Result<Vec<String>, &'static str> {
    let separator = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    let components: Vec<String> = match separator {
        Some(b'/') => name.split('/').map(str::to_owned).collect(),
        Some(_) => name.split('.').map(|component| component.replace('/', ".")).collect(),
        None => vec![name.to_owned()],
    };
    if components.first().is_none_or(|first| first != "net") || components.len() < 2 {
        return Err("only parameters below net belong to a pod's namespace");
    }
    let is_name = |component: &String| {
        !matches!(component.as_str(), "" | "." | "..")
            && component.len() <= 64
            && component.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\'))
    };
    if !components.iter().all(is_name) {
        return Err("it is not the name of a parameter");
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Tuning, Failure> {
        Tuning::read(value.as_object().unwrap())
    }

    fn key(name: &str) -> String {
        let tuning = read(json!({"sysctl": {name: "1"}})).unwrap();
        tuning.sysctls[0].key("eth0.7").to_string()
    }

    #[test]
    fn names_are_read_as_sysctl_reads_them() {
        assert_eq!(key("net.core.somaxconn"), "net/core/somaxconn");
        assert_eq!(key("net/core/somaxconn"), "net/core/somaxconn");
        assert_eq!(key("net.ipv4.conf.IFNAME.arp_filter"), "net/ipv4/conf/eth0.7/arp_filter");
        assert_eq!(key("net.ipv4.conf.eth0/100.arp_filter"), "net/ipv4/conf/eth0.100/arp_filter");
        assert_eq!(key("net/ipv4/conf/eth0.100/arp_filter"), "net/ipv4/conf/eth0.100/arp_filter");
        assert_eq!(
            key("net.ipv4.neigh.IFNAME.base_reachable_time_ms"),
            "net/ipv4/neigh/eth0.7/base_reachable_time_ms"
        );
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = format!("net.{}", "x".repeat(65));
        for name in [
            "",
            "net",
            "net.",
            "kernel.core_pattern",
            "kernel/core_pattern",
            "vm.swappiness",
            "fs.file-max",
            "net/../kernel/core_pattern",
            "net/./../kernel/core_pattern",
            "net.//.kernel.core_pattern",
            "net..kernel",
            "/net/core/somaxconn",
            "//net/core/somaxconn",
            "../net/core/somaxconn",
            "/proc/sys/net/core/somaxconn",
            "net//core/somaxconn",
            "net/core/",
            "net.core.",
            "net.ipv4.conf.//.x",
            "net.core.so maxconn",
            "net.core.somaxconn\n",
            "net.core.som\0axconn",
            "net.core.somaxconn\\",
            "net.cöre.x",
            "NET.core.somaxconn",
            "sys.net.core",
            ".net.core",
            &long,
        ] {
            let failure = read(json!({"sysctl": {name: "1"}})).unwrap_err();
            assert!(failure.code == 7 && failure.msg.starts_with("sysctl: "), "{name:?}: {failure:?}");
        }
        for value in
            [json!(1), json!(true), Value::Null, json!(""), json!("1\u{0}2"), json!("x".repeat(5000))]
        {
            let failure = read(json!({"sysctl": {"net.core.somaxconn": value}})).unwrap_err();
            assert_eq!(failure.code, 7, "{value}: {failure:?}");
        }
        let twice = read(json!({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}}));
        assert!(twice.unwrap_err().msg.contains("twice"));
    }

    #[test]
    fn what_the_arguments_say_wins() {
        let tuning = read(json!({
            "promisc": true, "txQLen": 10, "allmulti": true, "sysctl": {"net.core.somaxconn": "1", "net.a.b": "2"},
            "args": {"cni": {"promisc": false, "txQLen": 20, "sysctl": {"net/core/somaxconn": "9"}}}
        }))
        .unwrap();
        assert_eq!(
            (tuning.promiscuous, tuning.all_multicast, tuning.queue),
            (Some(false), Some(true), Some(20))
        );
        let values: Vec<_> = tuning.sysctls.iter().map(|setting| setting.value.as_str()).collect();
        assert_eq!(values, ["2", "9"]);
        assert_eq!(read(json!({"txqueuelen": 0})).unwrap().queue, Some(0));
        for value in [
            json!({"txQLen": -1}),
            json!({"txQLen": 1u64 << 31}),
            json!({"txqueuelen": "5"}),
            json!({"promisc": 1}),
            json!({"allmulti": "yes"}),
            json!({"sysctl": []}),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().code, 7, "{value}");
        }
        assert_eq!(read(json!({})).unwrap(), Tuning::default());
    }
}
