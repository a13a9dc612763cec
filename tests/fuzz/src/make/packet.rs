//! A random packet at a random hook, with the flows that there are in mind.

use heddle_bpf::{TcHook, XdpMode};
use heddle_ebpf_common::{
    Addr, CT_DSR, CT_ENTRY, CT_HOST, CT_OWN, CT_TUNNEL, FrontendKey, MESH_DSR, MESH_REPLY, MESH_REQUEST,
    NODE_SELF, Tuple,
};

use super::frame::{Draft, HERE_MAC};
use super::table::{NODE_PORT, PORT};
use crate::dice::Dice;
use crate::model::{Flow, MARK_ENTRY, MARK_HOST, Model, Stimulus};
use crate::place::{self, Dev};
use crate::wire::{ACK, ETH, FIN, Kind, RST, SCTP, SYN, Seen, TCP, UDP, read};

/// Client ports: few, so that they meet.
const PORTS: [u16; 6] = [5000, 5001, 5002, 5003, 30081, 8472];

pub fn stimulus(dice: &mut Dice, model: &Model) -> Stimulus {
    loop {
        let stimulus = any(dice, model);
        if can_be_run(&stimulus) {
            return stimulus;
        }
    }
}

/// No device brings more than it may send, unless in segments: the kernel's look-up of routes takes that for granted
/// (the way back of a packet that is too large is none). And BPF_PROG_TEST_RUN refuses what is cut within the IP
/// header.
pub fn can_be_run(stimulus: &Stimulus) -> bool {
    let len = stimulus.frame.len();
    let least = match stimulus.frame.get(12..14) {
        Some([0x08, 0]) => ETH + 20,
        Some([0x86, 0xdd]) => ETH + 40,
        Some(_) => ETH,
        None => return false,
    };
    len >= least && (stimulus.gso != 0 || len <= stimulus.dev.mtu() as usize + ETH)
}

fn any(dice: &mut Dice, model: &Model) -> Stimulus {
    let mut stimulus = match dice.weighted(&[22, 40, 6, 8, 5, 4, 1]) {
        0 => fresh(dice, model),
        1 => follow(dice, model),
        2 => beside(dice, model),
        3 => complaint(dice, model),
        4 => fragmented(dice, model),
        5 => vxlan(dice, model),
        _ => noise(dice),
    };
    odd(dice, &mut stimulus);
    stimulus.xdp = met_by_xdp(dice, &stimulus);
    stimulus
}

fn at(hook: TcHook, dev: Dev, frame: Vec<u8>) -> Stimulus {
    Stimulus { hook, dev, frame, mark: 0, gso: 0, done: false, summed: false, xdp: None }
}

/// What seldom happens to any packet.
fn odd(dice: &mut Dice, stimulus: &mut Stimulus) {
    stimulus.summed = dice.one_in(4);
    match dice.below(120) {
        0 => stimulus.mark = MARK_HOST,
        1 => stimulus.mark = dice.number() as u32,
        2 => stimulus.done = true,
        3 if is_whole(&stimulus.frame) => {
            stimulus.gso = dice.pick(&[100, 1000, 1200, 1250, 1400, 1448]);
            if dice.one_in(3) {
                // Longer than 64 KiB, for all that the header says.
                let at = if stimulus.frame[12] == 8 { ETH + 2 } else { ETH + 4 };
                stimulus.frame[at..at + 2].fill(0);
            }
        }
        4..=7 => mutate(dice, &mut stimulus.frame),
        8 => {
            // Padded, as Ethernet does.
            let more = dice.below(40);
            stimulus.frame.resize(stimulus.frame.len() + more, 0x41);
        }
        9 => stimulus.hook = dice.pick(&TcHook::ALL),
        10 => stimulus.dev = dice.pick(&Dev::ALL),
        11 => {
            let (hook, dev) = dice.pick(&[
                (TcHook::Pod, Dev::Pod10),
                (TcHook::Pod, Dev::Pod11),
                (TcHook::PodOut, Dev::Pod10),
                (TcHook::UnderlayIn, Dev::Underlay),
                (TcHook::UnderlayOut, Dev::Underlay),
                (TcHook::OverlayIn, Dev::Overlay),
            ]);
            (stimulus.hook, stimulus.dev) = (hook, dev);
        }
        _ => {}
    }
}

