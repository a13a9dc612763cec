//! The laws: one client port through two frontends, closed flows, two maps, live slots.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::thread;

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_bpf::{Maps, TcHook, sys};
use heddle_ebpf_common::{Backend, CT_ANSWERED, Counter, Flow, Frontend, FrontendKey, RING_BLOCK};

use crate::frames::{Packet, TCP, UDP, tcp, udp};
use crate::world::{
    BOTH, Family, OVERLAY, PODS, REPLY_MAC, To, UNDERLAY, Verdict, World, addr, pod, request_mac, tuple,
    vtep_mac, world,
};

/// The source port of a description.
fn sport(text: &str) -> u16 {
    let from = text.split(' ').nth(1).unwrap();
    from.parse::<std::net::SocketAddr>().unwrap().port()
}

/// Law 1: what has been given a source that is an address of this node, or of a service, goes to a device and
/// never into the stack, where it would be dropped as a martian.
#[test]
fn a_translated_reply_never_enters_the_stack() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            let syn = |src, dst| if proto == TCP { tcp("S", src, dst) } else { udp(src, dst) };
            let answer = |src, dst| if proto == TCP { tcp("SA", src, dst) } else { udp(src, dst) };
            w.service(f, proto, &[pod(f, 1, 10)]);
            w.service_at(f, proto, f.service(2, 80), 30081, &[pod(f, 2, 20)]);
            let (client, visitor) = (f.client(5000), f.pod(1, 11, 5000));
            let (here, there) = (f.pod(1, 10, 8080), f.pod(2, 20, 8080));
            let from_2 = |packet: Packet| packet.macs(vtep_mac(2), vtep_mac(1));
            let mesh = |packet: Packet| packet.macs(REPLY_MAC, vtep_mac(1));
            let cases = [
                // Who asks whom, where that is met; who answers, where that is met.
                (UnderlayIn, UNDERLAY, syn(client, f.node(1, 30080)), Pod, PODS[0], answer(here, client)),
                (
                    UnderlayIn,
                    UNDERLAY,
                    syn(client, f.node(1, 30081)),
                    OverlayIn,
                    OVERLAY,
                    mesh(answer(f.node(1, 30081), client)),
                ),
                (Pod, PODS[1], syn(visitor, f.service(1, 80)), Pod, PODS[0], answer(here, visitor)),
                (
                    Pod,
                    PODS[1],
                    syn(visitor, f.node(1, 30081)),
                    OverlayIn,
                    OVERLAY,
                    from_2(answer(there, visitor)),
                ),
            ];
            for (hook, ifname, request, reply_hook, reply_ifname, reply) in cases {
                for _ in 0..3 {
                    let out = w.send(hook, ifname, &request);
                    assert!(matches!(out.verdict, Verdict::To(_)), "{request:?}: {out:?}");
                    let out = w.send(reply_hook, reply_ifname, &reply);
                    let seen = out.sent(if request.src == client { UNDERLAY } else { PODS[1] });
                    assert!(
                        seen.text.contains(&format!("{} > {}", request.dst, request.src)),
                        "{}",
                        seen.text
                    );
                }
            }
        }
    }
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

