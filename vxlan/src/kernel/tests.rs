//! The kernel itself, in namespaces of our own: two nodes, one cable.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use heddle_model::{Mac, OverlayTable, RemoteNode};
use heddle_netlink::addr::{self, Addr};
use heddle_netlink::fdb::{self, Fdb};
use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{NetNs, Socket};

use super::*;
use crate::desired::{Desired, Settings, desired};
use crate::fake::{self, ip, name, net, settle, settle_link};
use crate::plan::{Step, plan};
use crate::state::KernelState;

const DEVICE: &str = "heddle.1";

/// A node: a namespace, and what it should be like.
struct Node {
    ns: NetNs,
    number: u8,
    six: bool,
}

impl Node {
    fn underlay(number: u8, six: bool) -> IpAddr {
        if six { ip(&format!("fd77::{number}")) } else { ip(&format!("192.168.77.{number}")) }
    }

    fn table(&self, remotes: impl IntoIterator<Item = RemoteNode>) -> OverlayTable {
        OverlayTable {
            underlay: Some(Self::underlay(self.number, self.six)),
            addresses: Vec::new(),
            local: ranges(self.number),
            remotes: remotes
                .into_iter()
                .enumerate()
                .map(|(i, remote)| (name(&format!("r{i}")), remote))
                .collect(),
        }
    }

    fn remote(&self) -> RemoteNode {
        let mac = heddle_model::node::vtep_mac(&name(&format!("n{}", self.number)), 1);
        RemoteNode {
            underlay: Self::underlay(self.number, self.six),
            mac,
            ranges: ranges(self.number),
            beside: None,
            addresses: vec![Self::underlay(self.number, false), Self::underlay(self.number, true)],
        }
    }

    fn settings(&self) -> Settings {
        Settings { node: name(&format!("n{}", self.number)), ..fake::settings() }
    }

    fn desired(&self, remotes: impl IntoIterator<Item = RemoteNode>) -> Desired {
        let local = Self::underlay(self.number, self.six);
        let underlay = self.with(|socket| underlay(socket, &[local], None).unwrap());
        assert_eq!(underlay.device, "eth0");
        desired(&self.table(remotes), &underlay, &self.settings()).unwrap()
    }

    fn with<T: Send>(&self, work: impl FnOnce(&mut Socket) -> T + Send) -> T {
        self.ns.run(|| work(&mut Socket::open().unwrap())).unwrap()
    }

    fn observe(&self) -> KernelState {
        self.with(|socket| observe(socket, DEVICE).unwrap())
    }

