//! Answers made in place: RST, ICMP unreachable, ICMP too big; and what is dropped instead.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{BACKEND_FREE, Counter};

use crate::frames::{CLIENT_MAC, HERE_MAC, TCP, UDP, tcp, udp};
use crate::world::{BOTH, OVERLAY, PODS, REPLY_MAC, UNDERLAY, pod, request_mac, vtep_mac, world};

#[test]
fn a_service_without_backends() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[]);
        w.service(f, UDP, &[]);
        let unreachable = if f.is_v4() { "3/3" } else { "1/4" };
        for (hook, ifname, client, frontend) in [
            (UnderlayIn, UNDERLAY, f.client(5000), f.node(1, 30080)),
            (Pod, PODS[0], f.pod(1, 10, 5000), f.service(1, 80)),
        ] {
            let out = w.send(hook, ifname, &tcp("S", client, frontend).payload(3));
            let seen = out.sent(ifname);
            assert_eq!(seen.text, format!("tcp {frontend} > {client} [AR]"));
            assert_eq!((seen.seq, seen.ack, seen.ttl), (0, 1000 + 1 + 3, 64));
            assert_eq!((seen.smac, seen.dmac), (HERE_MAC, CLIENT_MAC), "back the way it came");
            assert_eq!(out.count(Counter::RejectNoBackend), 1);
            assert_eq!(out.frame.len() as u32, 14 + f.header() + 20);

            for len in [0, 1, 5, 500] {
                let out = w.send(hook, ifname, &udp(client, frontend).payload(len));
                let seen = out.sent(ifname);
                let (from, to) = (frontend.ip(), client.ip());
                assert_eq!(
                    seen.text,
                    format!("icmp {from} > {to} {unreachable} (udp {client} > {frontend})")
                );
                assert_eq!(out.count(Counter::RejectNoBackend), 1);
            }
        }
    }
}

#[test]
fn a_segment_of_a_connection_that_nobody_knows() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        for flags in ["A", "FA", "SA"] {
            let seen = w.send(UnderlayIn, UNDERLAY, &tcp(flags, client, frontend)).sent(UNDERLAY);
            assert_eq!(seen.text, format!("tcp {frontend} > {client} [R]"));
            assert_eq!(seen.seq, 2000, "what the other end expects");
        }
        w.send(UnderlayIn, UNDERLAY, &tcp("R", client, frontend)).dropped(Counter::DropNoFlow);
        w.send(UnderlayIn, UNDERLAY, &tcp("RA", client, frontend)).dropped(Counter::DropNoFlow);
    }
}

#[test]
fn tcp_to_a_backend_that_is_gone_is_reset_and_udp_moves() {
    for f in BOTH {
        for freed in [true, false] {
            let w = &mut *world();
            let backends = w.service(f, TCP, &[pod(f, 1, 10)]);
            let datagrams = w.service(f, UDP, &[pod(f, 1, 10), pod(f, 1, 11)]);
            let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
            w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).sent(PODS[0]);
            w.send(Pod, PODS[0], &tcp("SA", backend, client)).sent(UNDERLAY);
            let first = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
            let (first, other) =
                if first.verdict == crate::world::Verdict::To(PODS[0]) { (0, 1) } else { (1, 0) };
            let gone = |backend: &mut heddle_ebpf_common::Backend| {
                if freed {
                    backend.state = BACKEND_FREE;
                } else {
                    backend.generation += 1;
                }
            };
            w.change_backend(backends[0], gone);
            w.change_backend(datagrams[first], gone);
            if !freed {
                // The slot is another backend's now, of no interest to this service.
                w.change_backend(datagrams[first], |backend| {
                    backend.state = heddle_ebpf_common::BACKEND_DOWN
                });
            }

            let out = w.send(UnderlayIn, UNDERLAY, &tcp("A", client, frontend));
            assert_eq!(out.sent(UNDERLAY).text, format!("tcp {frontend} > {client} [R]"));
            assert_eq!(out.count(Counter::RejectStale), 1);
            let out = w.send(Pod, PODS[0], &tcp("A", backend, client));
            assert_eq!(out.sent(PODS[0]).text, format!("tcp {client} > {backend} [R]"), "both ends learn it");
            // A new connection from the same port: no backend, or another service's flow; never the old one.
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend));
            if freed {
                assert_eq!(out.count(Counter::RejectNoBackend), 1);
            } else {
                out.sent(PODS[0]);
            }

            let out = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
            assert_eq!(
                out.sent(PODS[other]).text,
                format!("udp {client} > {}", f.pod(1, 10 + other as u8, 8080))
            );
            assert_eq!(out.count(Counter::FlowNew), 1);
        }
    }
}

