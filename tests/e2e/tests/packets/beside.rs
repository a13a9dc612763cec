//! Beside another proxy (kube-proxy) whose address translation the kernel still has: what belongs to connections that
//! we do not know is passed to the kernel as it is; what begins is ours.

use std::net::SocketAddr;

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{CONFIG_OTHER_PROXY, Counter};

use crate::frames::{SCTP, TCP, UDP, icmp_about, sctp, tcp, udp};
use crate::world::{BOTH, Family, OVERLAY, PODS, UNDERLAY, Verdict, pod, request_mac, vtep_mac, world};

fn ways(f: Family) -> [(heddle_bpf::TcHook, &'static str, SocketAddr, SocketAddr); 3] {
    [
        (Pod, PODS[0], f.pod(1, 10, 5000), f.service(1, 80)),
        (Pod, PODS[0], f.pod(1, 10, 5001), f.node(2, 30080)),
        (UnderlayIn, UNDERLAY, f.client(5002), f.node(1, 30080)),
    ]
}

#[test]
fn connections_that_nobody_here_knows_are_the_kernels() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        for (hook, device, client, frontend) in ways(f) {
            for flags in ["A", "PA", "FA", "R", "SA"] {
                let packet = tcp(flags, client, frontend);
                w.configure(|_| ());
                let out = w.send(hook, device, &packet);
                assert_ne!(out.verdict, Verdict::Pass, "{flags}: nobody else can know it");
                w.configure(|config| config.flags = CONFIG_OTHER_PROXY);
                let out = w.send(hook, device, &packet);
                assert_eq!((out.verdict, &out.frame), (Verdict::Pass, &packet.frame()), "{flags} {client}");
                assert!(out.counted.is_empty(), "{out:?}");
                assert!(w.flow(&packet).is_none(), "it is not entered");
            }
            // What a router says of such a connection's packets.
            let error = icmp_about(&tcp("A", frontend, client), client.ip(), (3, 4), 1400);
            if f.is_v4() {
                let out = w.send_raw(hook, device, &error);
                assert_eq!((out.verdict, out.frame), (Verdict::Pass, error));
            }
            // What begins is ours, and stays so.
            w.send(hook, device, &tcp("S", client, frontend)).sent(PODS[1]);
            w.send(Pod, PODS[1], &tcp("SA", f.pod(1, 11, 8080), client));
            w.send(hook, device, &tcp("A", client, frontend)).sent(PODS[1]);
        }
    }
}

#[test]
fn datagrams_are_ours_at_once() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 11)]);
        w.configure(|config| config.flags = CONFIG_OTHER_PROXY);
        for (hook, device, client, frontend) in ways(f) {
            w.send(hook, device, &udp(client, frontend)).sent(PODS[1]);
        }
    }
}

#[test]
fn associations_that_nobody_here_knows_are_the_kernels() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, SCTP, &[pod(f, 1, 11)]);
        w.configure(|config| config.flags = CONFIG_OTHER_PROXY);
        for (hook, device, client, frontend) in ways(f) {
            let packet = sctp(0, client, frontend);
            assert_eq!(w.send(hook, device, &packet).verdict, Verdict::Pass);
        }
    }
}

/// The node that chose translates nothing: no other proxy knows the connection in this form.
#[test]
fn what_comes_out_of_the_tunnel_is_never_another_proxys() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        w.configure(|config| config.flags = CONFIG_OTHER_PROXY);
        let from = request_mac(f.pod(1, 11, 8080), TCP);
        let packet = tcp("A", f.client(5000), f.node(2, 30080)).macs(from, vtep_mac(1));
        let out = w.send(OverlayIn, OVERLAY, &packet);
        assert_ne!(out.verdict, Verdict::Pass);
        assert_eq!(out.count(Counter::RejectStale), 1);
    }
}
