//! A node with the product's programs and maps, as `proxyd` would leave them: two pods and a service of each
//! kind, among many others.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;
use heddle_bpf::{Datapath, Maps, Pins, Sizes, TcHook};
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_NODE, ADDR_NODE_PORTS, Addr, BACKEND_ACTIVE, Backend, ChoiceKey, Config,
    FRONTEND_EXTERNAL, Flow, Frontend, FrontendKey, KnownAddr, MAGLEV_SIZE, NODE_SELF, NODE_UP,
    Node as NodeValue, REMOTE_TUNNEL, RING_BLOCK, Routes, Tuple, choice_hash,
};
use heddle_lab::{Node, Pod};
use nix::net::if_::if_nametoindex;

use crate::mapped::{above, addr};
use crate::object;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The other node's index in `nodes`.
const OTHER: u32 = 2;
pub const OTHER_MAC: [u8; 6] = [2, 0x48, 0, 0, 0, 2];
pub const VXLAN_PORT: u16 = 8472;
const FRONTENDS: u32 = 10_000;
pub const FLOWS: u32 = 100_000;
/// Backends of a service. They are slots of their own, but one and the same pod.
const BACKENDS: u32 = 10;
/// Backends of each of the many services: all on this node.
pub const CROWD: u32 = 100;
/// The port of the many backends on every node.
pub const CROWD_PORT: u16 = 30_090;

/// What a service's backends are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Here,
    Elsewhere,
}

/// Interfaces of the node.
pub struct Devices {
    pub underlay: u32,
    pub vxlan: u32,
    /// Host sides of the veths of [`backend`] and [`asker`].
    pub backend: u32,
    pub asker: u32,
}

pub struct Stage {
    pub devices: Devices,
    pub datapath: Datapath,
    _pods: [Pod; 2],
}

fn ip(v4: bool, four: [u8; 4], six: &str) -> IpAddr {
    if v4 { four.into() } else { six.parse().unwrap_or(IpAddr::from([0u16; 8])) }
}

/// The pod of this node that serves.
pub fn backend(v4: bool) -> SocketAddr {
    (ip(v4, [10, 244, 1, 10], "fd00:10:244:1::a"), 8080).into()
}

/// The first of the [`CROWD`], which have one address after the other.
fn crowd(v4: bool) -> SocketAddr {
    (ip(v4, [10, 244, 1, 128], "fd00:10:244:1::1:0"), 8080).into()
}

/// The first of the many services, which have one address after the other.
pub fn others(v4: bool) -> SocketAddr {
    (ip(v4, [10, 97, 0, 0], "fd00:10:97::"), 80).into()
}

/// Another pod of this node.
pub fn asker(v4: bool) -> IpAddr {
    ip(v4, [10, 244, 1, 11], "fd00:10:244:1::b")
}

/// A pod of the other node.
pub fn far(v4: bool) -> SocketAddr {
    (ip(v4, [10, 244, 2, 10], "fd00:10:244:2::a"), 8080).into()
}

/// An address of a client outside: of those the node has neighbour entries.
pub fn client(v4: bool, n: u32) -> IpAddr {
    above(ip(v4, [192, 168, 77, 201], "fd77::201"), n)
}

/// The address of node 1 or 2.
pub fn node_ip(v4: bool, n: u32) -> IpAddr {
    above(ip(v4, [192, 168, 77, 0], "fd77::"), n)
}

/// The service of either kind inside the cluster.
pub fn cluster(v4: bool, kind: Where) -> SocketAddr {
    (above(ip(v4, [10, 96, 0, 10], "fd00:10:96::a"), kind as u32), 80).into()
}

/// The port of either kind on every node.
pub fn node_port(kind: Where) -> u16 {
    30_080 + kind as u16
}

/// What the tunnel's packets to the backend here carry.
pub fn choice(v4: bool) -> u32 {
    let backend = backend(v4);
    choice_hash(&addr(backend.ip()), backend.port().to_be(), TCP)
}

