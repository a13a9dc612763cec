//! Mode `ipvlan`: the pod's interface shares one of the host's (or one that is in the pod already), with its Ethernet
//! address; the kernel tells the pods apart by their IP addresses. There is no bridge, and the host has no side of it.
//!
//! ```text
//! l2        eth0  192.168.1.50/24   routes by the gateways of the network that the master is on
//! l3, l3s   eth0  10.1.2.5/24       routes to the device alone; the host's own tables decide
//! ```
//!
//! The device is born in the pod's namespace, under a name that follows from the pod (a kernel before 6.15 looks for
//! its name on the host, too), then renamed and marked in one request. So whenever ADD is killed, what is there has
//! a name or a mark by which the next ADD, or DEL, knows it.

mod check;
mod guard;
mod master;
mod record;

pub use check::check;

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::ipvlan::{self, Mode};
use heddle_netlink::link::{self, AddrGen, Change, Link};
use heddle_netlink::route::{self, Filter, TABLE_LOCAL};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{Absent, DisplayMac, NetNs, Socket, Watch};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure, Interface, Ip, Network, Owner, Success, code};
use ipnetwork::IpNetwork;

use self::record::{Record, Records};
use super::{address6, ptp};
use crate::addresses::{self, Allocation, Given};
use crate::cmd::add::{check_given, open_namespace};
use crate::conf::{Conf, Ipam, Ipvlan, Place};
use crate::mark::{Holdings, Mark};
use crate::tuning;
use crate::veth::{self, Pair};

/// A pod's device, by its names.
struct Device {
    /// What it is called before it gets its name, and what its record is called.
    temporary: String,
    name: String,
    begun: String,
    complete: String,
    link_local: Ipv6Addr,
}