/// A pod uses one port to reach one backend through a service and directly (or by a socket hook: to the hooks of
/// packets that is the same).
#[test]
fn a_direct_connection_beside_one_through_a_service() {
    for f in BOTH {
        for (proto, over) in [(TCP, false), (TCP, true), (UDP, false)] {
            let w = &mut *world();
            w.service(f, proto, &[pod(f, 1, 11)]);
            let (client, service, backend) = (f.pod(1, 10, 5000), f.service(1, 80), f.pod(1, 11, 8080));
            let packet = |flags, src, dst| if proto == TCP { tcp(flags, src, dst) } else { udp(src, dst) };
            w.send(Pod, PODS[0], &packet("S", client, service)).sent(PODS[1]);
            w.send(Pod, PODS[1], &packet("SA", backend, client)).sent(PODS[0]);
            if over {
                w.send(Pod, PODS[0], &packet("R", client, service)).sent(PODS[1]);
            }
            let direct = packet("S", client, backend);
            let out = w.send(Pod, PODS[0], &direct);
            if over {
                assert_eq!((out.verdict, out.frame), (Verdict::Pass, direct.frame()));
                assert!(w.flow(&packet("", client, service)).is_none(), "forgotten");
                let reply = packet("SA", backend, client);
                let out = w.send(Pod, PODS[1], &reply);
                assert_eq!((out.verdict, out.frame), (Verdict::Pass, reply.frame()), "as it is");
                continue;
            }
            let mut seen_by_backend = client;
            seen_by_backend.set_port(sport(&out.sent(PODS[1]).text));
            assert_ne!(seen_by_backend.port(), 5000);
            let seen = w.send(Pod, PODS[1], &packet("SA", backend, seen_by_backend)).sent(PODS[0]);
            assert!(seen.text.contains(&format!("{backend} > {client}")), "{}", seen.text);
            let seen = w.send(Pod, PODS[1], &packet("A", backend, client)).sent(PODS[0]);
            assert!(seen.text.contains(&format!("{service} > {client}")), "{}", seen.text);
            let seen = w.send(Pod, PODS[0], &packet("A", client, backend)).sent(PODS[1]);
            assert_eq!(sport(&seen.text), seen_by_backend.port());
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
        let reply = tuple(&udp(backend, client));
        w.maps().ct_new.remove(&reply).unwrap();
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(PODS[0]);
        w.send(Pod, PODS[0], &udp(backend, client)).sent(UNDERLAY);
        // The other half: the flow is entered from the reply alone.
        let client = f.client(5001);
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend));
        w.maps().ct_new.remove(&tuple(&udp(client, frontend))).unwrap();
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

/// The kernel reuses elements at once; what was read of two values is not used. (Tearing itself is too rare to wait
/// for: a reader must be held up between two instructions for as long as two system calls of the writer.)
#[test]
fn a_value_that_does_not_add_up_is_not_used() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 11)]);
        w.service_at(f, UDP, f.service(2, 80), 30081, &[pod(f, 1, 10)]);
        let (client, service) = (f.pod(1, 10, 5000), f.service(1, 80));
        let key = |i| FrontendKey {
            addr: addr(f.service(i, 80).ip()),
            net: 0,
            port: 80u16.to_be(),
            proto: UDP,
            zero: 0,
        };
        let (own, other) =
            (w.maps().frontends.get(&key(1), 0).unwrap(), w.maps().frontends.get(&key(2), 0).unwrap());
        let packet = udp(client, service);
        for torn in [other, Frontend { ring: other.ring, ..own }, Frontend { ring: own.ring, ..other }] {
            w.maps().frontends.insert(key(1), torn, 0).unwrap();
            let out = w.send(Pod, PODS[0], &packet);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, packet.frame()));
        }
        w.maps().frontends.insert(key(1), own, 0).unwrap();
        w.send(Pod, PODS[0], &packet).sent(PODS[1]);

        let flow = w.flow(&packet).unwrap().0;
        let torn = Flow { to: tuple(&udp(client, f.pod(1, 12, 8080))), ..flow };
        w.maps().ct_new.insert(tuple(&packet), torn, 0).unwrap();
        let out = w.send(Pod, PODS[0], &packet);
        assert_eq!(out.count(Counter::FlowNew), 1, "as if it were not there");
        out.sent(PODS[1]);
    }
}

/// Runs the program over `frame` again and again while `write` changes the maps as fast as it can. Returns, of
/// what left the program changed, how many packets each destination got.
fn beside(
    w: &mut World,
    (hook, ifname): (TcHook, &'static str),
    frame: &[u8],
    mut write: impl FnMut(&mut Maps, usize),
) -> BTreeMap<Vec<u8>, u32> {
    const RUNS: u32 = 200_000;
    w.configure(|config| config.fixed_random = 0);
    let program = w.datapath.tc_program(hook).unwrap().try_clone_to_owned().unwrap();
    let mut context = [0u8; 192];
    context[40..44].copy_from_slice(&w.ifindex(ifname).to_ne_bytes());
    let netns = heddle_netlink::NetNs::current().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            netns.enter().unwrap();
            let mut destinations = BTreeMap::new();
            for _ in 0..RUNS {
                let run = sys::test_run(program.as_fd(), frame, &context, 1).unwrap();
                if run.data.len() == frame.len() && run.data != frame {
                    // IPv4: the address; and the port.
                    let to = [&run.data[30..34], &run.data[36..38]].concat();
                    *destinations.entry(to).or_default() += 1;
                }
            }
            destinations
        });
        let mut round = 0;
        while !reader.is_finished() {
            write(&mut w.datapath.maps, round);
            round += 1;
        }
        let destinations = reader.join().unwrap();
        println!("{RUNS} runs beside {round} writes: {destinations:?}");
        assert!(round > 500 && destinations.values().sum::<u32>() > RUNS / 20);
        destinations
    })
}

