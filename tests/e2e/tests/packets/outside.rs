//! A client outside, the node port of this node.

use heddle_bpf::TcHook::{Pod, UnderlayIn};
use heddle_ebpf_common::{CT_ANSWERED, CT_FIN, CT_REPLY, CT_RST, Counter};

use crate::frames::{TCP, UDP, tcp, udp};
use crate::world::{BOTH, Family, PODS, UNDERLAY, Verdict, pod, world};

#[test]
fn to_a_pod_here_and_back() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));

        let syn = tcp("S", client, frontend).mss(1460);
        let out = w.send(UnderlayIn, UNDERLAY, &syn);
        let seen = out.sent(PODS[0]);
        assert_eq!(seen.text, format!("tcp {client} > {backend} [S]"));
        assert_eq!(seen.ttl, 63);
        assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20, "what the pod's device takes");
        assert_eq!((out.count(Counter::FlowNew), out.count(Counter::Request)), (1, 1));
        let (flow, answered) = w.flow(&syn).unwrap();
        assert!(!answered && flow.flags == 0 && flow.seen == 5 << 30);

        let out = w.send(Pod, PODS[0], &tcp("SA", backend, client).mss(1410));
        let seen = out.sent(UNDERLAY);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        assert_eq!((seen.ttl, seen.mss), (63, Some(1410)));
        let (flow, answered) = w.flow(&syn).unwrap();
        assert!(answered && flow.flags == CT_ANSWERED);
        let (reply, answered) = w.flow(&tcp("", backend, client)).unwrap();
        assert!(answered && reply.flags == CT_ANSWERED | CT_REPLY && reply.ifindex == w.ifindex(PODS[0]));
        assert_eq!(reply.service, flow.service);

        w.configure(|config| config.fixed_time = (9 << 30) + 12345);
        let out = w.send(UnderlayIn, UNDERLAY, &tcp("A", client, frontend).payload(100));
        let seen = out.sent(PODS[0]);
        assert_eq!(seen.text, format!("tcp {client} > {backend} [A]"));
        assert_eq!(seen.payload.len(), 100);
        assert_eq!(out.count(Counter::FlowNew), 0);
        assert_eq!(w.flow(&syn).unwrap().0.seen, 9 << 30);

        w.send(UnderlayIn, UNDERLAY, &tcp("FA", client, frontend)).sent(PODS[0]);
        w.send(Pod, PODS[0], &tcp("FA", backend, client)).sent(UNDERLAY);
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_ANSWERED | CT_FIN);
        assert_eq!(w.flow(&tcp("", backend, client)).unwrap().0.flags, CT_ANSWERED | CT_REPLY | CT_FIN);
        w.send(UnderlayIn, UNDERLAY, &tcp("R", client, frontend)).sent(PODS[0]);
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_ANSWERED | CT_FIN | CT_RST);
    }
}

#[test]
fn datagrams() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(PODS[0]);
        assert_eq!((seen.text, seen.payload), (format!("udp {client} > {backend}"), b"hello".to_vec()));
        let seen = w.send(Pod, PODS[0], &udp(backend, client)).sent(UNDERLAY);
        assert_eq!(seen.text, format!("udp {frontend} > {client}"));
    }
}

#[test]
fn what_is_no_frontend_of_this_node_passes_as_it_is() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        for packet in [
            tcp("S", f.client(5000), f.node(1, 22)),
            // Node ports answer on the node's own address, cluster addresses not to those outside.
            tcp("S", f.client(5000), f.node(2, 30080)),
            tcp("S", f.client(5000), f.pod(1, 10, 30080)),
            tcp("S", f.client(5000), f.service(1, 80)),
            udp(f.client(5000), f.node(1, 30080)),
        ] {
            let out = w.send(UnderlayIn, UNDERLAY, &packet);
            assert_eq!((out.verdict, &out.frame), (Verdict::Pass, &packet.frame()), "{packet:?}");
            assert!(out.counted.is_empty(), "{out:?}");
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_so() {
    let w = &mut *world();
    w.service(Family::V4, UDP, &[pod(Family::V4, 1, 10)]);
    let mut frame = udp(Family::V4.client(5000), Family::V4.node(1, 30080)).frame();
    frame[40..42].fill(0);
    let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
    out.sent(PODS[0]);
    assert_eq!(out.frame[40..42], [0, 0]);
}
