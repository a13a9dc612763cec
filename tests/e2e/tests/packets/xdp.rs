//! XDP: established flows that only pass through this node. Each packet is given to the XDP program and to the
//! tcx programs; what they make of it is the same, or XDP lets it pass as it came.

use heddle_bpf::TcHook::{OverlayIn, UnderlayIn};
use heddle_bpf::{XdpMode, sys};
use heddle_ebpf_common::{Counter, PORTS_EXTERNAL, REMOTE_SNAT};

use crate::frames::{CLIENT_MAC, Packet, TCP, UDP, describe, raw_ip, tcp, udp};
use crate::world::{
    BOTH, Family, OVERLAY, PEER_MAC, REPLY_MAC, To, UNDERLAY, World, host, pod, request_mac, vtep_mac, world,
};

const PASS: u32 = 2;
const TX: u32 = 3;
/// Bytes in front of the inner frame.
const OUTER: usize = 50;

/// Node port 30080 and the ports of `snat` are known as ours.
fn begin(w: &mut World) {
    let maps = &mut w.datapath.maps;
    for port in [30080].into_iter().chain(61000..=61999) {
        let word = maps.ports.get(&(port / 64), 0).unwrap();
        maps.ports.set(port / 64, word | 1 << (port % 64), 0).unwrap();
    }
}

/// What XDP makes of a frame that comes in from the underlay; `None`: it passes.
fn run(w: &World, frame: &[u8]) -> Option<Vec<u8>> {
    run_in(XdpMode::Native, w, frame)
}

fn run_in(mode: XdpMode, w: &World, frame: &[u8]) -> Option<Vec<u8>> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, frame.len() as u32, 0, w.ifindex(UNDERLAY), 0, 0];
    let bytes: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let before = counted(w);
    let run = sys::test_run(w.datapath.xdp_program(mode).unwrap(), frame, &bytes, 1).unwrap();
    match run.result {
        PASS => {
            assert_eq!(run.data, frame, "what passes is as it came");
            assert_eq!(counted(w), before, "what passes is counted by whoever decides");
            None
        }
        TX => Some(run.data),
        other => panic!("{other}"),
    }
}

fn counted(w: &World) -> Vec<u64> {
    Counter::ALL.iter().map(|(counter, _)| w.datapath.maps.counter(*counter).unwrap()).collect()
}

/// `packet` as node `n` would wrap it.
fn wrapped(n: u8, frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend_from_slice(frame);
    let outer = udp(Family::V4.node(n, 50000), Family::V4.node(1, 8472));
    Packet { payload, ..outer }.frame()
}

/// The inner frame, when `frame` is a VXLAN packet from here to node `n` over the wire.
fn inner(n: u8, frame: &[u8]) -> &[u8] {
    let outer = describe(frame);
    let port = outer.text.split([':', ' ']).nth(2).unwrap().to_owned();
    let [from, to] = [Family::V4.node(1, port.parse().unwrap()), Family::V4.node(n, 8472)];
    assert_eq!(outer.text, format!("udp {from} > {to}"));
    assert_eq!((outer.dmac, outer.payload[..8].to_vec()), (PEER_MAC, vec![8, 0, 0, 0, 0, 0, 1, 0]));
    assert_eq!(frame[40..42], [0, 0], "no outer checksum (RFC 7348 section 5)");
    &frame[OUTER..]
}

/// An answered flow through the tunnel to pod 20 of node 2.
fn tunnelled(w: &mut World, f: Family, proto: u8) -> (Packet, Packet) {
    w.service(f, proto, &[pod(f, 2, 20)]);
    let (client, frontend) = (f.client(5000), f.node(1, 30080));
    let make = |flags| if proto == TCP { tcp(flags, client, frontend) } else { udp(client, frontend) };
    w.send(UnderlayIn, UNDERLAY, &make("S"));
    let answer = make("S").reversed("SA").macs(REPLY_MAC, vtep_mac(1));
    w.send(OverlayIn, OVERLAY, &answer).sent(UNDERLAY);
    (make("A").payload(100), make("A").reversed("A").macs(REPLY_MAC, vtep_mac(1)).payload(100))
}

#[test]
fn requests_go_into_the_tunnel_as_by_tcx() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            begin(w);
            let (request, _) = tunnelled(w, f, proto);
            let out = run(w, &request.frame()).expect("passed on");
            let by_tcx = w.send(UnderlayIn, UNDERLAY, &request);
            by_tcx.sent(OVERLAY);
            assert_eq!(inner(2, &out), by_tcx.frame);
            assert_eq!(describe(inner(2, &out)).smac, request_mac(f.pod(2, 20, 8080), proto));
        }
    }
}