/// Does XDP see it? It sees what comes in as it was on the wire.
fn met_by_xdp(dice: &mut Dice, stimulus: &Stimulus) -> Option<XdpMode> {
    let wire = stimulus.hook == TcHook::UnderlayIn && stimulus.dev == Dev::Underlay;
    let seen = wire && stimulus.mark == 0 && stimulus.gso == 0 && !stimulus.done && dice.one_in(2);
    seen.then(|| dice.pick(&[XdpMode::Native, XdpMode::Native, XdpMode::Generic]))
}

/// What can be segments put together.
fn is_whole(frame: &[u8]) -> bool {
    matches!(read(frame, false, |_| None), Seen::Flow(packet) if packet.kind == Kind::Whole && packet.tuple.proto != SCTP)
}

/// Breaks a frame.
pub fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    if frame.len() <= ETH {
        return;
    }
    match dice.below(4) {
        0 => frame.truncate(14 + dice.below(frame.len() - 13)),
        1 => {
            // A field of the headers.
            for _ in 0..=dice.below(3) {
                let at = 12 + dice.below((frame.len() - 12).min(70));
                frame[at] = dice.pick(&[0, 1, 4, 5, 6, 17, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x80, 0xff]);
            }
        }
        2 => {
            let at = dice.below(frame.len());
            frame[at] ^= 1 << dice.below(8);
        }
        _ => {
            for _ in 0..=dice.below(8) {
                let at = 12 + dice.below(frame.len() - 12);
                frame[at] = dice.number() as u8;
            }
        }
    }
}

/// Details that matter little, or should.
fn details(dice: &mut Dice, draft: &mut Draft) {
    draft.seq = dice.number() as u32;
    draft.id = dice.number() as u32;
    draft.ttl = dice.pick(&[64, 64, 64, 64, 64, 64, 255, 2, 1, 0]);
    draft.dont_fragment = !dice.one_in(4);
    draft.unsummed = dice.one_in(12);
    let len = match dice.below(24) {
        0 => dice.below(1500),
        // About the limits.
        1 => dice.pick(&[1230, 1240, 1250, 1252, 1260, 1272, 1280, 1400, 1402, 1410, 1420, 1422, 1430, 1472]),
        _ => dice.below(24),
    };
    draft.payload = (0..len).map(|i| (i as u8) ^ 0x5a).collect();
    if draft.proto == TCP && draft.flags & SYN != 0 && dice.one_in(2) {
        let mss = dice.pick(&[536u16, 1220, 1240, 1260, 1390, 1410, 1440, 1460, 8960, 65495]).to_be_bytes();
        draft.tcp_options = match dice.below(5) {
            0 => vec![1, 2, 4, mss[0], mss[1]],
            1 => vec![4, 2, 1, 1, 2, 4, mss[0], mss[1]],
            2 => vec![1, 1, 1, 1, 1, 1, 1, 1, 2, 4, mss[0], mss[1]],
            3 => vec![3, 3, 7, 2, 4, mss[0], mss[1]],
            _ => vec![2, 4, mss[0], mss[1]],
        };
    }
    if dice.one_in(20) {
        if draft.is_v4() {
            draft.options = vec![1; 4 * (1 + dice.below(10))];
        } else {
            let count = dice.pick(&[1, 1, 1, 2, 3, 6, 9, 32, 33]);
            draft.extensions =
                (0..count).map(|_| (dice.pick(&[0, 43, 60, 60, 60, 51]), dice.pick(&[0, 0, 1]))).collect();
        }
    }
}

fn client_port(dice: &mut Dice) -> u16 {
    dice.pick(&PORTS).to_be()
}

