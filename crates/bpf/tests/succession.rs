//! One set of maps follows another, and what programs remember goes along.
#![expect(clippy::unwrap_used, reason = "tests")]

mod alone;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use alone::{LO, SMALL, alone};
use heddle_bpf::{Datapath, Opened, Pins, Sizes, TcHook, sys};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, BACKEND_ACTIVE, Backend, CT_ANSWERED, CT_FIN, CT_REPLY, ChoiceKey, Flow,
    Frontend, FrontendKey, LAYOUT_VERSION, Node, SockChoice, SockKey, SockPeer, Tuple, choice_hash,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn addr(last: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, 0, 0, last]))
}

fn frontend_key() -> FrontendKey {
    FrontendKey { addr: addr(100), port: 80u16.to_be(), proto: TCP, ..FrontendKey::default() }
}

/// Fills the maps with one service (`service`) of the backends 10.0.0.1 and 10.0.0.2, which are the elements
/// `first` and `first + 1`, of `generation`; the other node is number `node`.
fn fill(datapath: &mut Datapath, service: u32, first: u32, generation: u32, node: u32) {
    let maps = &mut datapath.maps;
    let key = frontend_key();
    maps.frontends.insert(key, Frontend { service, ..Frontend::default() }.sealed(&key), 0).unwrap();
    for (slot, last) in (first..).zip([1, 2]) {
        let hash = choice_hash(&addr(last), 8080u16.to_be(), TCP);
        let (port, state) = (8080u16.to_be(), BACKEND_ACTIVE);
        let backend = Backend { addr: addr(last), generation, node, port, proto: TCP, state, hash };
        maps.backends.set(slot, backend, 0).unwrap();
        maps.choices.insert(ChoiceKey { service, hash }, slot, 0).unwrap();
    }
    let there = Node { state: 1, mac: [2, 0, 0, 0, 0, 9], overlay: 1, ..Node::default() };
    maps.nodes.set(node, there, 0).unwrap();
}

/// The keys of the two entries of a flow of a client.
fn keys(port: u16, proto: u8, backend: u8) -> [Tuple; 2] {
    let client = addr(200);
    let key = Tuple { src: client, dst: addr(100), sport: port, dport: 80u16.to_be(), proto, zero: [0; 3] };
    let to = Tuple { dst: addr(backend), dport: 8080u16.to_be(), ..key };
    [key, to.reversed()]
}

/// Enters a flow of the backend that is element `slot`.
fn enter(datapath: &mut Datapath, flow: &Flow, port: u16, proto: u8, backend: u8) {
    let [key, reply] = keys(port, proto, backend);
    let request = Flow { to: reply.reversed(), ..*flow };
    let back = Flow { to: key.reversed(), flags: flow.flags | CT_REPLY, ..*flow };
    for (key, mut flow) in [(key, request), (reply, back)] {
        flow.check = flow.sum(&key);
        let maps = &mut datapath.maps;
        let map = if flow.flags & CT_ANSWERED != 0 { &mut maps.ct } else { &mut maps.ct_new };
        map.insert(key, flow, 0).unwrap();
    }
}

fn attach(datapath: &Datapath) {
    for hook in [TcHook::Pod, TcHook::UnderlayIn] {
        datapath.attach_tcx(hook, "lo", LO).unwrap();
    }
}

/// All links of all layouts lead to the programs of `datapath`, from its own directory.
fn assert_swapped(datapath: &Datapath, root: &Path) {
    let links = Pins::new(root).pinned_links().unwrap();
    assert_eq!(links.len(), 2, "{links:?}");
    for link in links {
        let hook = TcHook::ALL.into_iter().find(|hook| hook.name() == link.program).unwrap();
        let id = sys::program_id(datapath.tc_program(hook).unwrap()).unwrap();
        assert_eq!(link.info.program_id, id, "{}", link.program);
    }
    let heddle = root.join("heddle");
    let dirs: Vec<_> = fs::read_dir(heddle).unwrap().map(|dir| dir.unwrap().file_name()).collect();
    assert_eq!(dirs, [format!("v{LAYOUT_VERSION}").as_str()]);
}

