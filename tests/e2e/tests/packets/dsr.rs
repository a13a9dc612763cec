//! `dsr`: through the tunnel to the backend's node, and from there straight to the client.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn, UnderlayOut};
use heddle_ebpf_common::{CT_ANSWERED, CT_DSR, CT_ENTRY, CT_HOST, Counter, REMOTE_DSR};

use crate::frames::{TCP, UDP, tcp, udp};
use crate::tunnel::vxlan;
use crate::world::{
    BOTH, OVERLAY, PODS, REPLY_MAC, UNDERLAY, Verdict, host, pod, request_mac, vtep_mac, world,
};

fn dsr_mac(request: [u8; 6]) -> [u8; 6] {
    [0x06, 0x48, request[2], request[3], request[4], request[5]]
}

#[test]
fn the_entry_node_never_sees_an_answer() {
    for f in BOTH {
        let w = &mut *world();
        w.configure(|config| config.remote = REMOTE_DSR);
        w.service(f, TCP, &[pod(f, 2, 20)]);
        w.external(TCP, f.public(1, 80), 30080);
        for at in [f.node(1, 30080), f.public(1, 80)] {
            let client = f.client(at.port());
            let syn = tcp("S", client, at).mss(1460);
            let seen = w.send(UnderlayIn, UNDERLAY, &syn).sent(OVERLAY);
            assert_eq!(seen.text, format!("tcp {client} > {at} [S]"));
            let mac = dsr_mac(request_mac(f.pod(2, 20, 8080), TCP));
            assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), mac));
            assert_eq!(seen.mss, Some(1460), "the answers do not come by the tunnel");
            let (flow, answered) = w.flow(&syn).unwrap();
            assert!(!answered && flow.flags == CT_ENTRY | CT_DSR);
            // A repeated SYN shows nothing, the client's next segment that it has had an answer: the flow is safe.
            w.send(UnderlayIn, UNDERLAY, &syn).sent(OVERLAY);
            assert!(!w.flow(&syn).unwrap().1);
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &tcp("A", client, at)).sent(OVERLAY).smac, mac);
            let (flow, answered) = w.flow(&syn).unwrap();
            assert!(answered && flow.flags == CT_ENTRY | CT_DSR | CT_ANSWERED);
            w.send(UnderlayIn, UNDERLAY, &tcp("FA", client, at)).sent(OVERLAY);
            let out = w.send(UnderlayIn, UNDERLAY, &tcp("S", client, at));
            assert_eq!(out.count(Counter::FlowNew), 1, "the client has closed the old one");
        }
        // Datagrams go on, too.
        w.service(f, UDP, &[pod(f, 2, 20)]);
        for _ in 0..3 {
            w.send(UnderlayIn, UNDERLAY, &udp(f.client(7), f.node(1, 30080))).sent(OVERLAY);
        }
    }
}

#[test]
fn the_backends_node_answers_the_client() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        w.external(TCP, f.public(1, 80), 30080);
        let backend = f.pod(1, 10, 8080);
        for at in [f.node(2, 30080), f.public(1, 80)] {
            let client = f.client(at.port());
            let request =
                |flags| tcp(flags, client, at).macs(dsr_mac(request_mac(backend, TCP)), vtep_mac(1));
            let outer = w.send(UnderlayIn, UNDERLAY, &vxlan(f, 2, 1, &request("S").frame()));
            assert_eq!(outer.verdict, Verdict::Pass, "{outer:?}");
            let out = w.run(OverlayIn, OVERLAY, &request("S").frame(), |context| context[2] = outer.mark);
            assert_eq!(out.sent(PODS[0]).text, format!("tcp {client} > {backend} [S]"));
            assert_eq!(w.flow(&request("")).unwrap().0.flags, CT_DSR);
            let seen = w.send(Pod, PODS[0], &tcp("SA", backend, client).mss(1460)).sent(UNDERLAY);
            assert_eq!(seen.text, format!("tcp {at} > {client} [SA]"));
            assert_eq!(
                u32::from(seen.mss.unwrap()),
                1450 - f.header() - 20,
                "what he sends comes by the tunnel"
            );
            let out = w.run(OverlayIn, OVERLAY, &request("A").frame(), |context| context[2] = outer.mark);
            out.sent(PODS[0]);
        }
        // A refusal goes back the way it came: that node is the one that the client talks to.
        let at = f.node(2, 30080);
        let stray = tcp("A", f.client(9), at).macs(dsr_mac(request_mac(backend, TCP)), vtep_mac(1));
        let seen = w.send(OverlayIn, OVERLAY, &stray).sent(OVERLAY);
        assert_eq!((seen.smac, seen.dmac), (REPLY_MAC, vtep_mac(2)));
        // A client that comes to this node's own address as if it were by tunnel is none.
        let forged = tcp("S", f.client(9), f.node(1, 30080)).macs(stray.smac, vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &forged).dropped(Counter::DropUnknownTunnel);
        // Nor does one outside go on with what came by tunnel.
        w.send(UnderlayIn, UNDERLAY, &tcp("A", f.client(30080), at)).dropped(Counter::DropSpoofed);
    }
}

#[test]
fn a_backend_in_the_host_network() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[host(f, 1)]);
        let (client, at, backend) = (f.client(5000), f.node(2, 30080), f.node(1, 9090));
        let syn = tcp("S", client, at).macs(dsr_mac(request_mac(backend, TCP)), vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &syn).sent(UNDERLAY);
        assert_eq!(w.flow(&syn).unwrap().0.flags, CT_DSR | CT_HOST);
        let seen = w.send(UnderlayOut, UNDERLAY, &tcp("SA", backend, client).mss(1460)).passed();
        assert_eq!(seen.text, format!("tcp {at} > {client} [SA]"));
        assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20);
    }
}
