//! What the configuration of a node decides.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The part of the configuration that desired state depends on. All nodes should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// VXLAN network identifier of the overlay; the Ethernet addresses of the VXLAN devices follow from it.
    pub vni: u32,
    /// Where services have their addresses: no node can have an address or pods there, and no service an
    /// external address.
    pub service_ranges: Vec<IpNetwork>,
    /// Where `externalIPs` of services are believed. Empty: nowhere (CVE-2020-8554).
    pub external_ranges: Vec<IpNetwork>,
    /// On which of their addresses nodes answer at node ports: what any of these says. Empty: on all.
    pub node_ports: Vec<NodePorts>,
}

/// Addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// The first of each family.
    Primary,
    Within(IpNetwork),
}

impl Default for Rules {
    fn default() -> Self {
        Self { vni: 1, service_ranges: Vec::new(), external_ranges: Vec::new(), node_ports: Vec::new() }
    }
}

impl Rules {
    /// The service range that holds this address.
    pub fn service_range(&self, ip: IpAddr) -> Option<&IpNetwork> {
        self.service_ranges.iter().find(|range| range.contains(ip))
    }

    /// Whether a service may name this address among its `externalIPs`.
    pub fn allows_external(&self, ip: IpAddr) -> bool {
        self.external_ranges.iter().any(|range| range.contains(ip))
    }

    /// Those of a node's addresses, in the order of the cluster, that node ports answer on.
    pub fn node_ports<'a>(&'a self, addresses: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
        let primary =
            |ip: &IpAddr| addresses.iter().find(|first| first.is_ipv4() == ip.is_ipv4()) == Some(ip);
        let says = move |rule: &NodePorts, ip: &IpAddr| match rule {
            NodePorts::Primary => primary(ip),
            NodePorts::Within(range) => range.contains(*ip),
        };
        let answers = move |ip: &IpAddr| {
            self.node_ports.is_empty() || self.node_ports.iter().any(|rule| says(rule, ip))
        };
        addresses.iter().copied().filter(answers)
    }
}

impl std::str::FromStr for NodePorts {
    type Err = String;

    /// `primary`, or a range of addresses.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            _ => range(text).map(Self::Within).map_err(|error| format!("neither `primary` nor {error}")),
        }
    }
}

/// A range of addresses as an option names it: with a prefix length, and no bits behind it.
///
/// # Errors
/// What is wrong with it.
pub fn range(text: &str) -> Result<IpNetwork, String> {
    let range: IpNetwork = match text.parse() {
        Ok(range) if text.contains('/') => range,
        _ => return Err("a range of addresses (like 10.0.0.0/8)".into()),
    };
    match range.ip() == range.network() {
        true => Ok(range),
        false => Err(format!("a range of addresses: {} has bits behind its prefix", range.ip())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_answer_where_any_rule_says_so() {
        let addresses = ["192.168.1.1", "10.0.0.1", "fd77::1", "fd78::1"].map(|ip| ip.parse().unwrap());
        let with = |rules: &[&str]| {
            let node_ports = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            let rules = Rules { node_ports, ..Rules::default() };
            rules.node_ports(&addresses).map(|ip| ip.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(with(&[]).len(), 4);
        assert_eq!(with(&["primary"]), ["192.168.1.1", "fd77::1"]);
        assert_eq!(with(&["10.0.0.0/8", "fd78::/16"]), ["10.0.0.1", "fd78::1"]);
        assert_eq!(with(&["primary", "10.0.0.0/8"]), ["192.168.1.1", "10.0.0.1", "fd77::1"]);
        assert_eq!(with(&["172.16.0.0/12"]), Vec::<String>::new());
        for bad in ["first", "10.0.0.1", "10.0.0.1/8", "10.0.0.0/33", ""] {
            assert!(bad.parse::<NodePorts>().is_err(), "{bad}");
        }
    }
}
