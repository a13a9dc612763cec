//! The laws: one client port through two frontends, closed flows, two maps, live slots.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_bpf::sys;
use heddle_ebpf_common::{Backend, Counter, Frontend, FrontendKey, RING_BLOCK};

use crate::frames::{Packet, TCP, UDP, describe, tcp, udp};
use crate::world::{BOTH, Family, OVERLAY, PODS, To, UNDERLAY, addr, pod, request_mac, vtep_mac, world};

/// The source port of a description.
fn sport(text: &str) -> u16 {
    let from = text.split(' ').nth(1).unwrap();
    from.parse::<std::net::SocketAddr>().unwrap().port()
}

/// A client uses one port to reach one backend through three nodes, and through two services.
#[test]
fn one_client_port_meets_at_one_backend() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let other = w.service_at(f, TCP, f.service(2, 80), 30081, &[pod(f, 1, 10)]);
        assert_eq!(other.len(), 1);
        let (client, backend) = (f.client(5000), f.pod(1, 10, 8080));
        let mesh = |packet: Packet| packet.macs(request_mac(backend, TCP), vtep_mac(1));
        let ways = [
            (UnderlayIn, UNDERLAY, tcp("S", client, f.node(1, 30080))),
            (OverlayIn, OVERLAY, mesh(tcp("S", client, f.node(2, 30080)))),
            (OverlayIn, OVERLAY, mesh(tcp("S", client, f.node(3, 30080)))),
            (UnderlayIn, UNDERLAY, tcp("S", client, f.node(1, 30081))),
        ];
        let mut ports = Vec::new();
        for (hook, ifname, syn) in &ways {
            let seen = w.send(*hook, ifname, syn).sent(PODS[0]);
            assert!(seen.text.contains(&format!("> {backend} ")), "{}", seen.text);
            assert!(
                seen.text.contains(&client.ip().to_string()),
                "the client's address stays: {}",
                seen.text
            );
            ports.push(sport(&seen.text));
        }
        assert_eq!(ports[0], 5000, "the first keeps its port");
        let mut different = ports.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 4, "{ports:?}");
        // Each reply goes to whom its client talked to, with the client's own port.
        for ((_, ifname, syn), port) in ways.iter().zip(&ports) {
            let mut seen_by_backend = client;
            seen_by_backend.set_port(*port);
            let seen = w.send(Pod, PODS[0], &tcp("SA", backend, seen_by_backend)).sent(ifname);
            assert_eq!(seen.text, format!("tcp {} > {client} [SA]", syn.dst));
        }
        // And each flow keeps its own.
        for ((hook, ifname, syn), port) in ways.iter().zip(&ports) {
            let mut packet = tcp("A", syn.src, syn.dst);
            (packet.smac, packet.dmac) = (syn.smac, syn.dmac);
            assert_eq!(sport(&w.send(*hook, ifname, &packet).sent(PODS[0]).text), *port);
        }
    }
}

#[test]
fn a_syn_over_a_closed_flow_replaces_it() {
    for f in BOTH {
        for end in ["client resets", "backend resets", "both are done"] {
            let w = &mut *world();
            w.service(f, TCP, &[pod(f, 1, 10)]);
            w.service_at(f, TCP, f.service(2, 80), 30081, &[pod(f, 1, 10)]);
            let (client, backend) = (f.client(5000), f.pod(1, 10, 8080));
            let (first, second) = (f.node(1, 30080), f.node(1, 30081));
            w.send(UnderlayIn, UNDERLAY, &tcp("S", client, first)).sent(PODS[0]);
            w.send(Pod, PODS[0], &tcp("SA", backend, client)).sent(UNDERLAY);
            // While it lives: the SYN is one of the flow, the other frontend's gets another port.
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, first));
            assert_eq!((sport(&out.sent(PODS[0]).text), out.count(Counter::FlowNew)), (5000, 0));
            match end {
                "client resets" => drop(w.send(UnderlayIn, UNDERLAY, &tcp("R", client, first))),
                "backend resets" => drop(w.send(Pod, PODS[0], &tcp("R", backend, client))),
                _ => {
                    w.send(UnderlayIn, UNDERLAY, &tcp("FA", client, first));
                    let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, first));
                    assert_eq!(out.count(Counter::FlowNew), 0, "half of it is open");
                    w.send(Pod, PODS[0], &tcp("FA", backend, client));
                }
            }
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, second));
            assert_eq!((sport(&out.sent(PODS[0]).text), out.count(Counter::FlowNew)), (5000, 1), "{end}");
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, first));
            assert_ne!(sport(&out.sent(PODS[0]).text), 5000, "the port is the other's now");
            assert_eq!(out.count(Counter::FlowNew), 1);
        }
    }
}

