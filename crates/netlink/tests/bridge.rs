//! Bridges, their ports and VLANs.
#![expect(clippy::unwrap_used, reason = "tests")]

use heddle_netlink::bridge::{self, Of, Port, Vlan};
use heddle_netlink::link::{self, Bridge, VethEnd};
use heddle_netlink::{NetNs, Socket};

fn world() -> (NetNs, Socket, u32) {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    link::create_bridge(&mut socket, &Bridge { name: "br0", ..Bridge::default() }).unwrap();
    let index = link::by_name(&mut socket, "br0").unwrap().unwrap().index;
    let near = VethEnd { name: "near", master: Some(index), ..VethEnd::default() };
    link::create_veth(&mut socket, &near, &VethEnd { name: "far", ..VethEnd::default() }).unwrap();
    (ns, socket, index)
}

#[test]
fn a_veth_is_born_on_a_bridge_and_becomes_what_it_is_told() {
    let (_ns, mut socket, bridge) = world();
    let near = link::by_name(&mut socket, "near").unwrap().unwrap();
    assert_eq!((near.master, near.port), (Some(bridge), Some(Port::default())));
    for port in [Port { hairpin: true, isolated: false }, Port { hairpin: false, isolated: true }] {
        bridge::configure(&mut socket, Of::Port, near.index, Some(port), &[]).unwrap();
        assert_eq!(link::by_name(&mut socket, "near").unwrap().unwrap().port, Some(port));
    }
}

#[test]
fn vlans_come_and_go() {
    let (_ns, mut socket, index) = world();
    let near = link::by_name(&mut socket, "near").unwrap().unwrap().index;
    if let Err(error) = link::filter_vlans(&mut socket, index) {
        assert!(bridge::lacks_vlans(&error), "{error}");
        assert_eq!(
            link::by_name(&mut socket, "br0").unwrap().unwrap().vlans.map(|v| v.filtering),
            Some(false)
        );
        eprintln!("this kernel's bridge knows no VLANs");
        return;
    }
    let aware = link::by_name(&mut socket, "br0").unwrap().unwrap().vlans.unwrap();
    assert!(aware.filtering && aware.default_pvid == 1);
    assert_eq!(bridge::vlans(&mut socket, near).unwrap(), [Vlan::native(1)]);
    let trunk = [Vlan::tagged(7), Vlan::tagged(8), Vlan::tagged(9), Vlan::tagged(11)];
    bridge::configure(&mut socket, Of::Port, near, None, &trunk).unwrap();
    bridge::configure(&mut socket, Of::Port, near, Some(Port::default()), &[Vlan::native(5)]).unwrap();
    let old = Vlan { pvid: false, ..Vlan::native(1) };
    let all = [old, Vlan::native(5), trunk[0], trunk[1], trunk[2], trunk[3]];
    assert_eq!(bridge::vlans(&mut socket, near).unwrap(), all);
    bridge::delete_vlans(&mut socket, Of::Port, near, &[1, 7, 8, 77]).unwrap();
    assert_eq!(bridge::vlans(&mut socket, near).unwrap(), [Vlan::native(5), trunk[2], trunk[3]]);
    bridge::configure(&mut socket, Of::Bridge, index, None, &[Vlan::tagged(5)]).unwrap();
    assert_eq!(bridge::vlans(&mut socket, index).unwrap(), [Vlan::native(1), Vlan::tagged(5)]);
    link::create_vlan(&mut socket, "br0.5", index, 5).unwrap();
    let device = link::by_name(&mut socket, "br0.5").unwrap().unwrap();
    assert_eq!((device.vlan_id, device.peer), (Some(5), Some(index)));
}
