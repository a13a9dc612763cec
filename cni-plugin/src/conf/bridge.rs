//! Mode `bridge`: the keys of the reference plugin.

use std::collections::BTreeSet;

use heddle_netlink::bridge::Port;
use heddle_netlink::link;
use heddle_spec::{Failure, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invalid;

/// The bridge if the configuration names none.
const DEFAULT: &str = "cni0";
/// 4095 is reserved (IEEE 802.1Q-2018, table 9-2), 0 is no VLAN.
const LAST_VLAN: u32 = 4094;

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
    vlan: u32,
    vlan_trunk: Option<Vec<Trunk>>,
    preserve_default_vlan: Option<bool>,
    macspoofchk: Option<bool>,
    /// Ours.
    ipspoofchk: Option<bool>,
    enabledad: bool,
    port_isolation: bool,
    disable_container_interface: bool,
}

/// One of the VLANs of a trunk, or several in a row, or both.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Trunk {
    #[serde(rename = "minID")]
    min_id: Option<u32>,
    #[serde(rename = "maxID")]
    max_id: Option<u32>,
    #[serde(alias = "ID")]
    id: Option<u32>,
}

/// A bridge, and what the pods' ends on it are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    pub name: String,
    /// The bridge has the ranges' gateway addresses.
    pub is_gateway: bool,
    /// And the pods' default routes go there.
    pub is_default_gateway: bool,
    /// What other addresses the bridge has makes room for them.
    pub force_address: bool,
    /// The bridge device takes frames for anybody.
    pub promiscuous: bool,
    pub port: Port,
    pub vlans: Vlans,
    /// The VLAN that ports are given by the bridge stays, beside those of `vlans`.
    pub preserve_default_vlan: bool,
    /// Frames of a pod may come from any Ethernet address.
    pub any_mac: bool,
    /// And any IP address, though it has some of ours.
    pub any_ip: bool,
    /// An IPv6 address is used only if nobody else has it.
    pub detect_duplicates: bool,
    /// The pod's side stays down, and has no addresses.
    pub disabled: bool,
}

/// Which VLANs a pod is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Vlans {
    /// It is not our business: the bridge need not know of VLANs.
    #[default]
    None,
    /// One, and the pod's frames have no tags.
    Access(u16),
    /// Several, and they have.
    Trunk(Vec<u16>),
}

impl Bridge {
    /// Reads the keys of this mode.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        let raw: Raw = json::typed(Value::Object(object.clone()))?;
        let name = raw.bridge.clone().unwrap_or_else(|| DEFAULT.into());
        if !link::name_is_valid(&name) || matches!(name.as_str(), "lo" | "all" | "default") {
            return Err(invalid("bridge", format!("{name:?} cannot be the name of an interface")));
        }
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(invalid("hairpinMode", "it cannot be on together with promiscMode"));
        }
        let with_addresses = object
            .get("ipam")
            .and_then(|ipam| ipam.get("type"))
            .is_some_and(|kind| kind.as_str() != Some(""));
        if raw.disable_container_interface && with_addresses {
            let reason = "an interface that is down has no addresses: ipam must be left out";
            return Err(invalid("disableContainerInterface", reason));
        }
        let bridge = Self {
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            promiscuous: raw.promisc_mode,
            port: Port { hairpin: raw.hairpin_mode, isolated: raw.port_isolation },
            vlans: raw.vlans()?,
            preserve_default_vlan: raw.preserve_default_vlan.unwrap_or(true),
            any_mac: raw.macspoofchk == Some(false),
            any_ip: raw.ipspoofchk == Some(false),
            detect_duplicates: raw.enabledad,
            disabled: raw.disable_container_interface,
            name,
        };
        match bridge.gateway_device() {
            Some(device) if !link::name_is_valid(&device) => Err(invalid(
                "bridge",
                format!("with vlan and isGateway there is a device {device:?}, a name that is too long"),
            )),
            _ => Ok(bridge),
        }
    }

    /// The device of the VLAN's own that has the gateway addresses, if the bridge itself does not.
    pub fn gateway_device(&self) -> Option<String> {
        match self.vlans {
            Vlans::Access(id) if self.is_gateway => Some(format!("{}.{id}", self.name)),
            _ => None,
        }
    }
}

impl Raw {
    fn vlans(&self) -> Result<Vlans, Failure> {
        if self.vlan > LAST_VLAN {
            return Err(invalid("vlan", format!("{} is not between 0 and {LAST_VLAN}", self.vlan)));
        }
        let trunk = self.vlan_trunk.as_deref().map(trunk).transpose()?;
        match (u16::try_from(self.vlan).unwrap_or(0), trunk) {
            (0, None) => Ok(Vlans::None),
            (0, Some(ids)) => Ok(Vlans::Trunk(ids)),
            (id, None) => Ok(Vlans::Access(id)),
            (id, Some(ids)) if ids.is_empty() => Ok(Vlans::Access(id)),
            (_, Some(_)) => Err(invalid("vlan", "it cannot be there together with vlanTrunk")),
        }
    }
}

