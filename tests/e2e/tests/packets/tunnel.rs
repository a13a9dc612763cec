//! Backends on other nodes by `tunnel`: the entry node and the backend's node, requests and replies, and who may
//! send what through the tunnel.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{BACKEND_DOWN, BACKEND_DRAINING, CT_ENTRY, CT_TUNNEL, Counter, NODE_DOWN};

use crate::frames::{HERE_MAC, Packet, TCP, UDP, icmp_about, tcp, udp};
use crate::world::{
    BOTH, Family, OVERLAY, PODS, REPLY_MAC, UNDERLAY, Verdict, pod, request_mac, vtep_mac, world,
};

#[test]
fn the_entry_node_sends_the_packet_on_as_it_is_with_the_choice() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        let syn = tcp("S", client, frontend).mss(1460);
        let out = w.send(UnderlayIn, UNDERLAY, &syn);
        let seen = out.sent(OVERLAY);
        assert_eq!(seen.text, format!("tcp {client} > {frontend} [S]"));
        assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), request_mac(f.pod(2, 20, 8080), TCP)));
        assert_eq!((seen.ttl, u32::from(seen.mss.unwrap())), (63, 1450 - f.header() - 20));
        assert_eq!(out.count(Counter::TunnelSent), 1);
        let (flow, answered) = w.flow(&syn).unwrap();
        assert!(!answered && flow.flags == CT_ENTRY && flow.node == 2);

        // The reply comes back through the tunnel and leaves for the client, never into the stack.
        let back = tcp("SA", frontend, client).macs(REPLY_MAC, vtep_mac(1)).mss(1410);
        let seen = w.send(OverlayIn, OVERLAY, &back).sent(UNDERLAY);
        assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
        assert_eq!((seen.ttl, seen.mss), (63, Some(1410)));
        assert!(w.flow(&syn).unwrap().1, "answered");

        let seen = w.send(UnderlayIn, UNDERLAY, &tcp("A", client, frontend)).sent(OVERLAY);
        assert_eq!(seen.smac, request_mac(f.pod(2, 20, 8080), TCP), "later packets carry the choice too");
    }
}

/// What node 2 sends to node 1 for a client that talks to node 2.
fn request(packet: Packet, f: Family, i: u8) -> Packet {
    let proto = packet.proto;
    packet.macs(request_mac(f.pod(1, i, 8080), proto), vtep_mac(1))
}

#[test]
fn the_backends_node_obeys_the_choice_and_replies_through_the_tunnel() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10), pod(f, 1, 11), pod(f, 3, 30)]);
        let (client, frontend) = (f.client(5000), f.node(2, 30080));
        for (i, veth) in [(10, PODS[0]), (11, PODS[1])] {
            let client = f.client(5000 + u16::from(i));
            let backend = f.pod(1, i, 8080);
            let syn = request(tcp("S", client, frontend), f, i);
            let seen = w.send(OverlayIn, OVERLAY, &syn).sent(veth);
            assert_eq!((seen.text, seen.ttl), (format!("tcp {client} > {backend} [S]"), 63));
            let (flow, _) = w.flow(&syn).unwrap();
            assert_eq!((flow.flags, flow.node), (CT_TUNNEL, 2));
            let seen = w.send(Pod, veth, &tcp("SA", backend, client).mss(1460)).sent(OVERLAY);
            assert_eq!(seen.text, format!("tcp {frontend} > {client} [SA]"));
            assert_eq!((seen.dmac, seen.smac), (vtep_mac(2), REPLY_MAC));
            assert_eq!(u32::from(seen.mss.unwrap()), 1450 - f.header() - 20);
            assert!(w.flow(&syn).unwrap().1);
        }
        // A choice that is not here: one of this node's, never the tunnel again.
        let lost = tcp("S", client, frontend).macs(request_mac(f.pod(3, 30, 8080), TCP), vtep_mac(1));
        let out = w.send(OverlayIn, OVERLAY, &lost);
        assert!(matches!(out.verdict, Verdict::To("hdl10" | "hdl11")), "{out:?}");
    }
}

#[test]
fn a_choice_that_is_down_falls_on_another_here_or_is_dropped() {
    for f in BOTH {
        let w = &mut *world();
        let backends = w.service(f, TCP, &[pod(f, 1, 10), pod(f, 1, 11), pod(f, 3, 30)]);
        let syn = |port| request(tcp("S", f.client(port), f.node(2, 30080)), f, 10);
        w.change_backend(backends[0], |backend| backend.state = BACKEND_DRAINING);
        w.send(OverlayIn, OVERLAY, &syn(1)).sent(PODS[0]);
        w.change_backend(backends[0], |backend| backend.state = BACKEND_DOWN);
        w.send(OverlayIn, OVERLAY, &syn(2)).sent(PODS[1]);
        w.change_backend(backends[1], |backend| backend.state = BACKEND_DOWN);
        // The two nodes do not agree at this moment: the client tries again, and then they do.
        w.send(OverlayIn, OVERLAY, &syn(3)).dropped(Counter::DropNotHere);
    }
}

