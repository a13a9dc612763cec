//! Mode `bridge`: pods of a network share a bridge on their node (the reference plugin's mode).
//!
//! The bridge is made when the first pod comes, and stays.

mod announce;
mod check;
mod gateway;
mod pod;

pub use announce::announce;
pub use check::{bridged, check};
pub use gateway::with_gateways;
pub use pod::{await_unique, routes, wire_pod};

use heddle_netlink::bridge::{self as port, Of, Port, Vlan};
use heddle_netlink::link::{self, Change, Link};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{DisplayMac, MacAddr, Socket};

use crate::addresses::Allocation;
use crate::conf::{Bridge, Vlans};
use crate::veth;
use heddle_spec::{Failure, Interface, code};

/// A bridge that is ready for pods.
#[derive(Debug)]
pub struct Ready {
    pub bridge: Link,
    /// What has the gateway addresses: the bridge, or a device of the pods' VLAN on it.
    pub gateway: Option<Link>,
}

/// Finds or makes the bridge, gives it the gateway addresses if it is to have them, sets it up.
pub fn ensure(
    socket: &mut Socket,
    wanted: &Bridge,
    mtu: Option<u32>,
    allocations: &[Allocation],
) -> Result<Ready, Failure> {
    let ipv6 = wanted.is_gateway && super::has_family(allocations, false);
    let filtering = wanted.vlans != Vlans::None;
    let mut found = match link::by_name(socket, &wanted.name)? {
        Some(found) => found,
        None => create(socket, wanted, mtu, filtering)?,
    };
    if found.kind.as_deref() != Some("bridge") {
        return Err(Failure::new(
            code::INVALID_CONFIG,
            format!("bridge: {} exists and is no bridge", wanted.name),
        ));
    }
    let own = found.mac == Some(mac(&wanted.name));
    // One of ours that is down: we have made it, or another pod's ADD that is still at work or was killed.
    if own && !found.up {
        harden(&wanted.name, ipv6)?;
    }
    if filtering && found.vlans.is_none_or(|vlans| !vlans.filtering) {
        if !own {
            let reason = format!(
                "the bridge {} is not ours and does not filter VLANs \
                 (ip link set {} type bridge vlan_filtering 1)",
                wanted.name, wanted.name
            );
            return Err(Failure::new(code::INVALID_CONFIG, format!("vlan: {reason}")));
        }
        link::filter_vlans(socket, found.index).map_err(no_vlans)?;
    }
    let change = Change {
        up: (!found.up).then_some(true),
        promiscuous: (wanted.promiscuous && !found.promiscuous).then_some(true),
        ..Change::default()
    };
    if change.up.is_some() || change.promiscuous.is_some() {
        link::change(socket, found.index, &change)?;
        (found.up, found.promiscuous) = (true, found.promiscuous || wanted.promiscuous);
    }
    let gateway = gateway::ensure(socket, wanted, &found, ipv6, allocations)?;
    Ok(Ready { bridge: found, gateway })
}

fn create(socket: &mut Socket, wanted: &Bridge, mtu: Option<u32>, filtering: bool) -> Result<Link, Failure> {
    let new = link::Bridge {
        name: &wanted.name,
        mac: Some(mac(&wanted.name)),
        mtu,
        vlan_filtering: filtering,
        ..link::Bridge::default()
    };
    match link::create_bridge(socket, &new) {
        Ok(()) => {}
        // Another pod's ADD was quicker.
        Err(error) if error.already_exists() => {}
        Err(error) if filtering => return Err(no_vlans(error)),
        Err(error) => return Err(error.into()),
    }
    veth::find(socket, &wanted.name)
}

/// Before a device is up, as on a pod's host side: whatever a pod sends, it configures nothing here.
fn harden(device: &str, ipv6: bool) -> Result<(), Failure> {
    let optional = |key: &Key, value: &str| match sysctl::write(key, value) {
        // A kernel without IPv6.
        Err(error) if sysctl::is_missing(&error) => Ok(()),
        other => other,
    };
    for name in ["accept_ra", "autoconf", "accept_redirects"] {
        optional(&Key::ipv6_conf(device, name), "0")?;
    }
    // What is passed on to a pod asks for it from the link-local address, which detection would keep back for up to
    // three seconds: by then the question is given up. The Ethernet address is ours, and nobody is on the bridge yet.
    optional(&Key::ipv6_conf(device, "accept_dad"), "0")?;
    if ipv6 {
        // Where the host switches it off for new devices.
        sysctl::write(&Key::ipv6_conf(device, "disable_ipv6"), "0")?;
    }
    Ok(sysctl::write(&Key::ipv4_conf(device, "accept_redirects"), "0")?)
}

fn no_vlans(error: heddle_netlink::Error) -> Failure {
    let lacks = port::lacks_vlans(&error);
    let failure = Failure::from(error);
    if !lacks {
        return failure;
    }
    failure.with_details("vlan and vlanTrunk need a kernel with CONFIG_BRIDGE_VLAN_FILTERING")
}

/// A bridge without an address of its own takes the smallest of its ports', which changes as pods come and
/// go, under the neighbours' feet. This one also says that the bridge is ours.
fn mac(name: &str) -> MacAddr {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    [0x0a, a, b, c, d, e]
}

/// The host side, a port of the bridge from its birth, becomes what the configuration wants, and comes up.
pub fn wire_host(socket: &mut Socket, index: u32, wanted: &Bridge, ready: &Ready) -> Result<(), Failure> {
    let vlans = vlans(wanted);
    let default = ready.bridge.vlans.map_or(0, |vlans| vlans.default_pvid);
    if !vlans.is_empty() && !wanted.preserve_default_vlan && default != 0 {
        port::delete_vlans(socket, Of::Port, index, &[default]).map_err(no_vlans)?;
    }
    let own = Some(wanted.port).filter(|port| *port != Port::default());
    if own.is_some() || !vlans.is_empty() {
        port::configure(socket, Of::Port, index, own, &vlans).map_err(no_vlans)?;
    }
    Ok(link::set_up(socket, index)?)
}

/// The VLANs that a pod's port is given.
fn vlans(wanted: &Bridge) -> Vec<Vlan> {
    match &wanted.vlans {
        Vlans::None => Vec::new(),
        Vlans::Access(id) => vec![Vlan::native(*id)],
        Vlans::Trunk(ids) => ids.iter().map(|id| Vlan::tagged(*id)).collect(),
    }
}

/// What ADD answers of the bridge, or of the device with the gateway addresses.
pub fn interface(device: &Link) -> Interface {
    Interface {
        name: device.name.clone(),
        mac: device.mac.map(|mac| DisplayMac(mac).to_string()).unwrap_or_default(),
        mtu: Some(device.mtu),
        ..Interface::default()
    }
}
