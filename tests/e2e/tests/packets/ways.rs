//! Short cuts: what is remembered or spared must not show, but in time.

use heddle_bpf::TcHook::{Pod, UnderlayIn};
use heddle_ebpf_common::{Counter, Routes};
use heddle_netlink::{Socket, route};
use ipnetwork::IpNetwork;

use crate::frames::{Packet, TCP, UDP, tcp, udp};
use crate::world::{BOTH, Family, PODS, UNDERLAY, Verdict, World, pod, tuple, world};

const STANDS: Routes = Routes { generation: 1, until: u64::MAX };

/// Leads the route to pod 11 to the veth of a pod. (Outcomes are looked at when it leads back.)
fn lead_to(w: &World, f: Family, name: &str) {
    let to = IpNetwork::new(f.pod(1, 11, 0).ip(), if f.is_v4() { 32 } else { 128 }).unwrap();
    let mut socket = Socket::open().unwrap();
    route::replace(&mut socket, &route::Route::on_link(to, w.ifindex(name))).unwrap();
}

/// A flow from a client outside to pod 11 that has been answered: its next request.
fn flow(w: &mut World, f: Family) -> Packet {
    w.service(f, TCP, &[pod(f, 1, 11)]);
    let (client, frontend) = (f.client(5000), f.node(1, 30080));
    w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).sent(PODS[1]);
    w.send(Pod, PODS[1], &tcp("SA", f.pod(1, 11, 8080), client)).sent(UNDERLAY);
    tcp("A", client, frontend)
}

#[test]
fn a_flow_goes_the_way_that_it_went_until_the_routes_change() {
    for f in BOTH {
        let w = &mut *world();
        let request = flow(w, f);
        w.send(UnderlayIn, UNDERLAY, &request).sent(PODS[1]);
        lead_to(w, f, PODS[0]);
        // Nobody has told: this test would see nothing if the way were not remembered.
        let seen = w.send(UnderlayIn, UNDERLAY, &request);
        w.set_routes(Routes { generation: 2, ..STANDS });
        let told = w.send(UnderlayIn, UNDERLAY, &request);
        lead_to(w, f, PODS[1]);
        let again = w.send(UnderlayIn, UNDERLAY, &request);
        w.set_routes(Routes { generation: 3, ..STANDS });
        let back = w.send(UnderlayIn, UNDERLAY, &request);
        for (outcome, to) in [(seen, PODS[1]), (told, PODS[0]), (again, PODS[0]), (back, PODS[1])] {
            outcome.sent(to);
        }
    }
}

#[test]
fn nobody_looks_at_the_routes_and_the_kernel_is_asked_for_each_packet() {
    for f in BOTH {
        let w = &mut *world();
        let request = flow(w, f);
        w.send(UnderlayIn, UNDERLAY, &request).sent(PODS[1]);
        w.configure(|config| config.fixed_time = 9 << 30);
        w.set_routes(Routes { until: 9 << 30, ..STANDS });
        lead_to(w, f, PODS[0]);
        let outcome = w.send(UnderlayIn, UNDERLAY, &request);
        lead_to(w, f, PODS[1]);
        outcome.sent(PODS[0]);
    }
}

#[test]
fn what_does_not_fit_the_way_is_told_so() {
    for f in BOTH {
        let w = &mut *world();
        let request = flow(w, f);
        w.send(UnderlayIn, UNDERLAY, &request).sent(PODS[1]);
        let large = request.payload(1420);
        let out = w.send(UnderlayIn, UNDERLAY, &large);
        assert_eq!(out.verdict, Verdict::To(UNDERLAY));
        assert_eq!(out.count(Counter::TooBig), 1);
    }
}

#[test]
fn the_rest_of_a_connection_that_was_not_answered_goes_to_its_backend() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10), pod(f, 1, 11)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let syn = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend));
        let Verdict::To(device) = syn.verdict else { panic!("{syn:?}") };
        let request = tcp("A", client, frontend);
        assert_eq!(w.flow(&request).map(|(_, answered)| answered), Some(false));
        let out = w.send(UnderlayIn, UNDERLAY, &request);
        out.sent(device);
        assert_eq!(out.count(Counter::Request), 1);
    }
}

#[test]
fn each_direction_is_counted() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 11)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let request = udp(client, frontend).payload(5);
        for _ in 0..2 {
            w.send(UnderlayIn, UNDERLAY, &request).sent(PODS[1]);
        }
        let reply = udp(f.pod(1, 11, 8080), client).payload(3);
        w.send(Pod, PODS[1], &reply).sent(UNDERLAY);
        w.send(UnderlayIn, UNDERLAY, &request).sent(PODS[1]);
        let counts = |w: &mut World, packet| w.flow(packet).map(|(flow, _)| (flow.packets, flow.bytes));
        let header = u64::from(f.header()) + 8;
        assert_eq!(counts(w, &request), Some((3, 3 * (header + 5))), "{:?}", tuple(&request));
        assert_eq!(counts(w, &reply), Some((1, header + 3)));
    }
}

#[test]
fn what_is_for_nobody_here_is_let_through() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        for to in [f.node(1, 22), f.node(2, 22), f.pod(1, 11, 8080)] {
            let packet = tcp("S", f.client(5000), to);
            let out = w.send(UnderlayIn, UNDERLAY, &packet);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, packet.frame()));
        }
    }
}