/// Everything that is carried over, with the numbers that it has afterwards.
fn assert_carried(datapath: &Datapath, service: u32, first: u32, generation: u32, node: u32) {
    let maps = &datapath.maps;
    for (port, proto, backend, live) in [(1, TCP, 1, true), (2, TCP, 2, true), (3, TCP, 2, false)] {
        for key in keys(port, proto, backend) {
            let flow = maps.ct.get(&key, 0).unwrap();
            assert_eq!(flow.check, flow.sum(&key), "flow {port}");
            let slot = first + u32::from(backend) - 1;
            let expected = if live { (slot, generation) } else { (u32::MAX, 0) };
            assert_eq!((flow.backend, flow.generation), expected, "flow {port}");
            assert_eq!((flow.service, flow.node), (service, node), "flow {port}");
            assert_eq!(u64::from(flow.flags & CT_FIN != 0), 1);
        }
    }
    for key in keys(4, UDP, 1) {
        let there = maps.ct.get(&key, 0).is_ok_and(|flow| flow.generation == generation);
        assert!(!there, "a conversation with a backend that is gone begins anew");
    }
    for key in keys(5, TCP, 1) {
        assert_eq!(maps.ct_new.get(&key, 0).unwrap().backend, first);
    }
    let client = AffinityKey { client: addr(200), service, zero: 0 };
    let affinity = maps.affinity.get(&client, 0).unwrap();
    assert_eq!((affinity.backend, affinity.generation, affinity.seen), (first + 1, generation, 77));
    assert_eq!(affinity.check, affinity.sum(&client));
    let (rev, udp) = sock_keys();
    let peer = maps.sock_rev.get(&rev, 0).unwrap();
    assert_eq!((peer.addr, peer.check), (addr(100), peer.sum(&rev)));
    let choice = maps.sock_udp.get(&udp, 0).unwrap();
    assert_eq!((choice.backend, choice.service, choice.check), (first, service, choice.sum(&udp)));
}

fn sock_keys() -> (SockKey, SockKey) {
    let key = SockKey { cookie: 5, addr: addr(1), port: 8080u16.to_be(), proto: UDP, ..SockKey::default() };
    (key, SockKey { addr: addr(100), port: 80u16.to_be(), ..key })
}

/// Enters what [`assert_carried`] looks for.
fn remember(datapath: &mut Datapath, service: u32, first: u32, generation: u32, node: u32) {
    let flags = CT_ANSWERED | CT_FIN;
    let live = Flow { backend: first, generation, service, flags, node, seen: 5, ..Flow::default() };
    enter(datapath, &live, 1, TCP, 1);
    enter(datapath, &Flow { backend: first + 1, ..live }, 2, TCP, 2);
    let stale = Flow { generation: generation - 1, ..live };
    enter(datapath, &Flow { backend: first + 1, ..stale }, 3, TCP, 2);
    enter(datapath, &stale, 4, UDP, 1);
    enter(datapath, &Flow { flags: 0, ..live }, 5, TCP, 1);
    let client = AffinityKey { client: addr(200), service, zero: 0 };
    let affinity = Affinity { backend: first + 1, generation, seen: 77, ..Affinity::default() };
    let check = affinity.sum(&client);
    datapath.maps.affinity.insert(client, Affinity { check, ..affinity }, 0).unwrap();
    let (rev, udp) = sock_keys();
    let peer = SockPeer { addr: addr(100), port: 80u16.to_be(), ..SockPeer::default() };
    let peer = SockPeer { check: peer.sum(&rev), ..peer };
    datapath.maps.sock_rev.insert(rev, peer, 0).unwrap();
    let choice = SockChoice { backend: first, generation, service, ..SockChoice::default() };
    let choice = SockChoice { check: choice.sum(&udp), ..choice };
    datapath.maps.sock_udp.insert(udp, choice, 0).unwrap();
}

/// Other sizes: the same numbers, nothing is lost, nobody has to fill anything.
#[test]
fn fault_105_maps_of_another_size_hold_the_same() {
    alone(|root| {
        let mut first = Datapath::open(Pins::new(root), &SMALL).unwrap();
        fill(&mut first, 7, 3, 5, 4);
        remember(&mut first, 7, 3, 5, 4);
        attach(&first);
        drop(first);
        let larger =
            Sizes { frontends: 128, ring: 128, backends: 256, ct: 512, ct_new: 128, affinity: 128, ..SMALL };
        let mut second = Datapath::open(Pins::new(root), &larger).unwrap();
        let words = match &second.opened {
            Opened::Resized(words) => words.clone(),
            other => panic!("{other:?}"),
        };
        assert!(words.contains("frontends 64 to 128") && words.contains("ct 64 to 512"), "{words}");
        assert_eq!(second.maps.frontends.get(&frontend_key(), 0).unwrap().service, 7);
        assert!(second.is_succession().unwrap());
        let carried = second.take_over().unwrap();
        assert_eq!((carried.flows, carried.stale, carried.lost), (8, 2, 0), "{carried:?}");
        assert_carried(&second, 7, 3, 5, 4);
        assert_swapped(&second, root);
        assert!(!second.is_succession().unwrap());
        drop(second);
        // Smaller ones, as far as what is in use fits.
        let smaller = Sizes { frontends: 32, backends: 4, ct: 4, ..larger };
        let mut third = Datapath::open(Pins::new(root), &smaller).unwrap();
        assert_eq!((third.sizes.frontends, third.sizes.backends, third.sizes.ct), (32, 256, 512));
        third.take_over().unwrap();
        assert_carried(&third, 7, 3, 5, 4);
        assert_swapped(&third, root);
    });
}

