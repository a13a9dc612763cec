//! Taking the steps of a plan. Every step is idempotent: what is there already, or gone already, is done.

use std::net::IpAddr;

use heddle_netlink::addr::{self, Addr, Scope};
use heddle_netlink::fdb::{self, Fdb};
use heddle_netlink::link::{self, AddrGen, Change};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Kind};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::vxlan::{self, Vxlan};
use heddle_netlink::{Error, Socket};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::beside_name;
use crate::flannel;
use crate::plan::Step;
use crate::state::{Address, Device, Route, RouteKey};

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error(
        "cannot create {name}: {other} has VNI {vni} on UDP port {port} already (stop the overlay that it belongs \
         to and delete it, or use another --vni or --port on all nodes)"
    )]
    TunnelTaken { name: String, other: String, vni: u32, port: u16 },
    #[error(
        "cannot create {name}: {other} has VNI {vni} on UDP port {port}: this node is flannel's (stop flannel on it, then \
         start vxland with --replace-flannel)"
    )]
    Flannel { name: String, other: String, vni: u32, port: u16 },
    #[error("cannot replace {other}: flannel runs on this node (process {process}): stop it first")]
    FlannelRuns { other: String, process: u32 },
    #[error("cannot set {name} up: UDP port {port} is taken by another program: {source}")]
    PortTaken { name: String, port: u16, source: Error },
    #[error("{0} (a route to it that is not ours is in the way; delete that one)")]
    RouteTaken(Error),
    #[error("cannot create {name}: {source}")]
    Unsupported { name: String, source: Error },
    #[error("there is no {0}")]
    NoDevice(String),
}

impl ApplyError {
    /// Whether this kernel has no VXLAN at all.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }
}

/// Takes steps that concern the device called `name`.
#[derive(Debug)]
pub struct Applier<'a> {
    socket: &'a mut Socket,
    name: &'a str,
    /// The device's index, where there is one.
    index: Option<u32>,
    /// Name and index of the second device.
    beside: (String, Option<u32>),
    /// Flannel's devices make room for ours.
    replace_flannel: bool,
}

impl<'a> Applier<'a> {
    pub fn new(socket: &'a mut Socket, name: &'a str) -> Result<Self, ApplyError> {
        let index = link::by_name(socket, name)?.map(|device| device.index);
        let beside = beside_name(name);
        let beside_index = link::by_name(socket, &beside)?.map(|device| device.index);
        Ok(Self { socket, name, index, beside: (beside, beside_index), replace_flannel: false })
    }

    /// Whether flannel's devices make room for ours.
    #[must_use]
    pub const fn replacing_flannel(mut self, replace: bool) -> Self {
        self.replace_flannel = replace;
        self
    }

    fn index(&self, beside: bool) -> Result<u32, ApplyError> {
        let index = if beside { self.beside.1 } else { self.index };
        index.ok_or_else(|| ApplyError::NoDevice(self.name(beside).to_owned()))
    }

    fn name(&self, beside: bool) -> &str {
        if beside { &self.beside.0 } else { self.name }
    }

    /// Whether the step is about something on the device, and there is none.
    pub const fn lacks_device(&self, step: &Step) -> bool {
        let beside = match step {
            Step::PutAddress { .. } | Step::RemoveAddress(_) => false,
            Step::PutFdb { entry, .. } | Step::RemoveFdb(entry) => entry.beside,
            Step::PutNeighbour { neighbour, .. } | Step::RemoveNeighbour(neighbour) => neighbour.beside,
            Step::AddRoute(_, Route::Via { beside, .. })
            | Step::ReplaceRoute(_, Route::Via { beside, .. })
            | Step::RemoveRoute(_, Route::Via { beside, .. }) => *beside,
            _ => return false,
        };
        if beside { self.beside.1.is_none() } else { self.index.is_none() }
    }