/// A flood of new flows displaces new flows; answered ones stay.
#[test]
fn answered_flows_do_not_yield_to_new_ones() {
    let f = Family::V4;
    let w = &mut *world();
    w.service(f, UDP, &[pod(f, 1, 10)]);
    let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
    w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
    w.send(Pod, PODS[0], &udp(backend, client)).sent(UNDERLAY);
    w.configure(|config| config.fixed_random = 0);
    let waiting = f.client(4999);
    w.send(UnderlayIn, UNDERLAY, &udp(waiting, frontend)).sent(PODS[0]);
    let program = w.datapath.tc_program(UnderlayIn).unwrap().try_clone_to_owned().unwrap();
    let mut context = [0u8; 192];
    context[40..44].copy_from_slice(&w.ifindex(UNDERLAY).to_ne_bytes());
    for port in 6000..16_000 {
        sys::test_run(program.as_fd(), &udp(f.client(port), frontend).frame(), &context, 1).unwrap();
    }
    assert!(w.flow(&udp(waiting, frontend)).is_none(), "the flood was one");
    assert!(w.flow(&udp(client, frontend)).unwrap().1);
    let out = w.send(Pod, PODS[0], &udp(backend, client));
    assert_eq!(out.sent(UNDERLAY).text, format!("udp {frontend} > {client}"));
}

/// The reply entry of an unanswered flow may be displaced alone: the next request puts it back.
#[test]
fn half_a_flow_is_made_whole() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
        let reply = crate::world::tuple(&udp(backend, client));
        w.maps().ct_new.remove(&reply).unwrap();
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(PODS[0]);
        w.send(Pod, PODS[0], &udp(backend, client)).sent(UNDERLAY);
        // The other half: the flow is entered from the reply alone.
        let client = f.client(5001);
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
        w.maps().ct_new.remove(&crate::world::tuple(&udp(client, frontend))).unwrap();
        w.send(Pod, PODS[0], &udp(backend, client)).sent(UNDERLAY);
        assert!(w.flow(&udp(client, frontend)).unwrap().1);
    }
}

#[test]
fn when_the_table_is_full_new_flows_are_refused_and_counted() {
    let f = Family::V4;
    let w = &mut *world();
    w.service(f, UDP, &[pod(f, 1, 10)]);
    let (frontend, backend) = (f.node(1, 30080), f.pod(1, 10, 8080));
    let mut refused = 0;
    // The table has room for 1,024 entries, two to a flow.
    for port in 1000..1520 {
        w.send(UnderlayIn, UNDERLAY, &udp(f.client(port), frontend)).sent(PODS[0]);
        let out = w.send(Pod, PODS[0], &udp(backend, f.client(port)));
        refused += out.count(Counter::DropCtFull);
    }
    assert_eq!(refused, 8);
    assert_eq!(w.maps().ct.keys().count(), 1024);
    w.send(UnderlayIn, UNDERLAY, &udp(f.client(1000), frontend)).sent(PODS[0]);
    w.send(Pod, PODS[0], &udp(backend, f.client(1000))).sent(UNDERLAY);
}

