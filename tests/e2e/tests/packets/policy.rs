//! Traffic policies and source ranges: who reaches which backends of one service.

use aya::maps::lpm_trie::Key;
use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{
    Counter, FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, FRONTEND_LOCAL, FRONTEND_SOURCES, NODE_DOWN, SourceKey,
};

use crate::frames::{TCP, UDP, tcp, udp};
use crate::world::{BOTH, OVERLAY, PODS, UNDERLAY, Verdict, World, addr, pod, request_mac, vtep_mac, world};

/// Clients outside reach this node's backends only, with their own address; pods and nodes all of them.
#[test]
fn external_policy_local() {
    for f in BOTH {
        let w = &mut *world();
        let all = w.service(f, TCP, &[pod(f, 2, 20), pod(f, 1, 10), pod(f, 1, 11)]);
        let local = w.ring(&all[1..]);
        w.external(TCP, f.public(1, 80), 30080);
        for at in [f.any(30080), f.public(1, 80)] {
            w.change(at, TCP, |frontend| {
                frontend.flags |= FRONTEND_LOCAL | FRONTEND_DROP_OUTSIDE;
                (frontend.outside, frontend.outside_len) = (local, 2);
            });
        }
        for (frontend, first) in [(f.node(1, 30080), 5000), (f.public(1, 80), 6000)] {
            let mut met = [0; 2];
            for port in first..first + 40 {
                let client = f.client(port);
                let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend));
                let at = PODS.iter().position(|pod| out.verdict == Verdict::To(pod)).expect("a pod here");
                let backend = f.pod(1, 10 + at as u8, 8080);
                assert_eq!(out.sent(PODS[at]).text, format!("tcp {client} > {backend} [S]"));
                met[at] += 1;
            }
            assert!(met.iter().all(|count| *count > 8), "{met:?}");
            // From inside it is one service as any other: on any node, and though its address is outside.
            w.configure(|config| config.fixed_random = 0);
            let mut remote = 0;
            for port in first..first + 40 {
                let out = w.send(Pod, PODS[0], &tcp("S", f.pod(1, 10, port), frontend));
                remote += u32::from(out.verdict == Verdict::To(OVERLAY));
            }
            assert!((4..30).contains(&remote), "{remote}");
            w.configure(|_| ());
        }
    }
}

#[test]
fn fault_079_no_backend_under_a_policy_is_a_drop_or_a_reject() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        w.external(UDP, f.public(1, 80), 30080);
        for at in [f.any(30080), f.public(1, 80)] {
            w.change(at, UDP, |frontend| {
                frontend.flags |= FRONTEND_LOCAL | FRONTEND_DROP_OUTSIDE;
                frontend.outside_len = 0;
            });
        }
        for frontend in [f.node(1, 30080), f.public(1, 80)] {
            let packet = udp(f.client(5000), frontend);
            w.send(UnderlayIn, UNDERLAY, &packet).dropped(Counter::DropNoBackend);
            // Those inside are served all the same, and never by way of `outside`.
            let port = 5000 + u16::from(frontend.port() == 80);
            w.send(Pod, PODS[0], &udp(f.pod(1, 10, port), frontend)).sent(OVERLAY);
            // Without the mark nobody there is a reject.
            let at = if frontend.port() == 80 { frontend } else { f.any(30080) };
            w.change(at, UDP, |frontend| frontend.flags &= !FRONTEND_DROP_OUTSIDE);
            let out = w.send(UnderlayIn, UNDERLAY, &packet);
            assert_eq!(out.count(Counter::RejectNoBackend), 1);
            out.sent(UNDERLAY);
        }
        // internalTrafficPolicy Local without a backend here.
        let (client, service) = (f.pod(1, 10, 6000), f.service(1, 80));
        for (flags, counter) in [(0, Counter::RejectNoBackend), (FRONTEND_DROP, Counter::DropNoBackend)] {
            w.change(service, UDP, |frontend| (frontend.ring_len, frontend.flags) = (0, flags));
            let out = w.send(Pod, PODS[0], &udp(client, service));
            assert_eq!(out.count(counter), 1, "{out:?}");
            assert_eq!(out.verdict == Verdict::Drop, flags != 0);
        }
    }
}

/// A list of this node's own that names another node's backend (while the lists change) is no way there.
#[test]
fn a_local_policy_never_tunnels() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        w.change(f.any(30080), TCP, |frontend| frontend.flags |= FRONTEND_LOCAL);
        let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", f.client(5000), f.node(1, 30080)));
        assert_eq!((out.count(Counter::TunnelSent), out.count(Counter::RejectNoBackend)), (0, 1));
    }
}

