//! What the other nodes are told of this one: its end of the tunnels, as annotations of its node object in flannel's
//! format, so that nodes of flannel's send to it; and the condition that pods can have a network here.
//!
//! It is told once the overlay stands, and stays when vxland ends or is cleaned up: a node that is away for a while has
//! the same end of the tunnels when it is back, and flannel overwrites it with its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use heddle_control::kubernetes::api::Wish;
use heddle_control::kubernetes::flannel;
use heddle_model::node::vtep_mac;
use heddle_model::{Mac, OverlayTable};

use crate::desired::{Settings, Underlay};

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    mac: Mac,
    vni: u32,
    /// Where tunnels for pods of a family end: IPv4, IPv6. None where there are no such pods, or no address.
    ends: [Option<IpAddr>; 2],
}

impl Facts {
    pub fn new(table: &OverlayTable, underlay: &Underlay, settings: &Settings) -> Self {
        let end = |v4: bool| {
            let own = |ip: &IpAddr| {
                ip.is_ipv4() == v4 && underlay.networks.iter().any(|network| network.ip() == *ip)
            };
            let address = match underlay.local.is_ipv4() == v4 {
                true => Some(underlay.local),
                false => table.addresses.iter().copied().find(own),
            };
            address.filter(|_| table.local.iter().any(|range| range.is_ipv4() == v4))
        };
        let mac = vtep_mac(&settings.node, settings.vni);
        Self { mac, vni: settings.vni, ends: [end(true), end(false)] }
    }

    /// As the node's object is to say it.
    pub fn wish(&self) -> Wish {
        let say = |name: &str, value: Option<String>| (name.to_owned(), value);
        let data = |at: Option<IpAddr>| {
            // Byte for byte as flannel writes it: it compares texts.
            at.map(|_| format!(r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni, self.mac))
        };
        let [v4, v6] = self.ends;
        let annotations = BTreeMap::from([
            say(flannel::MANAGED, Some("true".into())),
            say(flannel::TYPE, Some("vxlan".into())),
            say(flannel::DATA, data(v4)),
            say(flannel::DATA_V6, data(v6)),
            say(flannel::ADDRESS, v4.map(|ip| ip.to_string())),
            say(flannel::ADDRESS_V6, v6.map(|ip| ip.to_string())),
        ]);
        let up = ("HeddleIsUp".to_owned(), "the overlay of Heddle stands on this node".to_owned());
        Wish { annotations, network_available: Some(up) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{net, settings, table, underlay};

    #[test]
    fn the_annotations_are_those_of_flannel() {
        let of = |table: &OverlayTable, place: &Underlay| {
            let wish = Facts::new(table, place, &settings()).wish();
            let short = |name: &str| name.strip_prefix(flannel::PREFIX).unwrap().to_owned();
            let said = |(name, value): (&String, &Option<String>)| {
                format!("{}={}", short(name), value.as_deref().unwrap_or("-"))
            };
            wish.annotations.iter().map(said).collect::<Vec<_>>()
        };
        let mac = vtep_mac(&settings().node, 1);
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        assert_eq!(
            of(&table([]), &underlay()),
            [
                format!("backend-data={data}"),
                "backend-type=vxlan".into(),
                format!("backend-v6-data={data}"),
                "kube-subnet-manager=true".into(),
                "public-ip=192.168.77.1".into(),
                "public-ipv6=fd77::1".into(),
            ]
        );
        // No pods of a family, or no address for its tunnels.
        let four = OverlayTable { local: [net("10.244.1.0/24")].into(), ..table([]) };
        let bare = Underlay { networks: vec![net("192.168.77.1/24")], ..underlay() };
        for found in [of(&four, &underlay()), of(&table([]), &bare)] {
            assert!(found.contains(&"backend-v6-data=-".into()) && found.contains(&"public-ipv6=-".into()));
            assert!(found.contains(&"public-ip=192.168.77.1".into()));
        }
    }
}
