//! Loopback addresses in packets: nobody's frontend, whatever sockets are answered there.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{FRONTEND_EXTERNAL, Frontend, FrontendKey, NET_LOOPBACK};

use crate::frames::{Packet, TCP, UDP, tcp, udp};
use crate::world::{BOTH, OVERLAY, PODS, UNDERLAY, addr, pod, request_mac, vtep_mac, world};

/// CVE-2020-8558: a neighbour, or a pod, that sends to 127.0.0.1 or ::1 by the host's Ethernet address. The packet goes
/// on as it is, and the kernel drops it.
#[test]
fn a_packet_to_loopback_is_never_translated() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            w.configure(|config| config.host_netns = 1);
            let loopback = f.loopback(8080);
            w.service_at(f, proto, f.service(1, 8080), 8080, &[pod(f, 1, 10)]);
            // The very frontend of a host port, be it marked as one that is reached from outside.
            let known = FrontendKey {
                addr: addr(f.service(1, 0).ip()),
                net: 0,
                port: 8080_u16.to_be(),
                proto,
                zero: 0,
            };
            let frontend = w.maps().frontends.get(&known, 0).unwrap();
            let key = FrontendKey { addr: addr(loopback.ip()), net: NET_LOOPBACK, ..known };
            let frontend = Frontend { flags: FRONTEND_EXTERNAL, ..frontend };
            w.maps().frontends.insert(key, frontend.sealed(&key), 0).unwrap();

            let ask = |src| if proto == TCP { tcp("S", src, loopback) } else { udp(src, loopback) };
            let from_2 = |packet: Packet| packet.macs(vtep_mac(2), vtep_mac(1));
            let cases = [
                (UnderlayIn, UNDERLAY, ask(f.client(5000))),
                (UnderlayIn, UNDERLAY, ask(loopback)),
                (Pod, PODS[1], ask(f.pod(1, 11, 5000))),
                (Pod, PODS[1], ask(loopback)),
                (OverlayIn, OVERLAY, from_2(ask(f.pod(2, 20, 5000)))),
            ];
            for (hook, ifname, packet) in cases {
                let out = w.send(hook, ifname, &packet);
                let what = format!("{proto} {f:?} {hook:?} {}", packet.src);
                assert_eq!(out.passed().text.split(' ').nth(3), Some(&*loopback.to_string()), "{what}");
                assert!(out.counted.is_empty() && w.flow(&packet).is_none(), "{what}: {out:?}");
            }
            // Not even where another node says that it has chosen.
            let mesh = ask(f.client(5000)).macs(request_mac(f.pod(1, 10, 8080), proto), vtep_mac(1));
            let out = w.send(OverlayIn, OVERLAY, &mesh);
            out.dropped(heddle_ebpf_common::Counter::DropUnknownTunnel);
        }
    }
}