/// Two services take turns in one element of the map, which the kernel gives to the other's key at once.
#[test]
fn no_answer_names_a_backend_that_the_service_never_had() {
    let f = Family::V4;
    let w = &mut *world();
    let mut elements = Vec::new();
    for s in [1, 2] {
        let cluster = f.service(100 + s, 80);
        let backend = To { addr: f.pod(2, s, 8080), node: 2 };
        w.service_at(f, UDP, cluster, 31000 + u16::from(s), &[backend]);
        let key = FrontendKey { addr: addr(cluster.ip()), net: 0, port: 80u16.to_be(), proto: UDP, zero: 0 };
        elements.push((key, w.maps().frontends.get(&key, 0).unwrap()));
    }
    let [(one, first), (two, second)] = elements[..] else { unreachable!() };
    let frame = udp(f.pod(1, 10, 5000), f.service(101, 80)).frame();
    let flow = [
        tuple(&udp(f.pod(1, 10, 5000), f.service(101, 80))),
        tuple(&udp(f.pod(2, 1, 8080), f.pod(1, 10, 5000))),
    ];
    w.maps().frontends.remove(&two).unwrap();
    let destinations = beside(w, (Pod, PODS[0]), &frame, |maps, _| {
        // Each round the flow is new.
        for key in flow {
            let _ = maps.ct_new.remove(&key);
        }
        for _ in 0..8 {
            maps.frontends.remove(&one).unwrap();
            maps.frontends.insert(two, second, 0).unwrap();
            maps.frontends.remove(&two).unwrap();
            maps.frontends.insert(one, first, 0).unwrap();
        }
    });
    assert_eq!(destinations.len(), 1, "{destinations:?}");
    assert_eq!(destinations.keys().next().unwrap()[..4], [10, 244, 2, 1]);
}

/// The same for flows: an entry that is collected becomes another flow's while a packet of the first is on its way.
#[test]
fn no_packet_takes_the_way_of_another_flow() {
    let f = Family::V4;
    let w = &mut *world();
    let indices = w.service(f, UDP, &[pod(f, 2, 20)]);
    let backend = w.maps().backends.get(&indices[0], 0).unwrap();
    let flow = |s: u8| {
        let key = tuple(&udp(f.pod(1, 10, 5000 + u16::from(s)), f.service(1, 80)));
        let to = tuple(&udp(f.pod(1, 10, 5000 + u16::from(s)), f.pod(2, s, 8080)));
        let mut flow = Flow {
            to,
            backend: indices[0],
            generation: backend.generation,
            flags: CT_ANSWERED,
            ..Flow::default()
        };
        flow.check = flow.sum(&key);
        (key, flow)
    };
    let ((one, mut first), (two, second)) = (flow(1), flow(2));
    first.ifindex = w.ifindex(PODS[0]);
    let frontend =
        FrontendKey { addr: addr(f.service(1, 80).ip()), net: 0, port: 80u16.to_be(), proto: UDP, zero: 0 };
    w.maps().frontends.remove(&frontend).unwrap();
    let frame = udp(f.pod(1, 10, 5001), f.service(1, 80)).frame();
    w.maps().ct.insert(one, first, 0).unwrap();
    let destinations = beside(w, (Pod, PODS[0]), &frame, |maps, _| {
        maps.ct.remove(&one).unwrap();
        maps.ct.insert(two, second, 0).unwrap();
        maps.ct.remove(&two).unwrap();
        maps.ct.insert(one, first, 0).unwrap();
    });
    assert_eq!(destinations.len(), 1, "{destinations:?}");
    assert_eq!(destinations.keys().next().unwrap()[..4], [10, 244, 2, 1]);
}

/// A frontend is given one new ring after the other while the program chooses; no extent that it names is written.
#[test]
fn a_ring_is_swapped_under_a_running_program() {
    let f = Family::V4;
    let w = &mut *world();
    let mine = w.service_at(f, UDP, f.service(101, 80), 31001, &[To { addr: f.pod(2, 1, 8080), node: 2 }]);
    let others = w.service_at(f, UDP, f.service(102, 80), 31002, &[To { addr: f.pod(2, 2, 8080), node: 2 }]);
    let key =
        FrontendKey { addr: addr(f.service(101, 80).ip()), net: 0, port: 80u16.to_be(), proto: UDP, zero: 0 };
    let value = w.maps().frontends.get(&key, 0).unwrap();
    let frame = udp(f.pod(1, 10, 5000), f.service(101, 80)).frame();
    let flow = [
        tuple(&udp(f.pod(1, 10, 5000), f.service(101, 80))),
        tuple(&udp(f.pod(2, 1, 8080), f.pod(1, 10, 5000))),
    ];
    let start = w.ring(&[]);
    let destinations = beside(w, (Pod, PODS[0]), &frame, |maps, round| {
        for key in flow {
            let _ = maps.ct_new.remove(&key);
        }
        let at = |round: usize| start + RING_BLOCK * (round % 64) as u32;
        maps.write_ring(at(round), &mine).unwrap();
        maps.frontends.insert(key, Frontend { ring: at(round), ..value }.sealed(&key), 0).unwrap();
        if round % 64 == 32 {
            // What no frontend names any more is another's after the grace period.
            sys::grace_period().unwrap();
            for old in round - 31..round {
                maps.write_ring(at(old), &others).unwrap();
            }
        }
    });
    assert_eq!(destinations.len(), 1, "{destinations:?}");
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