    /// Takes a step about the device or what is on it; the others are not this room's.
    pub fn take(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::RemoveDevice => self.remove(false),
            Step::RemoveBeside => self.remove(true),
            Step::RecreateDevice(device) => {
                self.remove(device.beside)?;
                self.create(device)
            }
            Step::RemoveLeftover(name) => Ok(absent(link::delete_by_name(self.socket, name))?),
            Step::CreateDevice(device) => self.create(device),
            Step::ChangeDevice { from, to } => self.change(from, to),
            Step::PutAddress { from, to } => {
                let link = self.index(false)?;
                if let Some(from) = from {
                    absent(addr::delete(self.socket, link, network(from)))?;
                }
                Ok(present(addr::add(self.socket, &our_address(link, to)))?)
            }
            Step::RemoveAddress(address) => {
                Ok(absent(addr::delete(self.socket, self.index(false)?, network(address)))?)
            }
            Step::PutFdb { entry, .. } => {
                let entry = Fdb::new(self.index(entry.beside)?, entry.mac.0, entry.dst);
                Ok(fdb::replace(self.socket, &entry)?)
            }
            Step::RemoveFdb(entry) => {
                let entry = Fdb::new(self.index(entry.beside)?, entry.mac.0, entry.dst);
                Ok(absent(fdb::delete(self.socket, &entry))?)
            }
            Step::PutNeighbour { neighbour, mac, .. } => {
                let neigh = Neigh::new(self.index(neighbour.beside)?, neighbour.ip, mac.0);
                Ok(neigh::replace(self.socket, &neigh)?)
            }
            Step::RemoveNeighbour(neighbour) => {
                let link = self.index(neighbour.beside)?;
                Ok(absent(neigh::delete(self.socket, link, neighbour.ip))?)
            }
            Step::AddRoute(key, route) => {
                let route = self.route(key, route)?;
                route::add(self.socket, &route).map_err(|error| match error.already_exists() {
                    true => ApplyError::RouteTaken(error),
                    false => error.into(),
                })
            }
            Step::ReplaceRoute(key, route) => {
                let route = self.route(key, route)?;
                Ok(self.replace_route(&route)?)
            }
            Step::RemoveRoute(key, route) => {
                let route = self.route(key, route)?;
                Ok(absent(route::delete(self.socket, &route))?)
            }
            Step::KeepAdvertisements(_)
            | Step::SwitchForwarding { .. }
            | Step::WriteConflist { .. }
            | Step::Hold(_) => Ok(()),
        }
    }

    fn remove(&mut self, beside: bool) -> Result<(), ApplyError> {
        let name = self.name(beside).to_owned();
        absent(link::delete_by_name(self.socket, &name))?;
        *self.place(beside) = None;
        Ok(())
    }

    fn create(&mut self, device: &Device) -> Result<(), ApplyError> {
        let name = self.name(device.beside).to_owned();
        match create(self.socket, &name, device) {
            // One step after the other, with nothing in between: what is lost is what is under way.
            Err(ApplyError::Flannel { other, .. }) if self.replace_flannel => {
                if let Some(process) = flannel::running() {
                    return Err(ApplyError::FlannelRuns { other, process });
                }
                flannel::delete_devices(self.socket)?;
                create(self.socket, &name, device)?;
            }
            done => done?,
        }
        *self.place(device.beside) = link::by_name(self.socket, &name)?.map(|made| made.index);
        prepare(self.socket, &name, self.index(device.beside)?, device)
    }

    /// IPv6 takes no gateway that the table has on another device (ip6_route_check_nh_onlink in net/ipv6/route.c), and
    /// there it is as long as the old route leads there: a route to the gateway alone makes way.
    fn replace_route(&mut self, route: &route::Route) -> Result<(), Error> {
        let invalid = match (route::replace(self.socket, route), route.gateway, route.link) {
            (Err(error), Some(IpAddr::V6(gateway)), Some(link)) if error.errno() == Some(Errno::EINVAL) => {
                (error, route::Route::on_link(IpAddr::V6(gateway).into(), link))
            }
            (outcome, ..) => return outcome,
        };
        let (error, way) = invalid;
        present(route::add(self.socket, &way))?;
        // The first error is the one that tells.
        let outcome = route::replace(self.socket, route).map_err(|_| error);
        absent(route::delete(self.socket, &way))?;
        outcome
    }

    const fn place(&mut self, beside: bool) -> &mut Option<u32> {
        if beside { &mut self.beside.1 } else { &mut self.index }
    }

    fn change(&mut self, from: &Device, to: &Device) -> Result<(), ApplyError> {
        let link = self.index(to.beside)?;
        let name = self.name(to.beside).to_owned();
        let change = Change {
            mac: (from.mac != to.mac).then_some(to.mac.0),
            mtu: (from.mtu != to.mtu).then_some(to.mtu),
            ..Change::default()
        };
        link::change(self.socket, link, &change)?;
        if from.up { Ok(()) } else { set_up(self.socket, &name, link, to.port) }
    }

    fn route(&self, key: &RouteKey, route: &Route) -> Result<route::Route, ApplyError> {
        let plain = route::Route { priority: Some(key.metric), ..route::Route::new(key.range) };
        Ok(match *route {
            Route::Via { gateway, source, onlink, beside } => {
                route::Route { link: Some(self.index(beside)?), gateway, src: source, onlink, ..plain }
            }
            Route::Direct { gateway, source, link } => {
                // Not `onlink`: the kernel is to refuse a next hop that is not on the link.
                route::Route { link: Some(link), gateway, src: source, ..plain }
            }
            Route::Unreachable => route::Route { kind: Kind::Unreachable, ..plain },
        })
    }
}

