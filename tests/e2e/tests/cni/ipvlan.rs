//! Mode ipvlan: a pod's interface shares one of the host's. Most of it needs a kernel with ipvlan, which Debian's are
//! (`./x vm`).

use std::io::{IoSlice, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use heddle_netlink::ipvlan::{self, Ipvlan, Mode};
use heddle_netlink::link::{self, Change, Link, VethEnd};
use heddle_netlink::nft::Nft;
use heddle_netlink::route::{self, Filter, Route};
use heddle_netlink::{NetNs, Socket, addr};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};

/// A host on a network, and another machine there: its router.
struct Lan {
    host: Host,
    router: NetNs,
}

const ROUTER: [&str; 2] = ["192.168.50.1", "fd50::1"];
/// Behind the router.
const BEYOND: [&str; 2] = ["10.99.0.1", "fd99::1"];

impl Lan {
    /// `None`, and said so, where the kernel has no ipvlan.
    fn new() -> Option<Self> {
        let lan = Self::anywhere();
        if lan.supports_ipvlan() {
            return Some(lan);
        }
        heddle_lab::skip("this kernel has no ipvlan");
        None
    }

    /// On any kernel.
    fn anywhere() -> Self {
        let (host, router) = (Host::new(), NetNs::create().unwrap());
        let near = VethEnd { name: "lan0", ..VethEnd::default() };
        let far = VethEnd { name: "lan1", ns: Some(&router), ..VethEnd::default() };
        link::create_veth(&mut host.socket(), &near, &far).unwrap();
        set_up(&mut host.socket(), "lan0", &["192.168.50.2/24", "fd50::2/64"]);
        let mut socket = Socket::open_in(&router).unwrap();
        set_up(&mut socket, "lan1", &["192.168.50.1/24", "fd50::1/64"]);
        set_up(&mut socket, "lo", &["10.99.0.1/32", "fd99::1/128"]);
        Self { host, router }
    }

    fn supports_ipvlan(&self) -> bool {
        let (mut socket, scratch) = (self.host.socket(), NetNs::create().unwrap());
        let master = by_name(&mut socket, "lan0").index;
        let probe = Ipvlan { name: "probe", master, mode: Mode::L2, mtu: None, ns: &scratch };
        match ipvlan::create(&mut socket, &probe) {
            Ok(()) => link::delete_by_name(&mut Socket::open_in(&scratch).unwrap(), "probe").is_ok(),
            Err(_) => false,
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.host.data_dir().with_file_name("run")
    }

    /// Pods are on the network itself.
    fn l2(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "shared", "type": "heddle", "mode": "ipvlan", "master": "lan0",
            "runDir": self.run_dir(),
            "ipam": {
                "type": "host-local", "dataDir": self.host.data_dir(),
                "ranges": [
                    [{"subnet": "192.168.50.0/24", "rangeStart": "192.168.50.10", "rangeEnd": "192.168.50.20"}],
                    [{"subnet": "fd50::/64", "rangeStart": "fd50::10", "rangeEnd": "fd50::20"}]
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        })
    }

    /// Pods have ranges of their own, which the router knows to be behind the host.
    fn l3(&self, mode: &str) -> Value {
        let mut conf = self.l2();
        conf["ipvlanMode"] = json!(mode);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.60.1.0/24"}], [{"subnet": "fd60::/64"}]]);
        let mut socket = Socket::open_in(&self.router).unwrap();
        let index = by_name(&mut socket, "lan1").index;
        for (range, host) in [("10.60.1.0/24", "192.168.50.2"), ("fd60::/64", "fd50::2")] {
            let route = Route::via(range.parse().unwrap(), host.parse().unwrap(), index);
            route::replace(&mut socket, &route).unwrap();
        }
        let mut socket = self.host.socket();
        let index = by_name(&mut socket, "lan0").index;
        for (any, router) in [("0.0.0.0/0", ROUTER[0]), ("::/0", ROUTER[1])] {
            let route = Route::via(any.parse().unwrap(), router.parse().unwrap(), index);
            route::replace(&mut socket, &route).unwrap();
        }
        conf
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.run_dir().join("ipvlan")).map_or(0, Iterator::count)
    }

