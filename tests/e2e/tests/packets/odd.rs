//! Extension headers, options and errors in unusual places.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{Counter, REMOTE_DSR, REMOTE_SNAT};

use crate::frames::{Packet, TCP, UDP, describe, icmp_about, raw_ip, tcp, udp};
use crate::world::{
    BOTH, Family, OVERLAY, PODS, REPLY_MAC, UNDERLAY, Verdict, pod, request_mac, vtep_mac, world,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// An IPv6 frame with these extension headers of 8 bytes (kind, bytes 2 to 7) in front of what `packet` carries.
fn behind(packet: &Packet, headers: &[(u8, [u8; 6])]) -> Vec<u8> {
    let mut transport = Vec::new();
    for (i, (_, content)) in headers.iter().enumerate() {
        transport.push(headers.get(i + 1).map_or(packet.proto, |(next, _)| *next));
        transport.push(0);
        transport.extend_from_slice(content);
    }
    transport.extend_from_slice(&packet.frame()[54..]);
    let mut frame = raw_ip(packet, &transport);
    frame[20] = headers[0].0;
    frame
}

/// What is left without them, checksum and all.
fn without(frame: &[u8], headers: usize, packet: &Packet) -> String {
    let mut bare = packet.clone();
    let ip = |at: usize| std::net::IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    (bare.src, bare.dst) = ((ip(22), 0).into(), (ip(38), 0).into());
    describe(&raw_ip(&bare, &frame[54 + 8 * headers..])).text
}

const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

#[test]
fn fault_069_extension_headers_as_many_as_there_are() {
    let f = Family::V6;
    let w = &mut *world();
    for proto in [TCP, UDP] {
        w.service(f, proto, &[pod(f, 1, 10)]);
    }
    let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(1, 10, 8080));
    let mut chains = vec![
        vec![(HOP_BY_HOP, PADDING)],
        // A routing header at its last stop.
        vec![(ROUTING, [0, 0, 0, 0, 0, 0])],
        vec![
            (HOP_BY_HOP, PADDING),
            (DESTINATION, PADDING),
            (ROUTING, [4, 0, 0, 0, 0, 0]),
            (DESTINATION, PADDING),
        ],
        // A fragment that is all of its datagram (RFC 6946).
        vec![(HOP_BY_HOP, PADDING), (FRAGMENT, [0, 0, 0, 0, 0, 5])],
    ];
    for deep in [8, 20, 32] {
        chains.push(vec![(DESTINATION, PADDING); deep]);
    }
    for chain in chains {
        for packet in [tcp("S", client, frontend), udp(client, frontend)] {
            let out = w.send_raw(UnderlayIn, UNDERLAY, &behind(&packet, &chain));
            assert_eq!(out.verdict, Verdict::To(PODS[0]), "{chain:?}: {out:?}");
            let text = without(&out.frame, chain.len(), &packet);
            assert!(text.contains(&format!("{client} > {backend}")), "{text}");
        }
    }
    let deep = behind(&tcp("S", client, frontend), &[(DESTINATION, PADDING); 33]);
    w.send_raw(UnderlayIn, UNDERLAY, &deep).dropped(Counter::DropMalformed);
    // On its way to another stop the address is not that of its end; what is authenticated cannot be translated.
    for chain in [[(ROUTING, [4, 1, 0, 0, 0, 0])], [(51, [0, 0, 0, 0, 0, 9])]] {
        let frame = behind(&tcp("S", client, frontend), &chain);
        let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, frame), "{chain:?}");
    }
}

/// BIG TCP: a packet of the kernel's own that is too long for its length to be said.
#[test]
fn fault_069_packets_of_more_than_64_kib() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let (client, frontend) = (f.client(5000), f.node(1, 30080));
        w.send(UnderlayIn, UNDERLAY, &tcp("S", client, frontend)).sent(PODS[0]);
        let mut frame = tcp("A", client, frontend).payload(3000).frame();
        if f.is_v4() {
            let sum = u32::from(u16::from_be_bytes([frame[24], frame[25]]))
                + u32::from(u16::from_be_bytes([frame[16], frame[17]]));
            frame[24..26].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
            frame[16..18].fill(0);
        } else {
            frame[18..20].fill(0);
        }
        let out = w.run(UnderlayIn, UNDERLAY, &frame, |context| context[44] = 1300);
        assert_eq!(out.verdict, Verdict::To(PODS[0]), "{out:?}");
        // Without segmentation it is none.
        w.send_raw(UnderlayIn, UNDERLAY, &frame).dropped(Counter::DropMalformed);
    }
}

/// The answer to a protocol that is not served names where its number stands.
#[test]
fn a_refused_protocol_behind_extension_headers() {
    let f = Family::V6;
    let w = &mut *world();
    w.service(f, TCP, &[pod(f, 1, 10)]);
    let mut packet = udp(f.pod(1, 10, 5000), f.service(1, 80)).payload(40);
    packet.proto = 47;
    let mut frame = udp(packet.src, packet.dst).payload(40).frame();
    frame = behind(&packet, &[(DESTINATION, PADDING), (DESTINATION, PADDING)])
        .into_iter()
        .take(54 + 16)
        .chain(frame.drain(54..))
        .collect();
    let payload = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&payload.to_be_bytes());
    let seen = w.send_raw(Pod, PODS[0], &frame).sent(PODS[0]);
    assert_eq!(seen.mtu, 40 + 8, "the next header field of the second one");
}