/// What another node sends goes by the list for clients outside, also where clients inside have none here.
#[test]
fn an_erring_choice_falls_on_the_list_for_outside() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 3, 30), pod(f, 1, 11)]);
        w.change(f.any(30080), TCP, |frontend| frontend.ring_len = 0);
        let gone = request_mac(f.pod(1, 99, 8080), TCP);
        let syn = tcp("S", f.client(5000), f.node(2, 30080)).macs(gone, vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &syn).sent(PODS[1]);
    }
}

/// One write to `nodes` takes a node out; the whole table is searched if need be.
#[test]
fn fault_084_a_dead_node_is_skipped_however_many_slots_are_its() {
    for f in BOTH {
        let w = &mut *world();
        let all = w.service(f, TCP, &[pod(f, 2, 20), pod(f, 3, 30)]);
        let slots: Vec<u32> = (0..61).map(|i| all[usize::from(i == 17)]).collect();
        let start = w.ring(&slots);
        w.change(f.any(30080), TCP, |frontend| frontend.outside = start);
        w.change(f.service(1, 80), TCP, |frontend| (frontend.ring, frontend.ring_len) = (start, 61));
        let mut node = w.maps().nodes.get(&2, 0).unwrap();
        node.state = NODE_DOWN;
        w.maps().nodes.set(2, node, 0).unwrap();
        for port in 5000..5020 {
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", f.client(port), f.node(1, 30080)));
            assert_eq!(out.sent(OVERLAY).dmac, vtep_mac(3));
            let out = w.send(Pod, PODS[0], &tcp("S", f.pod(1, 10, port), f.service(1, 80)));
            assert!(out.sent(OVERLAY).text.contains(&f.pod(3, 30, 8080).to_string()));
        }
    }
}

fn allow(w: &mut World, service: u32, range: std::net::SocketAddr, len: u32) {
    let key = SourceKey { service, addr: addr(range.ip()).0 };
    let len = 32 + if range.is_ipv4() { 96 + len } else { len };
    w.maps().sources.insert(&Key::new(len, key), 1, 0).unwrap();
}

#[test]
fn fault_098_only_allowed_sources_pass() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10), pod(f, 1, 11)]);
        let other = w.service_at(f, TCP, f.service(2, 80), 30081, &[pod(f, 1, 11)]);
        assert_eq!(other.len(), 1);
        let at = f.public(1, 80);
        w.external(TCP, at, 30080);
        let mut service = 0;
        w.change(at, TCP, |frontend| {
            frontend.flags |= FRONTEND_SOURCES;
            service = frontend.service;
        });
        let syn = |port| tcp("S", f.client(port), at);
        let from_pod = |port| tcp("S", f.pod(1, 10, port), at);
        w.send(UnderlayIn, UNDERLAY, &syn(1)).dropped(Counter::DropSource);
        w.send(Pod, PODS[0], &from_pod(1)).dropped(Counter::DropSource);
        // Of another service: nothing to do with this one.
        allow(w, service + 1, f.client(0), if f.is_v4() { 24 } else { 64 });
        w.send(UnderlayIn, UNDERLAY, &syn(2)).dropped(Counter::DropSource);
        allow(w, service, f.client(0), if f.is_v4() { 24 } else { 64 });
        assert!(matches!(w.send(UnderlayIn, UNDERLAY, &syn(3)).verdict, Verdict::To(_)));
        w.send(Pod, PODS[0], &from_pod(2)).dropped(Counter::DropSource);
        allow(w, service, f.pod(1, 10, 0), if f.is_v4() { 32 } else { 128 });
        assert!(matches!(w.send(Pod, PODS[0], &from_pod(3)).verdict, Verdict::To(_)));
        // The node port of the same service has no such list.
        w.send(UnderlayIn, UNDERLAY, &tcp("S", f.node(3, 9), f.node(1, 30080)));
        let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", f.service(9, 9), at));
        out.dropped(Counter::DropSource);
        // 0.0.0.0/0 is everybody (of the family).
        allow(w, service, f.any(0), 0);
        let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", f.service(9, 9), at));
        assert!(matches!(out.verdict, Verdict::To(_)), "{out:?}");
        let keys: Vec<_> = w.maps().sources.keys().map(Result::unwrap).collect();
        for key in keys {
            w.maps().sources.remove(&key).unwrap();
        }
    }
}
