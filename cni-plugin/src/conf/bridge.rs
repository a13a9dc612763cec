//! Mode `bridge`: the keys of the reference plugin.

use heddle_netlink::link;
use heddle_spec::{Failure, code, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invalid;

/// The bridge if the configuration names none.
const DEFAULT: &str = "cni0";

/// The keys as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: Option<u32>,
    vlan_trunk: Option<Value>,
    macspoofchk: bool,
    port_isolation: bool,
    disable_container_interface: bool,
}

/// A bridge, and what the pods' ends on it are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub name: String,
    /// The bridge has the ranges' gateway addresses.
    pub is_gateway: bool,
    /// And the pods' default routes go there.
    pub is_default_gateway: bool,
}

impl Bridge {
    /// Reads the keys of this mode.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        let raw: Raw = json::typed(Value::Object(object.clone()))?;
        raw.refuse_what_is_not_built()?;
        let name = raw.bridge.unwrap_or_else(|| DEFAULT.into());
        if !link::name_is_valid(&name) || matches!(name.as_str(), "lo" | "all" | "default") {
            return Err(invalid("bridge", format!("{name:?} cannot be the name of an interface")));
        }
        Ok(Self {
            name,
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
        })
    }
}

impl Raw {
    /// A key that is known and set, and that we would have to ignore: better said than ignored.
    fn refuse_what_is_not_built(&self) -> Result<(), Failure> {
        let set = [
            ("hairpinMode", self.hairpin_mode),
            ("promiscMode", self.promisc_mode),
            ("forceAddress", self.force_address),
            ("macspoofchk", self.macspoofchk),
            ("portIsolation", self.port_isolation),
            ("disableContainerInterface", self.disable_container_interface),
            ("vlan", self.vlan.is_some_and(|vlan| vlan != 0)),
            ("vlanTrunk", self.vlan_trunk.is_some()),
        ];
        match set.iter().find(|(_, set)| *set) {
            Some((key, _)) => {
                Err(Failure::new(code::UNSUPPORTED_FIELD, format!("{key}: it is not built yet")))
            }
            None => Ok(()),
        }
    }
}