    /// Nothing of a pod is left, on the host or in its namespace.
    fn assert_gone(&self, pod: &Pod) {
        assert!(self.host.leases().is_empty(), "{:?}", self.host.leases());
        assert_eq!(self.records(), 0);
        let links: Vec<_> =
            link::list(&mut pod.socket()).unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo"]);
        assert!(Nft::open_in(&pod.ns).unwrap().tables().unwrap().is_empty());
    }
}

fn by_name(socket: &mut Socket, name: &str) -> Link {
    link::by_name(socket, name).unwrap().unwrap_or_else(|| panic!("there is no {name}"))
}

fn set_up(socket: &mut Socket, name: &str, addresses: &[&str]) {
    let index = by_name(socket, name).index;
    for address in addresses {
        let own = addr::Addr { nodad: true, ..addr::Addr::new(index, address.parse().unwrap()) };
        addr::add(socket, &own).unwrap();
    }
    link::set_up(socket, index).unwrap();
}

fn patient() -> Duration {
    heddle_lab::patient(Duration::from_secs(5))
}

/// A connection is made and closed.
fn connect(from: &NetNs, at: &NetNs, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let listener = at.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, patient()).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.read_to_end(&mut Vec::new()).unwrap();
    })
    .unwrap();
    server.join().unwrap();
}

fn refused(answer: &Answer, code: u64, words: &str) {
    assert!(answer.code() == code && answer.msg().contains(words), "{code} {words:?}: {answer:?}");
}

#[test]
fn l2_pods_are_machines_of_the_network() {
    let Some(lan) = Lan::new() else { return };
    let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
    let before = host.state();
    let mut conf = lan.l2();
    conf["mtu"] = json!(1400);
    let answer = host.add(&one, &conf);
    let far = by_name(&mut one.socket(), "eth0");
    let mac = by_name(&mut host.socket(), "lan0").mac.unwrap();
    let wanted = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{
            "name": "eth0", "mac": heddle_netlink::DisplayMac(mac).to_string(), "mtu": 1400, "sandbox": one.path()
        }],
        "ips": [
            {"interface": 0, "address": "192.168.50.10/24", "gateway": "192.168.50.1"},
            {"interface": 0, "address": "fd50::10/64", "gateway": "fd50::1"}
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {}
    });
    assert_eq!(answer.json, wanted);
    assert_eq!((far.ipvlan, far.mtu, far.up), (Some(Mode::L2), 1400, true));
    let routes = route::list(&mut one.socket(), &Filter::default()).unwrap();
    for gateway in ROUTER {
        let gateway: IpAddr = gateway.parse().unwrap();
        assert!(routes.iter().any(|r| r.dst.prefix() == 0 && r.gateway == Some(gateway)), "{routes:?}");
    }
    // The first packet passes: nobody has to detect duplicates or to learn anything first.
    let target = host.add(&two, &conf).ips();
    for family in 0..2 {
        connect(&one.ns, &two.ns, &target[family]);
        connect(&one.ns, &lan.router, ROUTER[family]);
        connect(&one.ns, &lan.router, BEYOND[family]);
        connect(&lan.router, &one.ns, &answer.ips()[family]);
    }
    // A second interface, and what is there already.
    refused(&host.call(&one, "ADD", &conf), 102, "is attached already");
    let mut check = conf.clone();
    check["prevResult"] = answer.json;
    let checked = host.call(&one, "CHECK", &check);
    assert!(checked.success, "{checked:?}");

    host.del(&one, &conf);
    host.del(&two, &conf);
    host.del(&two, &conf);
    lan.assert_gone(&one);
    lan.assert_gone(&two);
    assert_eq!(host.state(), before);
}