/// Errors about packets of a flow that goes by tunnel, from both sides and at both nodes.
#[test]
fn fault_069_errors_through_the_tunnel() {
    for f in BOTH {
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(2, 20, 8080));
        let unreachable = if f.is_v4() { (3, 3) } else { (1, 4) };
        let too_big = if f.is_v4() { (3, 4) } else { (2, 0) };
        let router = f.node(9, 0).ip();
        // The entry node: a router complains of a reply, the backend of a request.
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(OVERLAY);
        let frame = icmp_about(&udp(frontend, client), router, too_big, 1300);
        let seen = w.send_raw(UnderlayIn, UNDERLAY, &frame).sent(OVERLAY);
        assert_eq!((seen.smac, seen.mtu), (request_mac(backend, UDP), 1300));
        assert!(seen.text.ends_with(&format!("(udp {frontend} > {client})")), "{}", seen.text);
        let about = udp(client, frontend).macs(REPLY_MAC, vtep_mac(1));
        let frame = icmp_about(&about, frontend.ip(), unreachable, 0);
        let seen = w.send_raw(OverlayIn, OVERLAY, &frame).sent(UNDERLAY);
        assert!(seen.text.ends_with(&format!("(udp {client} > {frontend})")), "{}", seen.text);

        // The backend's node.
        let w = &mut *w;
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (frontend, backend) = (f.node(2, 30080), f.pod(1, 10, 8080));
        let mesh = |packet: Packet| packet.macs(request_mac(backend, UDP), vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &mesh(udp(client, frontend))).sent(PODS[0]);
        let frame = icmp_about(&mesh(udp(frontend, client)), router, too_big, 1300);
        let seen = w.send_raw(OverlayIn, OVERLAY, &frame).sent(PODS[0]);
        assert!(seen.text.ends_with(&format!("(udp {backend} > {client})")), "{}", seen.text);
        let frame = icmp_about(&udp(client, backend), backend.ip(), unreachable, 0);
        let seen = w.send_raw(Pod, PODS[0], &frame).sent(OVERLAY);
        assert_eq!((seen.smac, seen.dmac), (REPLY_MAC, vtep_mac(2)));
        assert!(seen.text.ends_with(&format!("(udp {client} > {frontend})")), "{}", seen.text);
    }
}

#[test]
fn fault_069_errors_of_flows_by_snat_and_dsr() {
    for f in BOTH {
        let (client, frontend, backend) = (f.client(5000), f.node(1, 30080), f.pod(2, 20, 8080));
        let too_big = if f.is_v4() { (3, 4) } else { (2, 0) };
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 2, 20)]);
        w.configure(|config| config.remote = REMOTE_SNAT);
        let seen = w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(OVERLAY);
        let own: std::net::SocketAddr = seen.text.split(' ').nth(1).unwrap().parse().unwrap();
        let about = udp(own, backend).macs(vtep_mac(2), vtep_mac(1));
        let frame = icmp_about(&about, f.vtep(2, 0).ip(), too_big, 1300);
        let seen = w.send_raw(OverlayIn, OVERLAY, &frame).sent(UNDERLAY);
        assert!(seen.text.ends_with(&format!("(udp {client} > {frontend})")), "{}", seen.text);
        assert_eq!(seen.mtu, 1300);
        // `dsr`: a router complains to the frontend's address, which is the entry node's.
        w.configure(|config| config.remote = REMOTE_DSR);
        let client = f.client(5001);
        w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(OVERLAY);
        let frame = icmp_about(&udp(frontend, client), f.node(9, 0).ip(), too_big, 1300);
        let seen = w.send_raw(UnderlayIn, UNDERLAY, &frame).sent(OVERLAY);
        assert_eq!(seen.smac[..2], [0x06, 0x48]);
    }
}

/// The pod's device takes less than the tunnel does: the client hears of it by way of the entry node.
#[test]
fn what_came_by_tunnel_and_does_not_fit_the_pods_device() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let (client, frontend, backend) = (f.client(5000), f.node(2, 30080), f.pod(1, 10, 8080));
        let big = udp(client, frontend).payload(1440).macs(request_mac(backend, UDP), vtep_mac(1));
        let seen = w.send(OverlayIn, OVERLAY, &big).sent(OVERLAY);
        assert_eq!((seen.smac, seen.dmac, seen.mtu), (REPLY_MAC, vtep_mac(2), 1450));
        assert!(seen.text.ends_with(&format!("(udp {client} > {frontend})")), "{}", seen.text);
    }
}

/// A quoted packet that is none names no ports.
#[test]
fn errors_that_quote_nonsense_are_left_alone() {
    let f = Family::V4;
    let w = &mut *world();
    w.service(f, UDP, &[pod(f, 1, 10)]);
    let (client, frontend) = (f.client(5000), f.node(1, 30080));
    w.send(UnderlayIn, UNDERLAY, &udp(client, frontend)).sent(PODS[0]);
    let frame = icmp_about(&udp(frontend, client), f.node(9, 0).ip(), (3, 4), 1300);
    w.send_raw(UnderlayIn, UNDERLAY, &frame).sent(PODS[0]);
    // Its header is said to be 16 bytes; it ends before its ports, and padding of the frame follows.
    let mut short = frame.clone();
    short[42] = 0x44;
    let mut cut = frame.clone();
    cut[16..18].copy_from_slice(&(20 + 8 + 20_u16).to_be_bytes());
    for mut frame in [short, cut] {
        frame[24..26].fill(0);
        let sum: u32 =
            (14..34).step_by(2).map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
        assert_eq!((out.verdict, out.frame), (Verdict::Pass, frame));
    }
}