fn trunk(list: &[Trunk]) -> Result<Vec<u16>, Failure> {
    let mut ids = BTreeSet::new();
    for (n, item) in list.iter().enumerate() {
        let check = |name: &str, id: u32| {
            u16::try_from(id).ok().filter(|_| (1..=LAST_VLAN).contains(&id)).ok_or_else(|| {
                invalid(&format!("vlanTrunk[{n}].{name}"), format!("{id} is not between 1 and {LAST_VLAN}"))
            })
        };
        match (item.min_id, item.max_id) {
            (Some(min), Some(max)) => {
                let (min, max) = (check("minID", min)?, check("maxID", max)?);
                if max < min {
                    let reason = format!("minID {min} is greater than maxID {max}");
                    return Err(invalid(&format!("vlanTrunk[{n}]"), reason));
                }
                ids.extend(min..=max);
            }
            (None, None) => {}
            _ => return Err(invalid(&format!("vlanTrunk[{n}]"), "minID and maxID come together")),
        }
        if let Some(id) = item.id {
            ids.insert(check("id", id)?);
        }
    }
    Ok(ids.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Bridge, Failure> {
        Bridge::read(value.as_object().unwrap())
    }

    #[test]
    fn without_keys_it_is_what_the_reference_plugin_makes() {
        let wanted = Bridge { name: "cni0".into(), preserve_default_vlan: true, ..Bridge::default() };
        assert_eq!(read(json!({})).unwrap(), wanted);
    }

    #[test]
    fn a_trunk_is_ids_and_ranges() {
        let trunk =
            json!([{"minID": 10, "maxID": 12}, {"id": 11}, {"ID": 5}, {"minID": 1, "maxID": 1, "id": 7}]);
        let vlans = read(json!({ "vlanTrunk": trunk })).unwrap().vlans;
        assert_eq!(vlans, Vlans::Trunk(vec![1, 5, 7, 10, 11, 12]));
        assert_eq!(read(json!({"vlanTrunk": [], "vlan": 7})).unwrap().vlans, Vlans::Access(7));
        assert_eq!(read(json!({"vlanTrunk": []})).unwrap().vlans, Vlans::Trunk(Vec::new()));
        assert_eq!(read(json!({"vlan": 0})).unwrap().vlans, Vlans::None);
    }

    #[test]
    fn fault_031_what_excludes_each_other_is_refused_and_both_are_named() {
        let cases: [(Value, &[&str]); 13] = [
            (json!({"hairpinMode": true, "promiscMode": true}), &["hairpinMode", "promiscMode"]),
            (json!({"vlan": 5, "vlanTrunk": [{"id": 7}]}), &["vlan", "vlanTrunk"]),
            (
                json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}}),
                &["disableContainerInterface", "ipam"],
            ),
            (
                json!({"bridge": "a-longer-name", "vlan": 4000, "isGateway": true}),
                &["bridge", "vlan", "isGateway", "a-longer-name.4000"],
            ),
            (json!({"vlan": 4095}), &["vlan"]),
            (json!({"vlan": -1}), &["vlan"]),
            (json!({"vlan": "7"}), &["vlan"]),
            (json!({"vlanTrunk": [{"id": 0}]}), &["vlanTrunk[0].id"]),
            (json!({"vlanTrunk": [{"id": 1}, {"minID": 7}]}), &["vlanTrunk[1]", "minID", "maxID"]),
            (json!({"vlanTrunk": [{"minID": 7, "maxID": 6}]}), &["vlanTrunk[0]", "minID", "maxID"]),
            (json!({"vlanTrunk": [{"minID": 7, "maxID": 4095}]}), &["vlanTrunk[0].maxID"]),
            (json!({"macspoofchk": "yes"}), &["macspoofchk"]),
            (json!({"bridge": "lo"}), &["bridge"]),
        ];
        for (case, words) in cases {
            let failure = read(case.clone()).unwrap_err();
            assert_eq!(failure.code, 7, "{case}: {failure:?}");
            for word in words {
                assert!(failure.msg.contains(word), "{case}: {word}: {failure:?}");
            }
        }
        let empty = json!({"disableContainerInterface": true, "ipam": {"type": ""}});
        assert!(read(empty).unwrap().disabled);
        assert!(read(json!({"disableContainerInterface": true, "ipam": {}})).is_ok());
        assert!(read(json!({"bridge": "a-longer-name", "vlan": 4000})).is_ok(), "no device of its own");
    }
}
