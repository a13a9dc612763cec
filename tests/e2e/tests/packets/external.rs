//! External and load-balancer addresses with backends on other nodes: by tunnel, though the address says nothing of
//! the entry node.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{CT_ENTRY, CT_TUNNEL, Counter};

use crate::frames::{TCP, UDP, tcp, udp};
use crate::tunnel::vxlan;
use crate::world::{BOTH, OVERLAY, PODS, REPLY_MAC, UNDERLAY, Verdict, pod, request_mac, vtep_mac, world};

#[test]
fn the_entry_node() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let (client, at) = (f.client(5000), f.public(1, 80));
        w.external(TCP, at, 30080);
        let syn = tcp("S", client, at).mss(1460);
        let seen = w.send(UnderlayIn, UNDERLAY, &syn).sent(OVERLAY);
        assert_eq!(seen.text, format!("tcp {client} > {at} [S]"));
        assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), request_mac(f.pod(2, 20, 8080), TCP)));
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_ENTRY);
        // The answer is looked at before it is unwrapped, and goes on to the client.
        let reply = tcp("SA", at, client).macs(REPLY_MAC, vtep_mac(1));
        let out = w.send(UnderlayIn, UNDERLAY, &vxlan(f, 2, 1, &reply.frame()));
        assert_eq!((out.verdict, out.mark), (Verdict::Pass, 0));
        let seen = w.send(OverlayIn, OVERLAY, &reply).sent(UNDERLAY);
        assert_eq!(seen.text, format!("tcp {at} > {client} [SA]"));
    }
}

#[test]
fn the_backends_node_learns_the_entry_node_from_the_outer_source() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            w.service(f, proto, &[pod(f, 1, 10)]);
            let (client, at, backend) = (f.client(5000), f.public(1, 80), f.pod(1, 10, 8080));
            w.external(proto, at, 30080);
            for (n, port) in [(2, 5002), (3, 5003)] {
                let client = f.client(port);
                let request = if proto == TCP { tcp("S", client, at) } else { udp(client, at) };
                let request = request.macs(request_mac(backend, proto), vtep_mac(1));
                let outer = w.send(UnderlayIn, UNDERLAY, &vxlan(f, n, 1, &request.frame()));
                assert_eq!(outer.verdict, Verdict::Pass);
                // The kernel unwraps it and leaves the mark.
                let mark = outer.mark;
                let out = w.run(OverlayIn, OVERLAY, &request.frame(), |context| context[2] = mark);
                assert!(out.sent(PODS[0]).text.contains(&format!("{client} > {backend}")));
                assert_eq!(out.mark, 0, "the mark is ours alone");
                let flow = w.flow(&request).unwrap().0;
                assert_eq!((flow.flags, flow.node), (CT_TUNNEL, n.into()));
                let reply = if proto == TCP { tcp("SA", backend, client) } else { udp(backend, client) };
                let seen = w.send(Pod, PODS[0], &reply).sent(OVERLAY);
                assert_eq!((seen.dmac, seen.smac), (vtep_mac(n), REPLY_MAC));
                // The client's packets come straight to this node now (its router thinks so): the same flow.
                let later = if proto == TCP { tcp("A", client, at) } else { udp(client, at) };
                w.send(UnderlayIn, UNDERLAY, &later).sent(PODS[0]);
            }
            // Without the mark nobody knows who asked; other marks are other people's.
            let request = tcp("S", client, at).macs(request_mac(backend, TCP), vtep_mac(1));
            for mark in [0, 2, 0x4000] {
                let out = w.run(OverlayIn, OVERLAY, &request.frame(), |context| context[2] = mark);
                out.dropped(Counter::DropUnknownTunnel);
                assert_eq!(out.mark, mark);
            }
        }
    }
}

#[test]
fn what_a_node_may_send_is_checked_as_before() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        w.external(TCP, f.public(1, 80), 30080);
        let mac = request_mac(f.pod(1, 10, 8080), TCP);
        let request = |dst| tcp("S", f.client(1), dst).macs(mac, vtep_mac(1)).frame();
        let reply = |src| tcp("SA", src, f.client(1)).macs(REPLY_MAC, vtep_mac(1)).frame();
        for (inner, right) in [
            (request(f.public(1, 80)), true),
            (request(f.public(2, 80)), false),
            (request(f.service(1, 80)), false),
            (request(f.pod(1, 10, 80)), false),
            (reply(f.public(1, 80)), true),
            (reply(f.public(2, 80)), false),
            (reply(f.service(1, 80)), false),
        ] {
            let out = w.send(UnderlayIn, UNDERLAY, &vxlan(f, 2, 1, &inner));
            assert_eq!(out.verdict, if right { Verdict::Pass } else { Verdict::Drop }, "{out:?}");
        }
        // What needs no mark gets none.
        for inner in [request(f.node(2, 30080)), tcp("S", f.pod(2, 20, 1), f.pod(1, 10, 80)).frame()] {
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &vxlan(f, 2, 1, &inner)).mark, 0);
        }
    }
}
