//! Which devices services are met on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link::{self, Link};
use heddle_netlink::{Result, Socket};

use crate::dataplane::{Device, Devices};

/// What decides it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Named by the configuration.
    pub underlay: Option<String>,
    /// Name of the VXLAN device.
    pub overlay: String,
}

/// The devices as they are now, or why they cannot be told (yet): a sentence for people.
pub type Found = std::result::Result<Devices, String>;

impl Wanted {
    /// Asks the kernel. `node`: this node's addresses, as the cluster knows them.
    pub fn find(&self, socket: &mut Socket, node: &[IpAddr]) -> Result<Found> {
        Ok(self.choose(&link::list(socket)?, &addr::list(socket, None)?, node))
    }

    fn choose(&self, links: &[Link], addrs: &[Addr], node: &[IpAddr]) -> Found {
        let mut on: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for addr in addrs.iter().filter(|addr| !is_link_local(addr.ip.ip())) {
            on.entry(addr.link).or_default().insert(addr.ip.ip());
        }
        let device = |link: &Link| Device {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            addresses: on.get(&link.index).cloned().unwrap_or_default(),
        };
        let overlay = links.iter().find(|link| link.name == self.overlay).map(device);
        let mut underlay: Vec<Device> = match &self.underlay {
            Some(name) => links.iter().filter(|link| link.name == *name).map(device).collect(),
            None => {
                links.iter().filter(|link| !link.loopback && link.name != self.overlay).map(device).collect()
            }
        };
        // A node may have more addresses than the cluster knows it by (a load balancer's, a virtual one);
        // packets to other nodes leave with one that they know.
        let known = |device: &mut Device| device.addresses.retain(|ip| node.contains(ip));
        match &self.underlay {
            Some(name) if underlay.is_empty() => return Err(format!("there is no device {name}")),
            Some(_) => {
                for device in &mut underlay {
                    if device.addresses.iter().any(|ip| node.contains(ip)) {
                        known(device);
                    }
                }
            }
            None => {
                underlay.iter_mut().for_each(known);
                underlay.retain(|device| !device.addresses.is_empty());
                if underlay.is_empty() {
                    return Err(nowhere(node));
                }
            }
        }
        // The device of the node's first address comes first.
        let rank =
            |device: &Device| node.iter().position(|ip| device.addresses.contains(ip)).unwrap_or(node.len());
        underlay.sort_by_key(rank);
        Ok(Devices { underlay, overlay })
    }
}

fn nowhere(node: &[IpAddr]) -> String {
    if node.is_empty() {
        return "the sources name no usable address of this node (is --node-name right? or name the device by \
                --underlay)"
            .into();
    }
    let list: Vec<String> = node.iter().map(ToString::to_string).collect();
    format!("no device has this node's address {} (name the device by --underlay)", list.join(" or "))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use heddle_netlink::link::Operational;

    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            up: true,
            lower_up: true,
            loopback: name == "lo",
            operational: Operational::Up,
            mtu: 1500,
            ..Link::new(index, name)
        }
    }

    fn choose(underlay: Option<&str>, node: &[&str]) -> std::result::Result<String, String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "heddle.1"), link(5, "eth2")];
        let addrs = [
            (1, "127.0.0.1/8"),
            (1, "192.168.77.9/32"),
            (2, "192.168.77.1/24"),
            (2, "10.0.0.1/24"),
            (2, "fe80::1/64"),
            (3, "fd77::1/64"),
            (4, "10.244.1.0/32"),
            (5, "172.16.0.1/24"),
        ];
        let addrs = addrs.map(|(link, ip)| Addr::new(link, ip.parse().unwrap()));
        let node: Vec<IpAddr> = node.iter().map(|ip| ip.parse().unwrap()).collect();
        let wanted = Wanted { underlay: underlay.map(Into::into), overlay: "heddle.1".into() };
        let device = |device: &Device| {
            let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
            format!("{}[{}]", device.name, addresses.join(" "))
        };
        wanted.choose(&links, &addrs, &node).map(|devices| {
            let mut all: Vec<String> = devices.underlay.iter().map(device).collect();
            all.push(devices.overlay.as_ref().map(device).unwrap_or_default());
            all.join(" ")
        })
    }

    #[test]
    fn the_underlay_is_where_the_nodes_addresses_are() {
        let overlay = "heddle.1[10.244.1.0]";
        assert_eq!(choose(None, &["192.168.77.1"]), Ok(format!("eth0[192.168.77.1] {overlay}")));
        assert_eq!(
            choose(None, &["fd77::1", "192.168.77.1"]),
            Ok(format!("eth1[fd77::1] eth0[192.168.77.1] {overlay}"))
        );
        let text =
            "no device has this node's address 192.168.77.9 or 1.2.3.4 (name the device by --underlay)";
        assert_eq!(choose(None, &["192.168.77.9", "1.2.3.4"]), Err(text.into()));
        assert!(choose(None, &[]).unwrap_err().contains("--node-name"));
    }

    #[test]
    fn a_named_underlay_needs_no_address() {
        let overlay = "heddle.1[10.244.1.0]";
        assert_eq!(choose(Some("eth2"), &[]), Ok(format!("eth2[172.16.0.1] {overlay}")));
        assert_eq!(choose(Some("eth0"), &["192.168.77.1"]), Ok(format!("eth0[192.168.77.1] {overlay}")));
        assert_eq!(choose(Some("eth0"), &[]), Ok(format!("eth0[10.0.0.1 192.168.77.1] {overlay}")));
        assert_eq!(choose(Some("eth9"), &[]), Err("there is no device eth9".into()));
    }
}