impl Stage {
    pub fn build(node: &Node) -> Result<Self> {
        let pods = [node.pod("backend")?, node.pod("asker")?];
        node.run(
            format!("ip link add heddle.1 type vxlan id 1 dev eth0 dstport {VXLAN_PORT} nolearning").as_str(),
        )?;
        node.run("ip link set heddle.1 up")?;
        let backends = [true, false].map(|v4| backend(v4).ip());
        let askers = [true, false].map(asker);
        for (pod, ips) in [("backend", backends), ("asker", askers)] {
            let host = format!("hdl-{pod}");
            node.run(format!("ip link add {host} type veth peer name eth0 netns {pod}").as_str())?;
            node.run(format!("ip link set {host} up").as_str())?;
            node.run(format!("ip -n {pod} link set eth0 up").as_str())?;
            ips.iter().try_for_each(|ip| neighbour(node, *ip, &host))?;
        }
        for v4 in [true, false] {
            (0..3).try_for_each(|n| neighbour(node, client(v4, n), "eth0"))?;
            let crowd = if v4 { "10.244.1.128/25" } else { "fd00:10:244:1::1:0/112" };
            node.run(format!("ip route add {crowd} dev hdl-backend").as_str())?;
            let range = if v4 { "10.244.2.0/24" } else { "fd00:10:244:2::/64" };
            node.run(format!("ip route add {range} dev heddle.1").as_str())?;
            neighbour(node, far(v4).ip(), "heddle.1")?;
        }
        let (devices, datapath) = node.enter(Self::inside)??;
        Ok(Self { devices, datapath, _pods: pods })
    }

