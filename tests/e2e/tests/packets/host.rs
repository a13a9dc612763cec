//! Backends in the host network: a process of this node, of another.

use heddle_bpf::TcHook::{OverlayIn, UnderlayIn, UnderlayOut};
use heddle_ebpf_common::{CT_HOST, CT_TUNNEL};

use crate::frames::{TCP, tcp, udp};
use crate::world::{BOTH, OVERLAY, REPLY_MAC, UNDERLAY, Verdict, host, request_mac, vtep_mac, world};

const MARK_HOST: u32 = 0x4864_6c01;

#[test]
fn of_this_node() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.node(1, 9090));
        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).passed();
        assert_eq!((seen.text, seen.ttl), (format!("tcp {client} > {backend} [S]"), 64));
        let seen = w.send(UnderlayOut, UNDERLAY, &tcp("SA", backend, client)).passed();
        assert_eq!((seen.text, seen.ttl), (format!("tcp {frontend} > {client} [SA]"), 64));
        assert!(w.flow(&tcp("", client, frontend)).unwrap().1);
    }
}

#[test]
fn on_the_port_of_the_frontend() {
    for f in BOTH {
        let w = &mut *world();
        w.service_at(f, TCP, f.service(1, 80), 9090, &[host(f, 1)]);
        let (client, both) = (f.client(5000), f.node(1, 9090));
        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, both)).passed();
        assert_eq!(seen.text, format!("tcp {client} > {both} [S]"));
        let seen = w.send(UnderlayOut, UNDERLAY, &tcp("SA", both, client)).passed();
        assert_eq!(seen.text, format!("tcp {both} > {client} [SA]"));
    }
}

#[test]
fn of_another_node_through_the_tunnel() {
    for f in BOTH {
        // As the entry node.
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 2)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).sent(OVERLAY);
        assert_eq!(seen.text, format!("tcp {client} > {frontend} [S]"));
        assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), request_mac(f.node(2, 9090), TCP)));
    }
    for f in BOTH {
        // As the backend's node.
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        let (client, frontend, backend) = (f.client(5000), f.node(2, 30080), f.node(1, 9090));
        let syn = tcp("S", client, frontend).macs(request_mac(backend, TCP), vtep_mac(1));
        let out = w.send(OverlayIn, OVERLAY, &syn);
        assert_eq!(out.sent(UNDERLAY).text, format!("tcp {client} > {backend} [S]"));
        assert_eq!(out.mark, MARK_HOST);
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_HOST | CT_TUNNEL);
        // It comes in again by the underlay device and goes to the stack as it is, without the mark.
        let again = w.run(UnderlayIn, UNDERLAY, &out.frame, |context| context[2] = out.mark);
        assert_eq!((again.verdict, again.mark, &again.frame), (Verdict::Pass, 0, &out.frame));

        let seen = w.send(UnderlayOut, UNDERLAY, &tcp("SA", backend, client).mss(1460)).sent(OVERLAY);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), REPLY_MAC));
        assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20);
    }
}

#[test]
fn other_packets_of_the_host_pass_as_they_are() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        for packet in [
            tcp("S", f.node(1, 5000), f.client(80)),
            tcp("SA", f.node(1, 9090), f.client(5000)),
            udp(f.node(1, 5), f.node(2, 8472)),
        ] {
            let out = w.send(UnderlayOut, UNDERLAY, &packet);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, packet.frame()));
            assert!(out.counted.is_empty());
        }
    }
}
