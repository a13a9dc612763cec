//! Taking the steps of a plan. Every step is idempotent: what is there already, or gone already, is done.

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
}

impl<'a> Applier<'a> {
    pub fn new(socket: &'a mut Socket, name: &'a str) -> Result<Self, ApplyError> {
        let index = link::by_name(socket, name)?.map(|device| device.index);
        Ok(Self { socket, name, index })
    }

    fn index(&self) -> Result<u32, ApplyError> {
        self.index.ok_or_else(|| ApplyError::NoDevice(self.name.to_owned()))
    }

    /// Whether the step is about something on the device, and there is none.
    pub const fn lacks_device(&self, step: &Step) -> bool {
        let on_device = matches!(
            step,
            Step::PutAddress { .. }
                | Step::RemoveAddress(_)
                | Step::PutFdb { .. }
                | Step::RemoveFdb(_)
                | Step::PutNeighbour { .. }
                | Step::RemoveNeighbour(_)
                | Step::AddRoute(_, Route::Via { .. })
                | Step::ReplaceRoute(_, Route::Via { .. })
                | Step::RemoveRoute(_, Route::Via { .. })
        );
        on_device && self.index.is_none()
    }

    /// Takes a step about the device or what is on it; the others are not this room's.
    pub fn take(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::RemoveDevice => self.remove(),
            Step::RecreateDevice(device) => {
                self.remove()?;
                self.create(device)
            }
            Step::RemoveLeftover(name) => Ok(absent(link::delete_by_name(self.socket, name))?),
            Step::CreateDevice(device) => self.create(device),
            Step::ChangeDevice { from, to } => self.change(from, to),
            Step::PutAddress { from, to } => {
                let link = self.index()?;
                if let Some(from) = from {
                    absent(addr::delete(self.socket, link, network(from)))?;
                }
                Ok(present(addr::add(self.socket, &our_address(link, to)))?)
            }
            Step::RemoveAddress(address) => {
                Ok(absent(addr::delete(self.socket, self.index()?, network(address)))?)
            }
            Step::PutFdb { entry, .. } => {
                let entry = Fdb::new(self.index()?, entry.mac.0, entry.dst);
                Ok(fdb::replace(self.socket, &entry)?)
            }
            Step::RemoveFdb(entry) => {
                let entry = Fdb::new(self.index()?, entry.mac.0, entry.dst);
                Ok(absent(fdb::delete(self.socket, &entry))?)
            }
            Step::PutNeighbour { ip, mac, .. } => {
                let neigh = Neigh::new(self.index()?, *ip, mac.0);
                Ok(neigh::replace(self.socket, &neigh)?)
            }
            Step::RemoveNeighbour(ip) => Ok(absent(neigh::delete(self.socket, self.index()?, *ip))?),
            Step::AddRoute(key, route) => {
                let route = self.route(key, route)?;
                route::add(self.socket, &route).map_err(|error| match error.already_exists() {
                    true => ApplyError::RouteTaken(error),
                    false => error.into(),
                })
            }
            Step::ReplaceRoute(key, route) => {
                let route = self.route(key, route)?;
                Ok(route::replace(self.socket, &route)?)
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

    fn remove(&mut self) -> Result<(), ApplyError> {
        absent(link::delete_by_name(self.socket, self.name))?;
        self.index = None;
        Ok(())
    }

    fn create(&mut self, device: &Device) -> Result<(), ApplyError> {
        create(self.socket, self.name, device)?;
        self.index = link::by_name(self.socket, self.name)?.map(|made| made.index);
        prepare(self.socket, self.name, self.index()?, device)
    }

    fn change(&mut self, from: &Device, to: &Device) -> Result<(), ApplyError> {
        let link = self.index()?;
        let change = Change {
            mac: (from.mac != to.mac).then_some(to.mac.0),
            mtu: (from.mtu != to.mtu).then_some(to.mtu),
            ..Change::default()
        };
        link::change(self.socket, link, &change)?;
        if from.up { Ok(()) } else { set_up(self.socket, self.name, link, to.port) }
    }

    fn route(&self, key: &RouteKey, route: &Route) -> Result<route::Route, ApplyError> {
        let plain = route::Route { priority: Some(key.metric), ..route::Route::new(key.range) };
        Ok(match *route {
            Route::Via { gateway, source, onlink } => {
                route::Route { link: Some(self.index()?), gateway, src: source, onlink, ..plain }
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
            let (name, other) = (name.to_owned(), other.name);
            return Err(ApplyError::TunnelTaken { name, other, vni: device.vni, port: device.port });
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