    /// Makes it so, expects that it is so, and returns what was done.
    fn reach(&self, desired: &Desired) -> Vec<Step> {
        let wanted = KernelState { forwarding: BTreeSet::new(), ..desired.state.clone() };
        let steps = plan(&self.observe(), &wanted);
        self.with(|socket| {
            let mut applier = Applier::new(socket, DEVICE).unwrap();
            for step in &steps {
                applier.take(step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
            }
        });
        assert_eq!(self.observe(), wanted);
        assert_eq!(plan(&self.observe(), &wanted), [], "a second reconcile writes nothing");
        // The kernel puts an IPv6 address to use a moment after it has taken it (addrconf_dad_work).
        settle(&self.ns, |socket| {
            let local = Filter { table: Some(route::TABLE_LOCAL), ..Filter::default() };
            let local = route::list(socket, &local).unwrap();
            wanted.addresses.iter().all(|address| local.iter().any(|route| route.dst.ip() == address.ip))
        });
        steps
    }

    fn index(&self) -> u32 {
        self.with(|socket| link::by_name(socket, DEVICE).unwrap().unwrap().index)
    }
}

fn ranges(number: u8) -> BTreeSet<ipnetwork::IpNetwork> {
    [net(&format!("10.244.{number}.0/24")), net(&format!("fd00:10:244:{number}::/64"))].into()
}

/// Nodes 1 and 2. Nothing of them is left when they are dropped: namespaces without a name.
fn nodes(six: bool) -> (Node, Node) {
    let [one, two] = [1, 2].map(|number| Node { ns: NetNs::create().unwrap(), number, six });
    one.with(|socket| {
        let far = VethEnd { name: "eth0", ns: Some(&two.ns), ..VethEnd::default() };
        link::create_veth(socket, &VethEnd { name: "eth0", ..VethEnd::default() }, &far).unwrap();
    });
    for node in [&one, &two] {
        node.with(|socket| {
            for name in ["lo", "eth0"] {
                let index = link::by_name(socket, name).unwrap().unwrap().index;
                if name == "eth0" {
                    for text in
                        [format!("192.168.77.{}/24", node.number), format!("fd77::{}/64", node.number)]
                    {
                        let addr = Addr { nodad: true, ..Addr::new(index, net(&text)) };
                        addr::add(socket, &addr).unwrap();
                    }
                }
                link::set_up(socket, index).unwrap();
            }
        });
    }
    for node in [&one, &two] {
        settle_link(&node.ns, "eth0");
    }
    (one, two)
}

/// Sends a datagram from `from` to the overlay address of `to`, and one back. The source must be the
/// overlay address of the sender by itself.
fn talk(from: &Node, to: &Node, v4: bool) -> std::io::Result<()> {
    let overlay =
        |node: &Node| ranges(node.number).into_iter().find(|r| r.is_ipv4() == v4).unwrap().network();
    let any: SocketAddr = if v4 { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = |node: &Node| {
        let socket = node.ns.run(|| UdpSocket::bind(any)).unwrap()?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok::<_, std::io::Error>(socket)
    };
    let (client, server) = (socket(from)?, socket(to)?);
    let mut buffer = [0; 16];
    client.send_to(b"hello", (overlay(to), server.local_addr()?.port()))?;
    let (_, peer) = server.recv_from(&mut buffer)?;
    assert_eq!(peer.ip(), overlay(from), "the sender's source is its address in the overlay");
    server.send_to(b"hello yourself", peer)?;
    let (_, peer) = client.recv_from(&mut buffer)?;
    assert_eq!(peer.ip(), overlay(to));
    Ok(())
}

#[test]
fn two_nodes_talk_over_either_underlay_in_both_families() {
    for (six, mtu) in [(false, 1450), (true, 1430)] {
        let (one, two) = nodes(six);
        let first = one.desired([two.remote()]);
        assert_eq!(first.mtu, mtu);
        one.reach(&first);
        two.reach(&two.desired([one.remote()]));
        for v4 in [true, false] {
            talk(&one, &two, v4)
                .unwrap_or_else(|error| panic!("to, underlay six {six}, inner v4 {v4}: {error}"));
            talk(&two, &one, v4)
                .unwrap_or_else(|error| panic!("fro, underlay six {six}, inner v4 {v4}: {error}"));
        }
    }
}

#[test]
fn a_device_with_the_right_attributes_is_kept_and_any_other_is_replaced() {
    let (one, two) = nodes(false);
    let wanted = one.desired([two.remote()]);
    one.reach(&wanted);
    let index = one.index();
    assert_eq!(one.reach(&wanted), []);
    assert_eq!(one.index(), index);

    // What can be changed in place is, and nothing is lost by it.
    one.with(|socket| {
        let change =
            link::Change { mtu: Some(1400), mac: Some([2, 9, 9, 9, 9, 9]), ..link::Change::default() };
        link::change(socket, index, &change).unwrap();
    });
    assert!(matches!(one.reach(&wanted)[0], Step::ChangeDevice { .. }));
    assert_eq!(one.index(), index);
    one.with(|socket| link::set_down(socket, index).unwrap());
    assert!(matches!(one.reach(&wanted)[0], Step::ChangeDevice { .. }));
    assert_eq!(one.index(), index);

    // Another UDP port: another device.
    let settings = Settings { port: 4789, ..one.settings() };
    let local = ip("192.168.77.1");
    let under = one.with(|socket| underlay(socket, &[local], Some("eth0")).unwrap());
    let moved = desired(&one.table([two.remote()]), &under, &settings).unwrap();
    assert!(matches!(one.reach(&moved)[0], Step::RecreateDevice(_)));
    assert_ne!(one.index(), index);

    // Something else under our name.
    one.with(|socket| {
        link::delete_by_name(socket, DEVICE).unwrap();
        link::create_bridge(socket, &link::Bridge { name: DEVICE, ..link::Bridge::default() }).unwrap();
    });
    assert!(matches!(one.reach(&wanted)[0], Step::RecreateDevice(_)));
    two.reach(&two.desired([one.remote()]));
    talk(&one, &two, true).unwrap();
}

#[test]
fn planted_entries_go_and_foreign_routes_stay() {
    let (one, two) = nodes(false);
    let wanted = one.desired([two.remote()]);
    one.reach(&wanted);
    let index = one.index();
    let foreign =
        route::Route { protocol: route::PROTOCOL_BOOT, ..route::Route::on_link(net("10.99.0.0/16"), index) };
    one.with(|socket| {
        let nowhere = ip("192.168.77.66");
        fdb::add(socket, &Fdb::new(index, [2, 6, 6, 6, 6, 6], nowhere)).unwrap();
        fdb::add(socket, &Fdb::new(index, [0; 6], nowhere)).unwrap();
        let aging = Fdb { permanent: false, ..Fdb::new(index, [2, 7, 7, 7, 7, 7], nowhere) };
        fdb::add(socket, &aging).unwrap();
        for text in ["10.244.66.0", "fd00:10:244:66::"] {
            neigh::add(socket, &Neigh::new(index, ip(text), [2, 6, 6, 6, 6, 6])).unwrap();
        }
        for text in ["10.244.66.0/24", "fd00:10:244:66::/64"] {
            let range = net(text);
            route::add(socket, &route::Route::via(range, range.network(), index)).unwrap();
        }
        addr::add(socket, &Addr::new(index, net("10.244.7.0/32"))).unwrap();
        route::add(socket, &foreign).unwrap();
        // Ours, but bent: another MAC, another destination, another gateway.
        let peer = two.remote();
        neigh::replace(socket, &Neigh::new(index, ip("10.244.2.0"), [2, 6, 6, 6, 6, 6])).unwrap();
        fdb::replace(socket, &Fdb::new(index, peer.mac.0, nowhere)).unwrap();
    });
    let steps = one.reach(&wanted);
    assert_eq!(steps.len(), 2 + 3 + 2 + 2 + 1, "{steps:#?}");
    let left =
        one.with(|socket| route::list(socket, &Filter { link: Some(index), ..Filter::default() }).unwrap());
    assert!(left.iter().any(|route| route.dst == foreign.dst), "what is not ours stays");
    two.reach(&two.desired([one.remote()]));
    talk(&one, &two, true).unwrap();
}

#[test]
fn a_peer_changes_its_mac_address_and_range_in_one_plan() {
    let (one, two) = nodes(false);
    one.reach(&one.desired([two.remote()]));
    let renewed = RemoteNode {
        mac: Mac([2, 1, 1, 1, 1, 1]),
        underlay: ip("192.168.77.9"),
        ranges: ranges(9),
        ..two.remote()
    };
    one.reach(&one.desired([renewed]));
    // The address goes to yet another node, with the first one's range.
    let heir = RemoteNode { mac: Mac([2, 1, 1, 1, 1, 2]), underlay: ip("192.168.77.9"), ..two.remote() };
    one.reach(&one.desired([heir]));
    let steps = one.reach(&one.desired([two.remote()]));
    assert!(
        !steps.iter().any(|step| matches!(step, Step::AddRoute(..) | Step::RemoveRoute(..))),
        "{steps:#?}"
    );
    one.reach(&one.desired([]));
}

#[test]
fn a_foreign_route_in_the_way_is_named_and_not_overwritten() {
    let (one, two) = nodes(false);
    let wanted = one.desired([two.remote()]);
    let foreign = one.with(|socket| {
        let eth0 = link::by_name(socket, "eth0").unwrap().unwrap().index;
        let route = route::Route {
            protocol: route::PROTOCOL_BOOT,
            ..route::Route::on_link(net("10.244.2.0/24"), eth0)
        };
        route::add(socket, &route).unwrap();
        route
    });
    let steps = plan(&one.observe(), &wanted.state);
    let failed: Vec<String> = one.with(|socket| {
        let mut applier = Applier::new(socket, DEVICE).unwrap();
        steps.iter().filter_map(|step| applier.take(step).err()).map(|error| error.to_string()).collect()
    });
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(failed[0].contains("10.244.2.0/24") && failed[0].contains("not ours"), "{failed:#?}");
    let routes = one.with(|socket| route::list(socket, &Filter::default()).unwrap());
    assert!(routes.iter().any(|route| route.dst == foreign.dst && route.link == foreign.link));
}

#[test]
fn another_overlay_on_the_same_vni_and_port_is_named() {
    let (one, two) = nodes(false);
    let wanted = one.desired([two.remote()]);
    one.with(|socket| {
        let vxlan =
            heddle_netlink::vxlan::Vxlan { vni: 1, port: 8472, ..heddle_netlink::vxlan::Vxlan::default() };
        heddle_netlink::vxlan::create(socket, "flannel.1", &vxlan, None, None).unwrap();
    });
    let step = Step::CreateDevice(wanted.state.device.unwrap());
    let error = one.with(|socket| Applier::new(socket, DEVICE).unwrap().take(&step).unwrap_err().to_string());
    assert!(error.starts_with("cannot create heddle.1: flannel.1 has VNI 1 on UDP port 8472"), "{error}");
}

#[test]
fn a_udp_port_in_use_is_named() {
    let (one, two) = nodes(false);
    let wanted = one.desired([two.remote()]);
    let taken = one.ns.run(|| UdpSocket::bind("0.0.0.0:8472")).unwrap().unwrap();
    let step = Step::CreateDevice(wanted.state.device.clone().unwrap());
    let error = one.with(|socket| Applier::new(socket, DEVICE).unwrap().take(&step).unwrap_err().to_string());
    assert!(
        error.starts_with("cannot set heddle.1 up: UDP port 8472 is taken by another program"),
        "{error}"
    );
    drop(taken);
    // The device stands and is set up with the next plan.
    assert!(matches!(one.reach(&wanted)[0], Step::ChangeDevice { .. }));
}

#[test]
fn the_underlay_is_found_or_the_reason_told() {
    let (one, _two) = nodes(false);
    let told = |local: &str, named: Option<&str>| {
        one.with(|socket| {
            underlay(socket, &[ip(local)], named).map(|u| u.device).map_err(|error| error.to_string())
        })
    };
    assert_eq!(told("192.168.77.1", None), Ok("eth0".into()));
    assert_eq!(told("fd77::1", Some("eth0")), Ok("eth0".into()));
    assert!(
        told("192.168.77.5", None).unwrap_err().starts_with("no device has this node's address 192.168.77.5")
    );
    assert_eq!(told("192.168.77.1", Some("eth7")).unwrap_err(), "there is no device eth7 (--underlay)");
    assert!(told("127.0.0.1", None).unwrap_err().contains("loopback device lo"));
}

#[test]
fn hidden_addresses_are_no_source_of_other_packets() {
    let (one, two) = nodes(false);
    one.reach(&one.desired([two.remote()]));
    two.reach(&two.desired([one.remote()]));
    for (any, to, own) in
        [("0.0.0.0:0", "192.168.77.2:9", "192.168.77.1"), ("[::]:0", "[fd77::2]:9", "fd77::1")]
    {
        let source = one
            .ns
            .run(|| {
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                socket.local_addr()
            })
            .unwrap()
            .unwrap();
        assert_eq!(source.ip(), ip(own));
    }
}

#[test]
fn fault_139_five_thousand_nodes_are_in_the_kernel_within_seconds() {
    let (one, _two) = nodes(false);
    let remotes = (0..5000_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        RemoteNode {
            underlay: ip(&format!("172.16.{high}.{low}")),
            mac: Mac([2, 0, 1, 0, high, low]),
            ranges: [net(&format!("10.{}.{low}.0/24", 16 + high)), net(&format!("fd00:10:{n:x}::/64"))]
                .into(),
            beside: None,
            addresses: Vec::new(),
        }
    });
    let desired = one.desired(remotes);
    let begin = Instant::now();
    let steps = one.reach(&desired).len();
    let made = begin.elapsed();
    assert_eq!(steps, 1 + 2 + 2 + 5 * 5000);
    let begin = Instant::now();
    assert_eq!(plan(&one.observe(), &KernelState { forwarding: BTreeSet::new(), ..desired.state }), []);
    // 2 s where nothing else runs; the bound is for a loaded machine and a build without optimisation.
    println!("5,000 nodes: {made:?}; a look at them: {:?}", begin.elapsed());
    assert!(made < Duration::from_secs(20), "{made:?}");
}

#[test]
fn the_device_of_another_vni_makes_room() {
    let (one, two) = nodes(false);
    one.reach(&one.desired([two.remote()]));
    let settings = Settings { vni: 2, ..one.settings() };
    let local = ip("192.168.77.1");
    let under = one.with(|socket| underlay(socket, &[local], None).unwrap());
    let wanted = desired(&one.table([two.remote()]), &under, &settings).unwrap().state;
    let observed = one.with(|socket| observe(socket, "heddle.2").unwrap());
    let steps = plan(&observed, &wanted);
    assert_eq!(steps[0], Step::RemoveLeftover(DEVICE.to_owned()));
    one.with(|socket| {
        let mut applier = Applier::new(socket, "heddle.2").unwrap();
        steps.iter().for_each(|step| applier.take(step).unwrap());
        assert_eq!(link::by_name(socket, DEVICE).unwrap(), None);
        assert_eq!(
            plan(
                &KernelState {
                    forwarding: wanted.forwarding.clone(),
                    ..observe(socket, "heddle.2").unwrap()
                },
                &wanted
            ),
            []
        );
    });
}
