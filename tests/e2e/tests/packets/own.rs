//! What this node itself sends to services and no socket hook has seen: raw sockets, the kernel's own, processes
//! outside the cgroup.

use std::net::SocketAddr;

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn, UnderlayOut};
use heddle_ebpf_common::{CT_HOST, CT_OWN, Counter};

use crate::frames::{TCP, tcp, udp};
use crate::world::{BOTH, Family, OVERLAY, PODS, To, UNDERLAY, Verdict, host, pod, vtep_mac, world};

const MARK_HOST: u32 = 0x4864_6c01;

fn source(text: &str) -> SocketAddr {
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The service's answer comes to the stack by the underlay, where the node has sent its request.
fn comes_in(out: &crate::world::Outcome, from: SocketAddr, to: SocketAddr) {
    assert_eq!(out.sent(UNDERLAY).text, format!("tcp {from} > {to} [SA]"));
    assert_eq!(out.mark, MARK_HOST);
}

#[test]
fn to_a_pod_here() {
    for f in BOTH {
        for at in [f.service(1, 80), f.public(1, 80), f.node(2, 30080)] {
            let w = &mut *world();
            w.service(f, TCP, &[pod(f, 1, 10)]);
            w.external(TCP, f.public(1, 80), 30080);
            let (client, backend) = (f.node(1, 5000), f.pod(1, 10, 8080));
            let syn = tcp("S", client, at);
            let seen = w.send(UnderlayOut, UNDERLAY, &syn).sent(PODS[0]);
            let own = source(&seen.text);
            assert_eq!(seen.text, format!("tcp {own} > {backend} [S]"));
            assert_eq!(own.ip(), client.ip());
            assert!((61000..=61999).contains(&own.port()), "a port that the kernel gives to nobody");
            assert_eq!(w.flow(&syn).unwrap().0.flags, CT_OWN);
            comes_in(&w.send(Pod, PODS[0], &tcp("SA", backend, own)), at, client);
            let seen = w.send(UnderlayOut, UNDERLAY, &tcp("A", client, at)).sent(PODS[0]);
            assert_eq!(source(&seen.text), own);
            // Nobody outside goes on with it.
            w.send(UnderlayIn, UNDERLAY, &tcp("A", client, at)).dropped(Counter::DropSpoofed);
        }
    }
}

#[test]
fn to_a_pod_of_another_node_by_the_overlays_address() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let (client, at, backend) = (f.node(1, 5000), f.service(1, 80), f.pod(2, 20, 8080));
        let seen = w.send(UnderlayOut, UNDERLAY, &tcp("S", client, at)).sent(OVERLAY);
        let own = source(&seen.text);
        assert_eq!((own.ip(), seen.text), (f.vtep(1, 0).ip(), format!("tcp {own} > {backend} [S]")));
        let reply = tcp("SA", backend, own).macs(vtep_mac(2), vtep_mac(1));
        comes_in(&w.send(OverlayIn, OVERLAY, &reply), at, client);
    }
}

#[test]
fn to_what_is_in_the_underlay() {
    for f in BOTH {
        for to in [host(f, 2), To { addr: f.client(9090), node: 0 }] {
            let w = &mut *world();
            w.service(f, TCP, &[to]);
            let (client, at) = (f.node(1, 5000), f.service(1, 80));
            let seen = w.send(UnderlayOut, UNDERLAY, &tcp("S", client, at)).sent(UNDERLAY);
            let own = source(&seen.text);
            assert_eq!((own.ip(), seen.text), (client.ip(), format!("tcp {own} > {} [S]", to.addr)));
            comes_in(&w.send(UnderlayIn, UNDERLAY, &tcp("SA", to.addr, own)), at, client);
        }
    }
}

#[test]
fn to_a_process_of_its_own() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        let (client, at, backend) = (f.node(1, 5000), f.service(1, 80), f.node(1, 9090));
        let syn = tcp("S", client, at);
        let out = w.send(UnderlayOut, UNDERLAY, &syn);
        let seen = out.sent(UNDERLAY);
        let own = source(&seen.text);
        let other = if f == Family::V4 { "169.254.42.1" } else { "100::4842:1" };
        assert_eq!((own.ip().to_string().as_str(), out.mark), (other, MARK_HOST));
        assert_eq!(seen.text, format!("tcp {own} > {backend} [S]"));
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_OWN | CT_HOST);
        comes_in(&w.send(UnderlayOut, UNDERLAY, &tcp("SA", backend, own)), at, client);
    }
}

#[test]
fn what_others_send_out_by_this_node_is_theirs() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        for packet in [
            tcp("S", f.client(5000), f.service(1, 80)),
            tcp("S", f.pod(1, 10, 5000), f.service(1, 80)),
            // A segment of no flow; what is no service.
            tcp("A", f.node(1, 5000), f.service(1, 80)),
            tcp("S", f.node(1, 5000), f.node(2, 22)),
            udp(f.node(1, 5000), f.client(53)),
        ] {
            let out = w.send(UnderlayOut, UNDERLAY, &packet);
            assert_eq!((out.verdict, &out.frame), (Verdict::Pass, &packet.frame()), "{packet:?}");
            assert!(out.counted.is_empty());
        }
    }
}