#[test]
fn what_does_not_fit_the_tunnel() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let room = 1450 - f.header() as usize - 8;
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend).payload(room)).sent(OVERLAY);
        let out = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend).payload(room + 1));
        let seen = out.sent(UNDERLAY);
        let (from, to) = (frontend.ip(), client.ip());
        let kind = if f.is_v4() { "3/4" } else { "2/0" };
        assert_eq!(seen.text, format!("icmp {from} > {to} {kind} (udp {client} > {frontend})"));
        assert_eq!((seen.mtu, out.count(Counter::TooBig)), (1450, 1));
        // Segments that the card or the device will cut.
        let big = udp(client, frontend).payload(room + 1).frame();
        let gso = |context: &mut [u32; 48]| context[44] = 1000;
        w.run(UnderlayIn, UNDERLAY, &big, gso).sent(OVERLAY);
        let mut may_be_cut = udp(client, frontend).payload(room + 1);
        may_be_cut.dont_fragment = false;
        let out = w.send(UnderlayIn, UNDERLAY, &may_be_cut);
        out.sent(if f.is_v4() { OVERLAY } else { UNDERLAY });
    }
}

#[test]
fn what_does_not_fit_a_pods_device() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend).payload(1440)).sent(UNDERLAY);
        assert_eq!(seen.mtu, 1450);
        assert!(seen.text.contains(&format!("(udp {client} > {frontend})")), "the packet that he sent");
    }
}

#[test]
fn replies_of_the_backend_that_do_not_fit_the_tunnel() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(2, 30080), f.pod(1, 10, 8080));
        let request = udp(client, frontend).macs(request_mac(backend, UDP), vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &request).sent(PODS[0]);
        let out = w.send(Pod, PODS[0], &udp(backend, client).payload(100));
        assert_eq!(out.sent(OVERLAY).smac, REPLY_MAC);
        w.configure(|config| config.tunnel_mtu = 1300);
        let seen = w.send(Pod, PODS[0], &udp(backend, client).payload(1400)).sent(PODS[0]);
        assert_eq!(seen.mtu, 1300);
    }
}

#[test]
fn the_last_hop() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let packet = udp(f.client(5000), f.node(1, 30080));
        assert_eq!(w.send(UnderlayIn, UNDERLAY, &packet.clone().ttl(2)).sent(PODS[0]).ttl, 1);
        w.send(UnderlayIn, UNDERLAY, &packet.clone().ttl(1)).dropped(Counter::DropTtl);
        w.send(UnderlayIn, UNDERLAY, &packet.ttl(0)).dropped(Counter::DropTtl);
    }
}

#[test]
fn the_mss_option_wherever_it_stands() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let most = 1450 - f.header() as u16 - 20;
        for nops in 0..4 {
            for (mss, expected) in [(9000, most), (most + 1, most), (most, most), (536, 536)] {
                let mut syn = tcp("S", f.client(5000 + nops as u16), f.node(1, 30080)).mss(mss);
                syn.nops = nops;
                let seen = w.send(UnderlayIn, UNDERLAY, &syn).sent(OVERLAY);
                assert_eq!(seen.mss, Some(expected), "after {nops} bytes");
            }
        }
        // Not of later segments.
        let data = tcp("A", f.client(5000), f.node(1, 30080)).mss(9000);
        assert_eq!(w.send(UnderlayIn, UNDERLAY, &data).sent(OVERLAY).mss, Some(9000));
    }
}