/// A writer changes services as fast as it can, by the protocol of user space, while the program runs: no
/// answer may name a backend that the service never had.
#[test]
fn no_answer_names_a_backend_that_the_service_never_had() {
    let f = Family::V4;
    let w = &mut *world();
    // Service `s` has the backends 10.244.2.s at all times, its port is its own too.
    const SERVICES: u8 = 8;
    let backend = |s: u8| To { addr: f.pod(2, 100 + s, 7000 + u16::from(s)), node: 2 };
    let mut elements = Vec::new();
    for s in 0..SERVICES {
        let frontend = f.service(100 + s, 80);
        w.service_at(f, UDP, frontend, 31000 + u16::from(s), &[backend(s)]);
        let key = FrontendKey { addr: addr(frontend.ip()), net: 0, port: 80u16.to_be(), proto: UDP, zero: 0 };
        let value: Frontend = w.maps().frontends.get(&key, 0).unwrap();
        elements.push((key, value));
    }
    w.configure(|config| config.fixed_random = 0);
    let stop = AtomicBool::new(false);
    let program = w.datapath.tc_program(Pod).unwrap().try_clone_to_owned().unwrap();
    let mut context = [0u8; 192];
    context[40..44].copy_from_slice(&w.ifindex(PODS[0]).to_ne_bytes());
    let (mut answers, mut none, mut writes) = (0u32, 0u32, 0u64);
    let next_ring = w.ring(&[]);
    let maps = w.maps();
    let netns = heddle_netlink::NetNs::current().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            netns.enter().unwrap();
            for i in 0..150_000u32 {
                let s = (i % u32::from(SERVICES)) as u8;
                let packet = udp(f.pod(1, 10, 1024 + (i % 60_000) as u16), f.service(100 + s, 80));
                let run = sys::test_run(program.as_fd(), &packet.frame(), &context, 1).unwrap();
                if run.result.cast_signed() == -1 {
                    none += 1;
                    continue;
                }
                let seen = describe(&run.data);
                assert!(seen.text.ends_with(&format!("> {}", backend(s).addr)), "service {s}: {}", seen.text);
                answers += 1;
            }
            stop.store(true, Ordering::Release);
        });
        // Elements are removed and added in turn, so that each is another key's the next moment; extents are
        // swapped for new ones.
        let mut at = next_ring;
        let mut round = 0usize;
        while !stop.load(Ordering::Acquire) && !reader.is_finished() {
            let (key, value) = elements[round % elements.len()];
            let (gone, _) = elements[(round + 3) % elements.len()];
            let _ = maps.frontends.remove(&gone);
            let _ = maps.frontends.remove(&key);
            let index = maps.read_ring(value.ring, 1).unwrap()[0];
            // Extents are reused when no frontend has named them for long, after a grace period.
            if round.is_multiple_of(1024) {
                at = next_ring;
                sys::grace_period().unwrap();
            }
            if round.is_multiple_of(7) && at < (1 << 12) * RING_BLOCK - RING_BLOCK {
                maps.write_ring(at, &[index]).unwrap();
                let swapped = Frontend { ring: at, ..value }.sealed(&key);
                maps.frontends.insert(key, swapped, 0).unwrap();
                at += RING_BLOCK;
            } else {
                maps.frontends.insert(key, value, 0).unwrap();
            }
            round += 1;
            writes += 3;
        }
    });
    println!("{answers} answers, {none} while the service was not there, {writes} writes");
    assert!(answers > 10_000 && writes > 10_000, "{answers} answers, {writes} writes");
}

/// The same for the slots of backends: a slot is given to another backend by the protocol (down, a grace period,
/// another generation, a grace period, written anew), and flows of the old one never reach the new one.
#[test]
fn a_flow_never_reaches_the_backend_that_has_the_slot_now() {
    let f = Family::V4;
    let w = &mut *world();
    let indices = w.service(f, TCP, &[pod(f, 1, 10)]);
    let (client, frontend) = (f.client(5000), f.node(1, 30080));
    w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).sent(PODS[0]);
    w.change_backend(indices[0], |backend| {
        *backend =
            Backend { addr: addr(f.pod(1, 11, 0).ip()), generation: backend.generation + 1, ..*backend };
    });
    let seen = w.send(UnderlayIn, UNDERLAY, &tcp("A", client, frontend)).sent(UNDERLAY);
    assert_eq!(seen.text, format!("tcp {frontend} > {client} [R]"));
}