#[test]
fn l3_and_l3s_pods_are_behind_the_host() {
    let Some(lan) = Lan::new() else { return };
    for mode in ["l3", "l3s"] {
        let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
        // Once in our words, once in those of the reference plugin.
        let mut conf = lan.l3(mode);
        let first = host.add(&one, &conf).ips();
        conf["mode"] = json!(mode);
        conf.as_object_mut().unwrap().remove("ipvlanMode");
        let second = host.add(&two, &conf).ips();
        let far = by_name(&mut one.socket(), "eth0");
        assert_eq!(far.ipvlan.unwrap().as_str(), mode);
        let routes = route::list(&mut one.socket(), &Filter::default()).unwrap();
        let default: Vec<_> = routes.iter().filter(|r| r.dst.prefix() == 0).collect();
        assert_eq!(default.len(), 2, "{routes:?}");
        assert!(default.iter().all(|r| r.gateway.is_none() && r.link == Some(far.index)), "{default:?}");
        for family in 0..2 {
            connect(&one.ns, &two.ns, &second[family]);
            connect(&one.ns, &lan.router, BEYOND[family]);
            connect(&lan.router, &one.ns, &first[family]);
        }
        host.del(&one, &conf);
        host.del(&two, &conf);
        lan.assert_gone(&one);
    }
}

#[test]
fn the_master_is_that_of_the_default_route_or_of_the_plugin_before_or_in_the_pod() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod) = (&lan.host, Pod::new("one"));
    let mut conf = lan.l3("l3");
    conf.as_object_mut().unwrap().remove("master");
    let master = by_name(&mut host.socket(), "lan0").index;
    host.add(&pod, &conf);
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(master));
    let status = host.call(&pod, "STATUS", &conf);
    assert!(status.success, "{status:?}");
    host.del(&pod, &conf);

    // Second in a chain, without IPAM: device and addresses are those of the plugin before.
    let mut chained = conf.clone();
    chained.as_object_mut().unwrap().remove("ipam");
    chained["prevResult"] = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "uplink"}],
        "ips": [{"address": "10.60.1.77/24", "interface": 0}], "routes": [{"dst": "10.70.0.0/16"}]
    });
    set_up(&mut host.socket(), "uplink", &[]);
    let answer = host.add(&pod, &chained);
    assert_eq!(answer.json["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(answer.json["ips"], json!([{"address": "10.60.1.77/24", "interface": 1}]));
    let uplink = by_name(&mut host.socket(), "uplink").index;
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(uplink));
    let routes = route::list(&mut pod.socket(), &Filter::default()).unwrap();
    assert!(routes.iter().any(|route| route.dst.to_string() == "10.70.0.0/16"));
    host.del(&pod, &chained);
    lan.assert_gone(&pod);
    chained["prevResult"]["interfaces"] = json!([{"name": "uplink"}, {"name": "switch"}]);
    refused(&host.call(&pod, "ADD", &chained), 7, "master: prevResult has not exactly one interface");
    chained.as_object_mut().unwrap().remove("prevResult");
    refused(&host.call(&pod, "ADD", &chained), 7, "ipam: ");

    // In the pod's namespace already.
    let near = VethEnd { name: "in0", ns: Some(&pod.ns), ..VethEnd::default() };
    let far = VethEnd { name: "in1", ..VethEnd::default() };
    link::create_veth(&mut host.socket(), &near, &far).unwrap();
    set_up(&mut pod.socket(), "in0", &[]);
    let mut inside = lan.l3("l3s");
    inside["master"] = json!("in0");
    refused(&host.call(&pod, "ADD", &inside), 7, "master: there is no interface in0");
    inside["linkInContainer"] = json!(true);
    let answer = host.add(&pod, &inside);
    let master = by_name(&mut pod.socket(), "in0").index;
    assert_eq!(by_name(&mut pod.socket(), "eth0").peer, Some(master));
    inside["prevResult"] = answer.json;
    let checked = host.call(&pod, "CHECK", &inside);
    assert!(checked.success, "{checked:?}");
    host.del(&pod, &inside);
    assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
}