#[test]
fn replies_out_of_the_tunnel_go_to_the_client_as_by_tcx() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            begin(w);
            let (_, reply) = tunnelled(w, f, proto);
            let out = run(w, &wrapped(2, &reply.frame())).expect("passed on");
            let by_tcx = w.send(OverlayIn, OVERLAY, &reply);
            by_tcx.sent(UNDERLAY);
            assert_eq!(out[12..], by_tcx.frame[12..]);
            assert_eq!(describe(&out).dmac, CLIENT_MAC);
            assert_eq!(run(w, &wrapped(3, &reply.frame())), None, "of another node than the backend's");
        }
    }
}

#[test]
fn snat_into_the_overlay_and_back() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            begin(w);
            w.service(f, proto, &[pod(f, 2, 20)]);
            w.configure(|config| config.remote = REMOTE_SNAT);
            let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(2, 20, 8080));
            let make = |flags, from, to| if proto == TCP { tcp(flags, from, to) } else { udp(from, to) };
            let first = w.send(UnderlayIn, UNDERLAY, &make("S", client, frontend)).sent(OVERLAY);
            let own = first.text.split(' ').nth(1).unwrap().parse().unwrap();
            let back = |flags| make(flags, backend, own).macs(vtep_mac(2), vtep_mac(1));
            w.send(OverlayIn, OVERLAY, &back("SA")).sent(UNDERLAY);

            let request = make("A", client, frontend).payload(99);
            let out = run(w, &request.frame()).expect("passed on");
            let by_tcx = w.send(UnderlayIn, UNDERLAY, &request);
            // There the kernel writes the Ethernet addresses, once the packet is on its way.
            assert_eq!(inner(2, &out)[12..], by_tcx.frame[12..]);
            let seen = describe(inner(2, &out));
            assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), vtep_mac(1)));

            let reply = back("A").payload(33);
            let out = run(w, &wrapped(2, &reply.frame())).expect("passed on");
            assert_eq!(out[12..], w.send(OverlayIn, OVERLAY, &reply).frame[12..]);
        }
    }
}

#[test]
fn snat_to_a_backend_that_is_no_pod_and_back() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            begin(w);
            let backend = f.node(3, 9090);
            w.service(f, proto, &[To { addr: backend, node: 0 }]);
            let (client, frontend) = (f.client(5000), f.node(1, 30080));
            let make = |flags, from, to| if proto == TCP { tcp(flags, from, to) } else { udp(from, to) };
            let first = w.send(UnderlayIn, UNDERLAY, &make("S", client, frontend)).sent(UNDERLAY);
            let own = first.text.split(' ').nth(1).unwrap().parse().unwrap();
            w.send(UnderlayIn, UNDERLAY, &make("SA", backend, own)).sent(UNDERLAY);
            for (packet, mac) in
                [(make("A", client, frontend).payload(5), PEER_MAC), (make("FA", backend, own), CLIENT_MAC)]
            {
                let out = run(w, &packet.frame()).expect("passed on");
                assert_eq!(out[12..], w.send(UnderlayIn, UNDERLAY, &packet).frame[12..]);
                assert_eq!(describe(&out).dmac, mac);
            }
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_so() {
    let f = Family::V4;
    let w = &mut *world();
    begin(w);
    let (_, reply) = tunnelled(w, f, UDP);
    let mut frame = reply.frame();
    frame[40..42].copy_from_slice(&[0, 0]);
    let out = run(w, &wrapped(2, &frame)).expect("passed on");
    assert_eq!(out[40..42], [0, 0]);
}

#[test]
fn what_is_not_a_plain_packet_of_an_answered_flow_passes_as_it_came() {
    for f in BOTH {
        let w = &mut *world();
        begin(w);
        let (request, reply) = tunnelled(w, f, TCP);
        for flags in ["S", "SA", "R", "RA"] {
            let packet = Packet { flags, ..request.clone() };
            assert_eq!(run(w, &packet.frame()), None, "{flags}");
        }
        assert_eq!(run(w, &request.clone().ttl(1).frame()), None, "its last hop");
        assert_eq!(run(w, &request.clone().payload(1450).frame()), None, "does not fit the tunnel");
        assert_eq!(run(w, &reply.frame()), None, "not out of the tunnel");
        let other = tcp("A", f.client(6000), f.node(1, 30080));
        assert_eq!(run(w, &other.frame()), None, "of no flow");
        let mut frame = request.frame();
        for len in 0..54 {
            // (BPF_PROG_TEST_RUN wants an Ethernet header.)
            assert_eq!(run(w, &frame[..len.max(14)]), None, "cut to {len}");
        }
        if f.is_v4() {
            frame[20] = 0x20;
            assert_eq!(run(w, &frame), None, "a fragment");
            assert_eq!(run(w, &raw_ip(&request, &[0x46; 24])), None, "no segment");
        }
        // A flow that has not been answered.
        w.send(UnderlayIn, UNDERLAY, &tcp("S", f.client(7000), f.node(1, 30080))).sent(OVERLAY);
        assert_eq!(run(w, &tcp("A", f.client(7000), f.node(1, 30080)).frame()), None);
    }
}

