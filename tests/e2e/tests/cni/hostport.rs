//! Capability `portMappings`, with real packets.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use heddle_netlink::nft::{Base, Batch, Family, Hook, Nft, Rule, Verdict, expr, priority};
use heddle_netlink::route::{self, Route};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{Socket, link};
use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use super::around::{self, Around, BEYOND, HOST, NEIGHBOUR, SECOND, Server, tcp, udp};
use super::bench::{Host, Pod};

const SETS: [&str; 10] = [
    "hostports4",
    "hostports6",
    "hostports4_on",
    "hostports6_on",
    "hostport_hairpins4",
    "hostport_hairpins6",
    "hostport_selves4",
    "hostport_selves6",
    "hostport_masq4",
    "hostport_masq6",
];

/// A configuration of a mode, with this host's directories.
pub fn conf(host: &Host, mode: &str) -> Value {
    let mut conf = host.conf();
    conf["runDir"] = json!(host.data_dir().with_file_name("run"));
    if mode == "bridge" {
        conf["mode"] = json!("bridge");
        conf["bridge"] = json!("br0");
        conf["isDefaultGateway"] = json!(true);
        conf["ipam"]["routes"] = json!([]);
    }
    conf
}

pub fn with_ports(conf: &Value, ports: Value) -> Value {
    let mut conf = conf.clone();
    conf["runtimeConfig"] = json!({ "portMappings": ports });
    conf
}

/// TCP and UDP of port 8080 to the pod's port 80.
fn web(conf: &Value) -> Value {
    with_ports(
        conf,
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
        ]),
    )
}

/// All elements of the host's ports, as text.
fn elements(host: &Host) -> BTreeSet<String> {
    let mut nft = Nft::open_in(&host.ns).unwrap();
    let mut all = BTreeSet::new();
    for set in SETS {
        for entry in nft.entries(Family::Inet, "heddle", set).unwrap().unwrap_or_default() {
            all.insert(format!("{set} {:?} {:?} {}", entry.key, entry.data, entry.comment));
        }
    }
    let records = host.data_dir().with_file_name("run").join("ports");
    if let Ok(list) = std::fs::read_dir(records) {
        all.extend(list.map(|file| format!("record {:?}", file.unwrap().file_name())));
    }
    all
}

/// Servers at both of a pod's addresses.
fn servers(pod: &Pod, name: &str, ips: &[String]) -> Vec<Server> {
    ips.iter().map(|ip| Server::start(&pod.ns, name, (ip, 80))).collect()
}

/// What the server of pod `name` says to a question from `peer`.
fn said(name: &str, peer: &str) -> String {
    format!("{name} {peer}")
}

fn refused(answer: std::io::Result<String>) -> bool {
    answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// `filtered`: bridged packets go through the rules of IP too (br_netfilter, as most Kubernetes nodes have it).
fn reached_from_everywhere(mode: &str, filtered: bool) {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let mut conf = conf(&host, mode);
    if filtered {
        // The answer to itself leaves the bridge by the port that the question came in by.
        conf["hairpinMode"] = json!(true);
    }
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let key = Key::new(["net", "bridge", name]);
        match sysctl::write_in(&host.ns, &[(key, if filtered { "1" } else { "0" })]) {
            Err(_) if filtered => return heddle_lab::skip("br_netfilter is not there"),
            _ => {}
        }
    }
    let ips = host.add(&one, &web(&conf)).ips();
    let others = host.add(&two, &conf).ips();
    let _servers = servers(&one, "one", &ips);
    for (family, address) in HOST.iter().enumerate() {
        let to = (*address, 8080);
        for ask in [tcp, udp] {
            // The client's address is the pod's to see.
            assert_eq!(ask(&around.neighbour, to).unwrap(), said("one", NEIGHBOUR[family]), "outside {to:?}");
            assert_eq!(ask(&host.ns, to).unwrap(), said("one", address), "the node itself {to:?}");
            let other = ask(&two.ns, to).unwrap();
            if mode == "ptp" || filtered {
                assert_eq!(other, said("one", &others[family]), "another pod {to:?}");
            } else {
                // The answer would not come back through the host.
                let gateway = ["10.244.1.1", "fd00:10:244:1::1"][family];
                assert_eq!(other, said("one", gateway), "a pod of the same bridge {to:?}");
            }
            let own = ask(&one.ns, to).unwrap();
            assert!(own.starts_with("one ") && own != said("one", &ips[family]), "itself {to:?}: {own}");
            assert!(ask(&around.neighbour, (SECOND[family], 8080)).unwrap().starts_with("one "));
        }
        // By the other port number it is not there, nor by another protocol's.
        assert!(refused(tcp(&around.neighbour, (address, 80))));
    }
    host.del(&one, &web(&conf));
    for address in HOST {
        assert!(refused(tcp(&around.neighbour, (address, 8080))), "{address}: withdrawn");
        assert!(refused(tcp(&host.ns, (address, 8080))), "{address}: withdrawn");
    }
    assert!(elements(&host).is_empty(), "{:?}", elements(&host));
}

