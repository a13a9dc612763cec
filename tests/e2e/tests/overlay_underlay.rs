//! The overlay follows its underlay: its family, its MTU, its addresses, its router.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::Duration;

use heddle_e2e::{Ask, Client, Cluster, Cmd, Lab, Node, Output, Plan, bin, eventually};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};

const SOON: Duration = Duration::from_secs(1);

fn vxland(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("vxland")).args(args.split(' '))).unwrap()
}

/// A node of which the cluster knows addresses of one family alone.
fn declare(lab: &Lab, node: &Node, v4: bool) {
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{podCIDRs: {:?}}}\n\
         status: {{addresses: [{{type: InternalIP, address: \"{}\"}}]}}\n",
        node.name(),
        node.pod_ranges(),
        node.ip(v4)
    );
    lab.manifests().put(&format!("node-{}.yaml", node.name()), &text).unwrap();
}

#[test]
fn nodes_with_ipv6_addresses_alone_have_an_overlay_over_ipv6() {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        declare(&lab, node, false);
    }
    let _daemons = [1, 2].map(|n| lab.start_vxland(lab.node(n), &[]).unwrap());
    let pods = [1, 2].map(|n| {
        let pod = lab.node(n).pod("pod").unwrap();
        pod.cni_add().unwrap();
        pod
    });
    let _servers = pods.each_ref().map(|pod| pod.serve(pod.name(), 80).unwrap());
    assert!(pods[0].run("ip link show dev eth0").unwrap().contains("mtu 1430"), "70 bytes less than 1500");
    assert!(lab.node(1).run("bridge fdb show dev heddle.1").unwrap().contains("dst fd77::2 "));
    for (from, to) in [(0, 1), (1, 0)] {
        for v4 in [true, false] {
            let to: IpAddr = pods[to].ip(v4).unwrap();
            let answered = || {
                let ask = Ask::new((to, 80));
                for reply in [ask.tcp(&pods[from])?, ask.udp(&pods[from])?] {
                    assert_eq!(Some(reply.client.ip()), pods[from].ip(v4));
                }
                Ok(true)
            };
            eventually("an answer", Duration::from_secs(5), answered).unwrap();
        }
    }
    assert_eq!(lab.switch().foreign().unwrap(), 0, "{:?}", lab.switch().foreigners());
}

#[test]
fn another_mtu_of_the_underlay_is_taken_over() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::overlay()).unwrap();
    let n1 = cluster.node(1);
    let index = n1.run("cat /sys/class/net/heddle.1/ifindex").unwrap();
    for (underlay, overlay) in [(1400, 1350), (1500, 1450)] {
        n1.run(format!("ip link set eth0 mtu {underlay}")).unwrap();
        eventually("the new mtu", SOON, || {
            let conflist = std::fs::read_to_string(n1.path("/etc/cni/net.d/10-heddle.conflist")).unwrap();
            Ok(n1.run("ip link show dev heddle.1")?.contains(&format!("mtu {overlay} "))
                && conflist.contains(&format!("\"mtu\":{overlay},")))
        })
        .unwrap();
    }
    assert_eq!(n1.run("cat /sys/class/net/heddle.1/ifindex").unwrap(), index, "in place");
    // Too small for IPv6 inside: everything stays, and the reason is told.
    n1.run("ip link set eth0 mtu 1300").unwrap();
    let said =
        "mtu 1250 is too small for the overlay: 1280 bytes are needed (the underlay eth0 carries 1300)";
    eventually("the reason", SOON, || Ok(vxland(n1, "status").stdout.contains(said))).unwrap();
    assert!(n1.run("ip link show dev heddle.1").unwrap().contains("mtu 1450 "));
}

#[test]
fn without_its_address_the_node_holds_still_until_it_is_back() {
    let cluster = Cluster::start_with(Lab::builder().nodes(2).clients(0), Plan::overlay()).unwrap();
    let n1 = cluster.node(1);
    n1.run("ip addr del 192.168.77.1/24 dev eth0").unwrap();
    let said = "no device has this node's address 192.168.77.1 (is it up? name the device with --underlay)";
    eventually("the reason", SOON, || Ok(vxland(n1, "status").stdout.contains(said))).unwrap();
    assert!(n1.run("bridge fdb show dev heddle.1").unwrap().contains("dst 192.168.77.2 "), "it stands");
    // What is broken meanwhile is mended when the address is back.
    n1.run("ip route del 10.244.2.0/24").unwrap();
    n1.run("ip addr add 192.168.77.1/24 dev eth0").unwrap();
    eventually("health", SOON, || Ok(vxland(n1, "status").status.success())).unwrap();
}

#[test]
fn an_mtu_that_does_not_fit_is_refused() {
    let lab = Lab::builder().nodes(1).clients(0).build().unwrap();
    lab.manifests().node(lab.node(1)).unwrap();
    let daemon = lab.start_daemon(lab.node(1), "vxland", &["--mtu", "1451"]).unwrap();
    let said = "mtu 1451 is too large: eth0 carries 1500 bytes, of which VXLAN takes 50; use at most 1450";
    eventually("the refusal", Duration::from_secs(5), || Ok(daemon.log().contains(said))).unwrap();
    assert!(lab.node(1).run("ip link show dev heddle.1").is_err());
    assert!(!lab.node(1).path("/run/heddle/vxland.ready").exists());
}

/// Sends a router advertisement (RFC 4861 section 4.2) that makes the sender a default router for `seconds`.
fn advertise(router: &Client, seconds: u16) {
    let send = || -> nix::Result<()> {
        let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
        setsockopt(&raw, sockopt::Ipv6MulticastHops, &255)?;
        let [high, low] = seconds.to_be_bytes();
        // Type, code, checksum (the kernel's), hop limit, flags, lifetime, two timers.
        let message = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, if_nametoindex("eth0")?));
        sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        Ok(())
    };
    router.enter(send).unwrap().unwrap();
}

/// An uplink that lives on router advertisements goes on doing so when vxland has the node forward.
#[test]
fn the_default_route_of_router_advertisements_survives_forwarding() {
    let lab = Lab::builder().nodes(1).clients(1).default_route(false).build().unwrap();
    let (n1, router) = (lab.node(1), lab.client());
    lab.manifests().node(n1).unwrap();
    let sysctl =
        |name: &str| n1.run(format!("cat /proc/sys/net/ipv6/conf/{name}")).unwrap().trim().to_owned();
    let has_route = || Ok(n1.run("ip -6 route show default")?.contains("proto ra"));
    n1.run("sysctl -qw net.ipv6.conf.eth0.accept_ra=1").unwrap();
    eventually("a default route", Duration::from_secs(5), || {
        advertise(router, 1800);
        has_route()
    })
    .unwrap();

    let daemon = lab.start_vxland(n1, &[]).unwrap();
    assert_eq!((sysctl("all/forwarding"), sysctl("eth0/accept_ra")), ("1".into(), "2".into()));
    assert!(has_route().unwrap(), "it survives the switch");
    advertise(router, 0);
    eventually("the end of the route", SOON, || has_route().map(|there| !there)).unwrap();
    advertise(router, 1800);
    eventually("the route again", SOON, has_route).unwrap();

    daemon.terminate(Duration::from_secs(10)).unwrap();
    assert_eq!(sysctl("eth0/accept_ra"), "2", "SIGTERM leaves everything in place");
    assert!(vxland(n1, "cleanup").status.success());
    assert_eq!((sysctl("all/forwarding"), sysctl("eth0/accept_ra")), ("0".into(), "1".into()));
    assert!(has_route().unwrap());
}
