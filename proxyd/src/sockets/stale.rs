//! Which sockets have a backend that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use heddle_ebpf_common::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, Backend, ChoiceKey, FrontendKey, NET_LOOPBACK, NODE_DOWN,
    SockKey, SockPeer, choice_hash,
};

use super::protocol::{Gone, Transport};
use crate::ebpf::encode;

/// What the maps say. What cannot be read is `Err`, and says nothing.
pub trait Maps {
    /// The number of the service at an address.
    fn service(&self, key: &FrontendKey) -> Result<Option<u32>, ()>;
    /// The slot of a service's backend.
    fn choice(&self, key: &ChoiceKey) -> Result<Option<u32>, ()>;
    fn backend(&self, slot: u32) -> Result<Backend, ()>;
    fn node_state(&self, index: u32) -> Result<u32, ()>;
}

/// Why a socket is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Its service does not have the backend any more.
    Gone,
    /// The backend's node is down, as far as the cluster knows. It may only be cut off from those who say so.
    NodeDown,
}

/// Of what the hook has noted, what names a backend that its service does not have, or one on a node that is down. What
/// was noted by halves (the programs write while it is read) says nothing.
pub fn find(noted: &[(SockKey, SockPeer)], maps: &impl Maps) -> BTreeMap<SockKey, Why> {
    // Few pairs, many sockets.
    let mut known: HashMap<(Addr, u16, u8, Addr, u16), Option<Why>> = HashMap::new();
    let sound = noted.iter().filter(|(key, peer)| peer.check == peer.sum(key));
    let stale = sound.filter_map(|(key, peer)| {
        let pair = (key.addr, key.port, key.proto, peer.addr, peer.port);
        // What cannot be asked about is left alone.
        let why = *known.entry(pair).or_insert_with(|| why(key, peer, maps).unwrap_or(None));
        Some((*key, why?))
    });
    stale.collect()
}

fn why(key: &SockKey, peer: &SockPeer, maps: &impl Maps) -> Result<Option<Why>, ()> {
    let mut why = Why::Gone;
    let at = |addr: Addr, net: u32| FrontendKey { addr, net, port: peer.port, proto: key.proto, zero: 0 };
    let any = if peer.addr.is_v4() { Addr::ANY4 } else { Addr::ANY6 };
    // Its own entry, a node port's, a host port's on loopback: whichever it was, it has the backend.
    for frontend in [at(peer.addr, 0), at(any, 0), at(peer.addr, NET_LOOPBACK)] {
        let Some(service) = maps.service(&frontend)? else { continue };
        let hash = choice_hash(&key.addr, key.port, key.proto);
        let Some(slot) = maps.choice(&ChoiceKey { service, hash })? else { continue };
        let backend = maps.backend(slot)?;
        let same = (backend.addr, backend.port, backend.proto) == (key.addr, key.port, key.proto);
        let lives = matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING);
        if same && lives && backend.node != 0 && maps.node_state(backend.node)? == NODE_DOWN {
            why = Why::NodeDown;
        } else if lives || !same {
            // Of two backends with one hash only one is found: the other may live.
            return Ok(None);
        }
    }
    Ok(Some(why))
}

/// The same in the helper's words.
pub fn requests(stale: &BTreeMap<SockKey, Why>) -> Vec<Gone> {
    let mut gone: BTreeMap<(Transport, SocketAddr, bool), Gone> = BTreeMap::new();
    for (key, why) in stale {
        let transport = match key.proto {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            _ => continue,
        };
        let backend = SocketAddr::new(encode::ip(key.addr), u16::from_be(key.port));
        // A datagram's sender cannot tell; a new socket costs it little.
        let if_stalled = *why == Why::NodeDown && transport == Transport::Tcp;
        let fresh = || Gone { transport, backend, sockets: BTreeSet::new(), if_stalled };
        gone.entry((transport, backend, if_stalled)).or_insert_with(fresh).sockets.insert(key.cookie);
    }
    gone.into_values().collect()
}

#[cfg(test)]
mod tests {
    use heddle_ebpf_common::{BACKEND_DOWN, BACKEND_FREE, NODE_UP};

    use super::*;

    #[derive(Default)]
    struct Fake {
        services: HashMap<FrontendKey, u32>,
        choices: HashMap<ChoiceKey, u32>,
        backends: HashMap<u32, Backend>,
        nodes: HashMap<u32, u32>,
        broken: bool,
    }

