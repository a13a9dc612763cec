//! CHECK: is the pod still as ADD left it? Says what is not.
//!
//! What was added since, by other plugins of the chain or by the pod itself, is no fault.

use std::net::IpAddr;
use std::path::Path;

use super::add::open_namespace;
use super::equip;
use super::{PATIENCE, boot_id};
use crate::conf::{Conf, Ipam, Mode};
use crate::mode::{bridge, ipvlan};
use crate::veth::Pair;
use crate::{addresses, guard, masquerade};
use heddle_ipam::Store;
use heddle_netlink::link::{self, Link};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{MacAddr, Socket, addr};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure, Ip, Route, Success, code, mac};

/// Compares the pod with the configuration and with `prevResult`, which is what the whole chain made of it: what a
/// plugin after this one has changed and told of is right.
///
/// # Errors
/// Code 7 without a `prevResult` that can be read, code 101 for the first difference.
pub fn check(environment: &Environment, conf: &Conf, call: &Call) -> Result<(), Failure> {
    let previous = conf
        .previous
        .as_ref()
        .ok_or_else(|| Failure::new(code::INVALID_CONFIG, "prevResult: CHECK needs it, and it is missing"))?;
    if let Mode::Ipvlan(wanted) = &conf.mode {
        return ipvlan::check(environment, conf, wanted, (call, previous));
    }
    let ns = open_namespace(environment.netns.as_deref().unwrap_or(Path::new("")))?;
    let pair = Pair::new(&conf.network, &environment.owner, conf.mac.or(environment.mac));
    let (mut host, mut pod) = (Socket::open()?, Socket::open_in(&ns)?);

    let near = up(side(&mut host, &pair.host, pair.host_mac, conf.mtu)?)?;
    let Some(mark) = pair.mark(&near).filter(|mark| mark.complete) else {
        return Err(different(format!(
            "the host side {} is not marked as that of {}",
            pair.host, pair.owner
        )));
    };
    let (mac, mtu) = told(previous, &pair)?;
    let far = side(&mut pod, &pair.pod, mac, mtu)?;
    let far = if matches!(&conf.mode, Mode::Bridge(bridge) if bridge.disabled) { far } else { up(far)? };
    let own: Vec<&Ip> = of_interface(previous, &pair.pod).collect();
    match &conf.mode {
        Mode::Ptp if !guard::is_there()? => {
            return Err(different("the nf_tables rules against spoofed addresses are not there".into()));
        }
        Mode::Ptp | Mode::Ipvlan(_) => {}
        Mode::Bridge(bridge) => {
            bridge::check(&mut host, &mut pod, bridge, (&mark, &near, &far), &own)?;
        }
    }
    let leased = leased(environment, conf)?;
    let present = addr::list(&mut pod, Some(far.index))?;
    for ip in &own {
        let address = ip.address.ip();
        if !present.iter().any(|addr| addr.ip.ip() == address) {
            return Err(different(format!("{} has not the address {}", pair.pod, ip.address)));
        }
        // Another plugin may have added one that is none of ours.
        let ours =
            conf.ipam.pool().is_none_or(|pool| pool.sets.iter().any(|set| set.range_of(address).is_some()));
        if ours && leased.as_ref().is_some_and(|leased| !leased.contains(&address)) {
            return Err(different(format!("{address} is not leased to {}", environment.owner)));
        }
        if ours && conf.mode == Mode::Ptp {
            wiring(&mut host, &mut pod, (&near, pair.host_mac), (&far, mac), ip)?;
        }
    }
    if conf.masquerade
        && !own.is_empty()
        && let Some(what) = masquerade::lacks(&pair.host, &mark)?
    {
        return Err(different(what));
    }
    routes(&mut pod, &far, conf, previous)?;
    let ips: Vec<IpAddr> = own.iter().map(|ip| ip.address.ip()).collect();
    equip::check(conf, (&ns, &pair), (&mut host, &near), (&mut pod, &far), &ips)?;
    let delegate = match &conf.ipam {
        Ipam::Delegate(name) => Some(name.as_str()),
        Ipam::None | Ipam::BuiltIn(_) => None,
    };
    addresses::pass_on(delegate, call)
}