#[test]
fn fault_024_whatever_is_changed_is_named() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod) = (&lan.host, Pod::new("one"));
    let mut conf = lan.l2();
    conf["prevResult"] = host.add(&pod, &conf).json;
    let mut socket = pod.socket();
    let far = by_name(&mut socket, "eth0");
    let own: ipnetwork::IpNetwork = "192.168.50.10/24".parse().unwrap();
    let differs = |what: &str| refused(&host.call(&pod, "CHECK", &conf), 101, what);

    addr::delete(&mut socket, far.index, own).unwrap();
    differs("eth0 has not the address 192.168.50.10/24");
    addr::add(&mut socket, &addr::Addr::new(far.index, own)).unwrap();
    differs("the pod has no route to 0.0.0.0/0");
    let default = Route::via("0.0.0.0/0".parse().unwrap(), ROUTER[0].parse().unwrap(), far.index);
    route::add(&mut socket, &default).unwrap();
    let checked = host.call(&pod, "CHECK", &conf);
    assert!(checked.success, "{checked:?}");
    link::change(&mut socket, far.index, &Change { mtu: Some(1300), ..Change::default() }).unwrap();
    differs("eth0 has the MTU 1300");
    link::change(&mut socket, far.index, &Change { mtu: Some(far.mtu), ..Change::default() }).unwrap();
    let mut batch = heddle_netlink::nft::Batch::new();
    batch.delete_table(heddle_netlink::nft::Family::Netdev, "heddle-eth0");
    Nft::open_in(&pod.ns).unwrap().commit(&batch).unwrap();
    differs("the nf_tables rules against spoofed addresses are not there");
    let mut other = conf.clone();
    other["ipvlanMode"] = json!("l3");
    refused(&host.call(&pod, "CHECK", &other), 101, "eth0 is in mode l2, not l3");
    other = conf.clone();
    other["master"] = json!("uplink");
    refused(&host.call(&pod, "CHECK", &other), 7, "master: uplink is down");
    link::set_down(&mut socket, far.index).unwrap();
    differs("eth0 is down");
    // Gone, and another device in its place.
    link::delete(&mut socket, far.index).unwrap();
    differs("there is no interface eth0");
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("eth0"), &end("other")).unwrap();
    differs("eth0 is no ipvlan device");
    host.del(&pod, &conf);
    by_name(&mut socket, "eth0");
    assert!(host.leases().is_empty() && lan.records() == 0);
}

#[test]
fn fault_025_and_035_a_device_is_found_without_being_told_where() {
    let Some(lan) = Lan::new() else { return };
    let (host, conf) = (&lan.host, lan.l2());
    let (dead, gone, kept) = (Pod::new("dead"), Pod::new("gone"), Pod::new("kept"));
    for pod in [&dead, &gone, &kept] {
        host.add(pod, &conf);
    }
    // DEL without a namespace, as after a restart of the runtime.
    let mut variables = Host::variables(&gone, "DEL");
    variables.retain(|(name, _)| name != "CNI_NETNS");
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert!(answer.success, "{answer:?}");
    assert!(link::by_name(&mut gone.socket(), "eth0").unwrap().is_none());
    // GC: the namespace lives, though the runtime has forgotten it.
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let answer = host.call(&kept, "GC", &gc);
    assert!(answer.success, "{answer:?}");
    assert!(link::by_name(&mut dead.socket(), "eth0").unwrap().is_none());
    by_name(&mut kept.socket(), "eth0");
    let leases = host.leases();
    let of_kept = |address: &str| leases.iter().any(|lease| lease.ends_with(address));
    assert!(lan.records() == 1 && of_kept("192.168.50.12") && of_kept("fd50::12"), "{leases:?}");
    assert!(!of_kept("192.168.50.10") && !of_kept("192.168.50.11"), "{leases:?}");
    // The namespace is gone before DEL.
    let path = kept.path();
    let variables = Host::variables(&kept, "DEL");
    drop(kept);
    assert!(!Path::new(&path).exists());
    let answer = host.raw(&variables, conf.to_string().as_bytes());
    assert!(answer.success, "{answer:?}");
    assert_eq!((lan.records(), host.leases().len()), (0, 0));
}

