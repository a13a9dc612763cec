//! The kernel's side: a network namespace with the node's devices, the loaded programs, their maps.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, Map, MapData};
use heddle_bpf::{Datapath, Maps, Pins, Sizes, TcHook, XdpMode, sys};
use heddle_ebpf_common::SourceKey;
use heddle_ebpf_common::{
    ADDR_EXTERNAL, Addr, Affinity, AffinityKey, Backend, ChoiceKey, Counter, Flow, FragKey, FragPorts,
    Frontend, FrontendKey, PORTS_EXTERNAL, RING_BLOCK, Tuple,
};
use heddle_netlink::{NetNs, Socket, link, neigh, route, sysctl};
use ipnetwork::IpNetwork;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::make;
use crate::model::{Stimulus, Verdict};
use crate::place::{self, Dev};
use crate::table::{Change, Front, Table};

/// Entries of answered flows: few, so that the map is full at times.
pub const ROOM: u32 = 40;

/// In `cb` of a packet with which one of our programs has dealt.
const DONE: [u32; 2] = [0x4865_6464, 0x6c65_2d3e];

// include/uapi/linux/bpf.h, `struct __sk_buff` in words.
const MARK: usize = 2;
const IFINDEX: usize = 10;
const CB: usize = 12;
const GSO_SIZE: usize = 44;

/// Everything that one thread needs. It belongs to the thread that made it, whose network and mount namespaces are its
/// own.
pub struct World {
    datapath: Datapath,
    kinds: Array<MapData, u32>,
    ct: [OwnedFd; 2],
    frags: OwnedFd,
    affinity: OwnedFd,
    programs: BTreeMap<&'static str, OwnedFd>,
    next_ring: u32,
    backends: u32,
    /// A program may have written to the maps since they were emptied.
    dirty: bool,
    out: Vec<u8>,
    /// Leaves the namespace alive.
    _netns: NetNs,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// What the program made of a packet.
#[derive(Clone, Debug)]
pub struct Ran<'a> {
    pub verdict: Verdict,
    pub frame: &'a [u8],
    pub mark: u32,
}

/// What the maps hold that the programs write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub new: BTreeMap<Tuple, Flow>,
    pub answered: BTreeMap<Tuple, Flow>,
    pub frags: BTreeMap<FragKey, [u16; 2]>,
    /// (Client, service) -> backend, its generation, time of the last new flow.
    pub affinity: BTreeMap<(Addr, u32), (u32, u32, u64)>,
    /// Flows that each backend was given.
    pub conns: BTreeMap<u32, u64>,
    pub counted: [u64; Counter::COUNT as usize],
}

fn pinned(pins: &Pins, name: &str) -> Result<OwnedFd> {
    sys::get(&pins.map(name)).with_context(|| format!("cannot open the map {name}"))
}

/// The devices of node 1, their routes and neighbours; no default route.
fn wire() -> Result<()> {
    let mut socket = Socket::open()?;
    sysctl::write(&sysctl::Key::new(["net", "ipv4", "ip_forward"]), "1")?;
    sysctl::write(&sysctl::Key::ipv6_conf("all", "forwarding"), "1")?;
    for dev in Dev::ALL {
        let far = format!("far-{}", dev.name());
        let end = |name| link::VethEnd { name, mac: None, mtu: Some(dev.mtu()), ns: None, master: None };
        link::create_veth(&mut socket, &end(dev.name()), &end(&far))?;
        let index = link::by_name(&mut socket, dev.name())?.context("just made")?.index;
        ensure!(index == dev.ifindex(), "{} has the index {index}", dev.name());
        let far = link::by_name(&mut socket, &far)?.context("just made")?.index;
        link::set_up(&mut socket, index)?;
        link::set_up(&mut socket, far)?;
    }
    for v4 in [true, false] {
        let net = |addr: Addr, len| IpNetwork::new(place::ip(addr), len);
        let (host, lan, range) = if v4 { (32, 24, 24) } else { (128, 64, 64) };
        let own = heddle_netlink::addr::Addr {
            nodad: true,
            ..heddle_netlink::addr::Addr::new(Dev::Underlay.ifindex(), net(place::node(v4, 1), lan)?)
        };
        heddle_netlink::addr::add(&mut socket, &own)?;
        for pod in place::PODS {
            let Some(dev) = Dev::of_pod(pod) else { continue };
            let addr = place::pod(v4, 1, pod);
            route::add(&mut socket, &route::Route::on_link(net(addr, host)?, dev.ifindex()))?;
            neigh::add(
                &mut socket,
                &neigh::Neigh::new(dev.ifindex(), place::ip(addr), [2, 0, 0, 0, 0, pod]),
            )?;
        }
        for addr in place::neighbours(v4) {
            let index = Dev::Underlay.ifindex();
            neigh::add(&mut socket, &neigh::Neigh::new(index, place::ip(addr), place::PEER_MAC))?;
        }
        for n in [2, 3] {
            let via = place::ip(place::vtep(v4, n));
            let range = net(place::vtep(v4, n), range)?;
            route::add(&mut socket, &route::Route::via(range, via, Dev::Overlay.ifindex()))?;
            neigh::add(&mut socket, &neigh::Neigh::new(Dev::Overlay.ifindex(), via, place::vtep_mac(n)))?;
        }
    }
    Ok(())
}

