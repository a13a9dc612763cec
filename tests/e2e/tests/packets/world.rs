//! The node on which the programs run: a network namespace with the devices, routes and neighbours that the
//! programs ask the kernel for, and the maps. The programs are loaded once for all tests, which take turns.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use heddle_bpf::{Datapath, Maps, Pins, Sizes, TcHook, XdpMode, sys};
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODE_PORTS, ADDR_OVERLAY, Addr, BACKEND_ACTIVE, Backend,
    ChoiceKey, Config, Counter, FRONTEND_EXTERNAL, Flow, Frontend, FrontendKey, KnownAddr, NODE_SELF,
    NODE_UP, Node, PORTS_EXTERNAL, PORTS_LEN, RING_BLOCK, Routes, Tuple, choice_hash,
};
use heddle_netlink::{NetNs, Socket, link, neigh, route, sysctl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::frames::{CLIENT_MAC, Packet, Seen, describe};

pub const UNDERLAY: &str = "eth0";
pub const OVERLAY: &str = "heddle.1";
/// Host side of the veths of pods 10 and 11.
pub const PODS: [&str; 2] = ["hdl10", "hdl11"];

pub const TUNNEL_MTU: u32 = 1450;
pub const POD_MTU: u32 = 1450;

/// The address family of a test; each runs for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn ip(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(v4).into(),
            Self::V6 => Ipv6Addr::from(v6).into(),
        }
    }

    /// A client outside.
    pub fn client(self, port: u16) -> SocketAddr {
        (self.ip([192, 168, 77, 201], [0xfd77, 0, 0, 0, 0, 0, 0, 0x201]), port).into()
    }

    /// Node `n` in the underlay.
    pub fn node(self, n: u8, port: u16) -> SocketAddr {
        (self.ip([192, 168, 77, n], [0xfd77, 0, 0, 0, 0, 0, 0, n.into()]), port).into()
    }

    /// Pod `i` of node `n`; the pods 10 and 11 of node 1 are here.
    pub fn pod(self, n: u8, i: u8, port: u16) -> SocketAddr {
        (self.ip([10, 244, n, i], [0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, i.into()]), port).into()
    }

    /// The VXLAN device of node `n`.
    pub fn vtep(self, n: u8, port: u16) -> SocketAddr {
        self.pod(n, 0, port)
    }

    pub fn service(self, i: u8, port: u16) -> SocketAddr {
        (self.ip([10, 96, 0, i], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, i.into()]), port).into()
    }

    pub fn loopback(self, port: u16) -> SocketAddr {
        (self.ip([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]), port).into()
    }

    /// The node ports.
    pub fn any(self, port: u16) -> SocketAddr {
        (self.ip([0; 4], [0; 8]), port).into()
    }

    /// An address outside the cluster that services may have.
    pub fn public(self, i: u8, port: u16) -> SocketAddr {
        (self.ip([203, 0, 113, i], [0x2001, 0xdb8, 0, 0, 0, 0, 0, i.into()]), port).into()
    }

    pub fn is_v4(self) -> bool {
        self == Self::V4
    }

    /// Bytes of an IP header.
    pub fn header(self) -> u32 {
        if self.is_v4() { 20 } else { 40 }
    }
}

pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            Addr([0, 4, 8, 12].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())))
        }
    }
}

pub fn tuple(packet: &Packet) -> Tuple {
    Tuple {
        src: addr(packet.src.ip()),
        dst: addr(packet.dst.ip()),
        sport: packet.src.port().to_be(),
        dport: packet.dst.port().to_be(),
        proto: packet.proto,
        zero: [0; 3],
    }
}

/// The Ethernet address of node `n`'s VXLAN device.
pub fn vtep_mac(n: u8) -> [u8; 6] {
    [0x02, 0x76, 0, 0, 0, n]
}

/// The Ethernet source of a mesh request for this backend.
pub fn request_mac(backend: SocketAddr, proto: u8) -> [u8; 6] {
    let hash = choice_hash(&addr(backend.ip()), backend.port().to_be(), proto).to_be_bytes();
    [0x0a, 0x48, hash[0], hash[1], hash[2], hash[3]]
}

/// The Ethernet address of the other nodes in the underlay.
pub const PEER_MAC: [u8; 6] = [0x02, 0x99, 0, 0, 0, 1];

