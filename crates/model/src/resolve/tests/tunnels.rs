//! Nodes that announce their end of the tunnels: flannel's, and ours after a move.

use super::*;

fn announces(node: Node, v4: Option<(&str, u32, u8)>, v6: Option<(&str, u32, u8)>) -> Node {
    let vtep = |(underlay, vni, mac): (&str, u32, u8)| Vtep {
        vni,
        mac: Mac([0x0a, 0, 0, 0, 0, mac]),
        underlay: (!underlay.is_empty()).then(|| ip(underlay)),
    };
    let announced = Announced { v4: v4.map(vtep), v6: v6.map(vtep), ..Announced::default() };
    Node { announced: Some(Box::new(announced)), ..node }
}

fn table(nodes: Vec<Node>) -> (OverlayTable, Vec<String>) {
    let (table, problems) = overlay(&snapshot(nodes, vec![], vec![]), &name("n1"), &Rules::default());
    (table, complaints(problems))
}

fn mac(last: u8) -> Mac {
    Mac([0x0a, 0, 0, 0, 0, last])
}

#[test]
fn a_node_of_flannels_is_reached_by_what_it_announces() {
    let mut nodes = three_nodes();
    nodes[1] = announces(nodes[1].clone(), Some(("192.168.77.2", 1, 2)), Some(("fd77::2", 1, 6)));
    let (found, problems) = table(nodes.clone());
    assert_eq!(problems, [""; 0]);
    let n2 = &found.remotes[&name("n2")];
    assert_eq!((n2.underlay, n2.mac), (ip("192.168.77.2"), mac(2)));
    assert_eq!(n2.ranges, ["10.244.2.0/24".parse().unwrap()].into());
    let range = "fd00:10:244:2::/64".parse().unwrap();
    assert_eq!(n2.beside, Some(Beside { underlay: ip("fd77::2"), mac: mac(6), range }));
    assert_eq!(found.remotes[&name("n3")].mac, node::vtep_mac(&name("n3"), VNI), "nothing announced");
    // No service's packets are sent there: nobody would know them.
    let all = snapshot(nodes, vec![], vec![]);
    let (services, _) = services(&all, &name("n1"), &Rules::default());
    let macs: Vec<bool> = services.nodes.values().map(|node| node.mac.is_some()).collect();
    assert_eq!(macs, [true, false, true]);

    // Pods with IPv6 addresses there have no tunnels.
    let mut nodes = three_nodes();
    nodes[1] = announces(nodes[1].clone(), Some(("", 1, 2)), None);
    let (found, problems) = table(nodes);
    let n2 = &found.remotes[&name("n2")];
    assert_eq!((n2.underlay, n2.mac, &n2.beside), (ip("192.168.77.2"), mac(2), &None));
    let lacks = "node n2: pod range fd00:10:244:2::/64: not reached by the overlay: the node announces no tunnels \
                 over IPv6";
    assert_eq!(problems, [lacks]);
}

/// A node that was moved announces what follows from its name; and of itself it knows better than what flannel left.
#[test]
fn a_node_of_ours_announces_what_is_known_anyhow() {
    let mut nodes = three_nodes();
    let own = node::vtep_mac(&name("n2"), VNI);
    let vtep = |at: &str| Some(Vtep { vni: VNI, mac: own, underlay: Some(ip(at)) });
    let announced = Announced { v4: vtep("192.168.77.2"), v6: vtep("fd77::2"), ..Announced::default() };
    nodes[1].announced = Some(Box::new(announced));
    let plain = table(three_nodes());
    assert_eq!(table(nodes.clone()), plain);
    nodes[0] = announces(nodes[0].clone(), Some(("192.168.77.1", 1, 1)), None);
    assert_eq!(table(nodes), plain);
}

#[test]
fn another_of_its_own_addresses_may_be_announced() {
    let mut nodes = three_nodes();
    nodes[1].addresses.push(ip("10.1.0.2"));
    nodes[1] = announces(nodes[1].clone(), Some(("10.1.0.2", 1, 2)), Some(("fd77::2", 1, 6)));
    assert_eq!(table(nodes.clone()).0.remotes[&name("n2")].underlay, ip("10.1.0.2"));
    let own = node::vtep_mac(&name("n2"), VNI);
    nodes[1].announced.as_mut().unwrap().v4.as_mut().unwrap().mac = own;
    nodes[1].announced.as_mut().unwrap().v6 = None;
    let (found, _) = table(nodes);
    let n2 = &found.remotes[&name("n2")];
    assert_eq!((n2.underlay, n2.mac, n2.ranges.len()), (ip("10.1.0.2"), own, 2));
}

#[test]
fn fault_s15_hostile_announcements() {
    let hostile = [
        // Somebody else's address, and one that is nobody's.
        (Some(("192.168.77.3", 1, 2)), "192.168.77.3, which is none of its addresses"),
        (Some(("203.0.113.9", 1, 2)), "203.0.113.9, which is none of its addresses"),
        (Some(("192.168.77.2", 9, 2)), "the node announces tunnels with VNI 9, and ours have 1"),
    ];
    for (v4, said) in hostile {
        let mut nodes = three_nodes();
        nodes[1] = announces(nodes[1].clone(), v4, Some(("fd77::2", 1, 6)));
        let (found, problems) = table(nodes);
        assert!(problems.iter().any(|problem| problem.contains(said)), "{problems:?}");
        let n2 = found.remotes.get(&name("n2"));
        assert!(n2.is_none_or(|n2| n2.underlay == ip("192.168.77.2")), "{n2:?}");
    }
    let mut nodes = three_nodes();
    let announced = Announced { other: Some("host-gw".into()), ..Announced::default() };
    nodes[1].announced = Some(Box::new(announced));
    let (found, problems) = table(nodes);
    assert!(!found.remotes.contains_key(&name("n2")));
    assert!(problems[0].contains("of type \"host-gw\", not vxlan"), "{problems:?}");
}

/// Flannel with IPv4 alone on nodes whose first addresses are IPv6 ones.
#[test]
fn the_overlay_runs_over_the_family_that_flannel_has_tunnels_in() {
    let two = |n: u8, flannel: bool| {
        let addresses = [format!("fd77::{n}"), format!("192.168.77.{n}")];
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let node = node(&format!("n{n}"), n.into(), &addresses, &[&format!("10.244.{n}.0/24")]);
        if flannel { announces(node, Some(("", 1, n)), None) } else { node }
    };
    let underlay = |nodes| table(nodes).0.underlay;
    assert_eq!(underlay(vec![two(1, false), two(2, false)]), Some(ip("fd77::1")));
    assert_eq!(underlay(vec![two(1, false), two(2, true)]), Some(ip("192.168.77.1")));
}