#[test]
fn a_reject_of_the_backends_node_reaches_the_client() {
    for f in BOTH {
        for proto in [TCP, UDP] {
            let w = &mut *world();
            w.service(f, proto, &[pod(f, 2, 20)]);
            let (client, frontend) = (f.client(5000), f.node(1, 30080));
            let packet = if proto == TCP { tcp("S", client, frontend) } else { udp(client, frontend) };
            w.send(UnderlayIn, UNDERLAY, &packet).sent(OVERLAY);
            let frame = if proto == TCP {
                packet.reversed("RA").macs(REPLY_MAC, vtep_mac(1)).frame()
            } else {
                let kind = if f.is_v4() { (3, 3) } else { (1, 4) };
                icmp_about(&packet.macs(REPLY_MAC, vtep_mac(1)), frontend.ip(), kind, 0)
            };
            let out = w.send_raw(OverlayIn, OVERLAY, &frame);
            let seen = out.sent(UNDERLAY);
            if proto == TCP {
                assert_eq!(seen.text, format!("tcp {frontend} > {client} [AR]"));
            } else {
                assert!(seen.text.ends_with(&format!("(udp {client} > {frontend})")), "{}", seen.text);
            }
        }
    }
}

#[test]
fn what_was_not_asked_for_does_not_come_out_of_the_tunnel() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20), pod(f, 1, 10)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        // A reply of no flow.
        w.send(OverlayIn, OVERLAY, &tcp("SA", frontend, client).macs(REPLY_MAC, vtep_mac(1)))
            .dropped(Counter::DropUnknownTunnel);
        // A request for a frontend of this node, of no node.
        for address in [frontend, f.service(1, 80)] {
            let packet = tcp("S", client, address).macs(request_mac(f.pod(1, 10, 8080), TCP), vtep_mac(1));
            w.send(OverlayIn, OVERLAY, &packet).dropped(Counter::DropUnknownTunnel);
        }
        // A reply that names the entry of a request.
        let syn = tcp("S", f.client(5001), frontend);
        let mut tried = 0;
        for port in 5001..5100 {
            let syn = tcp("S", f.client(port), frontend);
            if w.send(UnderlayIn, UNDERLAY, &syn).verdict == Verdict::To(OVERLAY) {
                let packet = tcp("", f.client(port), frontend).macs(REPLY_MAC, vtep_mac(1));
                w.send(OverlayIn, OVERLAY, &packet).dropped(Counter::DropUnknownTunnel);
                // The reply's tuple without its mark.
                let packet = syn.reversed("SA").macs(vtep_mac(2), vtep_mac(1));
                let out = w.send(OverlayIn, OVERLAY, &packet);
                assert_eq!(out.verdict, Verdict::Pass, "the stack drops it: it has an address of ours");
                tried += 1;
            }
        }
        assert!(tried > 10, "{syn:?}");
    }
}

#[test]
fn a_node_that_is_down_is_not_chosen() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20), pod(f, 3, 30)]);
        let mut node = w.maps().nodes.get(&2, 0).unwrap();
        node.state = NODE_DOWN;
        w.maps().nodes.set(2, node, 0).unwrap();
        for port in 5000..5050 {
            let seen =
                w.send(UnderlayIn, UNDERLAY, &tcp("S", f.client(port), f.node(1, 30080))).sent(OVERLAY);
            assert_eq!(seen.dmac, vtep_mac(3));
        }
    }
}

#[test]
fn without_a_vxlan_device_nothing_is_sent_into_the_tunnel() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 2, 20)]);
        let syn = tcp("S", f.client(5000), f.node(1, 30080));
        w.send(UnderlayIn, UNDERLAY, &syn).sent(OVERLAY);
        w.configure(|config| config.vxlan_ifindex = 0);
        w.send(UnderlayIn, UNDERLAY, &syn).dropped(Counter::DropNoOverlay);
    }
}

/// VXLAN around a frame, as node `from` sends it to this one.
pub fn vxlan(f: Family, from: u8, vni: u32, inner: &[u8]) -> Packet {
    let mut packet = udp(f.node(from, 55555), f.node(1, 8472));
    packet.payload = vec![8, 0, 0, 0];
    packet.payload.extend_from_slice(&(vni << 8).to_be_bytes());
    packet.payload.extend_from_slice(inner);
    packet
}