impl World {
    /// Takes the calling thread into namespaces of its own and loads the programs there. `object`: another than the
    /// embedded one.
    pub fn new(object: Option<&Path>) -> Result<Self> {
        ensure!(
            heddle_bpf::is_embedded(),
            "built without the eBPF object; run `cargo xtask build-ebpf` first"
        );
        let netns = NetNs::create()?;
        netns.enter()?;
        wire().context("cannot set up the node")?;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let root = Path::new("/mnt");
        mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a BPF file system")?;
        let sizes = Sizes {
            frontends: 256,
            ring: 1 << 10,
            backends: 256,
            nodes: 16,
            addrs: 64,
            choices: 256,
            // Far more than a case needs: the kernel displaces entries long before there is no room.
            ct_new: 1 << 11,
            ct: ROOM,
            affinity: 1 << 10,
            sources: 64,
            sockets: 16,
        };
        let pins = Pins::new(root);
        let datapath = match object {
            Some(path) => {
                let object =
                    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Datapath::open_object(pins, &sizes, &object)
            }
            None => Datapath::open(pins, &sizes),
        }?;
        // XDP can be run for a device only where it is attached.
        let underlay = Dev::Underlay;
        datapath.attach_xdp(XdpMode::Native, underlay.name(), underlay.ifindex())?;
        let pins = &datapath.pins;
        let kinds = Array::try_from(Map::Array(MapData::from_pin(pins.map("kinds"))?))?;
        let ct = [pinned(pins, "ct_new")?, pinned(pins, "ct")?];
        let frags = pinned(pins, "frags")?;
        let affinity = pinned(pins, "affinity")?;
        let mut programs = BTreeMap::new();
        for hook in TcHook::ALL {
            programs.insert(hook.name(), datapath.tc_program(hook)?.try_clone_to_owned()?);
        }
        let mut world = Self {
            datapath,
            kinds,
            ct,
            frags,
            affinity,
            programs,
            next_ring: 0,
            backends: 0,
            dirty: false,
            out: vec![0; 1 << 14],
            _netns: netns,
        };
        for port in make::ports().flatten() {
            let (index, bit) = (u32::from(port) / 64, 1 << (port % 64));
            let old = world.maps().ports.get(&index, 0)?;
            world.maps().ports.set(index, old | bit, 0)?;
        }
        Ok(world)
    }

    fn maps(&mut self) -> &mut Maps {
        &mut self.datapath.maps
    }

