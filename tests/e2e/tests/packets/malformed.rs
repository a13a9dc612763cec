//! Packets that are none, fragments, extension headers, and random bytes.

use heddle_bpf::TcHook;
use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_bpf::sys;
use heddle_ebpf_common::Counter;

use crate::frames::{Packet, TCP, UDP, describe, raw_ip, tcp, udp};
use crate::world::{BOTH, Family, OVERLAY, PODS, UNDERLAY, Verdict, pod, vtep_mac, world};

#[test]
fn malformed_packets_are_dropped() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let segment = tcp("S", f.client(5000), f.node(1, 30080)).frame();
        let datagram = udp(f.client(5000), f.node(1, 30080)).frame();
        let l4 = 14 + f.header() as usize;
        let change = |frame: &[u8], at: usize, bytes: &[u8]| {
            let mut frame = frame.to_vec();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let mut cases = vec![
            ("cut in the TCP header", segment[..l4 + 12].to_vec()),
            ("a TCP header of 16 bytes", change(&segment, l4 + 12, &[0x40])),
            ("a TCP header longer than the packet", change(&segment, l4 + 12, &[0xf0])),
            ("a datagram shorter than its header", change(&datagram, l4 + 4, &[0, 7])),
            ("a datagram longer than the packet", change(&datagram, l4 + 4, &[1, 0])),
            ("another version", change(&segment, 14, &[0x55])),
        ];
        if f.is_v4() {
            cases.push(("an IP header of 16 bytes", change(&segment, 14, &[0x44])));
            cases.push(("longer than the frame", change(&segment, 16, &[1, 0])));
            cases.push(("shorter than its header", change(&segment, 16, &[0, 10])));
        } else {
            cases.push(("longer than the frame", change(&segment, 18, &[1, 0])));
            let mut headers = Vec::new();
            for _ in 0..20 {
                headers.extend_from_slice(&[60, 0, 1, 4, 0, 0, 0, 0]);
            }
            let mut deep = raw_ip(&udp(f.client(5000), f.node(1, 30080)), &headers);
            deep[20] = 60;
            cases.push(("20 extension headers", deep));
        }
        for (what, frame) in cases {
            let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
            assert_eq!(out.verdict, Verdict::Drop, "{what}");
            assert_eq!(out.count(Counter::DropMalformed), 1, "{what}");
        }
    }
}

#[test]
fn other_protocols_pass() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, TCP, &[pod(f, 1, 10)]);
        let packet = tcp("S", f.client(5000), f.node(1, 30080));
        let mut sctp = packet.clone();
        sctp.proto = 132;
        let mut echo = packet.clone();
        echo.proto = if f.is_v4() { 1 } else { 58 };
        let kind = if f.is_v4() { 8 } else { 128 };
        let mut arp = packet.frame();
        arp[12..14].copy_from_slice(&[8, 6]);
        for frame in [raw_ip(&sctp, &[0; 16]), raw_ip(&echo, &[kind, 0, 0, 0, 0, 0, 0, 0]), arp] {
            let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
            assert_eq!((out.verdict, out.frame), (Verdict::Pass, frame));
        }
    }
}

/// IPv6 with a hop-by-hop and a destination options header in front of TCP; IPv4 with options.
#[test]
fn headers_in_between() {
    let f = Family::V6;
    let w = &mut *world();
    w.service(f, TCP, &[pod(f, 1, 10)]);
    let syn = tcp("S", f.client(5000), f.node(1, 30080));
    let mut transport = vec![60, 0, 1, 4, 0, 0, 0, 0, TCP, 1, 1, 12];
    transport.extend_from_slice(&[0; 12]);
    transport.extend_from_slice(&syn.frame()[54..]);
    let mut frame = raw_ip(&syn, &transport);
    frame[20] = 0;
    let seen = w.send_raw(UnderlayIn, UNDERLAY, &frame).sent(PODS[0]);
    assert_eq!(seen.text, format!("tcp {} > {} [S]", f.client(5000), f.pod(1, 10, 8080)));

    let f = Family::V4;
    w.service(f, TCP, &[pod(f, 1, 10)]);
    let syn = tcp("S", f.client(5000), f.node(1, 30080)).frame();
    let mut frame = syn[..34].to_vec();
    frame.extend_from_slice(&[1, 1, 1, 0]);
    frame.extend_from_slice(&syn[34..]);
    frame[14] = 0x46;
    frame[16..18].copy_from_slice(&44u16.to_be_bytes());
    let mut sum: u32 = (14..38)
        .step_by(2)
        .filter(|at| *at != 24)
        .map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let out = w.send_raw(UnderlayIn, UNDERLAY, &frame);
    let seen = out.sent(PODS[0]);
    assert!(seen.text.contains(&f.pod(1, 10, 8080).to_string()), "{}", seen.text);
}

/// The fragments of a datagram, `first` bytes of the transport part (a multiple of 8) and the rest.
fn fragments(f: Family, packet: &Packet, first: usize) -> [Vec<u8>; 2] {
    let whole = packet.frame();
    let l4 = 14 + f.header() as usize;
    let (a, b) = whole[l4..].split_at(first);
    if f.is_v4() {
        let mut frames = [raw_ip(packet, a), raw_ip(packet, b)];
        for (frame, offset) in frames.iter_mut().zip([0x2000u16, (first / 8) as u16]) {
            frame[20..22].copy_from_slice(&offset.to_be_bytes());
            frame[24..26].fill(0);
            let mut sum: u32 =
                (14..34).step_by(2).map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]))).sum();
            sum = (sum & 0xffff) + (sum >> 16);
            frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        frames
    } else {
        [(0u16, true, a), (first as u16, false, b)].map(|(offset, more, part)| {
            let field = (offset | u16::from(more)).to_be_bytes();
            let mut transport = vec![UDP, 0, field[0], field[1], 0, 0, 0, 9];
            transport.extend_from_slice(part);
            let mut frame = raw_ip(packet, &transport);
            frame[20] = 44;
            frame
        })
    }
}

