//! The lab's plan of addresses. It is the same in every lab: labs do not see each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The underlay address of node `index` (1 is the first).
pub fn node_ip(index: usize, v4: bool) -> IpAddr {
    underlay(index, v4)
}

/// The underlay address of outside client `index` (1 is the first).
pub fn client_ip(index: usize, v4: bool) -> IpAddr {
    underlay(index + 200, v4)
}

fn underlay(host: usize, v4: bool) -> IpAddr {
    let host = u8::try_from(host).expect("a lab has at most 200 nodes and 50 clients");
    if v4 {
        Ipv4Addr::new(192, 168, 77, host).into()
    } else {
        // Written as the IPv4 one is: fd77::201 is client 1.
        let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits).into()
    }
}

/// The pod range of node `index`, e.g. `10.244.1.0/24`.
pub fn pod_range(index: usize, v4: bool) -> String {
    if v4 { format!("10.244.{index}.0/24") } else { format!("fd00:10:244:{index}::/64") }
}

/// The ClusterIP number `number` (1 to 254) of a family.
pub fn cluster_ip(number: u8, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 96, 0, number).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()).into()
    }
}