#[test]
fn fault_041_what_a_killed_add_left_is_cleared_by_the_next_and_by_delete() {
    let Some(lan) = Lan::new() else { return };
    let (host, pod, conf) = (&lan.host, Pod::new("one"), lan.l2());
    let mut socket = pod.socket();
    host.add(&pod, &conf);
    let leases = host.leases().len();
    let temporary =
        std::fs::read_dir(lan.run_dir().join("ipvlan")).unwrap().next().unwrap().unwrap().file_name();
    let temporary = temporary.to_str().unwrap();
    // As ADD goes on: born; named and marked; up, with all but the last mark.
    let unfinished = |socket: &mut Socket, named: bool| {
        let far = by_name(socket, "eth0").index;
        let mark = by_name(socket, "eth0").alias.unwrap();
        let change = Change { alias: Some(&format!("~{mark}")), ..Change::default() };
        link::change(socket, far, &change).unwrap();
        if !named {
            link::set_down(socket, far).unwrap();
            link::change(socket, far, &Change { name: Some(temporary), ..Change::default() }).unwrap();
        }
    };
    for named in [true, false] {
        unfinished(&mut socket, named);
        host.add(&pod, &conf);
        assert_eq!(host.leases().len(), leases, "no second lease");
        connect(&pod.ns, &lan.router, ROUTER[0]);
        assert_eq!(link::list(&mut socket).unwrap().len(), 2);
        unfinished(&mut socket, named);
        host.del(&pod, &conf);
        lan.assert_gone(&pod);
        host.add(&pod, &conf);
    }
    // Killed by others' hands: a device of the same name that is not ours stays.
    host.del(&pod, &conf);
    let master = by_name(&mut host.socket(), "lan0").index;
    let foreign = Ipvlan { name: "foreign", master, mode: Mode::L2, mtu: None, ns: &pod.ns };
    ipvlan::create(&mut host.socket(), &foreign).unwrap();
    let index = by_name(&mut socket, "foreign").index;
    link::change(&mut socket, index, &Change { name: Some("eth0"), ..Change::default() }).unwrap();
    refused(&host.call(&pod, "ADD", &conf), 102, "has an interface eth0 already");
    host.del(&pod, &conf);
    assert_eq!(by_name(&mut socket, "eth0").index, index);
    assert!(host.leases().is_empty() && lan.records() == 0);
}

#[test]
fn fault_032_one_master_has_one_mode_and_no_other_lord() {
    let Some(lan) = Lan::new() else { return };
    let (host, one, two) = (&lan.host, Pod::new("one"), Pod::new("two"));
    host.add(&one, &lan.l2());
    refused(
        &host.call(&two, "ADD", &lan.l3("l3")),
        7,
        "master: lan0 is in mode l2 for eth0 of one; all devices on it are in one mode, so l3 needs another master",
    );
    assert_eq!(by_name(&mut one.socket(), "eth0").ipvlan, Some(Mode::L2), "the kernel would have changed it");
    host.del(&one, &lan.l2());
    lan.assert_gone(&two);
    // A device of somebody else, on the host.
    let ns = NetNs::current().unwrap();
    assert_ne!(ns, host.ns);
    let master = by_name(&mut host.socket(), "lan0").index;
    let foreign = Ipvlan { name: "foreign", master, mode: Mode::L3s, mtu: None, ns: &host.ns };
    ipvlan::create(&mut host.socket(), &foreign).unwrap();
    refused(&host.call(&two, "ADD", &lan.l2()), 7, "master: lan0 is in mode l3s for foreign");
    link::delete_by_name(&mut host.socket(), "foreign").unwrap();
    // With the last device the mode is forgotten.
    host.add(&two, &lan.l3("l3"));
    host.del(&two, &lan.l3("l3"));

    let mut socket = host.socket();
    link::create_bridge(&mut socket, &link::Bridge { name: "br0", ..link::Bridge::default() }).unwrap();
    let bridge = by_name(&mut socket, "br0").index;
    link::change(&mut socket, master, &Change { master: Some(Some(bridge)), ..Change::default() }).unwrap();
    refused(&host.call(&two, "ADD", &lan.l2()), 7, "master: lan0 is taken: a port of a bridge");
    lan.assert_gone(&two);
}

