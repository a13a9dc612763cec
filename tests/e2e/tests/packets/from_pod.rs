//! What pods send that no socket hook translated: to a service's cluster address, to node ports; and what their
//! replies may not be.

use heddle_bpf::TcHook::{OverlayIn, Pod, PodOut, UnderlayIn};
use heddle_ebpf_common::{BACKEND_ACTIVE, BACKEND_DRAINING, CT_HOST, Counter};

use crate::frames::{TCP, UDP, icmp_about, tcp, udp};
use crate::world::{BOTH, OVERLAY, PODS, To, UNDERLAY, Verdict, World, host, pod, vtep_mac, world};

#[test]
fn to_a_pod_here() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 11)]);
        for frontend in [f.service(1, 80), f.node(1, 30080), f.node(2, 30080)] {
            let client = f.pod(1, 10, 5000 + frontend.port() + u16::from(frontend == f.node(2, 30080)));
            let backend = f.pod(1, 11, 8080);
            let seen = w.send(Pod, PODS[0], &udp(client, frontend)).sent(PODS[1]);
            assert_eq!((seen.text, seen.ttl), (format!("udp {client} > {backend}"), 63));
            let seen = w.send(Pod, PODS[1], &udp(backend, client)).sent(PODS[0]);
            assert_eq!(seen.text, format!("udp {frontend} > {client}"));
        }
    }
}

#[test]
fn to_a_pod_of_another_node_as_ordinary_pod_traffic() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let (client, frontend, backend) = (f.pod(1, 10, 5000), f.service(1, 80), f.pod(2, 20, 8080));
        let seen = w.send(Pod, PODS[0], &tcp("S", client, frontend).mss(1460)).sent(OVERLAY);
        assert_eq!(seen.text, format!("tcp {client} > {backend} [S]"));
        assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20);
        let reply = tcp("SA", backend, client).macs(vtep_mac(2), vtep_mac(1));
        let seen = w.send(OverlayIn, OVERLAY, &reply).sent(PODS[0]);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
    }
}

#[test]
fn to_itself() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.pod(1, 10, 5000), f.service(1, 80), f.pod(1, 10, 8080));
        let seen = w.send(Pod, PODS[0], &tcp("S", client, frontend)).sent(PODS[0]);
        let other = if f.is_v4() { "169.254.42.1:5000" } else { "[100::4842:1]:5000" };
        assert_eq!(seen.text, format!("tcp {other} > {backend} [S]"));
        let seen = w
            .send(Pod, PODS[0], &tcp("SA", backend, other.parse::<std::net::SocketAddr>().unwrap()))
            .sent(PODS[0]);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        let seen = w.send(Pod, PODS[0], &tcp("A", client, frontend)).sent(PODS[0]);
        assert_eq!(seen.text, format!("tcp {other} > {backend} [A]"));
    }
}

/// A SYN that is repeated because nobody has answered is a new connection, and goes where new ones go.
#[test]
fn an_unanswered_connection_leaves_a_backend_that_drains() {
    for f in BOTH {
        let w = &mut *world();
        let all = w.service(f, TCP, &[pod(f, 1, 11), pod(f, 2, 20)]);
        let (client, frontend) = (f.pod(1, 10, 5000), f.service(1, 80));
        let syn = tcp("S", client, frontend);
        let ask = |w: &mut World| {
            w.send(Pod, PODS[0], &syn);
            w.flow(&syn).unwrap().0.backend
        };
        let first = ask(w);
        assert_eq!(ask(w), first, "repeated");
        w.change_backend(first, |backend| backend.state = BACKEND_DRAINING);
        let second = ask(w);
        assert_eq!([first.min(second), first.max(second)], [all[0], all[1]]);
        // Answered, it stays.
        w.change_backend(first, |backend| backend.state = BACKEND_ACTIVE);
        if second == all[0] {
            w.send(Pod, PODS[1], &tcp("SA", f.pod(1, 11, 8080), client));
        } else {
            let reply = tcp("SA", f.pod(2, 20, 8080), client).macs(vtep_mac(2), vtep_mac(1));
            w.send(OverlayIn, OVERLAY, &reply);
        }
        w.change_backend(second, |backend| backend.state = BACKEND_DRAINING);
        assert_eq!(ask(w), second);
    }
}