#[test]
fn the_sender_of_a_vxlan_packet_must_have_a_right_to_what_is_inside() {
    for outer in BOTH {
        for f in BOTH {
            let w = &mut *world();
            w.service(f, TCP, &[pod(f, 1, 10)]);
            let plain = |src, dst| tcp("S", src, dst).macs(vtep_mac(2), vtep_mac(1)).frame();
            let request = |dst| {
                tcp("S", f.client(1), dst).macs(request_mac(f.pod(1, 10, 8080), TCP), vtep_mac(1)).frame()
            };
            let reply = |src| tcp("SA", src, f.client(1)).macs(REPLY_MAC, vtep_mac(1)).frame();
            let own = plain(f.pod(2, 20, 1), f.pod(1, 10, 80));
            let right = [
                ("its pod", own.clone()),
                ("itself", plain(f.vtep(2, 1), f.pod(1, 10, 80))),
                ("its host network", plain(f.node(2, 1), f.pod(1, 10, 80))),
                ("to our host", plain(f.pod(2, 20, 1), f.vtep(1, 80))),
                ("a request for its frontend", request(f.node(2, 30080))),
                ("a reply of our frontend", reply(f.node(1, 30080))),
            ];
            for (what, inner) in right {
                let out = w.send(UnderlayIn, UNDERLAY, &vxlan(outer, 2, 1, &inner));
                assert_eq!(out.verdict, Verdict::Pass, "{what}: {out:?}");
                assert_eq!(out.count(Counter::TunnelReceived), 1);
            }
            let wrong = [
                ("a pod of another node", plain(f.pod(3, 30, 1), f.pod(1, 10, 80))),
                ("a pod of ours", plain(f.pod(1, 11, 1), f.pod(1, 10, 80))),
                ("a service", plain(f.service(1, 1), f.pod(1, 10, 80))),
                ("our node", plain(f.node(1, 1), f.pod(1, 10, 80))),
                ("a client", plain(f.client(1), f.pod(1, 10, 80))),
                ("to a pod that is not here", plain(f.pod(2, 20, 1), f.pod(3, 30, 80))),
                ("to a client", plain(f.pod(2, 20, 1), f.client(80))),
                ("a request for our frontend", request(f.node(1, 30080))),
                ("a request for another node's frontend", request(f.node(3, 30080))),
                ("a reply of its own frontend", reply(f.node(2, 30080))),
                ("no IP packet", {
                    let mut arp = own.clone();
                    arp[12..14].copy_from_slice(&[8, 6]);
                    arp
                }),
                ("half a header", own[..20].to_vec()),
            ];
            for (what, inner) in wrong {
                let out = w.send(UnderlayIn, UNDERLAY, &vxlan(outer, 2, 1, &inner));
                assert_eq!(out.verdict, Verdict::Drop, "{what}: {out:?}");
                assert_eq!(out.count(Counter::DropUnknownTunnel), 1, "{what}");
            }
            // A sender that is no node; this very node.
            let mut stranger = vxlan(outer, 2, 1, &own);
            stranger.src = outer.client(55555);
            w.send(UnderlayIn, UNDERLAY, &stranger).dropped(Counter::DropUnknownTunnel);
            let ours = plain(f.pod(1, 11, 1), f.pod(1, 10, 80));
            w.send(UnderlayIn, UNDERLAY, &vxlan(outer, 1, 1, &ours)).dropped(Counter::DropUnknownTunnel);
            let mut inside = vxlan(outer, 2, 1, &own);
            inside.src = outer.vtep(2, 55555);
            w.send(UnderlayIn, UNDERLAY, &inside).dropped(Counter::DropUnknownTunnel);
            // Another network, another port, a packet that only passes through: not ours to judge.
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &vxlan(outer, 9, 2, &own)).verdict, Verdict::Pass);
            let mut other = vxlan(outer, 9, 1, &own);
            other.dst.set_port(8473);
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &other).verdict, Verdict::Pass);
            let mut through = vxlan(outer, 9, 1, &own);
            through.dst = outer.node(2, 8472);
            assert_eq!(w.send(UnderlayIn, UNDERLAY, &through).verdict, Verdict::Pass);
        }
    }
}

#[test]
fn pods_do_not_send_vxlan_to_nodes() {
    for f in BOTH {
        let w = &mut *world();
        let inner = tcp("S", f.pod(2, 20, 1), f.pod(1, 11, 80)).frame();
        for n in [1, 2] {
            let mut packet = vxlan(f, 2, 1, &inner);
            (packet.src, packet.dst) = (f.pod(1, 10, 5), f.node(n, 8472));
            w.send(Pod, PODS[0], &packet.macs([2, 0, 0, 0, 0, 10], HERE_MAC)).dropped(Counter::DropSpoofed);
        }
    }
}

#[test]
fn ordinary_overlay_traffic_passes() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        for packet in [
            tcp("S", f.pod(2, 20, 1), f.pod(1, 10, 8080)),
            tcp("S", f.pod(2, 20, 1), f.service(1, 80)),
            udp(f.vtep(2, 1), f.vtep(1, 53)),
        ] {
            let packet = packet.macs(vtep_mac(2), vtep_mac(1));
            let out = w.send(OverlayIn, OVERLAY, &packet);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, packet.frame()));
            assert!(out.counted.is_empty());
        }
        assert!(w.flow(&tcp("S", f.pod(2, 20, 1), f.pod(1, 10, 8080))).is_none());
    }
}