/// An address with a port that somebody may ask for a service.
fn frontend(dice: &mut Dice, model: &Model, v4: bool) -> (Addr, u16, u8) {
    let keys: Vec<&FrontendKey> = model.table.frontends.keys().filter(|key| key.addr.is_v4() == v4).collect();
    if keys.is_empty() || dice.one_in(24) {
        let i = 1 + dice.below(5) as u8;
        let addr = dice.pick(&[place::cluster_ip(v4, i), place::node(v4, 1), place::external_ip(v4, i)]);
        let port = dice.pick(&[PORT, PORT + 1, NODE_PORT + u16::from(i), 61000]);
        return (addr, port.to_be(), dice.pick(&[TCP, UDP, SCTP, 47]));
    }
    let key = dice.pick(&keys);
    let addr = if key.addr == Addr::ANY4 || key.addr == Addr::ANY6 {
        place::node(v4, dice.pick(&[1, 1, 1, 2, 3, 4]))
    } else {
        key.addr
    };
    (addr, key.port, key.proto)
}

/// The beginning of a flow, at the hook where it is met.
fn fresh(dice: &mut Dice, model: &Model) -> Stimulus {
    let (draft, hook, dev) = request(dice, model);
    let mark = noted(dice, hook);
    Stimulus { mark, ..at(hook, dev, draft.frame()) }
}

fn request(dice: &mut Dice, model: &Model) -> (Draft, TcHook, Dev) {
    let v4 = dice.one_in(2);
    let (dst, dport, proto) = frontend(dice, model, v4);
    let (hook, dev, src) = match dice.below(9) {
        8 => (
            TcHook::UnderlayOut,
            Dev::Underlay,
            if dice.one_in(8) { place::client(v4, 1) } else { place::node(v4, 1) },
        ),
        0..=2 => (TcHook::UnderlayIn, Dev::Underlay, place::client(v4, dice.pick(&[1, 1, 2, 3]))),
        3..=5 => {
            let pod = dice.pick(&[10, 10, 11]);
            let src = if dice.one_in(16) { 12 } else { pod };
            (TcHook::Pod, Dev::of_pod(pod).unwrap_or(Dev::Pod10), place::pod(v4, 1, src))
        }
        _ => (TcHook::OverlayIn, Dev::Overlay, place::client(v4, dice.pick(&[1, 2]))),
    };
    let mut draft = Draft::of(&Tuple { src, dst, sport: client_port(dice), dport, proto, zero: [0; 3] });
    draft.flags = dice.pick(&[SYN, SYN, SYN, SYN, SYN, SYN, ACK, FIN | ACK, RST, SYN | ACK, SYN | FIN, 0]);
    draft.ack = if draft.flags & ACK == 0 { 0 } else { dice.number() as u32 };
    details(dice, &mut draft);
    if hook == TcHook::OverlayIn {
        if dst == place::node(v4, 1) || dice.one_in(4) {
            draft.dst = place::node(v4, dice.pick(&[2, 2, 2, 3, 4, 1]));
        }
        let hash = match dice.below(6) {
            0 => dice.number() as u32,
            1 => 0,
            _ => {
                let hashes: Vec<u32> = model.table.choices.keys().map(|(_, hash)| *hash).collect();
                if hashes.is_empty() { 1 } else { dice.pick(&hashes) }
            }
        };
        let mark = dice.pick(&[MESH_REQUEST, MESH_REQUEST, MESH_DSR]);
        mesh(dice, &mut draft, mark, hash);
    }
    (draft, hook, dev)
}

/// What `underlay_in` has noted of the sender of a packet that is unwrapped.
fn noted(dice: &mut Dice, hook: TcHook) -> u32 {
    let of = dice.pick(&[2, 2, 3, 4, 1]);
    if hook == TcHook::OverlayIn && !dice.one_in(6) { MARK_ENTRY | of } else { 0 }
}

fn mesh(dice: &mut Dice, draft: &mut Draft, [x, y]: [u8; 2], hash: u32) {
    let [a, b, c, d] = hash.to_be_bytes();
    draft.dmac = place::vtep_mac(1);
    draft.smac = if dice.one_in(12) { place::vtep_mac(2) } else { [x, y, a, b, c, d] };
}