#[test]
fn a_pod_that_lies_about_its_address_is_not_heard() {
    let Some(lan) = Lan::new() else { return };
    let (host, liar) = (&lan.host, Pod::new("liar"));
    let honest = host.add(&liar, &lan.l2()).ips();
    let mut socket = liar.socket();
    let far = by_name(&mut socket, "eth0").index;
    for (family, lie) in ["192.168.50.77", "fd50::77"].into_iter().enumerate() {
        let to: IpAddr = ROUTER[family].parse().unwrap();
        let receiver = lan.router.run(|| UdpSocket::bind((to, 0))).unwrap().unwrap();
        receiver.set_read_timeout(Some(patient())).unwrap();
        let to = receiver.local_addr().unwrap();
        let bits = if family == 0 { 32 } else { 128 };
        let other = ipnetwork::IpNetwork::new(lie.parse().unwrap(), bits).unwrap();
        addr::add(&mut socket, &addr::Addr { nodad: true, ..addr::Addr::new(far, other) }).unwrap();
        for from in [lie, &honest[family]] {
            let from: IpAddr = from.parse().unwrap();
            let sent = liar.ns.run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to)));
            sent.unwrap().ok();
        }
        let (_, from) = receiver.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip().to_string(), honest[family], "only the truth arrives");
        // Nor does it answer who asks for another's address.
        let asked =
            lan.router.run(|| TcpStream::connect_timeout(&(other.ip(), 1).into(), Duration::from_secs(1)));
        let asked = asked.unwrap().unwrap_err();
        assert_ne!(asked.kind(), std::io::ErrorKind::ConnectionRefused, "{lie} was answered");
        addr::delete(&mut socket, far, other).unwrap();
    }
    advertisements(&lan, &liar, &honest[1]);
    host.del(&liar, &lan.l2());
    lan.assert_gone(&liar);
}

/// Of router advertisements, redirects and advertisements of others' addresses nothing arrives.
fn advertisements(lan: &Lan, liar: &Pod, honest: &str) {
    let raw = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).unwrap()
    };
    let (ears, mouth): (OwnedFd, OwnedFd) = (lan.router.run(raw).unwrap(), liar.ns.run(raw).unwrap());
    let limit = nix::sys::time::TimeVal::new(patient().as_secs().cast_signed(), 0);
    setsockopt(&ears, sockopt::ReceiveTimeout, &limit).unwrap();
    // The checksum is the kernel's.
    setsockopt(&mouth, sockopt::Ipv6MulticastHops, &255).ok();
    let to = SockaddrIn6::from(SocketAddrV6::new(ROUTER[1].parse().unwrap(), 0, 0, 0));
    let say = |kind: u8, about: &str| {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(about.parse::<Ipv6Addr>().unwrap().octets());
        message.resize(48, 0);
        let parts = [IoSlice::new(&message)];
        // What the filter drops is an error to whoever sends it (EPERM).
        sendmsg(mouth.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&to)).ok();
    };
    say(134, "fd50::1");
    say(137, "fd50::1");
    say(136, "fd50::1");
    say(136, honest);
    let mut buffer = [0; 128];
    loop {
        let length = recv(ears.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("the truth arrives");
        match buffer[0] {
            134 | 137 => panic!("type {} was heard", buffer[0]),
            136 if length == 48 => {
                assert_eq!(buffer[8..24], honest.parse::<Ipv6Addr>().unwrap().octets());
                break;
            }
            _ => {}
        }
    }
}

