//! The section `ipam`: where the pods' addresses come from.

use heddle_ipam::{Config, Pool, RangeConfig};
use heddle_spec::{Failure, Version, code, json};
use serde_json::{Map, Value};

use super::invalid;
use crate::delegate;

/// IPAM plugins that are built in, by the names that they have as programs.
const BUILT_IN: [&str; 2] = ["host-local", "heddle-ipam"];

/// Where addresses come from.
#[derive(Debug)]
pub enum Ipam {
    /// Nowhere: pods have an interface and no address (of ours).
    None,
    BuiltIn(Pool),
    /// A program of this name.
    Delegate(String),
}

impl Ipam {
    /// Reads the section. `ranges` are those that the runtime adds.
    pub fn read(
        object: &Map<String, Value>,
        version: Version,
        ranges: &[Vec<RangeConfig>],
    ) -> Result<Self, Failure> {
        let section = match object.get("ipam") {
            None | Some(Value::Null) => return Ok(Self::None),
            Some(Value::Object(section)) => section,
            Some(_) => return Err(invalid("ipam", "it is not an object")),
        };
        // What else stands in a delegate's section is the delegate's business.
        match section.get("type") {
            None | Some(Value::Null) if section.is_empty() => Ok(Self::None),
            None | Some(Value::Null) => Err(invalid("ipam.type", "it is missing")),
            Some(Value::String(name)) if name.is_empty() => Err(invalid("ipam.type", "it is missing")),
            Some(Value::String(name)) if !BUILT_IN.contains(&name.as_str()) => Self::delegate(name),
            _ => Self::built_in(object, version, ranges),
        }
    }

    fn delegate(name: &str) -> Result<Self, Failure> {
        if !delegate::name_is_valid(name) {
            let shown: String = name.chars().take(64).collect();
            return Err(invalid("ipam.type", format!("{shown:?} cannot be the name of a plugin")));
        }
        if name == "dhcp" {
            return Err(Failure::new(
                code::UNSUPPORTED_FIELD,
                "ipam.type: \"dhcp\" asks through the pod's interface, and heddle makes that when it has the addresses",
            ));
        }
        Ok(Self::Delegate(name.to_owned()))
    }

    fn built_in(
        object: &Map<String, Value>,
        version: Version,
        ranges: &[Vec<RangeConfig>],
    ) -> Result<Self, Failure> {
        // With the key in it, so that an error names it from the top.
        #[derive(serde::Deserialize)]
        struct Section {
            ipam: Config,
        }
        let section =
            Map::from_iter(object.get_key_value("ipam").map(|(key, ipam)| (key.clone(), ipam.clone())));
        let Section { mut ipam } = json::typed(Value::Object(section))?;
        // As the reference plugin does: what the runtime says comes first.
        ipam.ranges.splice(0..0, ranges.iter().cloned());
        let pool = ipam.pool()?;
        let families = |v4: bool| pool.sets.iter().filter(|set| set.is_ipv4() == v4).count();
        if version.has_one_address_a_family() && (families(true) > 1 || families(false) > 1) {
            return Err(invalid("ipam.ranges", format!("CNI version {version} has one address a family")));
        }
        Ok(Self::BuiltIn(pool))
    }

    /// The delegate that a configuration names, however wrong the rest of it may be.
    pub fn delegate_of(object: &Map<String, Value>) -> Option<String> {
        let name = object.get("ipam")?.get("type")?.as_str()?;
        let ours = BUILT_IN.contains(&name) || !delegate::name_is_valid(name);
        (!ours).then(|| name.to_owned())
    }

    /// The ranges, if they are ours to give from.
    pub const fn pool(&self) -> Option<&Pool> {
        match self {
            Self::BuiltIn(pool) => Some(pool),
            Self::None | Self::Delegate(_) => None,
        }
    }
}