/// The next packet of a flow that is known, most likely where it would be met.
fn follow(dice: &mut Dice, model: &Model) -> Stimulus {
    let Some(flow) = some_flow(dice, model) else { return fresh(dice, model) };
    let (draft, hook, dev) = of_flow(dice, model, &flow);
    if hook == TcHook::OverlayIn && flow.node != NODE_SELF && dice.one_in(2) {
        // As it comes over the wire: from the node at the other end, or the backend's.
        let of_backend = model.table.backends.get(flow.backend as usize).map_or(2, |backend| backend.node);
        let node = if flow.node == 0 { of_backend } else { flow.node };
        let mut outer = outer(!dice.one_in(4), place::node(true, 2), 1);
        outer.src = place::node(outer.is_v4(), node as u8);
        outer.payload.extend_from_slice(&[8, 0, 0, 0, 0, 0, place::VNI as u8, 0]);
        outer.payload.extend_from_slice(&draft.frame());
        return at(TcHook::UnderlayIn, Dev::Underlay, outer.frame());
    }
    let mark = noted(dice, hook);
    Stimulus { mark, ..at(hook, dev, draft.frame()) }
}

fn some_flow(dice: &mut Dice, model: &Model) -> Option<Flow> {
    let count = model.flows.len();
    // The younger are more likely.
    let back = dice.below(dice.clone().below(count.max(1)) + 1);
    model.flows.nth(count.checked_sub(1 + back)?).cloned()
}

fn of_flow(dice: &mut Dice, model: &Model, flow: &Flow) -> (Draft, TcHook, Dev) {
    let reply = dice.one_in(2);
    let tuple = if reply { flow.back() } else { flow.from };
    let mut draft = Draft::of(&tuple);
    draft.flags = dice.pick(&[
        if reply { SYN | ACK } else { SYN },
        if reply { SYN | ACK } else { SYN },
        ACK,
        ACK,
        ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        0,
    ]);
    draft.ack = dice.number() as u32;
    details(dice, &mut draft);
    let v4 = tuple.src.is_v4();
    let pod = |addr: Addr| {
        place::PODS.into_iter().find(|pod| place::pod(v4, 1, *pod) == addr).and_then(Dev::of_pod)
    };
    let from_pod = |dev| (TcHook::Pod, dev);
    let (hook, dev) = if !reply {
        if let Some(dev) = pod(tuple.src) {
            from_pod(dev)
        } else if flow.has(CT_TUNNEL | CT_DSR) && !flow.has(CT_ENTRY) {
            let hash = model.table.backends.get(flow.backend as usize).map_or(7, |backend| backend.hash);
            let mark = if flow.has(CT_DSR) { MESH_DSR } else { MESH_REQUEST };
            mesh(dice, &mut draft, mark, hash);
            (TcHook::OverlayIn, Dev::Overlay)
        } else if flow.has(CT_OWN) {
            (TcHook::UnderlayOut, Dev::Underlay)
        } else {
            (TcHook::UnderlayIn, Dev::Underlay)
        }
    } else if flow.has(CT_HOST) {
        match pod(tuple.dst) {
            Some(dev) => (TcHook::PodOut, dev),
            None => (TcHook::UnderlayOut, Dev::Underlay),
        }
    } else if flow.has(CT_ENTRY) {
        mesh(dice, &mut draft, MESH_REPLY, 0);
        (TcHook::OverlayIn, Dev::Overlay)
    } else if let Some(dev) = pod(tuple.src) {
        from_pod(dev)
    } else if place::route(tuple.dst, tuple.src) == Some(Dev::Overlay) {
        (draft.smac, draft.dmac) = (place::vtep_mac(2), place::vtep_mac(1));
        (TcHook::OverlayIn, Dev::Overlay)
    } else {
        (TcHook::UnderlayIn, Dev::Underlay)
    };
    (draft, hook, dev)
}

