//! Mode bridge with VLANs: who hears whom. Needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING.

use heddle_netlink::link::{self, Bridge};
use heddle_netlink::{NetNs, Socket};

/// Whether bridges of the running kernel filter VLANs.
pub fn kernel_has_vlans() -> bool {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    link::create_bridge(&mut socket, &Bridge { name: "br0", vlan_filtering: true, ..Bridge::default() })
        .is_ok()
}