pub const REPLY_MAC: [u8; 6] = [0x0e, 0x48, 0, 0, 0, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the stack (or out, at egress).
    Pass,
    Drop,
    /// To this interface.
    To(&'static str),
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    pub mark: u32,
    /// What was counted, by name.
    pub counted: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// Where it goes and what it is; panics if a checksum is wrong.
    #[track_caller]
    pub fn sent(&self, to: &'static str) -> Seen {
        assert_eq!(self.verdict, Verdict::To(to), "{self:?}");
        describe(&self.frame)
    }

    #[track_caller]
    pub fn passed(&self) -> Seen {
        assert_eq!(self.verdict, Verdict::Pass, "{self:?}");
        describe(&self.frame)
    }

    /// Dropped for this reason and counted under no other.
    #[track_caller]
    pub fn dropped(&self, reason: Counter) {
        assert_eq!(self.verdict, Verdict::Drop, "{self:?}");
        let name = Counter::ALL[reason as usize].1;
        assert_eq!(self.counted.get(name), Some(&1), "{name}: {self:?}");
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.counted.get(Counter::ALL[counter as usize].1).copied().unwrap_or(0)
    }
}

/// A backend of a service: address, and the node that it is on (0: none of ours).
#[derive(Clone, Copy, Debug)]
pub struct To {
    pub addr: SocketAddr,
    pub node: u32,
}

pub struct World {
    pub datapath: Datapath,
    links: BTreeMap<&'static str, u32>,
    netns: NetNs,
    next_backend: u32,
    next_ring: u32,
    next_service: u32,
}

fn build() -> World {
    assert!(heddle_bpf::is_embedded(), "built without the eBPF object; run `cargo xtask build-ebpf` first");
    // A thread of its own: it has a mount namespace of its own for the BPF file system.
    thread::spawn(|| {
        let netns = NetNs::create().unwrap();
        netns.enter().unwrap();
        let links = wire();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let root = PathBuf::from("/mnt");
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let sizes = Sizes {
            frontends: 1 << 10,
            ring: 1 << 12,
            backends: 1 << 10,
            nodes: 64,
            addrs: 256,
            choices: 1 << 10,
            ct_new: 1 << 12,
            ct: 1 << 10,
            affinity: 64,
            sources: 64,
            sockets: 1 << 10,
        };
        // Another object than the embedded one: do the tests notice what was broken in it?
        let datapath = match std::env::var_os("HEDDLE_TEST_OBJECT") {
            Some(path) => {
                let object = std::fs::read(path).unwrap();
                Datapath::open_object(Pins::new(&root), &sizes, &object)
            }
            None => Datapath::open(Pins::new(&root), &sizes),
        };
        let datapath = datapath.unwrap();
        // BPF_PROG_TEST_RUN takes frames from devices only that do XDP.
        datapath.attach_xdp(XdpMode::Native, UNDERLAY, links[UNDERLAY]).unwrap();
        World { datapath, links, netns, next_backend: 1, next_ring: 0, next_service: 1 }
    })
    .join()
    .unwrap()
}

/// The devices of node 1, their routes and neighbours; no default route.
fn wire() -> BTreeMap<&'static str, u32> {
    let mut socket = Socket::open().unwrap();
    sysctl::write(&sysctl::Key::new(["net", "ipv4", "ip_forward"]), "1").unwrap();
    sysctl::write(&sysctl::Key::ipv6_conf("all", "forwarding"), "1").unwrap();
    let mut links = BTreeMap::new();
    for (name, far, mtu) in [
        (UNDERLAY, "far0", 1500),
        (OVERLAY, "far1", TUNNEL_MTU),
        (PODS[0], "far10", POD_MTU),
        (PODS[1], "far11", POD_MTU),
    ] {
        let end = |name| link::VethEnd { name, mac: None, mtu: Some(mtu), ns: None, master: None };
        link::create_veth(&mut socket, &end(name), &end(far)).unwrap();
        for name in [name, far] {
            let index = link::by_name(&mut socket, name).unwrap().unwrap().index;
            link::set_up(&mut socket, index).unwrap();
        }
        links.insert(name, link::by_name(&mut socket, name).unwrap().unwrap().index);
    }
    for family in BOTH {
        let net = |ip: IpAddr, len| ipnetwork::IpNetwork::new(ip, len).unwrap();
        let (host, lan, range) = if family.is_v4() { (32, 24, 24) } else { (128, 64, 64) };
        let own = heddle_netlink::addr::Addr {
            nodad: true,
            ..heddle_netlink::addr::Addr::new(links[UNDERLAY], net(family.node(1, 0).ip(), lan))
        };
        heddle_netlink::addr::add(&mut socket, &own).unwrap();
        for (i, pod) in [10, 11].into_iter().zip(PODS) {
            let ip = family.pod(1, i, 0).ip();
            route::add(&mut socket, &route::Route::on_link(net(ip, host), links[pod])).unwrap();
            neigh::add(&mut socket, &neigh::Neigh::new(links[pod], ip, [2, 0, 0, 0, 0, i])).unwrap();
        }
        let device = links[UNDERLAY];
        neigh::add(&mut socket, &neigh::Neigh::new(device, family.client(0).ip(), CLIENT_MAC)).unwrap();
        for n in [2, 3] {
            let node = family.node(n, 0).ip();
            neigh::add(&mut socket, &neigh::Neigh::new(device, node, PEER_MAC)).unwrap();
        }
        for n in [2, 3] {
            let range = net(family.pod(n, 0, 0).ip(), range);
            let via = family.vtep(n, 0).ip();
            route::add(&mut socket, &route::Route::via(range, via, links[OVERLAY])).unwrap();
            neigh::add(&mut socket, &neigh::Neigh::new(links[OVERLAY], via, vtep_mac(n))).unwrap();
        }
    }
    links
}