/// The reference plugin with the same configuration but for `type` and `mode`.
#[test]
fn the_reference_plugin_wires_a_pod_as_we_do() {
    let Some(lan) = Lan::new() else { return };
    let plugin = Path::new("/usr/lib/cni/ipvlan");
    if !plugin.exists() {
        return heddle_lab::skip("the package containernetworking-plugins is not installed");
    }
    let seen = |pod: &Pod| {
        let mut socket = pod.socket();
        let far = by_name(&mut socket, "eth0");
        let own = addr::list(&mut socket, Some(far.index)).unwrap().into_iter();
        let own: Vec<_> = own.map(|a| a.ip).filter(|ip| !ip.to_string().starts_with("fe80")).collect();
        let routes = route::list(&mut socket, &Filter { table: Some(254), ..Filter::default() }).unwrap();
        let mut routes: Vec<_> = routes
            .into_iter()
            .filter(|route| !route.dst.to_string().starts_with("fe80"))
            .map(|route| (route.dst, route.gateway, route.scope))
            .collect();
        routes.sort_by_key(|route| route.0);
        (far.mtu, far.mac, far.ipvlan, own, routes)
    };
    let mut conf = lan.l2();
    conf["cniVersion"] = json!("1.0.0");
    let (ours, theirs) = (Pod::new("one"), Pod::new("one"));
    let our_answer = lan.host.add(&ours, &conf);
    let our_wiring = seen(&ours);
    lan.host.del(&ours, &conf);
    std::fs::remove_dir_all(lan.host.data_dir()).unwrap();
    conf["mode"] = json!("l2");
    let variables = Host::variables(&theirs, "ADD");
    let their_answer = lan.host.run(&mut Command::new(plugin), &variables, conf.to_string().as_bytes());
    assert!(their_answer.success, "{their_answer:?}");
    assert_eq!(our_wiring, seen(&theirs));
    assert_eq!(our_answer.json["ips"], their_answer.json["ips"]);
    assert_eq!(our_answer.json["routes"], their_answer.json["routes"]);
}

#[test]
fn fault_031_a_master_that_cannot_be_is_refused_before_anything_is_done() {
    let lan = Lan::anywhere();
    let (host, pod) = (&lan.host, Pod::new("one"));
    let before = host.state();
    let cases = [
        ("master", json!("eth7"), 7, "master: there is no interface eth7"),
        ("master", json!("uplink"), 7, "master: uplink is down"),
        ("master", json!("lo"), 7, "master: lo is no Ethernet device"),
        ("master", json!(""), 7, "master: there is no default route"),
        ("mtu", json!(1501), 7, "mtu: 1501 is more than lan0 has, which is 1500"),
        ("ipvlanMode", json!("l4"), 7, "ipvlanMode: \"l4\""),
        ("mode", json!("l4"), 7, "mode: \"l4\""),
        ("mode", Value::Null, 7, "master: "),
        ("ipMasq", json!(true), 2, "ipMasq: "),
        ("runtimeConfig", json!({"mac": "02:00:00:00:00:07"}), 2, "mac: "),
    ];
    for (key, value, code, words) in cases {
        let mut conf = lan.l2();
        conf[key] = value;
        refused(&host.call(&pod, "ADD", &conf), code, words);
    }
    assert_eq!(host.state(), before);
    assert!(lan.records() == 0 && link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
    let mut conf = lan.l2();
    conf["master"] = json!("eth7");
    refused(&host.call(&pod, "STATUS", &conf), 50, "master: there is no interface eth7");
}

#[test]
fn a_kernel_without_ipvlan_is_named() {
    let lan = Lan::anywhere();
    if lan.supports_ipvlan() {
        return heddle_lab::skip("this kernel has ipvlan");
    }
    let pod = Pod::new("one");
    let before = lan.host.state();
    let answer = lan.host.call(&pod, "ADD", &lan.l2());
    refused(&answer, 101, "this kernel has no ipvlan, or not its mode l2 (try: modprobe ipvlan)");
    lan.assert_gone(&pod);
    assert_eq!(lan.host.state(), before);
}