#[test]
fn ptp_a_port_is_reached_from_everywhere() {
    reached_from_everywhere("ptp", false);
}

#[test]
fn bridge_a_port_is_reached_from_everywhere() {
    reached_from_everywhere("bridge", false);
}

#[test]
fn bridge_a_port_is_reached_from_everywhere_with_br_netfilter() {
    reached_from_everywhere("bridge", true);
}

#[test]
fn a_port_of_one_address_is_not_the_other_addresses() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let conf = conf(&host, "ptp");
    let on = |ips: [&str; 2]| {
        let entry =
            |ip: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip});
        with_ports(&conf, json!([entry(ips[0]), entry(ips[1])]))
    };
    let first = host.add(&one, &on(SECOND)).ips();
    let _first = servers(&one, "one", &first);
    for family in 0..2 {
        assert_eq!(tcp(&around.neighbour, (SECOND[family], 8080)).unwrap(), said("one", NEIGHBOUR[family]));
        assert!(refused(tcp(&around.neighbour, (HOST[family], 8080))));
    }
    // The rest of the addresses can be another pod's, and "any" is said in three ways.
    let second = host.add(&two, &on(["0.0.0.0", "::"])).ips();
    let _second = servers(&two, "two", &second);
    for family in 0..2 {
        for (address, name) in [(SECOND[family], "one"), (HOST[family], "two")] {
            let wanted = said(name, NEIGHBOUR[family]);
            assert_eq!(tcp(&around.neighbour, (address, 8080)).unwrap(), wanted);
        }
    }
    // An address of the pod's family only.
    let mut only4 = on(["2001:db8:2::1", "2001:db8:2::2"]);
    only4["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
    only4["ipam"]["routes"] = json!([]);
    let third = Pod::new("third");
    let before = host.state();
    let failed = host.call(&third, "ADD", &only4);
    assert_eq!(failed.code(), 7, "{failed:?}");
    assert!(failed.msg().starts_with("runtimeConfig.portMappings[0].hostIP: "), "{failed:?}");
    assert_eq!(host.state(), before);
}

#[test]
fn fault_s06_what_the_host_only_forwards_is_not_touched() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let conf = conf(&host, "ptp");
    let ips = host.add(&one, &web(&conf)).ips();
    host.add(&two, &conf);
    let _pod = servers(&one, "one", &ips);
    let _third = BEYOND.map(|address| Server::start(&around.beyond, "beyond", (address, 8080)));
    for family in 0..2 {
        for ask in [tcp, udp] {
            for from in [&around.neighbour, &two.ns, &host.ns] {
                let answer = ask(from, (BEYOND[family], 8080)).unwrap();
                assert!(answer.starts_with("beyond "), "{answer}");
            }
            assert!(ask(&around.neighbour, (HOST[family], 8080)).unwrap().starts_with("one "));
        }
    }
}

