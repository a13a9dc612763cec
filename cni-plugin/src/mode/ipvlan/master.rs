//! The interface that pods share.

use heddle_netlink::Socket;
use heddle_netlink::ipvlan::Mode;
use heddle_netlink::link::{self, Link};
use heddle_netlink::route::{self, Filter, TABLE_MAIN};
use heddle_spec::{Failure, Success, code};
use nix::errno::Errno;

use super::record::{Record, Records};
use crate::conf::Ipvlan;

fn invalid(reason: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_CONFIG, format!("master: {reason}"))
}

/// The interface that is named, else the one that the plugin before has made, else that of the default route. It must
/// be up. `socket` is of the namespace that it is in.
///
/// # Errors
/// Code 7.
pub fn find(socket: &mut Socket, wanted: &Ipvlan, previous: Option<&Success>) -> Result<Link, Failure> {
    let found = match (&wanted.master, previous) {
        (Some(name), _) => by_name(socket, name)?,
        (None, Some(previous)) => match previous.interfaces.as_slice() {
            [only] if link::name_is_valid(&only.name) => by_name(socket, &only.name)?,
            _ => return Err(invalid("prevResult has not exactly one interface; name one")),
        },
        (None, None) => of_default_route(socket)?,
    };
    if found.loopback || found.mac.is_none() {
        return Err(invalid(format!("{} is no Ethernet device", found.name)));
    }
    if !found.up {
        return Err(invalid(format!("{} is down", found.name)));
    }
    Ok(found)
}

fn by_name(socket: &mut Socket, name: &str) -> Result<Link, Failure> {
    link::by_name(socket, name)?.ok_or_else(|| invalid(format!("there is no interface {name}")))
}

/// Of several default routes the one that the kernel prefers, IPv4 first.
fn of_default_route(socket: &mut Socket) -> Result<Link, Failure> {
    let main = Filter { table: Some(TABLE_MAIN), ..Filter::default() };
    let mut routes = route::list(socket, &main)?;
    routes.retain(|route| route.dst.prefix() == 0 && route.link.is_some());
    routes.sort_by_key(|route| (!route.dst.is_ipv4(), route.priority.unwrap_or(0)));
    let index = routes.first().and_then(|route| route.link);
    let index = index.ok_or_else(|| invalid("there is no default route to take it from; name one"))?;
    link::by_index(socket, index)?.ok_or_else(|| invalid("the default route's interface is gone"))
}

/// Refuses an MTU that the master does not have: what is larger would be lost.
pub fn check_mtu(master: &Link, mtu: Option<u32>) -> Result<(), Failure> {
    match mtu {
        Some(mtu) if mtu > master.mtu => Err(Failure::new(
            code::INVALID_CONFIG,
            format!("mtu: {mtu} is more than {} has, which is {}", master.name, master.mtu),
        )),
        _ => Ok(()),
    }
}

/// Refuses another mode than the one that devices on this master are in: the kernel would change all of them, without
/// a word. Others' devices are known as far as they are in the master's own namespace.
///
/// `own` is this pod's record, which is there already: of two pods that come at once, one at least sees the other.
///
/// # Errors
/// Code 7.
pub fn check_mode(
    socket: &mut Socket,
    master: &Link,
    records: &Records,
    own: (&str, &Record),
    wanted: Mode,
) -> Result<(), Failure> {
    let refuse = |mode: &str, whose: String| {
        Err(invalid(format!(
            "{} is in mode {mode} for {whose}; all devices on it are in one mode, so {wanted} needs another master",
            master.name
        )))
    };
    for link in link::list(socket)? {
        if let Some(mode) = mode_on(&link, master.index).filter(|mode| *mode != wanted) {
            return refuse(mode.as_str(), link.name);
        }
    }
    for (name, record) in records.all()? {
        if name == own.0 || (record.place, record.master) != (own.1.place, own.1.master) {
            continue;
        }
        let Some((_, mut pod)) = record.namespace()? else { continue };
        let there = link::by_name(&mut pod, &record.ifname)?;
        let mode = there.and_then(|there| mode_on(&there, master.index));
        let mode = mode.map_or_else(|| record.mode.clone(), |mode| mode.to_string());
        if mode != wanted.as_str() {
            return refuse(&mode, format!("{} of {}", record.ifname, record.container));
        }
        // They are all in one mode.
        break;
    }
    Ok(())
}

/// The mode of a device on this master.
fn mode_on(link: &Link, master: u32) -> Option<Mode> {
    link.ipvlan.filter(|_| link.peer == Some(master))
}

/// What the kernel means when it refuses a device.
pub fn refused(error: &heddle_netlink::Error, master: &Link, mode: Mode) -> Failure {
    let name = &master.name;
    match error.errno() {
        Some(Errno::EOPNOTSUPP) => Failure::kernel(format!(
            "{error}: this kernel has no ipvlan, or not its mode {mode} (try: modprobe ipvlan)"
        )),
        Some(Errno::EBUSY) => invalid(format!(
            "{name} is taken: a port of a bridge or a bond, or a device with macvlan devices, cannot be shared \
             (the kernel: {error})"
        )),
        Some(Errno::EINVAL) => invalid(format!("{name} cannot be shared (the kernel: {error})")),
        _ => Failure::kernel(error),
    }
}
