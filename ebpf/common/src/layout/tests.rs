use super::*;

#[test]
fn nothing_has_padding() {
    macro_rules! sum { ($t:ty: $($f:ident),*) => {{
        let value = <$t>::default();
        assert_eq!(size_of::<$t>(), 0 $(+ size_of_val(&value.$f))*, stringify!($t));
    }} }
    sum!(FrontendKey: addr, net, port, proto, zero);
    sum!(Frontend: ring, ring_len, outside, outside_len, service, flags, affinity, zero, check);
    sum!(AffinityKey: client, service, zero);
    sum!(Affinity: backend, generation, seen, check);
    sum!(SourceKey: service, addr);
    sum!(Backend: addr, generation, node, port, proto, state, hash);
    sum!(Node: state, mac, overlay, zero, underlay);
    sum!(KnownAddr: node, kind);
    sum!(ChoiceKey: service, hash);
    sum!(Tuple: src, dst, sport, dport, proto, zero);
    sum!(Flow: to, backend, generation, service, flags, node, ifindex, seen, check, packets, bytes, out, mtu, way);
    sum!(Routes: generation, until);
    sum!(SockKey: cookie, addr, port, proto, zero);
    sum!(SockPeer: addr, port, zero, check);
    sum!(SockChoice: backend, generation, service, check);
    sum!(FragKey: src, dst, id, proto, zero);
    sum!(Config: remote, vxlan_ifindex, underlay_ifindex, tunnel_mtu, overlay4, overlay6, underlay4,
        underlay6, snat_port_min, snat_port_max, vxlan_port, flags, fixed_time, fixed_random, vni,
        host_netns, settling);
}

#[test]
fn a_torn_value_does_not_add_up() {
    let key = |port| FrontendKey { addr: Addr::v4(7), port, proto: 6, ..Default::default() };
    let a = Frontend { ring: 16, ring_len: 3, service: 1, ..Default::default() }.sealed(&key(80));
    let b = Frontend { ring: 32, ring_len: 4, service: 2, ..Default::default() }.sealed(&key(81));
    assert_eq!(a.check, a.sum(&key(80)));
    assert_ne!(a.check, a.sum(&key(81)), "another key");
    let torn = Frontend { ring: a.ring, ..b };
    assert_ne!(torn.check, torn.sum(&key(81)));
    let torn = Frontend { ring_len: a.ring_len, ..b };
    assert_ne!(torn.check, torn.sum(&key(81)));
}

#[test]
fn a_way_is_of_one_flow_in_one_state_of_the_routes_from_one_interface() {
    let flow = Flow { check: 77, out: 5, mtu: 1500, ..Default::default() };
    let routes = Routes { generation: 3, until: 0 };
    let way = flow.way(&routes, 9);
    assert_eq!(way, Flow { packets: 1, seen: 2, ..flow }.way(&Routes { until: 1, ..routes }, 9));
    for other in [
        Flow { check: 78, ..flow }.way(&routes, 9),
        Flow { out: 6, ..flow }.way(&routes, 9),
        Flow { mtu: 1501, ..flow }.way(&routes, 9),
        flow.way(&Routes { generation: 4, ..routes }, 9),
        flow.way(&routes, 10),
    ] {
        assert_ne!(way, other);
    }
    assert_ne!(Flow::default().way(&Routes::default(), 0), 0, "an entry without a way");
}

#[test]
fn one_client_hashes_alike_at_every_node_and_clients_spread() {
    let tuple = |node, sport| Tuple {
        src: Addr::v4(9),
        dst: Addr::v4(node),
        sport,
        dport: 80,
        proto: 6,
        ..Default::default()
    };
    assert_eq!(tuple(1, 5).client_hash(), tuple(2, 5).client_hash());
    let mut slots = [0; 10];
    for sport in 0..10_000u16 {
        let hash = u64::from(tuple(1, sport.to_be()).client_hash());
        slots[((hash * 10) >> 32) as usize] += 1;
    }
    assert!(slots.iter().all(|n| (900..1100).contains(n)), "{slots:?}");
}

#[test]
fn mapped_addresses_are_told_from_native_ones() {
    assert!(Addr::v4(0x0100_007f).is_v4());
    assert!(!Addr::ANY6.is_v4() && Addr::ANY4.is_v4());
}

#[test]
fn loopback_is_one_address_or_a_whole_network() {
    let v4 = |octets| Addr::v4(u32::from_ne_bytes(octets));
    let v6 = |first: u32, last: u32| Addr([first.to_be(), 0, 0, last.to_be()]);
    assert!(v4([127, 0, 0, 1]).is_loopback() && v4([127, 255, 0, 9]).is_loopback() && v6(0, 1).is_loopback());
    for other in [v4([126, 0, 0, 127]), v4([128, 0, 0, 1]), Addr::ANY4, Addr::ANY6, v6(1, 1), v6(0, 2)] {
        assert!(!other.is_loopback(), "{other:?}");
    }
}