#[test]
fn to_a_process_of_this_node() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        let (client, frontend, backend) = (f.pod(1, 10, 5000), f.service(1, 80), f.node(1, 9090));
        let syn = tcp("S", client, frontend);
        assert_eq!(w.send(Pod, PODS[0], &syn).passed().text, format!("tcp {client} > {backend} [S]"));
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_HOST);
        let seen = w.send(PodOut, PODS[0], &tcp("SA", backend, client)).passed();
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        // The process hears that it has nothing to answer any more: from the pod, as it were.
        let generation = w.flow(&syn).unwrap().0.generation;
        w.change_backend(1, |backend| backend.generation += 1);
        let out = w.send(PodOut, PODS[0], &tcp("A", backend, client));
        assert_eq!(out.sent(PODS[0]).text, format!("tcp {client} > {backend} [R]"));
        let again = w.run(Pod, PODS[0], &out.frame, |context| context[2] = out.mark);
        assert_eq!((again.verdict, again.mark, &again.frame), (Verdict::Pass, 0, &out.frame));
        w.change_backend(1, |backend| backend.generation = generation);
        // What else the host sends to the pod is its own affair.
        let other = tcp("SA", f.node(1, 22), client);
        let out = w.send(PodOut, PODS[0], &other);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, other.frame()));
    }
}

#[test]
fn to_what_is_not_in_the_overlay_with_the_nodes_address() {
    for f in BOTH {
        for to in [host(f, 2), To { addr: f.client(9090), node: 0 }] {
            let w = &mut *world();
            w.service(f, TCP, &[to]);
            let (client, frontend) = (f.pod(1, 10, 5000), f.service(1, 80));
            let seen = w.send(Pod, PODS[0], &tcp("S", client, frontend)).sent(UNDERLAY);
            let (own, rest) = seen.text.split_once(" > ").unwrap();
            assert_eq!(rest, format!("{} [S]", to.addr));
            let own: std::net::SocketAddr = own.strip_prefix("tcp ").unwrap().parse().unwrap();
            assert_eq!(own.ip(), f.node(1, 0).ip());
            assert!((61000..=61999).contains(&own.port()), "{own}");
            let seen = w.send(UnderlayIn, UNDERLAY, &tcp("SA", to.addr, own)).sent(PODS[0]);
            assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        }
    }
}

#[test]
fn other_traffic_passes_as_it_is() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        for packet in [
            tcp("S", f.pod(1, 10, 5000), f.pod(2, 20, 80)),
            tcp("S", f.pod(1, 10, 5000), f.client(30080)),
            // A spoofed source that asks for no service is the firewall's to drop.
            tcp("S", f.pod(1, 11, 5000), f.client(80)),
        ] {
            let out = w.send(Pod, PODS[0], &packet);
            assert_eq!((out.verdict, &out.frame), (Verdict::Pass, &packet.frame()));
            assert!(out.counted.is_empty());
        }
    }
}

#[test]
fn a_source_that_is_not_the_pods_is_dropped() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 11)]);
        let frontend = f.service(1, 80);
        for source in [f.pod(1, 11, 5000), f.pod(2, 20, 5000), f.client(5000), f.node(1, 5000), f.vtep(2, 1)]
        {
            w.send(Pod, PODS[0], &udp(source, frontend)).dropped(Counter::DropSpoofed);
        }
        // Neither does another pod go on with a flow of this one, nor answer in place of its backend.
        let client = f.pod(1, 10, 5000);
        w.send(Pod, PODS[0], &udp(client, frontend)).sent(PODS[1]);
        w.send(Pod, PODS[1], &udp(client, frontend)).dropped(Counter::DropSpoofed);
        w.send(Pod, PODS[0], &udp(f.pod(1, 11, 8080), client)).dropped(Counter::DropSpoofed);
        w.send(Pod, PODS[1], &udp(f.pod(1, 11, 8080), client)).sent(PODS[0]);
        w.send(Pod, PODS[0], &udp(f.pod(1, 11, 8080), client)).dropped(Counter::DropSpoofed);
        // Nor anybody outside.
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).dropped(Counter::DropSpoofed);
    }
}

#[test]
fn an_icmp_error_of_the_backend_reaches_the_client_with_the_addresses_that_he_knows() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(PODS[0]);
        let unreachable = if f.is_v4() { (3, 3) } else { (1, 4) };
        let frame = icmp_about(&udp(client, backend), backend.ip(), unreachable, 0);
        let seen = w.send_raw(Pod, PODS[0], &frame).sent(UNDERLAY);
        let (kind, code) = unreachable;
        let (from, to) = (frontend.ip(), client.ip());
        assert_eq!(seen.text, format!("icmp {from} > {to} {kind}/{code} (udp {client} > {frontend})"));

        // And one of a router on the way to the client reaches the backend.
        let router = f.client(0).ip();
        let too_big = if f.is_v4() { (3, 4) } else { (2, 0) };
        let frame = icmp_about(&udp(frontend, client), router, too_big, 1300);
        let seen = w.send_raw(UnderlayIn, UNDERLAY, &frame).sent(PODS[0]);
        let (kind, code) = too_big;
        let to = backend.ip();
        assert_eq!(seen.text, format!("icmp {router} > {to} {kind}/{code} (udp {backend} > {client})"));
        assert_eq!(seen.mtu, 1300);
        // One about nothing that we know passes.
        let frame = icmp_about(&udp(f.node(1, 99), client), router, too_big, 1300);
        let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, frame));
    }
}