/// Put together again, the datagram is the translated one, and its checksum is right.
#[test]
fn fragments_follow_their_first_one() {
    for f in BOTH {
        let w = &mut *world();
        w.service(f, UDP, &[pod(f, 1, 10)]);
        let packet = udp(f.client(5000), f.node(1, 30080)).payload(100);
        let [first, later] = fragments(f, &packet, 48);
        let a = w.send_raw(UnderlayIn, UNDERLAY, &first);
        let b = w.send_raw(UnderlayIn, UNDERLAY, &later);
        assert_eq!((a.verdict, b.verdict), (Verdict::To(PODS[0]), Verdict::To(PODS[0])), "{a:?} {b:?}");
        let skip = 14 + f.header() as usize + if f.is_v4() { 0 } else { 8 };
        let mut transport = a.frame[skip..].to_vec();
        transport.extend_from_slice(&b.frame[skip..]);
        let mut whole = packet.clone();
        whole.dst = f.pod(1, 10, 8080);
        let seen = describe(&raw_ip(&whole, &transport));
        assert_eq!(seen.text, format!("udp {} > {}", whole.src, whole.dst));
        assert_eq!(seen.payload, packet.payload);
        // One whose first was never seen is left to the stack, where it waits in vain.
        let mut stray = later.clone();
        if f.is_v4() {
            stray[19] ^= 1
        } else {
            stray[14 + 40 + 7] ^= 1
        }
        assert_ne!(w.send_raw(UnderlayIn, UNDERLAY, &stray).verdict, Verdict::To(PODS[0]));
    }
}

/// A small generator (xorshift): the packets are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Whatever comes, the programs come to an end with a verdict, and what is left to the stack is as it came: never
/// translated, never with an address of ours as its source.
#[test]
fn random_bytes() {
    let w = &mut *world();
    for f in BOTH {
        w.service(f, TCP, &[pod(f, 1, 10), pod(f, 2, 20)]);
        w.service(f, UDP, &[pod(f, 1, 10), pod(f, 2, 20)]);
    }
    w.configure(|config| config.fixed_random = 0);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seeds = Vec::new();
    for f in BOTH {
        for packet in [
            tcp("S", f.client(5000), f.node(1, 30080)).mss(1460),
            udp(f.client(5000), f.node(1, 30080)).payload(40),
            tcp("S", f.pod(1, 10, 5000), f.service(1, 80)),
            udp(f.pod(2, 20, 8080), f.pod(1, 10, 5000)).macs(vtep_mac(2), vtep_mac(1)),
            tcp("A", f.client(5000), f.node(2, 30080)).macs([0x0a, 0x48, 1, 2, 3, 4], vtep_mac(1)),
        ] {
            seeds.push(packet.frame());
        }
        let vxlan = udp(f.node(2, 5), f.node(1, 8472)).payload(70);
        seeds.push(vxlan.frame());
        let [first, later] = fragments(f, &udp(f.client(5000), f.node(1, 30080)).payload(100), 48);
        seeds.extend([first, later]);
    }
    let hooks: [(TcHook, &str); 5] = [
        (UnderlayIn, UNDERLAY),
        (OverlayIn, OVERLAY),
        (Pod, PODS[0]),
        (TcHook::UnderlayOut, UNDERLAY),
        (TcHook::PodOut, PODS[0]),
    ];
    let programs = hooks.map(|(hook, name)| {
        (w.datapath.tc_program(hook).unwrap().try_clone_to_owned().unwrap(), w.ifindex(name))
    });
    let mut verdicts = std::collections::BTreeMap::<i32, u32>::new();
    for round in 0..200_000 {
        let mut frame = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            // Mostly in the headers.
            let at = 12 + random.below((frame.len() - 12).min(70));
            frame[at] = random.next() as u8;
        }
        if random.below(8) == 0 {
            frame.truncate(14 + random.below(frame.len() - 14));
        }
        if random.below(50) == 0 {
            frame = (0..14 + random.below(200)).map(|_| random.next() as u8).collect();
            frame[12..14].copy_from_slice(if random.below(2) == 0 { &[8, 0] } else { &[0x86, 0xdd] });
        }
        let (program, ifindex) = &programs[round % programs.len()];
        let mut context = [0u8; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        use std::os::fd::AsFd;
        let Ok(run) = sys::test_run(program.as_fd(), &frame, &context, 1) else {
            // The kernel wants 14 bytes at least, and more for some protocols.
            assert!(frame.len() < 14 + 40, "{frame:02x?}");
            continue;
        };
        let verdict = run.result.cast_signed();
        assert!([-1, 2, 7].contains(&verdict), "{verdict}: {frame:02x?}");
        // No backend is a process of this node, so nothing that goes to the stack was changed on its way.
        assert!(verdict != -1 || run.data == frame, "{frame:02x?} became {:02x?}", run.data);
        *verdicts.entry(verdict).or_default() += 1;
    }
    println!("{verdicts:?}");
    assert!(verdicts.len() == 3 && verdicts.values().all(|count| *count > 1000), "{verdicts:?}");
}