/// Takes the turn of this test; the maps are empty but for the nodes, and the time stands still.
pub fn world() -> MutexGuard<'static, World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let mut world = WORLD.get_or_init(|| Mutex::new(build())).lock().unwrap_or_else(PoisonError::into_inner);
    world.netns.enter().unwrap();
    world.reset();
    world
}

impl World {
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.datapath.maps
    }

    pub fn ifindex(&self, name: &str) -> u32 {
        self.links[name]
    }

    fn reset(&mut self) {
        for index in 1..self.next_backend {
            self.datapath.maps.backends.set(index, Backend::default(), 0).unwrap();
        }
        (self.next_backend, self.next_ring, self.next_service) = (1, 0, 1);
        let maps = &mut self.datapath.maps;
        macro_rules! clear { ($($map:ident),*) => { $(
            let keys: Vec<_> = maps.$map.keys().map(Result::unwrap).collect();
            for key in keys { maps.$map.remove(&key).unwrap(); }
        )* } }
        clear!(frontends, choices, ct, ct_new, addrs, affinity, sock_rev, sock_udp);
        for n in [1u8, 2, 3] {
            let node = Node {
                state: NODE_UP,
                mac: vtep_mac(n),
                overlay: 1,
                zero: [0; 5],
                underlay: addr(Family::V4.node(n, 0).ip()),
            };
            maps.nodes.set(n.into(), node, 0).unwrap();
            for family in BOTH {
                let known = |kind| KnownAddr { node: n.into(), kind };
                let underlay = addr(family.node(n, 0).ip());
                maps.addrs.insert(underlay, known(ADDR_NODE | ADDR_NODE_PORTS), 0).unwrap();
                let overlay = addr(family.vtep(n, 0).ip());
                maps.addrs.insert(overlay, known(ADDR_OVERLAY), 0).unwrap();
                let key = Maps::range_key(overlay, if family.is_v4() { 24 } else { 64 });
                maps.ranges.insert(&key, u32::from(n), 0).unwrap();
            }
        }
        for index in 0..PORTS_LEN {
            maps.ports.set(index, 0, 0).unwrap();
        }
        // Those of `snat`.
        (61000..=61999).for_each(|port| self.outside_may_mean(port));
        self.set_routes(Routes { generation: 1, until: u64::MAX });
        self.configure(|_| ());
    }

    /// A port of which packets from outside may be ours.
    fn outside_may_mean(&mut self, port: u16) {
        let (index, bit) = (u32::from(port / 64), port % 64);
        let ports = self.maps().ports.get(&index, 0).unwrap();
        self.maps().ports.set(index, ports | 1 << bit, 0).unwrap();
    }

    pub fn set_routes(&mut self, routes: Routes) {
        self.maps().routes.set(0, routes, 0).unwrap();
    }

    /// Sets the configuration, from the one that the tests start with.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config {
            vxlan_ifindex: self.links[OVERLAY],
            underlay_ifindex: self.links[UNDERLAY],
            tunnel_mtu: TUNNEL_MTU,
            overlay4: addr(Family::V4.vtep(1, 0).ip()),
            overlay6: addr(Family::V6.vtep(1, 0).ip()),
            underlay4: addr(Family::V4.node(1, 0).ip()),
            underlay6: addr(Family::V6.node(1, 0).ip()),
            snat_port_min: 61000,
            snat_port_max: 61999,
            vxlan_port: 8472,
            fixed_time: 5 << 30,
            fixed_random: 1,
            vni: 1,
            ..Config::default()
        };
        change(&mut config);
        self.maps().config.set(0, config, 0).unwrap();
    }

    /// A service with a cluster address (`family.service(1, 80)`), a node port (30080) and these backends, each
    /// of which has as many slots of the Maglev table as the others. Returns their indices.
    pub fn service(&mut self, family: Family, proto: u8, backends: &[To]) -> Vec<u32> {
        self.service_at(family, proto, family.service(1, 80), 30080, backends)
    }

    pub fn service_at(
        &mut self,
        family: Family,
        proto: u8,
        cluster: SocketAddr,
        node_port: u16,
        backends: &[To],
    ) -> Vec<u32> {
        let service = self.next_service;
        self.next_service += 1;
        let indices: Vec<u32> = backends.iter().map(|to| self.backend(proto, *to)).collect();
        for (index, to) in indices.iter().zip(backends) {
            if to.node == NODE_SELF {
                let hash = choice_hash(&addr(to.addr.ip()), to.addr.port().to_be(), proto);
                self.maps().choices.insert(ChoiceKey { service, hash }, *index, 0).unwrap();
            }
        }
        let ring = self.ring(&indices);
        let slots: Vec<u32> =
            indices.iter().copied().cycle().take(if indices.is_empty() { 0 } else { 61 }).collect();
        let maglev = self.ring(&slots);
        let any = if family.is_v4() { Addr::ANY4 } else { Addr::ANY6 };
        for (ip, port, flags) in
            [(addr(cluster.ip()), cluster.port(), 0), (any, node_port, FRONTEND_EXTERNAL)]
        {
            let key = FrontendKey { addr: ip, net: 0, port: port.to_be(), proto, zero: 0 };
            let frontend = Frontend {
                ring,
                ring_len: indices.len() as u32,
                outside: maglev,
                outside_len: slots.len() as u32,
                service,
                flags,
                ..Frontend::default()
            };
            self.maps().frontends.insert(key, frontend.sealed(&key), 0).unwrap();
        }
        self.know(cluster.ip(), ADDR_CLUSTER_IP);
        self.outside_may_mean(node_port);
        indices
    }

    /// Lists an address of a service.
    pub fn know(&mut self, ip: IpAddr, kind: u32) {
        self.maps().addrs.insert(addr(ip), KnownAddr { node: 0, kind }, 0).unwrap();
    }

    /// The key of the frontend at `at`; an unspecified address stands for the node's.
    pub fn key(at: SocketAddr, proto: u8) -> FrontendKey {
        FrontendKey { addr: addr(at.ip()), net: 0, port: at.port().to_be(), proto, zero: 0 }
    }

    /// Changes the frontend at `at`.
    pub fn change(&mut self, at: SocketAddr, proto: u8, change: impl FnOnce(&mut Frontend)) {
        let key = Self::key(at, proto);
        let mut frontend = self.maps().frontends.get(&key, 0).unwrap();
        change(&mut frontend);
        self.maps().frontends.insert(key, frontend.sealed(&key), 0).unwrap();
    }

    /// The service at node port `port` gets this external address.
    pub fn external(&mut self, proto: u8, at: SocketAddr, port: u16) {
        let any = if at.is_ipv4() { Family::V4 } else { Family::V6 }.any(port);
        let frontend = self.maps().frontends.get(&Self::key(any, proto), 0).unwrap();
        let key = Self::key(at, proto);
        self.maps().frontends.insert(key, frontend.sealed(&key), 0).unwrap();
        self.know(at.ip(), ADDR_EXTERNAL);
        self.maps().ports.set(PORTS_EXTERNAL, 1, 0).unwrap();
    }

    pub fn ring(&mut self, indices: &[u32]) -> u32 {
        let start = self.next_ring;
        self.next_ring += (indices.len() as u32).next_multiple_of(RING_BLOCK);
        self.maps().write_ring(start, indices).unwrap();
        start
    }

    fn backend(&mut self, proto: u8, to: To) -> u32 {
        let index = self.next_backend;
        self.next_backend += 1;
        let backend = Backend {
            addr: addr(to.addr.ip()),
            generation: 100 + index,
            node: to.node,
            port: to.addr.port().to_be(),
            proto,
            state: BACKEND_ACTIVE,
            hash: choice_hash(&addr(to.addr.ip()), to.addr.port().to_be(), proto),
        };
        self.maps().backends.set(index, backend, 0).unwrap();
        index
    }

    pub fn change_backend(&mut self, index: u32, change: impl FnOnce(&mut Backend)) {
        let mut backend = self.maps().backends.get(&index, 0).unwrap();
        change(&mut backend);
        self.maps().backends.set(index, backend, 0).unwrap();
    }

    /// The entry of a packet's tuple, and whether the flow has been answered.
    pub fn flow(&mut self, packet: &Packet) -> Option<(Flow, bool)> {
        let key = tuple(packet);
        let maps = self.maps();
        let answered = maps.ct.get(&key, 0).ok();
        let new = maps.ct_new.get(&key, 0).ok();
        assert!(answered.is_none() || new.is_none(), "in both maps");
        answered.map(|flow| (flow, true)).or(new.map(|flow| (flow, false)))
    }

    fn counters(&self) -> Vec<u64> {
        Counter::ALL.iter().map(|(counter, _)| self.datapath.maps.counter(*counter).unwrap()).collect()
    }

    pub fn send(&mut self, hook: TcHook, ifname: &'static str, packet: &Packet) -> Outcome {
        self.run(hook, ifname, &packet.frame(), |_| ())
    }

    pub fn send_raw(&mut self, hook: TcHook, ifname: &'static str, frame: &[u8]) -> Outcome {
        self.run(hook, ifname, frame, |_| ())
    }

    /// Runs the program once. `context`: changes `struct __sk_buff`, as words.
    pub fn run(
        &mut self,
        hook: TcHook,
        ifname: &'static str,
        frame: &[u8],
        context: impl FnOnce(&mut [u32; 48]),
    ) -> Outcome {
        // include/uapi/linux/bpf.h: mark 2, ifindex 10, cb 12..17, gso_size 44.
        let mut words = [0u32; 48];
        words[10] = self.links[ifname];
        context(&mut words);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let before = self.counters();
        let program = self.datapath.tc_program(hook).unwrap();
        let run = sys::test_run(program, frame, &bytes, 1).unwrap();
        let word = |at: usize| u32::from_ne_bytes(run.context[4 * at..4 * at + 4].try_into().unwrap());
        let counted = self
            .counters()
            .into_iter()
            .zip(before)
            .zip(Counter::ALL)
            .filter(|((after, before), _)| after != before)
            .map(|((after, before), (_, name))| (name, after - before))
            .collect();
        let verdict = match run.result.cast_signed() {
            -1 => Verdict::Pass,
            2 => Verdict::Drop,
            7 => {
                let index = word(12);
                let name = self.links.iter().find(|(_, of)| **of == index).expect("a device of ours").0;
                Verdict::To(name)
            }
            other => panic!("verdict {other}"),
        };
        Outcome { verdict, frame: run.data, mark: word(2), counted }
    }
}

/// A pod backend.
pub fn pod(family: Family, n: u8, i: u8) -> To {
    To { addr: family.pod(n, i, 8080), node: n.into() }
}

/// A backend in the host network of node `n`.
pub fn host(family: Family, n: u8) -> To {
    To { addr: family.node(n, 9090), node: n.into() }
}
