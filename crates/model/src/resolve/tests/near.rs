//! Topology: who is near, and when it does not matter.

use super::*;

/// n1 and n2 are in `east`, n3 is in `west`; n4 in none.
fn nodes() -> Vec<Node> {
    let mut nodes = three_nodes();
    nodes.push(node("n4", 4, &["192.168.77.4"], &["10.244.4.0/24"]));
    for (node, zone) in nodes.iter_mut().zip([Some("east"), Some("east"), Some("west"), None]) {
        node.zone = zone.map(Into::into);
    }
    nodes
}

/// An endpoint on a node, with hints: `east,west` for zones, `@n1` for a node.
fn hinted(node: u8, hints: &str) -> Endpoint {
    let mut endpoint = endpoint(&format!("10.244.{node}.{node}"), None, "ready");
    for hint in hints.split(',').filter(|hint| !hint.is_empty()) {
        let hints = endpoint.hints.get_or_insert_default();
        match hint.strip_prefix('@') {
            Some(node) => drop(hints.nodes.insert(name(node))),
            None => drop(hints.zones.insert(hint.into())),
        }
    }
    endpoint
}

/// The nodes whose endpoints take new flows, as seen from a node.
fn takers(from: &str, wish: Option<Distribution>, endpoints: &[Endpoint]) -> String {
    let web = Service { distribution: wish, ..service("web", 1, &["10.96.0.10"], 80, None) };
    let all = snapshot(nodes(), vec![web], vec![list("web", "a", endpoints.to_vec())]);
    let (table, _) = services(&all, &name(from), &Rules::default());
    let frontend = table.frontends.values().next().unwrap();
    assert_eq!(frontend.backends.len(), endpoints.len(), "the far ones keep the flows that they have");
    let active = frontend.backends.iter().filter(|b| b.state == BackendState::Active);
    active.map(|b| &*b.node.as_ref().unwrap().0).collect::<Vec<_>>().join(" ")
}

#[test]
fn fault_081_hints_count_only_if_all_have_them_and_one_is_for_here() {
    let zones = [hinted(1, "east"), hinted(2, "east"), hinted(3, "west")];
    assert_eq!(takers("n1", None, &zones), "n1 n2");
    assert_eq!(takers("n3", None, &zones), "n3");
    assert_eq!(takers("n4", None, &zones), "n1 n2 n3", "in no zone");
    let both = [hinted(1, "east"), hinted(3, "east,west")];
    assert_eq!((takers("n1", None, &both), takers("n3", None, &both)), ("n1 n3".into(), "n3".into()));
    let one_lacks = [hinted(1, "east"), hinted(2, ""), hinted(3, "west")];
    assert_eq!(takers("n1", None, &one_lacks), "n1 n2 n3");
    assert_eq!(
        takers("n1", Some(Distribution::SameZone), &one_lacks),
        "n1 n2 n3",
        "the wish is with the hints"
    );
    let none_here = [hinted(1, "west"), hinted(3, "west")];
    assert_eq!(takers("n1", None, &none_here), "n1 n3");
    // Only those that are ready are asked.
    let mut ending = zones.clone();
    ending[2].hints = None;
    ending[2].terminating = true;
    assert_eq!(takers("n1", None, &ending), "n1 n2");
    // With nobody ready all that end and serve, near or far.
    let mut all_end = zones;
    all_end.iter_mut().for_each(|endpoint| endpoint.terminating = true);
    assert_eq!(takers("n1", None, &all_end), "n1 n2 n3");
}

#[test]
fn fault_081_hints_at_nodes_come_first_and_fall_back_to_zones() {
    let all = [hinted(1, "east,@n1"), hinted(2, "east,@n2"), hinted(3, "west,@n3")];
    assert_eq!(takers("n1", None, &all), "n1");
    assert_eq!(takers("n1", None, &all[1..]), "n2", "none here: the zone");
    assert_eq!(takers("n4", None, &all), "n1 n2 n3");
    let one_lacks = [hinted(1, "east,@n1"), hinted(2, "east"), hinted(3, "west")];
    assert_eq!(takers("n1", None, &one_lacks), "n1 n2");
    let nodes_alone = [hinted(1, "@n1"), hinted(3, "@n3")];
    assert_eq!(
        (takers("n1", None, &nodes_alone), takers("n2", None, &nodes_alone)),
        ("n1".into(), "n1 n3".into())
    );
}

#[test]
fn fault_081_without_any_hint_the_wish_of_the_service_counts() {
    let all = [hinted(1, ""), hinted(2, ""), hinted(3, "")];
    let zone = Some(Distribution::SameZone);
    let node = Some(Distribution::SameNode);
    assert_eq!(takers("n1", None, &all), "n1 n2 n3");
    assert_eq!((takers("n1", zone, &all), takers("n3", zone, &all)), ("n1 n2".into(), "n3".into()));
    assert_eq!((takers("n1", node, &all), takers("n1", node, &all[1..])), ("n1".into(), "n2".into()));
    assert_eq!((takers("n4", zone, &all), takers("n4", node, &all)), ("n1 n2 n3".into(), "n1 n2 n3".into()));
    assert_eq!(takers("n1", zone, &all[2..]), "n3", "none in the zone");
    // One whose zone nobody knows could be near.
    let unknown = [hinted(1, ""), hinted(3, ""), hinted(4, "")];
    assert_eq!(takers("n1", zone, &unknown), "n1 n3 n4");
    assert_eq!(takers("n1", node, &unknown), "n1");
    let mut said = unknown;
    said[2].zone = Some("east".into());
    assert_eq!(takers("n1", zone, &said), "n1 n4", "what the endpoint says comes before what its node says");
}
