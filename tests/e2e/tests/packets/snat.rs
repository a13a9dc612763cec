//! Remote backends by `snat`: the client sees the service, the backend sees this node.

use std::net::SocketAddr;

use heddle_bpf::TcHook::{OverlayIn, UnderlayIn};
use heddle_ebpf_common::{Counter, REMOTE_SNAT};

use crate::frames::{TCP, UDP, tcp, udp};
use crate::world::{BOTH, OVERLAY, PODS, To, UNDERLAY, pod, vtep_mac, world};

fn source(text: &str) -> SocketAddr {
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn into_the_overlay() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        w.configure(|config| config.remote = REMOTE_SNAT);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(2, 20, 8080));
        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend).mss(1460)).sent(OVERLAY);
        let own = source(&seen.text);
        assert_eq!(seen.text, format!("tcp {own} > {backend} [S]"));
        assert_eq!(own.ip(), f.vtep(1, 0).ip());
        assert!((61000..=61999).contains(&own.port()));
        assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20);
        let reply = tcp("SA", backend, own).macs(vtep_mac(2), vtep_mac(1));
        let seen = w.send(OverlayIn, OVERLAY, &reply).sent(UNDERLAY);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("A", client, frontend)).sent(OVERLAY);
        assert_eq!(source(&seen.text), own, "a flow keeps its port");
    }
}

#[test]
fn a_backend_of_no_node_is_always_reached_so() {
    for f in BOTH {
        let w = &mut *world();
        let outside = f.client(9090);
        w.service(f, UDP, &[To { addr: outside, node: 0 }]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(UNDERLAY);
        let own = source(&seen.text);
        assert_eq!((own.ip(), seen.text), (f.node(1, 0).ip(), format!("udp {own} > {outside}")));
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(outside, own)).sent(UNDERLAY);
        assert_eq!(seen.text, format!("udp {frontend} > {client}"));
    }
}

#[test]
fn a_node_without_overlay_is_reached_by_the_underlay() {
    for f in BOTH {
        let w = &mut *world();
        // Routed some other way: a pod of this node plays its part.
        w.service(f, UDP, &[To { addr: f.pod(1, 11, 8080), node: 3 }]);
        let mut node = w.maps().nodes.get(&3, 0).unwrap();
        node.overlay = 0;
        w.maps().nodes.set(3, node, 0).unwrap();
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(f.client(5000), f.node(1, 30080))).sent(PODS[1]);
        assert_eq!(source(&seen.text).ip(), f.node(1, 0).ip());
    }
}

#[test]
fn when_no_port_is_free_the_new_flow_is_dropped() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        w.configure(|config| {
            config.remote = REMOTE_SNAT;
            config.snat_port_min = 61000;
            config.snat_port_max = 61001;
        });
        let mut ports = Vec::new();
        let mut refused = 0;
        for port in 5000..5004 {
            let out = w.send(UnderlayIn, UNDERLAY, &udp(f.client(port), f.node(1, 30080)));
            if out.count(Counter::DropNoPort) == 1 {
                refused += 1;
            } else {
                ports.push(source(&out.sent(OVERLAY).text).port());
            }
        }
        ports.sort_unstable();
        assert_eq!((ports, refused), (vec![61000, 61001], 2));
        // The flows that are there go on.
        w.send(UnderlayIn, UNDERLAY, &udp(f.client(5000), f.node(1, 30080))).sent(OVERLAY);
    }
}

#[test]
fn without_an_address_to_give_it_the_packet_is_dropped() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        w.configure(|config| {
            config.remote = REMOTE_SNAT;
            config.overlay4 = Default::default();
            config.overlay6 = Default::default();
        });
        w.send(UnderlayIn, UNDERLAY, &udp(f.client(5000), f.node(1, 30080))).dropped(Counter::DropNoOverlay);
    }
}