/// Creates the device with every attribute, the MAC too: a device that gets it later has meanwhile been
/// seen by systemd's MACAddressPolicy, which would give it another one.
fn create(socket: &mut Socket, name: &str, device: &Device) -> Result<(), ApplyError> {
    let attributes = Vxlan {
        vni: device.vni,
        port: device.port,
        local: device.local,
        underlay: Some(device.underlay).filter(|index| *index != 0),
        learning: device.learning,
        ttl: 0,
        udp_csum: device.checksum4,
        udp6_zero_csum_tx: device.no_checksum6.0,
        udp6_zero_csum_rx: device.no_checksum6.1,
        external: device.external,
    };
    let Err(error) = vxlan::create(socket, name, &attributes, Some(device.mac.0), Some(device.mtu)) else {
        return Ok(());
    };
    if error.errno() == Some(Errno::EOPNOTSUPP) {
        return Err(ApplyError::Unsupported { name: name.to_owned(), source: error });
    }
    if error.already_exists() {
        let same = |vxlan: &Vxlan| vxlan.vni == device.vni && vxlan.port == device.port;
        let other = link::list(socket)?.into_iter().find(|link| link.vxlan.as_ref().is_some_and(same));
        if let Some(other) = other {
            let (name, other, vni, port) = (name.to_owned(), other.name, device.vni, device.port);
            return Err(match flannel::is_device(&other) {
                true => ApplyError::Flannel { name, other, vni, port },
                false => ApplyError::TunnelTaken { name, other, vni, port },
            });
        }
    }
    Err(error.into())
}

/// Keeps the kernel from configuring the device by itself, then sets it up.
fn prepare(socket: &mut Socket, name: &str, link: u32, device: &Device) -> Result<(), ApplyError> {
    // No link-local address, so no duplicate address detection and no multicast that goes nowhere.
    match link::change(socket, link, &Change { addr_gen: Some(AddrGen::None), ..Change::default() }) {
        Err(error) if link_without_ipv6(&error) => {}
        outcome => outcome?,
    }
    match sysctl::write(&Key::ipv6_conf(name, "accept_ra"), "0") {
        Err(error) if sysctl::is_missing(&error) => {}
        outcome => outcome?,
    }
    set_up(socket, name, link, device.port)
}

fn set_up(socket: &mut Socket, name: &str, link: u32, port: u16) -> Result<(), ApplyError> {
    link::set_up(socket, link).map_err(|source| match source.errno() {
        Some(Errno::EADDRINUSE) => ApplyError::PortTaken { name: name.to_owned(), port, source },
        _ => source.into(),
    })
}

fn link_without_ipv6(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

fn network(address: &Address) -> IpNetwork {
    // The prefix length is the kernel's own, or that of a single address.
    IpNetwork::new(address.ip, address.prefix).unwrap_or_else(|_| address.ip.into())
}

fn our_address(link: u32, address: &Address) -> Addr {
    let v4 = address.ip.is_ipv4();
    Addr {
        scope: if v4 && address.hidden { Scope::Link } else { Scope::Universe },
        nodad: !v4,
        no_prefix_route: !v4,
        deprecated: !v4 && address.hidden,
        ..Addr::new(link, network(address))
    }
}

/// Deleting what is gone is success.
fn absent(outcome: Result<(), Error>) -> Result<(), Error> {
    outcome.or_else(|error| if error.not_found() { Ok(()) } else { Err(error) })
}

/// Adding what is there is success.
fn present(outcome: Result<(), Error>) -> Result<(), Error> {
    outcome.or_else(|error| if error.already_exists() { Ok(()) } else { Err(error) })
}