/// The Ethernet address and MTU of the pod's side. A result that does not know it is not that of this pod's ADD; one
/// that gives no MTU (before 1.1.0) leaves room for a plugin that changed it.
fn told(previous: &Success, pair: &Pair) -> Result<(MacAddr, Option<u32>), Failure> {
    let inside = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == pair.pod && interface.sandbox.is_some())
        .ok_or_else(|| different(format!("prevResult does not know the pod's interface {}", pair.pod)))?;
    let mac = if inside.mac.is_empty() { Ok(pair.pod_mac) } else { mac::parse(&inside.mac) };
    let mac = mac.map_err(|reason| Failure::new(code::INVALID_CONFIG, format!("prevResult: {reason}")))?;
    Ok((mac, inside.mtu))
}

/// What is leased to the pod, if we lease.
pub fn leased(environment: &Environment, conf: &Conf) -> Result<Option<Vec<IpAddr>>, Failure> {
    let Some(pool) = conf.ipam.pool() else { return Ok(None) };
    let store = Store::open(&pool.data_dir, &conf.network, &boot_id()?, pool.durable)?;
    Ok(Some(store.lock(PATIENCE)?.held(&environment.owner)?.into_iter().collect()))
}

pub fn different(what: String) -> Failure {
    Failure::new(code::KERNEL, what)
}

/// Refuses a device that is down.
fn up(link: Link) -> Result<Link, Failure> {
    if link.up { Ok(link) } else { Err(different(format!("{} is down", link.name))) }
}

/// One side of the pair: there, with its address and MTU.
fn side(socket: &mut Socket, name: &str, mac: MacAddr, mtu: Option<u32>) -> Result<Link, Failure> {
    let found =
        link::by_name(socket, name)?.ok_or_else(|| different(format!("there is no interface {name}")))?;
    if found.mac != Some(mac) {
        return Err(different(format!("{name} has another Ethernet address than ADD gave it")));
    }
    match mtu {
        Some(mtu) if mtu != found.mtu => {
            Err(different(format!("{name} has the MTU {}, not {mtu}", found.mtu)))
        }
        _ => Ok(found),
    }
}

/// The pod's addresses by `prevResult`: those of its interface.
pub fn of_interface<'a>(previous: &'a Success, ifname: &str) -> impl Iterator<Item = &'a Ip> {
    previous.ips.iter().filter(move |ip| {
        let of = ip.interface.and_then(|n| previous.interfaces.get(n));
        of.is_some_and(|interface| interface.name == ifname && interface.sandbox.is_some())
    })
}

/// What makes an address of mode ptp work: the host's route, and both neighbours.
fn wiring(
    host: &mut Socket,
    pod: &mut Socket,
    (near, host_mac): (&Link, MacAddr),
    (far, pod_mac): (&Link, MacAddr),
    own: &Ip,
) -> Result<(), Failure> {
    let ip = own.address.ip();
    let out = route::list(host, &Filter { link: Some(near.index), ..Filter::default() })?;
    if !out.iter().any(|route| route.dst.ip() == ip) {
        return Err(different(format!("the host has no route to {ip} by {}", near.name)));
    }
    if !neigh::list(host, Some(near.index))?.contains(&Neigh::new(near.index, ip, pod_mac)) {
        return Err(different(format!("the host does not know the Ethernet address of {ip}")));
    }
    let Some(gateway) = own.gateway else { return Ok(()) };
    if !neigh::list(pod, Some(far.index))?.contains(&Neigh::new(far.index, gateway, host_mac)) {
        return Err(different(format!(
            "the pod does not know the Ethernet address of its gateway {gateway}"
        )));
    }
    Ok(())
}

/// The configured routes, as far as `prevResult` still knows them.
pub fn routes(pod: &mut Socket, far: &Link, conf: &Conf, previous: &Success) -> Result<(), Failure> {
    let present = route::list(pod, &Filter { link: Some(far.index), ..Filter::default() })?;
    let configured = conf.ipam.pool().map(|pool| pool.routes.as_slice());
    // That of isDefaultGateway stands in no list.
    let by_bridge = matches!(&conf.mode, Mode::Bridge(bridge) if bridge.is_default_gateway);
    let is_ours = |route: &&Route| {
        configured.is_none_or(|own| own.iter().any(|own| own.dst == route.dst))
            || by_bridge && route.dst.prefix() == 0
    };
    for wanted in previous.routes.iter().filter(is_ours) {
        let fits = |gateway: Option<IpAddr>| wanted.gw.is_none() || wanted.gw == gateway;
        if !present.iter().any(|route| route.dst == wanted.dst && fits(route.gateway)) {
            return Err(different(format!("the pod has no route to {}", wanted.dst)));
        }
    }
    Ok(())
}