#[test]
fn flows_that_are_stale_or_end_here_pass() {
    for f in BOTH {
        let w = &mut *world();
        begin(w);
        let (request, reply) = tunnelled(w, f, TCP);
        assert!(run(w, &request.frame()).is_some());
        w.change_backend(1, |backend| backend.generation += 1);
        assert_eq!(run(w, &request.frame()), None);
        assert_eq!(run(w, &wrapped(2, &reply.frame())), None);

        for backend in [pod(f, 1, 10), host(f, 1)] {
            let w = &mut *w;
            let client = f.client(if backend.addr.ip() == f.pod(1, 10, 0).ip() { 8000 } else { 8001 });
            w.service(f, TCP, &[backend]);
            w.send(UnderlayIn, UNDERLAY, &tcp("S", client, f.node(1, 30080)));
            let request = tcp("A", client, f.node(1, 30080));
            assert_eq!(run(w, &request.frame()), None);
        }
    }
}

#[test]
fn what_is_for_no_port_of_ours_is_not_looked_up() {
    for f in BOTH {
        let w = &mut *world();
        begin(w);
        let (request, _) = tunnelled(w, f, TCP);
        w.datapath.maps.ports.set(30080 / 64, 0, 0).unwrap();
        assert_eq!(run(w, &request.frame()), None);
        // An external address may be meant by any port.
        w.datapath.maps.ports.set(PORTS_EXTERNAL, 1, 0).unwrap();
        assert!(run(w, &request.frame()).is_some());
        w.datapath.maps.ports.set(PORTS_EXTERNAL, 0, 0).unwrap();
    }
}

#[test]
fn over_an_underlay_of_ipv6_the_tunnel_is_left_to_the_kernel() {
    let w = &mut *world();
    begin(w);
    let (request, _) = tunnelled(w, Family::V4, TCP);
    let mut node = w.maps().nodes.get(&2, 0).unwrap();
    node.underlay = crate::world::addr(Family::V6.node(2, 0).ip());
    w.maps().nodes.set(2, node, 0).unwrap();
    assert_eq!(run(w, &request.frame()), None);
}

#[test]
fn generic_mode_touches_no_transport_checksum() {
    for f in BOTH {
        let w = &mut *world();
        begin(w);
        let (request, reply) = tunnelled(w, f, TCP);
        let generic = |w: &World, frame: &[u8]| run_in(XdpMode::Generic, w, frame);
        // In the tunnel they are as they were sent.
        let out = generic(w, &request.frame()).expect("wrapped as it is");
        assert_eq!(inner(2, &out), w.send(UnderlayIn, UNDERLAY, &request).frame);
        assert!(generic(w, &wrapped(2, &reply.frame())).is_some());

        let other = f.client(5001);
        w.service_at(f, TCP, f.service(2, 80), 30081, &[pod(f, 2, 20)]);
        let word = w.datapath.maps.ports.get(&(30081 / 64), 0).unwrap();
        w.datapath.maps.ports.set(30081 / 64, word | 1 << (30081 % 64), 0).unwrap();
        w.configure(|config| config.remote = REMOTE_SNAT);
        let first = w.send(UnderlayIn, UNDERLAY, &tcp("S", other, f.node(1, 30081))).sent(OVERLAY);
        let own = first.text.split(' ').nth(1).unwrap().parse::<std::net::SocketAddr>().unwrap();
        let reply = tcp("SA", f.pod(2, 20, 8080), own).macs(vtep_mac(2), vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &reply).sent(UNDERLAY);
        let packet = tcp("A", other, f.node(1, 30081));
        assert_eq!(generic(w, &packet.frame()), None);
        assert!(run(w, &packet.frame()).is_some(), "the driver's frames are finished");
    }
}