    /// Empties the maps and writes this table.
    pub fn reset(&mut self, table: &Table) -> Result<()> {
        if self.dirty {
            self.take_state()?;
        }
        for kind in 0..self.kinds.len() {
            self.kinds.set(kind, 0, 0)?;
        }
        for index in 0..self.backends {
            self.maps().conns.set(index, 0, 0)?;
            if index >= table.backends.len() as u32 {
                self.maps().backends.set(index, Backend::default(), 0)?;
            }
        }
        (self.backends, self.next_ring) = (table.backends.len() as u32, 0);
        let maps = self.maps();
        for (index, backend) in table.backends.iter().enumerate() {
            maps.backends.set(index as u32, backend, 0)?;
        }
        for (index, node) in table.nodes.iter().enumerate() {
            maps.nodes.set(index as u32, node, 0)?;
        }
        macro_rules! keep {
            ($map:ident, $keys:expr) => {{
                let wanted: BTreeSet<_> = $keys.collect();
                let keys: Vec<_> = maps.$map.keys().collect::<Result<_, _>>()?;
                for key in keys.into_iter().filter(|key| !wanted.contains(key)) {
                    maps.$map.remove(&key)?;
                }
            }};
        }
        keep!(frontends, table.frontends.keys().copied());
        keep!(addrs, table.addrs.keys().copied());
        keep!(
            choices,
            table.choices.keys().map(|(service, hash)| ChoiceKey { service: *service, hash: *hash })
        );
        for (addr, known) in &table.addrs {
            maps.addrs.insert(addr, known, 0)?;
        }
        for (range, bits, node) in &table.ranges {
            maps.ranges.insert(&Maps::range_key(*range, *bits), node, 0)?;
        }
        for ((service, hash), index) in &table.choices {
            maps.choices.insert(ChoiceKey { service: *service, hash: *hash }, index, 0)?;
        }
        let keys: Vec<_> = maps.sources.keys().collect::<Result<_, _>>()?;
        for key in keys {
            maps.sources.remove(&key)?;
        }
        for (service, range, bits) in &table.sources {
            let bits = 32 + u32::from(*bits) + if range.is_v4() { 96 } else { 0 };
            let key = SourceKey { service: *service, addr: range.0 };
            maps.sources.insert(&Key::new(bits, key), 1, 0)?;
        }
        let externals = table.addrs.values().filter(|known| known.is(ADDR_EXTERNAL)).count();
        maps.ports.set(PORTS_EXTERNAL, externals as u64, 0)?;
        maps.routes.set(0, table.routes, 0)?;
        maps.config.set(0, table.config, 0)?;
        for (key, front) in &table.frontends {
            self.write_frontend(key, front)?;
        }
        Ok(())
    }

    fn write_list(&mut self, list: &[u32]) -> Result<u32> {
        let start = self.next_ring;
        self.next_ring += (list.len() as u32).next_multiple_of(RING_BLOCK);
        self.maps().write_ring(start, list)?;
        Ok(start)
    }

    fn write_frontend(&mut self, key: &FrontendKey, front: &Front) -> Result<()> {
        let frontend = Frontend {
            ring: self.write_list(&front.ring)?,
            ring_len: front.ring.len() as u32,
            outside: self.write_list(&front.outside)?,
            outside_len: front.outside.len() as u32,
            service: front.service,
            flags: front.flags,
            affinity: front.affinity,
            ..Frontend::default()
        };
        self.maps().frontends.insert(key, frontend.sealed(key), 0)?;
        Ok(())
    }

    pub fn change(&mut self, change: &Change) -> Result<()> {
        let maps = self.maps();
        match change {
            Change::Backend(index, backend) => maps.backends.set(*index, backend, 0)?,
            Change::Node(index, node) => maps.nodes.set(*index, node, 0)?,
            Change::Config(config) => maps.config.set(0, **config, 0)?,
            Change::Frontend(key, Some(front)) => self.write_frontend(key, front)?,
            Change::Frontend(key, None) => drop(maps.frontends.remove(key)),
            Change::Choice(service, hash, index) => {
                let key = ChoiceKey { service: *service, hash: *hash };
                match index {
                    Some(index) => maps.choices.insert(key, index, 0)?,
                    None => drop(maps.choices.remove(&key)),
                }
            }
            Change::Addr(addr, Some(known)) => maps.addrs.insert(addr, known, 0)?,
            Change::Addr(addr, None) => drop(maps.addrs.remove(addr)),
        }
        Ok(())
    }