    /// What is done on a thread of the node.
    fn inside() -> Result<(Devices, Datapath)> {
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(Path::new("/proc/sys/net").join(family), "1")
                .context("cannot switch forwarding on")?;
        }
        let index = |name: &str| if_nametoindex(name).with_context(|| format!("no interface {name}"));
        let devices = Devices {
            underlay: index("eth0")?,
            vxlan: index("heddle.1")?,
            backend: index("hdl-backend")?,
            asker: index("hdl-asker")?,
        };
        let object = object::read("heddle.bpf.o")?;
        let pins = Pins::new(Path::new("/sys/fs/bpf"));
        let mut datapath = Datapath::open_object(pins, &Sizes::default(), &object)?;
        fill(&mut datapath.maps, &devices)?;
        Ok((devices, datapath))
    }

    /// Enters [`FLOWS`] that no packet belongs to, of both families.
    pub fn add_flows(&mut self) -> Result<()> {
        for v4 in [true, false] {
            let clients = ip(v4, [10, 250, 0, 0], "fd00:10:250::");
            let dst = addr(others(v4).ip());
            for n in 0..FLOWS / 2 {
                let src = addr(above(clients, n));
                let tuple = Tuple { src, dst, sport: 1, dport: 2, proto: TCP, ..Tuple::default() };
                let mut flow =
                    Flow { to: tuple, backend: 1, generation: 1, service: 1_000, ..Flow::default() };
                flow.check = flow.sum(&tuple);
                self.datapath.maps.ct.insert(tuple, flow, 0)?;
            }
        }
        Ok(())
    }

    /// Attaches the socket hooks to a cgroup. To be called on a thread of the node.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<()> {
        self.datapath.attach_cgroup(cgroup)?;
        Ok(())
    }

    /// A program of the product.
    pub fn program(&self, hook: TcHook) -> Result<SchedClassifier> {
        let path = self.datapath.pins.program(hook.name());
        SchedClassifier::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

fn neighbour(node: &Node, ip: IpAddr, device: &str) -> Result<()> {
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    if device != "heddle.1" && device != "eth0" {
        node.run(format!("ip route add {ip}/{prefix} dev {device}").as_str())?;
    }
    node.run(format!("ip neigh replace {ip} lladdr 02:48:00:00:00:02 dev {device} nud permanent").as_str())?;
    Ok(())
}

fn fill(maps: &mut Maps, devices: &Devices) -> Result<()> {
    let config = Config {
        remote: REMOTE_TUNNEL,
        vxlan_ifindex: devices.vxlan,
        underlay_ifindex: devices.underlay,
        tunnel_mtu: 1450,
        underlay4: addr(node_ip(true, 1)),
        underlay6: addr(node_ip(false, 1)),
        vxlan_port: VXLAN_PORT,
        vni: 1,
        ..Config::default()
    };
    maps.config.set(0, config, 0)?;
    // Nobody changes a route while it is measured.
    maps.routes.set(0, Routes { generation: 1, until: u64::MAX }, 0)?;
    for port in [node_port(Where::Here), node_port(Where::Elsewhere), CROWD_PORT].map(u32::from) {
        let word = maps.ports.get(&(port / 64), 0)?;
        maps.ports.set(port / 64, word | 1 << (port % 64), 0)?;
    }
    for (index, mac) in [(NODE_SELF, [2, 0x48, 0, 0, 0, 1]), (OTHER, OTHER_MAC)] {
        maps.nodes.set(index, NodeValue { state: NODE_UP, mac, overlay: 1, ..Default::default() }, 0)?;
        for v4 in [true, false] {
            let ip = addr(node_ip(v4, index));
            maps.addrs.insert(ip, KnownAddr { node: index, kind: ADDR_NODE | ADDR_NODE_PORTS }, 0)?;
            let (pod, len) = if v4 { (ip_of_range(index, v4), 24) } else { (ip_of_range(index, v4), 64) };
            maps.ranges.insert(&Maps::range_key(addr(pod), len), index, 0)?;
        }
    }
    let (mut room, mut service) = (Room { slot: 1, ring: 0 }, 1);
    for v4 in [true, false] {
        let any = if v4 { Addr::ANY4 } else { Addr::ANY6 };
        for kind in [Where::Here, Where::Elsewhere] {
            let target = if kind == Where::Here { backend(v4) } else { far(v4) };
            let first = room.slot;
            let frontend = room.frontend(maps, (0..BACKENDS).map(|_| one_backend(target, kind)))?;
            let inside = cluster(v4, kind);
            known_service(maps, inside)?;
            for (ip, port, proto, flags) in [
                (addr(inside.ip()), inside.port(), TCP, 0),
                (addr(inside.ip()), inside.port(), UDP, 0),
                (any, node_port(kind), TCP, FRONTEND_EXTERNAL),
            ] {
                let key = FrontendKey { addr: ip, net: 0, port: port.to_be(), proto, zero: 0 };
                maps.frontends.insert(key, Frontend { service, flags, ..frontend }.sealed(&key), 0)?;
                if kind == Where::Here {
                    maps.choices.insert(ChoiceKey { service, hash: choice(v4) }, first, 0)?;
                }
                service += 1;
            }
        }
        let crowd = (0..CROWD).map(|n| {
            let target = (above(crowd(v4).ip(), n), crowd(v4).port()).into();
            one_backend(target, Where::Here)
        });
        let crowd = room.frontend(maps, crowd)?;
        let key = FrontendKey { addr: any, net: 0, port: CROWD_PORT.to_be(), proto: TCP, zero: 0 };
        let outside = Frontend { service, flags: FRONTEND_EXTERNAL, ..crowd };
        maps.frontends.insert(key, outside.sealed(&key), 0)?;
        service += 1;
        many(maps, v4, &Frontend { outside: 0, outside_len: 0, ..crowd })?;
    }
    Ok(())
}

/// What of `backends` and `ring` is free.
struct Room {
    slot: u32,
    ring: u32,
}

impl Room {
    /// The lists of a frontend with these backends.
    fn frontend(&mut self, maps: &mut Maps, backends: impl Iterator<Item = Backend>) -> Result<Frontend> {
        let first = self.slot;
        for backend in backends {
            maps.backends.set(self.slot, backend, 0)?;
            self.slot += 1;
        }
        let slots: Vec<u32> = (first..self.slot).collect();
        let maglev: Vec<u32> = slots.iter().copied().cycle().take(MAGLEV_SIZE as usize).collect();
        Ok(Frontend {
            ring: self.extent(maps, &slots)?,
            ring_len: slots.len() as u32,
            outside: self.extent(maps, &maglev)?,
            outside_len: MAGLEV_SIZE,
            ..Frontend::default()
        })
    }

    fn extent(&mut self, maps: &mut Maps, slots: &[u32]) -> Result<u32> {
        let start = self.ring;
        self.ring += (slots.len() as u32).next_multiple_of(RING_BLOCK);
        maps.write_ring(start, slots)?;
        Ok(start)
    }
}

fn known_service(maps: &mut Maps, at: SocketAddr) -> Result<()> {
    Ok(maps.addrs.insert(addr(at.ip()), KnownAddr { node: 0, kind: ADDR_CLUSTER_IP }, 0)?)
}

/// An address in the range of a node's pods.
fn ip_of_range(node: u32, v4: bool) -> IpAddr {
    if node == NODE_SELF { asker(v4) } else { far(v4).ip() }
}

fn one_backend(target: SocketAddr, kind: Where) -> Backend {
    let (ip, port) = (addr(target.ip()), target.port().to_be());
    Backend {
        addr: ip,
        generation: 1,
        node: if kind == Where::Here { NODE_SELF } else { OTHER },
        port,
        proto: TCP,
        state: BACKEND_ACTIVE,
        hash: choice_hash(&ip, port, TCP),
    }
}

/// Half of [`FRONTENDS`]: what else there is on a node, so that the hashes are not empty.
fn many(maps: &mut Maps, v4: bool, crowd: &Frontend) -> Result<()> {
    for n in 0..FRONTENDS / 2 {
        let at = SocketAddr::new(above(others(v4).ip(), n), others(v4).port());
        let key = FrontendKey { addr: addr(at.ip()), net: 0, port: at.port().to_be(), proto: TCP, zero: 0 };
        maps.frontends.insert(key, Frontend { service: 1_000 + n, ..*crowd }.sealed(&key), 0)?;
        known_service(maps, at)?;
    }
    Ok(())
}
