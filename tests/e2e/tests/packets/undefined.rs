//! Ports and protocols of a service's address that no service has.

use heddle_bpf::TcHook::{Pod, UnderlayIn, UnderlayOut};
use heddle_ebpf_common::Counter;

use crate::frames::{TCP, icmp_about, raw_ip, sctp, tcp, udp};
use crate::world::{BOTH, PODS, UNDERLAY, Verdict, pod, world};

const MARK_HOST: u32 = 0x4864_6c01;

#[test]
fn an_undefined_port_of_a_cluster_address_is_rejected() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        let unreachable = if f.is_v4() { "3/3" } else { "1/4" };
        for (hook, ifname, client) in [
            (Pod, PODS[0], f.pod(1, 10, 5000)),
            (UnderlayIn, UNDERLAY, f.client(5000)),
            (UnderlayOut, UNDERLAY, f.node(1, 5000)),
        ] {
            let undefined = f.service(1, 81);
            let out = w.send(hook, ifname, &tcp("S", client, undefined));
            assert_eq!(out.sent(ifname).text, format!("tcp {undefined} > {client} [AR]"));
            assert_eq!(out.count(Counter::RejectUndefined), 1);
            // To this node itself it goes in, not out.
            assert_eq!(out.mark, if hook == UnderlayOut { MARK_HOST } else { 0 });
            for undefined in [undefined, f.service(1, 80)] {
                let out = w.send(hook, ifname, &udp(client, undefined));
                let (from, to) = (undefined.ip(), client.ip());
                let what = format!("icmp {from} > {to} {unreachable} (udp {client} > {undefined})");
                assert_eq!(out.sent(ifname).text, what);
                assert_eq!(out.count(Counter::RejectUndefined), 1);
            }
        }
        // A node's own ports, an external address's are not ours to refuse.
        w.external(TCP, f.public(1, 80), 30080);
        for other in [f.node(1, 81), f.node(2, 81), f.public(1, 81), f.pod(2, 20, 80)] {
            let packet = tcp("S", f.pod(1, 10, 5000), other);
            let out = w.send(Pod, PODS[0], &packet);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, packet.frame()));
        }
        // Nor what somebody else sends out by this node.
        let packet = tcp("S", f.client(5000), f.service(1, 81));
        assert_eq!(w.send(UnderlayOut, UNDERLAY, &packet).verdict, Verdict::Pass);
    }
}

#[test]
fn fault_071_another_protocol_to_a_cluster_address() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 11)]);
        for (hook, ifname, client) in [
            (Pod, PODS[0], f.pod(1, 10, 0)),
            (UnderlayIn, UNDERLAY, f.client(0)),
            (UnderlayOut, UNDERLAY, f.node(1, 0)),
        ] {
            let service = f.service(1, 0);
            let mut ospf = tcp("", client, service);
            ospf.proto = 89;
            let mut ping = ospf.clone();
            ping.proto = if f.is_v4() { 1 } else { 58 };
            let kind = if f.is_v4() { 8 } else { 128 };
            let cases = [
                (89, raw_ip(&ospf, &[0; 40])),
                (ping.proto, raw_ip(&ping, &[&[kind, 0, 0, 0][..], &[0; 40]].concat())),
                (132, sctp(1, f.pod(1, 10, 5), f.service(1, 80)).frame()),
            ];
            for (proto, frame) in cases {
                if proto == 132 && hook != Pod {
                    continue;
                }
                let out = w.send_raw(hook, ifname, &frame);
                let seen = out.sent(ifname);
                // Of IPv6: unrecognized next header, at byte 6.
                let kind = if f.is_v4() { "3/2" } else { "4/1" };
                let (from, to) = (service.ip(), client.ip());
                assert!(seen.text.starts_with(&format!("icmp {from} > {to} {kind} (")), "{}", seen.text);
                assert_eq!(seen.mtu, if f.is_v4() { 0 } else { 6 });
                assert_eq!(out.count(Counter::RejectUndefined), 1);
            }
            // Not to a node.
            ospf.dst = f.node(2, 0);
            let frame = raw_ip(&ospf, &[0; 40]);
            let out = w.send_raw(hook, ifname, &frame);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, frame));
        }
        // An error is not answered by an error.
        let error = icmp_about(&udp(f.service(1, 80), f.client(9)), f.pod(1, 10, 0).ip(), (3, 1), 0);
        let out = w.send_raw(Pod, PODS[0], &error);
        assert!(matches!(out.verdict, Verdict::Drop | Verdict::Pass), "{out:?}");
    }
}