    /// Runs the program of the hook. `summed`: the packet comes with the sum that a card computed.
    pub fn run(&mut self, stimulus: &Stimulus, summed: bool) -> Result<Ran<'_>> {
        self.dirty = true;
        let mut context = [0; 48];
        context[MARK] = stimulus.mark;
        context[IFINDEX] = stimulus.dev.ifindex();
        context[GSO_SIZE] = stimulus.gso;
        if stimulus.done {
            context[CB + 1..CB + 3].copy_from_slice(&DONE);
        }
        let program = self.programs[stimulus.hook.name()].as_fd();
        let flags = if summed { sys::TEST_SUMMED } else { 0 };
        let (result, len) = sys::test_run_into(program, &stimulus.frame, &mut self.out, &mut context, flags)
            .context("BPF_PROG_TEST_RUN")?;
        let verdict = match result.cast_signed() {
            -1 => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Dev::ALL
                .into_iter()
                .find(|dev| dev.ifindex() == context[CB])
                .map(Verdict::To)
                .with_context(|| format!("redirected to interface {}", context[CB]))?,
            other => anyhow::bail!("verdict {other}"),
        };
        Ok(Ran { verdict, frame: &self.out[..len], mark: context[MARK] })
    }

    /// Runs XDP on the underlay device. `None`: the packet passes, as it came.
    pub fn run_xdp(&mut self, mode: XdpMode, frame: &[u8]) -> Result<Option<Vec<u8>>> {
        self.dirty = true;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, Dev::Underlay.ifindex(), 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let run = sys::test_run(self.datapath.xdp_program(mode)?, frame, &context, 1)?;
        match run.result {
            2 => {
                ensure!(run.data == frame, "what XDP passes on is not as it came");
                Ok(None)
            }
            3 => Ok(Some(run.data)),
            other => anyhow::bail!("XDP says {other}"),
        }
    }

    /// What is there now, to be compared; counters since ever.
    pub fn state(&self) -> Result<State> {
        let read = |fd: &OwnedFd| sys::map_entries(fd.as_fd(), 512);
        let (new, answered) = (read(&self.ct[0])?, read(&self.ct[1])?);
        let frags: Vec<(FragKey, FragPorts)> = sys::map_entries(self.frags.as_fd(), 512)?;
        let affinity = sys::map_entries(self.affinity.as_fd(), 512)?;
        self.as_state(new, answered, frags, affinity)
    }

    /// The same, and nothing is left.
    pub fn take_state(&mut self) -> Result<State> {
        self.dirty = false;
        let take = |fd: &OwnedFd| sys::take_entries(fd.as_fd(), 512);
        let (new, answered) = (take(&self.ct[0])?, take(&self.ct[1])?);
        let frags: Vec<(FragKey, FragPorts)> = sys::take_entries(self.frags.as_fd(), 512)?;
        let affinity = sys::take_entries(self.affinity.as_fd(), 512)?;
        self.as_state(new, answered, frags, affinity)
    }

    fn conns(&self) -> Result<BTreeMap<u32, u64>> {
        let mut conns = BTreeMap::new();
        for index in 0..self.backends {
            let count = self.datapath.maps.conns.get(&index, 0)?;
            if count != 0 {
                conns.insert(index, count);
            }
        }
        Ok(conns)
    }

    fn as_state(
        &self,
        new: Vec<(Tuple, Flow)>,
        answered: Vec<(Tuple, Flow)>,
        frags: Vec<(FragKey, FragPorts)>,
        affinity: Vec<(AffinityKey, Affinity)>,
    ) -> Result<State> {
        Ok(State {
            new: new.into_iter().collect(),
            answered: answered.into_iter().collect(),
            frags: frags.into_iter().map(|(key, ports)| (key, [ports.sport, ports.dport])).collect(),
            affinity: affinity
                .into_iter()
                .filter(|(key, value)| value.check == value.sum(key))
                .map(|(key, of)| ((key.client, key.service), (of.backend, of.generation, of.seen)))
                .collect(),
            conns: self.conns()?,
            counted: self.counted()?,
        })
    }

    /// Since ever.
    pub fn counted(&self) -> Result<[u64; Counter::COUNT as usize]> {
        let mut counted = [0; Counter::COUNT as usize];
        for (counter, _) in Counter::ALL {
            counted[counter as usize] = self.datapath.maps.counter(counter)?;
        }
        Ok(counted)
    }
}
