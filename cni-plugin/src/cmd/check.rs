//! CHECK: is the pod still as ADD left it? Says what is not.
//!
//! What was added since, by other plugins of the chain or by the pod itself, is no fault.

use std::net::IpAddr;
use std::path::Path;

use heddle_ipam::Store;
use heddle_netlink::link::{self, Link};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{MacAddr, Socket, addr};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::add::open_namespace;
use super::{PATIENCE, boot_id};
use crate::conf::{Conf, Mode};
use crate::guard;
use crate::mode::GATEWAY6;
use crate::veth::Pair;
use heddle_spec::{Environment, Failure, code, json};

/// The result of ADD, as it came back (0.3.0 and newer), as far as it is compared.
#[derive(Debug, Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Vec<PreviousInterface>,
    #[serde(default)]
    ips: Vec<PreviousIp>,
}

#[derive(Debug, Deserialize)]
struct PreviousInterface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct PreviousIp {
    address: String,
    interface: Option<usize>,
}

/// Compares the pod with the configuration and with `prevResult`.
///
/// # Errors
/// Code 7 without a `prevResult` that can be read, code 101 for the first difference.
pub fn check(environment: &Environment, conf: &Conf, object: &Map<String, Value>) -> Result<(), Failure> {
    let previous = object
        .get("prevResult")
        .ok_or_else(|| Failure::new(code::INVALID_CONFIG, "prevResult: CHECK needs it, and it is missing"))?;
    let previous: Previous = json::typed(previous.clone())
        .map_err(|failure| Failure::new(code::INVALID_CONFIG, format!("prevResult.{}", failure.msg)))?;
    let ns = open_namespace(environment.netns.as_deref().unwrap_or(Path::new("")))?;
    let pair = Pair::new(&conf.network, &environment.owner);
    let (mut host, mut pod) = (Socket::open()?, Socket::open_in(&ns)?);

    let near = side(&mut host, &pair.host, pair.host_mac, conf.mtu)?;
    if near.alias.as_ref() != Some(&pair.mark) {
        return Err(different(format!("the host side {} is not marked as that of {}", pair.host, pair.mark)));
    }
    let far = side(&mut pod, &pair.pod, pair.pod_mac, conf.mtu)?;
    let inside = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == pair.pod && !interface.sandbox.is_empty());
    let mac = heddle_netlink::DisplayMac(pair.pod_mac).to_string();
    if inside.is_some_and(|inside| !inside.mac.eq_ignore_ascii_case(&mac)) {
        return Err(different(format!(
            "prevResult has another Ethernet address for {} than {mac}",
            pair.pod
        )));
    }
    if !guard::is_there(&conf.mode)? {
        return Err(different("the nf_tables rules against spoofed addresses are not there".into()));
    }
    let own = addresses(&previous, &pair)?;
    let store = Store::open(&conf.pool.data_dir, &conf.network, &boot_id()?, conf.pool.durable)?;
    let leased = store.lock(PATIENCE)?.held(&environment.owner)?;
    let present = addr::list(&mut pod, Some(far.index))?;
    for ip in &own {
        if !present.iter().any(|addr| addr.ip.ip() == ip.ip()) {
            return Err(different(format!("{} has not the address {ip}", pair.pod)));
        }
        if !leased.contains(&ip.ip()) {
            return Err(different(format!("{} is not leased to {}", ip.ip(), environment.owner)));
        }
        if conf.mode == Mode::Ptp {
            wiring(&mut host, &mut pod, &pair, (&near, &far), ip.ip(), conf)?;
        }
    }
    routes(&mut pod, &far, conf)
}

fn different(what: String) -> Failure {
    Failure::new(code::KERNEL, what)
}

/// One side of the pair: there, up, with its address and MTU.
fn side(socket: &mut Socket, name: &str, mac: MacAddr, mtu: Option<u32>) -> Result<Link, Failure> {
    let found =
        link::by_name(socket, name)?.ok_or_else(|| different(format!("there is no interface {name}")))?;
    if found.mac != Some(mac) {
        return Err(different(format!("{name} has another Ethernet address than ADD gave it")));
    }
    if !found.up {
        return Err(different(format!("{name} is down")));
    }
    match mtu {
        Some(mtu) if mtu != found.mtu => {
            Err(different(format!("{name} has the MTU {}, not {mtu}", found.mtu)))
        }
        _ => Ok(found),
    }
}

/// The pod's addresses by `prevResult`.
fn addresses(previous: &Previous, pair: &Pair) -> Result<Vec<IpNetwork>, Failure> {
    let mine = |ip: &&PreviousIp| {
        ip.interface
            .and_then(|n| previous.interfaces.get(n))
            .is_none_or(|interface| interface.name == pair.pod)
    };
    previous
        .ips
        .iter()
        .filter(mine)
        .map(|ip| {
            ip.address.parse().map_err(|_| {
                Failure::new(code::INVALID_CONFIG, format!("prevResult.ips: {:?} is no address", ip.address))
            })
        })
        .collect()
}

/// What makes an address of mode ptp work: the host's route, and both neighbours.
fn wiring(
    host: &mut Socket,
    pod: &mut Socket,
    pair: &Pair,
    (near, far): (&Link, &Link),
    ip: IpAddr,
    conf: &Conf,
) -> Result<(), Failure> {
    let out = route::list(host, &Filter { link: Some(near.index), ..Filter::default() })?;
    if !out.iter().any(|route| route.dst.ip() == ip) {
        return Err(different(format!("the host has no route to {ip} by {}", near.name)));
    }
    if !neigh::list(host, Some(near.index))?.contains(&Neigh::new(near.index, ip, pair.pod_mac)) {
        return Err(different(format!("the host does not know the Ethernet address of {ip}")));
    }
    let gateway = if ip.is_ipv4() {
        conf.pool.sets.iter().find_map(|set| set.range_of(ip)).map(|range| range.gateway)
    } else {
        Some(GATEWAY6.into())
    };
    let Some(gateway) = gateway else { return Ok(()) };
    if !neigh::list(pod, Some(far.index))?.contains(&Neigh::new(far.index, gateway, pair.host_mac)) {
        return Err(different(format!(
            "the pod does not know the Ethernet address of its gateway {gateway}"
        )));
    }
    Ok(())
}

/// The configured routes.
fn routes(pod: &mut Socket, far: &Link, conf: &Conf) -> Result<(), Failure> {
    let present = route::list(pod, &Filter { link: Some(far.index), ..Filter::default() })?;
    for wanted in &conf.pool.routes {
        let fits = |gateway: Option<IpAddr>| wanted.gw.is_none() || wanted.gw == gateway;
        if !present.iter().any(|route| route.dst == wanted.dst && fits(route.gateway)) {
            return Err(different(format!("the pod has no route to {}", wanted.dst)));
        }
    }
    Ok(())
}