/// A daemon of another layout: earlier (it did not describe itself) or later (it did). Numbers are those that the new
/// maps were filled with.
#[test]
fn fault_105_another_layout_hands_over_its_flows() {
    for other in [1, LAYOUT_VERSION + 1] {
        alone(move |root| {
            let ours = Pins::new(root);
            let theirs = root.join("heddle").join(format!("v{other}"));
            let mut old = Datapath::open(ours.clone(), &SMALL).unwrap();
            fill(&mut old, 7, 3, 5, 4);
            remember(&mut old, 7, 3, 5, 4);
            attach(&old);
            drop(old);
            fs::rename(ours.dir(), &theirs).unwrap();
            let mut new = Datapath::open(ours.clone(), &SMALL).unwrap();
            assert_eq!(new.opened, Opened::Fresh);
            assert!(new.is_succession().unwrap());
            assert!(!ours.program("pod").exists(), "nobody attaches what is not filled");
            let before: Vec<_> = fs::read_dir(theirs.join("links")).unwrap().collect();
            assert_eq!(before.len(), 2, "what is attached stays");
            fill(&mut new, 2, 10, 1, 6);
            let carried = new.take_over().unwrap();
            let clients = usize::from(other > 1);
            assert_eq!((carried.clients, carried.sockets, carried.lost), (clients, 2, 0), "{carried:?}");
            if other > LAYOUT_VERSION {
                assert_carried(&new, 2, 10, 1, 6);
            }
            assert_swapped(&new, root);
            assert!(ours.program("pod").exists());
        });
    }
}

/// Killed after any step, the next daemon goes on.
#[test]
fn fault_104_a_succession_that_was_broken_off_is_finished() {
    for moved in [false, true] {
        alone(move |root| broken_off(root, moved));
    }
}

fn broken_off(root: &Path, moved: bool) {
    let ours = Pins::new(root);
    let theirs = root.join("heddle/v9");
    let mut old = Datapath::open(ours.clone(), &SMALL).unwrap();
    fill(&mut old, 7, 3, 5, 4);
    remember(&mut old, 7, 3, 5, 4);
    attach(&old);
    drop(old);
    fs::rename(ours.dir(), &theirs).unwrap();
    let mut killed = Datapath::open(ours.clone(), &SMALL).unwrap();
    fill(&mut killed, 2, 10, 1, 6);
    // It died after one link was swapped, before or after that was moved: nothing was carried over.
    let link = |dir: &Path| dir.join("links/pod-lo");
    let fd = sys::get(&link(&theirs)).unwrap();
    sys::link_update(fd.as_fd(), killed.tc_program(TcHook::Pod).unwrap()).unwrap();
    if moved {
        fs::rename(link(&theirs), link(&ours.dir())).unwrap();
    }
    drop(killed);
    let mut next = Datapath::open(ours.clone(), &SMALL).unwrap();
    assert_eq!(next.opened, Opened::Adopted);
    assert!(next.is_succession().unwrap());
    next.take_over().unwrap();
    assert_carried(&next, 2, 10, 1, 6);
    assert_swapped(&next, root);
}

/// What the verifier refuses changes nothing.
#[test]
fn fault_108_a_program_that_is_refused_leaves_the_old_one() {
    alone(|root| {
        let ours = Pins::new(root);
        let mut first = Datapath::open(ours.clone(), &SMALL).unwrap();
        fill(&mut first, 7, 3, 5, 4);
        attach(&first);
        let ids = || ours.pinned_links().unwrap().iter().map(|link| link.info.program_id).collect::<Vec<_>>();
        let before = ids();
        drop(first);
        let broken = alone::refused();
        let other = Sizes { frontends: 128, ..SMALL };
        let error = Datapath::open_object(ours.clone(), &other, &broken).unwrap_err();
        assert!(error.to_string().contains("GPL"), "{error}");
        assert_eq!(ids(), before);
        let again = Datapath::open(ours, &SMALL).unwrap();
        assert_eq!(again.opened, Opened::Adopted, "the maps are those of before, and nothing else");
    });
}