#[test]
fn fault_s04_localhost_is_not_open_to_neighbours() {
    let (host, one) = (Host::new(), Pod::new("one"));
    let around = Around::of(&host);
    let conf = conf(&host, "ptp");
    let localnet = || {
        let read =
            |device: &str| sysctl::read_in(&host.ns, &Key::ipv4_conf(device, "route_localnet")).unwrap();
        let devices = link::list(&mut host.socket()).unwrap().into_iter().map(|link| link.name);
        let mut all = devices.chain(["all".to_owned(), "default".to_owned()]);
        all.all(|device| read(&device) == "0")
    };
    let ips = host.add(&one, &web(&conf)).ips();
    assert!(localnet());
    let pod = ips.iter().map(|ip| {
        let socket = one.ns.run(|| UdpSocket::bind((ip.as_str(), 80)).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let pod: Vec<_> = pod.collect();
    let mut lo = host.socket();
    let index = link::by_name(&mut lo, "lo").unwrap().unwrap().index;
    link::set_up(&mut lo, index).unwrap();
    let local = host.ns.run(|| UdpSocket::bind("127.0.0.1:8080").unwrap()).unwrap();
    local.set_nonblocking(true).unwrap();

    // The node's own processes reach what listens at 127.0.0.1, not the pod.
    assert!(refused(tcp(&host.ns, ("127.0.0.1", 8080))));
    assert!(refused(tcp(&host.ns, ("::1", 8080))));

    // A neighbour that sends packets to 127.0.0.1 to the host: its own kernel must be made to do it.
    let mut socket = Socket::open_in(&around.neighbour).unwrap();
    let index = |socket: &mut Socket, name: &str| link::by_name(socket, name).unwrap().unwrap().index;
    let (lo, eth0) = (index(&mut socket, "lo"), index(&mut socket, "eth0"));
    link::set_down(&mut socket, lo).unwrap();
    let through = Route::via("127.0.0.1/32".parse().unwrap(), HOST[0].parse().unwrap(), eth0);
    route::add(&mut socket, &through).unwrap();
    sysctl::write_in(&around.neighbour, &[(Key::ipv4_conf("eth0", "route_localnet"), "1")]).unwrap();
    let liar = around::client(&around.neighbour, ("127.0.0.1", 8080));
    around::say(&liar).unwrap();
    // What was sent after it has arrived: so would it have.
    let honest = around::client(&around.neighbour, (HOST[0], 8080));
    around::say(&honest).unwrap();
    let mut buffer = [0; 16];
    wait_for(&pod[0]);
    let (_, first) = pod[0].recv_from(&mut buffer).unwrap();
    assert_eq!(first, honest.local_addr().unwrap(), "the packet to 127.0.0.1 came through");
    assert!(pod[0].recv_from(&mut buffer).is_err() && local.recv_from(&mut buffer).is_err());
    host.del(&one, &web(&conf));
    assert!(localnet());

    let mut loopback = web(&conf);
    loopback["runtimeConfig"]["portMappings"][0]["hostIP"] = json!("127.0.0.1");
    let refused = host.call(&one, "ADD", &loopback);
    assert!(refused.code() == 2 && refused.msg().contains("route_localnet"), "{refused:?}");
}

fn wait_for(socket: &UdpSocket) {
    assert_eq!(poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 10_000u16).unwrap(), 1);
}

#[test]
fn a_port_that_is_taken_is_refused_by_name_and_nothing_changes() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let conf = conf(&host, "ptp");
    let ips = host.add(&one, &web(&conf)).ips();
    let _one = servers(&one, "one", &ips);
    let (before, held) = (host.state(), elements(&host));
    let mut wanted = web(&conf);
    // One of three is taken: none comes.
    let list = wanted["runtimeConfig"]["portMappings"].as_array_mut().unwrap();
    list.remove(0);
    list.insert(0, json!({"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}));
    let refused = host.call(&two, "ADD", &wanted);
    assert_eq!(refused.code(), 104, "{refused:?}");
    assert!(
        refused.msg().contains("udp port 8080 is held by eth0 of container one (network heddle)"),
        "{refused:?}"
    );
    assert_eq!((host.state(), elements(&host)), (before, held));
    assert!(tcp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("one "));

    // A repeated DEL of the one that was refused takes nothing from the other.
    host.del(&two, &wanted);
    assert!(tcp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("one "));
    host.del(&one, &web(&conf));
    let ips = host.add(&two, &wanted).ips();
    let _two = servers(&two, "two", &ips);
    assert!(udp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("two "));

    // Its holder died and DEL never came: the port is free.
    link::delete_by_name(&mut two.socket(), "eth0").unwrap();
    let three = Pod::new("three");
    let ips = host.add(&three, &web(&conf)).ips();
    let _three = servers(&three, "three", &ips);
    assert!(udp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("three "));
    // And the DEL that comes late takes nothing from the new one.
    host.del(&two, &wanted);
    assert!(udp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("three "));

    // The same of rules that were saved, and loaded after a boot that took everything else.
    link::delete_by_name(&mut three.socket(), "eth0").unwrap();
    std::fs::remove_dir_all(host.data_dir().with_file_name("run")).unwrap();
    let four = Pod::new("four");
    let ips = host.add(&four, &web(&conf)).ips();
    let _four = servers(&four, "four", &ips);
    assert!(udp(&around.neighbour, (HOST[0], 8080)).unwrap().starts_with("four "));
    host.del(&three, &web(&conf));
    host.del(&four, &web(&conf));
    assert!(elements(&host).is_empty(), "{:?}", elements(&host));
}

#[test]
fn a_client_that_goes_on_sending_finds_the_next_pod() {
    for mode in ["ptp", "bridge"] {
        let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
        let around = Around::of(&host);
        let conf = conf(&host, mode);
        // Something in the host makes it track flows before there is any host port.
        let base = Base::filter(Hook::Prerouting, priority::MANGLE);
        let rule = Rule::new("track", [expr::ct_state(expr::ct::INVALID)], Verdict::Drop);
        let mut nft = Nft::open_in(&host.ns).unwrap();
        nft.ensure_chain(Family::Inet, "firewall", "track", &base, &[rule]).unwrap();
        for address in HOST {
            let client = around::client(&around.neighbour, (address, 8080));
            // Nobody there: the flow is tracked all the same, untranslated.
            around::say(&client).unwrap();
            let nobody = around::hear(&client, around::DEADLINE);
            assert!(refused(nobody), "{mode} {address}: nobody is there yet");
            let next = |pod: &Pod, name: &str| {
                let ips = host.add(pod, &web(&conf)).ips();
                let servers = servers(pod, name, &ips);
                around::say(&client).unwrap();
                let answer = around::hear(&client, around::DEADLINE).unwrap();
                assert!(answer.starts_with(name), "{mode} {address}: {answer}, not {name}");
                drop(servers);
                host.del(pod, &web(&conf));
            };
            next(&one, "one");
            next(&two, "two");
        }
    }
}

#[test]
fn a_check_sees_what_is_missing() {
    let (host, one) = (Host::new(), Pod::new("one"));
    let conf = web(&conf(&host, "ptp"));
    let result = host.add(&one, &conf).json;
    let mut check = conf.clone();
    check["prevResult"] = result;
    let told = |wanted: &str| {
        let answer = host.call(&one, "CHECK", &check);
        assert!(answer.code() == 101 && answer.msg().contains(wanted), "{wanted}: {answer:?}");
    };
    let fine = host.call(&one, "CHECK", &check);
    assert!(fine.success, "{fine:?}");
    let mut nft = Nft::open_in(&host.ns).unwrap();
    let change = |nft: &mut Nft, change: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        change(&mut batch);
        nft.commit(&batch).unwrap();
    };
    let own = nft.entries(Family::Inet, "heddle", "hostports6").unwrap().unwrap();
    change(&mut nft, &|batch| {
        batch.delete_elements(Family::Inet, "heddle", "hostports6", &[own[0].key.clone()])
    });
    told("an element of hostports6 in table inet heddle is not there");
    let mut foreign = own[0].clone();
    foreign.comment = "hdl000000000000 heddle two eth0".into();
    change(&mut nft, &|batch| {
        batch.add_entries(Family::Inet, "heddle", "hostports6", std::slice::from_ref(&foreign), true);
    });
    told("is not this pod's");
    change(&mut nft, &|batch| {
        batch.delete_elements(Family::Inet, "heddle", "hostports6", &[own[0].key.clone()]);
        batch.add_entries(Family::Inet, "heddle", "hostports6", &own[..1], true);
    });
    assert!(host.call(&one, "CHECK", &check).success);
    change(&mut nft, &|batch| batch.flush_chain(Family::Inet, "heddle", "hostports"));
    told("the nf_tables rules of host ports are not there");
}

#[test]
fn fault_062_flushed_rules_are_put_back_by_the_next_pod_with_a_port() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let conf = conf(&host, "ptp");
    let ips = host.add(&one, &web(&conf)).ips();
    let _one = servers(&one, "one", &ips);
    let held = elements(&host);
    let mut batch = Batch::new();
    batch.delete_table(Family::Inet, "heddle");
    Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
    assert!(refused(tcp(&around.neighbour, (HOST[0], 8080))));
    let other = with_ports(&conf, json!([{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]));
    let ips = host.add(&two, &other).ips();
    let _two = servers(&two, "two", &ips);
    for address in HOST {
        assert!(tcp(&around.neighbour, (address, 8080)).unwrap().starts_with("one "));
        assert!(tcp(&around.neighbour, (address, 9090)).unwrap().starts_with("two "));
    }
    host.del(&two, &other);
    assert_eq!(elements(&host), held);
    // Flushed again, and the first to come is a DEL.
    let mut batch = Batch::new();
    batch.delete_table(Family::Inet, "heddle");
    Nft::open_in(&host.ns).unwrap().commit(&batch).unwrap();
    host.del(&one, &web(&conf));
    assert!(elements(&host).is_empty());
}

#[test]
fn what_has_no_owner_is_collected() {
    let (host, kept, lost, gone) = (Host::new(), Pod::new("kept"), Pod::new("lost"), Pod::new("gone"));
    let conf = conf(&host, "ptp");
    let port =
        |port: u16| with_ports(&conf, json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]));
    host.add(&kept, &port(1));
    let wanted = elements(&host);
    // Of another network: not this one's business.
    let mut other = port(4);
    other["name"] = json!("other");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.244.9.0/24"}]]);
    other["ipam"]["routes"] = json!([]);
    let elsewhere = Pod::new("elsewhere");
    host.add(&elsewhere, &other);
    let wanted: BTreeSet<_> = elements(&host).union(&wanted).cloned().collect();
    host.add(&gone, &port(2));
    let lost_host = host.add(&lost, &port(3)).json["interfaces"][0]["name"].as_str().unwrap().to_owned();
    std::fs::remove_file(host.data_dir().with_file_name("run").join("ports").join(lost_host)).unwrap();
    // Of this one there is nothing but its record.
    let bare = Pod::new("bare");
    let ips = host.add(&bare, &port(5)).ips();
    link::delete_by_name(&mut bare.socket(), "eth0").unwrap();
    for lease in host.leases() {
        let path = lease.split_once(' ').unwrap().1;
        if ips.iter().any(|ip| path.ends_with(&format!("/{ip}"))) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut nft = Nft::open_in(&host.ns).unwrap();
    let mut batch = Batch::new();
    for set in SETS {
        for entry in nft.entries(Family::Inet, "heddle", set).unwrap().unwrap() {
            if entry.comment.contains(" bare ") {
                batch.delete_elements(Family::Inet, "heddle", set, &[entry.key]);
            }
        }
    }
    nft.commit(&batch).unwrap();
    let mut collect = conf.clone();
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let answer = host.call(&kept, "GC", &collect);
    assert!(answer.success, "{answer:?}");
    assert_eq!(elements(&host), wanted);
    let again = host.call(&kept, "GC", &collect);
    assert!(again.success, "{again:?}");
    // A DEL for an interface of the same name in another network is not this one's.
    host.del(&kept, &other);
    assert_eq!(elements(&host), wanted);
    host.del(&kept, &port(1));
    host.del(&elsewhere, &other);
    assert!(elements(&host).is_empty());
}

#[test]
fn whose_address_is_translated_can_be_chosen() {
    let (host, one, two) = (Host::new(), Pod::new("one"), Pod::new("two"));
    let around = Around::of(&host);
    let mut conf = conf(&host, "bridge");
    conf["masqAll"] = json!(true);
    let ips = host.add(&one, &web(&conf)).ips();
    let _one = servers(&one, "one", &ips);
    for (family, gateway) in ["10.244.1.1", "fd00:10:244:1::1"].into_iter().enumerate() {
        assert_eq!(tcp(&around.neighbour, (HOST[family], 8080)).unwrap(), said("one", gateway));
        // Without a host port it is as ever.
        assert_eq!(tcp(&around.neighbour, (&ips[family], 80)).unwrap(), said("one", NEIGHBOUR[family]));
    }
    host.del(&one, &web(&conf));
    assert!(elements(&host).is_empty());

    conf["masqAll"] = json!(false);
    conf["snat"] = json!(false);
    host.add(&two, &web(&conf));
    assert!(!elements(&host).iter().any(|element| element.contains("hairpin")));
    host.del(&two, &web(&conf));
}

/// How people save their rules: a machine that could not read ours back would boot without its firewall.
#[test]
fn nft_reads_what_it_lists_of_host_ports() {
    use std::process::{Command, Stdio};
    let nft = |host: &Host, args: &'static [&'static str], input: &str| {
        let mut command = Command::new("nft");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.ns.run(|| command.spawn()).unwrap().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{input}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (host, other) = (Host::new(), Host::new());
    let mut all = web(&conf(&host, "bridge"));
    all["masqAll"] = json!(true);
    let ports = all["runtimeConfig"]["portMappings"].as_array_mut().unwrap();
    for (host_port, ip) in [(9090, "192.0.2.1"), (9091, "2001:db8:2::1")] {
        ports.push(json!({"hostPort": host_port, "containerPort": 9, "protocol": "sctp", "hostIP": ip}));
    }
    host.add(&Pod::new("abc"), &all);
    let listed = nft(&host, &["list", "ruleset"], "");
    for set in SETS {
        assert!(
            listed.contains(set)
                && !Nft::open_in(&host.ns)
                    .unwrap()
                    .entries(Family::Inet, "heddle", set)
                    .unwrap()
                    .unwrap()
                    .is_empty(),
            "{set}"
        );
    }
    nft(&other, &["-f", "-"], &listed);
    // Elements of a set come in no order.
    let words = |text: &str| {
        let mut words: Vec<_> = text.split([' ', '\t', '\n', ',']).map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(words(&nft(&other, &["list", "ruleset"], "")), words(&listed));
}