impl Device {
    fn new(network: &Network, owner: &Owner) -> Result<Self, Failure> {
        // What a pair of this pod would be called, and its Ethernet address, which nothing else has.
        let pair = Pair::new(network, owner, None);
        let [a, b, c, d, e, f] = pair.pod_mac.map(u16::from);
        Ok(Self {
            begun: Mark::begin(network, owner)?,
            complete: Mark::finish(network, owner, &Holdings::default()),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f),
            temporary: pair.host,
            name: owner.ifname().to_owned(),
        })
    }

    /// Whether it is this one, as far as it got.
    fn is(&self, link: &Link) -> bool {
        let marked = link.alias.as_ref().is_some_and(|mark| *mark == self.begun || *mark == self.complete);
        link.kind.as_deref() == Some("ipvlan") && (link.name == self.temporary || marked)
    }

    /// Clears away what an earlier ADD left when it was killed.
    ///
    /// # Errors
    /// Code 102 if that ADD came to its end, or the interface is from elsewhere.
    fn clear(&self, pod: &mut Socket) -> Result<(), Failure> {
        if let Some(there) = link::by_name(pod, &self.name)? {
            if there.alias.as_ref() == Some(&self.complete) {
                return Err(Failure::new(code::EXISTS, format!("{} is attached already", self.complete))
                    .with_details("DEL comes before another ADD"));
            }
            if !self.is(&there) {
                let reason = format!("the namespace has an interface {} already", self.name);
                return Err(Failure::new(code::EXISTS, reason));
            }
        }
        self.delete(pod)
    }

    /// Deletes it, if it is there and ours.
    fn delete(&self, pod: &mut Socket) -> Result<(), Failure> {
        for name in [&self.name, &self.temporary] {
            match link::by_name(pod, name)? {
                Some(own) if self.is(&own) => link::delete(pod, own.index).or_absent()?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Wires the pod.
pub fn add(environment: &Environment, conf: &Conf, wanted: &Ipvlan, call: &Call) -> Result<Success, Failure> {
    let path = environment.netns.as_deref().unwrap_or(Path::new(""));
    let ns = open_namespace(path)?;
    let place = Place::new(&call.object)?;
    let mut host = Socket::open()?;
    let mut pod = Socket::open_in(&ns)?;
    let device = Device::new(&conf.network, &environment.owner)?;
    let near = if wanted.in_container { &mut pod } else { &mut host };
    let master = master::find(near, wanted, conf.previous.as_ref())?;
    master::check_mtu(&master, conf.mtu)?;
    let record = Record {
        network: conf.network.as_str().to_owned(),
        container: environment.owner.container().to_owned(),
        ifname: device.name.clone(),
        path: path.to_owned(),
        place: near.namespace_cookie()?,
        cookie: pod.namespace_cookie()?,
        master: master.index,
        mode: wanted.mode.as_str().to_owned(),
    };
    device.clear(&mut pod)?;

    let mut before = conf.previous.clone().unwrap_or_default();
    let given = match conf.ipam {
        // As the reference plugin does: the addresses are those that the plugin before has chosen.
        Ipam::None => chosen_before(&mut before),
        _ => addresses::take(environment, conf, call, (&mut host, &pod, &ns))?,
    };
    let wired = check_given(conf, given, &before, call.version).and_then(|given| {
        let records = Records::new(&place.run_dir);
        records.write(&device.temporary, &record)?;
        let near = if wanted.in_container { &mut pod } else { &mut host };
        master::check_mode(near, &master, &records, (&device.temporary, &record), wanted.mode)?;
        let new = ipvlan::Ipvlan {
            name: &device.temporary,
            master: master.index,
            mode: wanted.mode,
            mtu: conf.mtu,
            ns: &ns,
        };
        ipvlan::create(near, &new).map_err(|error| master::refused(&error, &master, wanted.mode))?;
        let far = wire(conf, wanted.mode, &device, (&ns, &mut pod), &given)?;
        Ok(success(conf, &far, path, given))
    });
    match wired {
        Ok(own) => {
            before.extend(own);
            Ok(before)
        }
        Err(failure) => {
            // The failure itself is what is told.
            drop(unmake(&device, &ns, &mut pod));
            drop(Records::new(&place.run_dir).remove(&device.temporary));
            drop(addresses::give_back(environment, &place, Some(call)));
            Err(failure)
        }
    }
}

/// What the plugin before says of addresses, taken out of its result: all of it becomes this device's.
fn chosen_before(before: &mut Success) -> Given {
    Given {
        allocations: before
            .ips
            .drain(..)
            .map(|ip| Allocation { ip: ip.address, gateway: ip.gateway })
            .collect(),
        routes: std::mem::take(&mut before.routes),
        dns: std::mem::take(&mut before.dns),
    }
}

/// From a device that is there, down and nameless, to one that packets pass through.
fn wire(
    conf: &Conf,
    mode: Mode,
    device: &Device,
    (ns, pod): (&NetNs, &mut Socket),
    given: &Given,
) -> Result<Link, Failure> {
    let far = veth::find(pod, &device.temporary)?;
    // At once: a device of this name without a mark is not ours.
    let named = Change { name: Some(&device.name), alias: Some(&device.begun), ..Change::default() };
    link::change(pod, far.index, &named)?;
    let far = Link { name: device.name.clone(), ..far };
    // All addresses are known, then, to the filter too.
    match link::change(pod, far.index, &Change { addr_gen: Some(AddrGen::None), ..Change::default() }) {
        Err(error) if veth::ipv6_is_there() => return Err(error.into()),
        _ => {}
    }
    let mac = far.mac.ok_or_else(|| Failure::new(code::KERNEL, "the device has no Ethernet address"))?;
    let own = own_addresses(device, given.allocations.iter().map(|allocation| allocation.ip.ip()));
    let mut watch = harden(ns, &device.name, super::has_family(&given.allocations, false))?;
    guard::put(ns, &device.name, mac, &own)?;
    for allocation in &given.allocations {
        addr::add(pod, &Addr { nodad: true, ..Addr::new(far.index, allocation.ip) })?;
    }
    if own.contains(&device.link_local.into()) {
        let link_local = IpNetwork::new(device.link_local.into(), 64)
            .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
        addr::add(pod, &Addr { nodad: true, ..Addr::new(far.index, link_local) })?;
    }
    link::set_up(pod, far.index)?;
    for wanted in &given.routes {
        // Where the host's tables decide, no gateway does.
        let gateway = match mode {
            Mode::L2 => gateway(&given.allocations, wanted.dst.is_ipv4()),
            Mode::L3 | Mode::L3s => None,
        };
        // As the reference plugin has it, a gateway must be on the network.
        let route = route::Route { onlink: false, ..ptp::from_wanted(wanted, gateway, far.index) };
        route::add(pod, &route)?;
    }
    await_ready(pod, &mut watch, far.index, address6(&given.allocations))?;
    tuning::apply(&conf.tuning, ns, pod, &far)?;
    // Last of all.
    link::change(pod, far.index, &Change { alias: Some(&device.complete), ..Change::default() })?;
    veth::find(pod, &device.name)
}

/// All that the pod may call itself: with an IPv6 address there is a link-local one.
fn own_addresses(device: &Device, given: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut own: Vec<_> = given.collect();
    if own.iter().any(IpAddr::is_ipv6) {
        own.push(device.link_local.into());
    }
    own
}

/// The gateway of the pod's first address of this family.
fn gateway(allocations: &[Allocation], v4: bool) -> Option<IpAddr> {
    allocations.iter().find(|allocation| allocation.ip.is_ipv4() == v4)?.gateway
}

/// Before the device is up: it listens to no router advertisements and redirects, and tells the network that its
/// addresses are here now. Returns what will tell when it is ready.
fn harden(ns: &NetNs, name: &str, ipv6: bool) -> Result<Watch, Failure> {
    ns.run(|| {
        if ipv6 {
            sysctl::write(&Key::ipv6_conf(name, "disable_ipv6"), "0")?;
        }
        for (parameter, value) in
            [("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0"), ("ndisc_notify", "1")]
        {
            veth::set_ipv6(name, parameter, value)?;
        }
        sysctl::write(&Key::ipv4_conf(name, "accept_redirects"), "0")?;
        sysctl::write(&Key::ipv4_conf(name, "arp_notify"), "1")?;
        Ok(Watch::open()?)
    })?
}

/// Waits until an IPv6 address is in use: a worker of the kernel comes after us (net/ipv6/addrconf.c).
fn await_ready(
    pod: &mut Socket,
    watch: &mut Watch,
    index: u32,
    address: Option<Ipv6Addr>,
) -> Result<(), Failure> {
    let Some(address) = address else { return Ok(()) };
    let local = Filter { table: Some(TABLE_LOCAL), link: Some(index), ..Filter::default() };
    // If it takes longer, the pod is none the worse for it.
    watch.until(Duration::from_secs(2), || {
        let routes = route::list(pod, &local)?;
        Ok(routes.iter().any(|route| route.dst.ip() == IpAddr::V6(address) && route.dst.prefix() == 128))
    })?;
    Ok(())
}

fn success(conf: &Conf, far: &Link, path: &Path, given: Given) -> Success {
    let interface = Interface {
        name: far.name.clone(),
        mac: far.mac.map(|mac| DisplayMac(mac).to_string()).unwrap_or_default(),
        mtu: Some(far.mtu),
        sandbox: Some(path.display().to_string()),
        ..Interface::default()
    };
    let own = |allocation: Allocation| Ip {
        address: allocation.ip,
        gateway: allocation.gateway,
        interface: Some(0),
    };
    Success {
        interfaces: vec![interface],
        ips: given.allocations.into_iter().map(own).collect(),
        routes: given.routes,
        dns: if conf.dns.is_empty() { given.dns } else { conf.dns.clone() },
    }
}

/// Takes away what ADD made in the pod's namespace.
fn unmake(device: &Device, ns: &NetNs, pod: &mut Socket) -> Result<(), Failure> {
    device.delete(pod)?;
    guard::remove(ns, &device.name)
}

/// Takes away a pod's device, wherever its namespace is, if there is a record of one.
pub fn del(environment: &Environment, place: &Place) -> Result<(), Failure> {
    let records = Records::new(&place.run_dir);
    let device = Device::new(&place.network, &environment.owner)?;
    let Some(record) = records.read(&device.temporary)? else { return Ok(()) };
    // The namespace that is gone has taken the device with it.
    if let Some((ns, mut pod)) = record.namespace()? {
        unmake(&device, &ns, &mut pod)?;
    }
    records.remove(&device.temporary)
}

/// The owners of devices of this network, by their records.
pub fn owners(place: &Place) -> Result<Vec<Owner>, Failure> {
    let all = Records::new(&place.run_dir).all()?;
    let of_network = all.into_iter().filter(|(_, record)| record.network == place.network.as_str());
    Ok(of_network.filter_map(|(_, record)| record.owner()).collect())
}

/// Whether an ADD would find its master.
///
/// # Errors
/// Code 50.
pub fn status(conf: &Conf, wanted: &Ipvlan) -> Result<(), Failure> {
    if wanted.in_container {
        return Ok(());
    }
    master::find(&mut Socket::open()?, wanted, conf.previous.as_ref())
        .map(drop)
        .map_err(|failure| Failure { code: code::NOT_AVAILABLE, ..failure })
}