/// A pod talks to a backend without a service, maybe from a port that a flow uses.
fn beside(dice: &mut Dice, model: &Model) -> Stimulus {
    let v4 = dice.one_in(2);
    let pod = dice.pick(&[10, 11]);
    let mut tuple = Tuple {
        src: place::pod(v4, 1, pod),
        dst: place::pod(v4, 2, 20),
        sport: client_port(dice),
        dport: 8080u16.to_be(),
        proto: dice.pick(&[TCP, UDP, SCTP]),
        zero: [0; 3],
    };
    if let Some(flow) = some_flow(dice, model)
        && dice.one_in(2)
    {
        tuple = flow.to;
    }
    let mut draft = Draft::of(&tuple);
    draft.flags = dice.pick(&[SYN, SYN, ACK, RST]);
    details(dice, &mut draft);
    let dev = if place::route(tuple.dst, tuple.src) == Some(Dev::Pod11) { Dev::Pod11 } else { Dev::Pod10 };
    at(TcHook::Pod, dev, draft.frame())
}

/// An ICMP error about a packet of a flow, as it was seen by whoever complains.
fn complaint(dice: &mut Dice, model: &Model) -> Stimulus {
    let (about, hook, dev) = match some_flow(dice, model) {
        Some(flow) => {
            // It travels as the packets of the other direction do.
            let (other, hook, dev) = of_flow(dice, model, &flow);
            let tuple = Tuple {
                src: other.src,
                dst: other.dst,
                sport: other.sport,
                dport: other.dport,
                proto: other.proto,
                zero: [0; 3],
            };
            let mut about = Draft::of(&tuple.reversed());
            (about.smac, about.dmac) = (other.smac, other.dmac);
            details(dice, &mut about);
            (about, hook, dev)
        }
        None => {
            let (draft, hook, dev) = request(dice, model);
            (draft, hook, dev)
        }
    };
    let v4 = about.is_v4();
    let from = match dice.below(5) {
        0 => place::client(v4, 3),
        1 => place::node(v4, 2),
        _ => about.dst,
    };
    let kind = if v4 {
        dice.pick(&[[3, 3], [3, 4], [3, 1], [11, 0], [12, 0], [8, 0], [0, 0], [5, 1]])
    } else {
        dice.pick(&[[1, 4], [2, 0], [3, 0], [4, 1], [128, 0], [129, 0], [135, 0]])
    };
    let quote = match dice.below(8) {
        0 => dice.below(70),
        1 => 1200,
        _ if v4 => 28 + about.options.len(),
        _ => 48 + 8 * about.extensions.len(),
    };
    let mut frame = about.error(from, kind, 1300u32 * u32::from(kind == [3, 4] || kind == [2, 0]), quote);
    frame[..6].copy_from_slice(&about.dmac);
    frame[6..12].copy_from_slice(&about.smac);
    if dice.one_in(12) {
        // The quoted header, too, may be broken.
        let start = if v4 { 42 } else { 62 };
        if frame.len() > start {
            let place = start + dice.below((frame.len() - start).min(44));
            frame[place] = dice.pick(&[0, 0x40, 0x41, 0x45, 0x4f, 6, 17, 0xff]);
        }
    }
    at(hook, dev, frame)
}

fn fragmented(dice: &mut Dice, model: &Model) -> Stimulus {
    let (mut draft, hook, dev) = match some_flow(dice, model) {
        Some(flow) if !dice.one_in(4) => of_flow(dice, model, &flow),
        _ => request(dice, model),
    };
    // So that the parts of one datagram meet.
    draft.id = 7 + dice.below(3) as u32;
    draft.payload.resize(100, 0x33);
    draft.dont_fragment = false;
    let size = dice.pick(&[8, 16, 24, 48]);
    let parts = draft.fragments(size);
    at(hook, dev, parts[dice.below(2)].clone())
}

/// What a VXLAN packet to node `to` is wrapped in.
fn outer(v4: bool, src: Addr, to: u8) -> Draft {
    let tuple = Tuple {
        src,
        dst: place::node(v4, to),
        sport: 55555u16.to_be(),
        dport: place::VXLAN_PORT.to_be(),
        proto: UDP,
        zero: [0; 3],
    };
    Draft { unsummed: true, ..Draft::of(&tuple) }
}