    impl Maps for Fake {
        fn service(&self, key: &FrontendKey) -> Result<Option<u32>, ()> {
            if self.broken { Err(()) } else { Ok(self.services.get(key).copied()) }
        }
        fn choice(&self, key: &ChoiceKey) -> Result<Option<u32>, ()> {
            Ok(self.choices.get(key).copied())
        }
        fn backend(&self, slot: u32) -> Result<Backend, ()> {
            self.backends.get(&slot).copied().ok_or(())
        }
        fn node_state(&self, index: u32) -> Result<u32, ()> {
            self.nodes.get(&index).copied().ok_or(())
        }
    }

    const VIP: Addr = Addr::v4(1);
    const POD: Addr = Addr::v4(2);
    const PORT: u16 = 80;

    fn frontend(addr: Addr, net: u32) -> FrontendKey {
        FrontendKey { addr, net, port: PORT, proto: 17, zero: 0 }
    }

    /// Service 1 at `at`, with POD in slot 5, on node 3.
    fn maps(at: FrontendKey) -> Fake {
        let hash = choice_hash(&POD, PORT, 17);
        let backend = Backend {
            addr: POD,
            port: PORT,
            proto: 17,
            state: BACKEND_ACTIVE,
            node: 3,
            ..Backend::default()
        };
        Fake {
            services: [(at, 1)].into(),
            choices: [(ChoiceKey { service: 1, hash }, 5)].into(),
            backends: [(5, backend)].into(),
            nodes: [(3, NODE_UP)].into(),
            broken: false,
        }
    }

    fn noted(cookie: u64, vip: Addr) -> (SockKey, SockPeer) {
        let key = SockKey { cookie, addr: POD, port: PORT, proto: 17, zero: [0; 5] };
        let mut peer = SockPeer { addr: vip, port: PORT, zero: 0, check: 0 };
        peer.check = peer.sum(&key);
        (key, peer)
    }

    fn stale(maps: &Fake, vip: Addr) -> bool {
        let found = find(&[noted(9, vip)], maps);
        assert!(found.values().all(|why| *why == Why::Gone));
        !found.is_empty()
    }

    #[test]
    fn a_backend_that_its_service_has_is_not_gone() {
        assert!(!stale(&maps(frontend(VIP, 0)), VIP));
        assert!(!stale(&maps(frontend(Addr::ANY4, 0)), VIP), "a node port");
        assert!(!stale(&maps(frontend(VIP, NET_LOOPBACK)), VIP), "a host port");
        let mut draining = maps(frontend(VIP, 0));
        draining.backends.get_mut(&5).unwrap().state = BACKEND_DRAINING;
        assert!(!stale(&draining, VIP), "it keeps its flows");
        let mut collided = maps(frontend(VIP, 0));
        collided.backends.get_mut(&5).unwrap().addr = Addr::v4(77);
        assert!(!stale(&collided, VIP), "another backend with its hash");
    }

    #[test]
    fn a_backend_that_its_service_does_not_have_is_gone() {
        assert!(stale(&maps(frontend(Addr::v4(8), 0)), VIP), "the service is gone, another has the backend");
        let mut removed = maps(frontend(VIP, 0));
        removed.choices.clear();
        assert!(stale(&removed, VIP));
        for state in [BACKEND_DOWN, BACKEND_FREE] {
            let mut down = maps(frontend(VIP, 0));
            down.backends.get_mut(&5).unwrap().state = state;
            assert!(stale(&down, VIP));
        }
    }

    #[test]
    fn of_a_node_that_is_down_only_what_is_stalled_is_ended() {
        let mut dead = maps(frontend(VIP, 0));
        dead.nodes.insert(3, NODE_DOWN);
        let found = find(&[noted(9, VIP)], &dead);
        assert_eq!(found.values().collect::<Vec<_>>(), [&Why::NodeDown]);
        let stalled = |proto| {
            let key = SockKey { proto, ..noted(9, VIP).0 };
            requests(&[(key, Why::NodeDown)].into())[0].if_stalled
        };
        assert!(stalled(6) && !stalled(17));
    }

    #[test]
    fn what_is_not_known_is_left_alone() {
        assert!(!stale(&Fake { broken: true, ..Fake::default() }, VIP));
        let (key, peer) = noted(9, VIP);
        let torn = SockPeer { port: 81, ..peer };
        assert!(find(&[(key, torn)], &Fake::default()).is_empty());
    }

    #[test]
    fn sockets_are_asked_for_by_backend() {
        let keys = [noted(1, VIP).0, noted(2, VIP).0, SockKey { port: 81, ..noted(3, VIP).0 }];
        let gone = requests(&keys.map(|key| (key, Why::Gone)).into());
        assert_eq!(gone.len(), 2);
        assert_eq!(gone.iter().map(|gone| gone.sockets.len()).sum::<usize>(), 3);
    }
}