/// A VXLAN packet, from a node or not, with something inside that may or may not be its right.
fn vxlan(dice: &mut Dice, model: &Model) -> Stimulus {
    let (outer4, v4) = (dice.one_in(2), dice.one_in(2));
    let from = dice.pick(&[2u8, 2, 2, 3, 4, 1]);
    let inner = match dice.below(5) {
        0 => {
            let (mut draft, ..) = request(dice, model);
            let (mark, hash) = (dice.pick(&[MESH_REQUEST, MESH_DSR]), dice.number() as u32);
            mesh(dice, &mut draft, mark, hash);
            if dice.one_in(2) {
                draft.dst = place::node(draft.is_v4(), from);
            }
            draft
        }
        1 => {
            let (mut draft, ..) = match some_flow(dice, model) {
                Some(flow) => of_flow(dice, model, &flow),
                None => request(dice, model),
            };
            mesh(dice, &mut draft, MESH_REPLY, 0);
            draft
        }
        _ => {
            let any = |dice: &mut Dice| {
                let n = dice.pick(&[1, 2, 2, 3]);
                dice.pick(&[
                    place::pod(v4, n, 10 * n),
                    place::pod(v4, n, 10 * n),
                    place::vtep(v4, n),
                    place::node(v4, n),
                    place::client(v4, 1),
                    place::cluster_ip(v4, 1),
                ])
            };
            let src = if dice.one_in(2) { place::pod(v4, from, 10 * from) } else { any(dice) };
            let dst = if dice.one_in(2) { place::pod(v4, 1, 10) } else { any(dice) };
            let tuple = Tuple { src, dst, sport: 1, dport: 2, proto: TCP, zero: [0; 3] };
            let mut draft = Draft::of(&tuple);
            (draft.smac, draft.dmac) = (place::vtep_mac(2), HERE_MAC);
            draft
        }
    };
    let mut frame = inner.frame();
    match dice.below(12) {
        0 => frame.truncate(dice.below(frame.len())),
        1 => frame[12] = 8,
        2 => frame[13] = 6,
        _ => {}
    }
    let vni = if dice.one_in(10) { 2 } else { place::VNI };
    let mut payload = vec![if dice.one_in(16) { 0 } else { 8 }, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(&frame);
    if dice.one_in(24) {
        payload.truncate(dice.below(12));
    }
    let src = if dice.one_in(8) { place::client(outer4, 1) } else { place::node(outer4, from) };
    let to = dice.pick(&[1u8, 1, 1, 1, 1, 1, 2]);
    let mut draft = Draft { payload, unsummed: dice.one_in(2), ..outer(outer4, src, to) };
    if dice.one_in(20) && outer4 {
        draft.options = vec![1; 4];
    }
    let (hook, dev) = if dice.one_in(6) {
        draft.src = place::pod(outer4, 1, 10);
        (TcHook::Pod, Dev::Pod10)
    } else {
        (TcHook::UnderlayIn, Dev::Underlay)
    };
    at(hook, dev, draft.frame())
}

/// Nothing that anybody would send.
fn noise(dice: &mut Dice) -> Stimulus {
    let len = 14 + dice.below(120);
    let mut frame: Vec<u8> = (0..len).map(|_| dice.number() as u8).collect();
    let ether = dice.pick(&[[8, 0], [8, 0], [0x86, 0xdd], [0x86, 0xdd], [8, 6], [0x81, 0]]);
    frame[12..14].copy_from_slice(&ether);
    if len > 34 && dice.one_in(2) {
        frame[14] = if ether[0] == 8 { 0x45 } else { 0x60 };
    }
    let (hook, dev) = dice.pick(&[
        (TcHook::Pod, Dev::Pod10),
        (TcHook::UnderlayIn, Dev::Underlay),
        (TcHook::UnderlayOut, Dev::Underlay),
        (TcHook::OverlayIn, Dev::Overlay),
    ]);
    at(hook, dev, frame)
}
