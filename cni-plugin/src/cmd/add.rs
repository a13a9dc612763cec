//! ADD: gives a pod its interface, its addresses, its routes.
//!
//! All that can be checked is checked before the first change; what fails after it is taken back.

use std::net::Ipv6Addr;
use std::path::Path;

use heddle_netlink::link::Link;
use heddle_netlink::{NetNs, Socket, Watch};

use super::equip;
use crate::addresses::{self, Allocation, Given};
use crate::conf::{Conf, Ipam, Mode, Place};
use crate::mark::{Bridged, Holdings};
use crate::masquerade::{self, Group};
use crate::mode::{self, bridge, ipvlan, ptp};
use crate::veth::{self, Pair, Side};
use crate::{elements, forwarding, guard, hostport, tuning};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure, Ip, Success, Version, code};

/// Wires the pod.
pub fn add(environment: &Environment, conf: &Conf, call: &Call) -> Result<Success, Failure> {
    tuning::check_allowed(&conf.tuning)?;
    if let Mode::Ipvlan(wanted) = &conf.mode {
        return ipvlan::add(environment, conf, wanted, call);
    }
    let path = environment.netns.as_deref().unwrap_or(Path::new(""));
    let ns = open_namespace(path)?;
    let mut before = conf.previous.clone().unwrap_or_default();
    let pair = Pair::new(&conf.network, &environment.owner, conf.mac.or(environment.mac));
    let mut host = Socket::open()?;
    let mut pod = ns.visit(Socket::open)??;
    pair.clear(&mut host, &mut pod)?;

    let given = addresses::take(environment, conf, call, (&mut host, &pod, &ns))?;
    let result = check_given(conf, given, &before, call.version)
        .and_then(|given| wire(conf, path, &ns, &pair, (&mut host, &mut pod), &given));
    let own = result.inspect_err(|_| take_back(environment, call, &pair, &mut host))?;
    before.extend(own);
    Ok(before)
}

/// Takes back what a failed ADD did. The failure itself is what is told.
fn take_back(environment: &Environment, call: &Call, pair: &Pair, host: &mut Socket) {
    let Ok(place) = Place::new(&call.object) else { return };
    drop(hostport::withdraw(&place.run_dir, pair));
    drop(heddle_bpf::detach_pod(&place.bpf_root, &pair.host));
    drop(pair.delete(host, |_| ()));
    drop(elements::dismiss(&pair.host));
    drop(addresses::give_back(environment, &place, Some(call)));
}

/// The pod's namespace, which must not be the host's.
pub fn open_namespace(path: &Path) -> Result<NetNs, Failure> {
    let ns = NetNs::open(path).map_err(|error| {
        let code = match error {
            _ if error.not_found() => code::UNKNOWN_CONTAINER,
            // The name is not the one of a network namespace; all else is the machine's fault.
            heddle_netlink::Error::Invalid { .. } => code::INVALID_ENVIRONMENT,
            _ => code::IO,
        };
        Failure::new(code, format!("CNI_NETNS: {error}"))
    })?;
    if ns == NetNs::current()? {
        return Err(Failure::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_NETNS: {} is the host's own network namespace", path.display()),
        ));
    }
    Ok(ns)
}

/// Checks what could not be known before the addresses were given.
pub fn check_given(
    conf: &Conf,
    mut given: Given,
    before: &Success,
    version: Version,
) -> Result<Given, Failure> {
    let has = |v4| mode::has_family(&given.allocations, v4);
    conf.check_mtu(has(false))?;
    if version.has_one_address_a_family() {
        for v4 in [true, false] {
            let own = given.allocations.iter().filter(|allocation| allocation.ip.is_ipv4() == v4).count();
            if own + before.count(v4) > 1 {
                let reason = format!("CNI version {version} has one address a family, and here are more");
                return Err(Failure::new(code::INVALID_CONFIG, reason));
            }
        }
    }
    match &conf.mode {
        Mode::Ptp => {
            let delegated = matches!(conf.ipam, Ipam::Delegate(_));
            if !delegated {
                given.routes = ptp::routes_of(&given.allocations, &given.routes);
            }
            given.allocations = ptp::with_gateways(given.allocations, delegated);
            ptp::check_given(&given.allocations, &given.routes)?;
        }
        Mode::Bridge(wanted) => given.allocations = bridge::with_gateways(wanted, given.allocations)?,
        Mode::Ipvlan(_) => {}
    }
    Ok(given)
}

fn wire(
    conf: &Conf,
    path: &Path,
    ns: &NetNs,
    pair: &Pair,
    (host, pod): (&mut Socket, &mut Socket),
    given: &Given,
) -> Result<Success, Failure> {
    let allocations: &[Allocation] = &given.allocations;
    let has = |v4| mode::has_family(allocations, v4);
    // As the reference plugins do: the configuration's words on names count more than those of IPAM.
    let dns = if conf.dns.is_empty() { given.dns.clone() } else { conf.dns.clone() };
    let mut success = Success { dns, routes: given.routes.clone(), ..Success::default() };
    match &conf.mode {
        Mode::Ptp => {
            guard::ensure()?;
            forwarding::ensure(has(true), has(false))?;
            let near = create(conf, ns, pair, (host, None), has(false))?;
            host.together(|host| ptp::wire_host(host, pair, near.index, allocations))?;
            pod.together(|pod| ptp::wire_pod(pod, (pair, &near), allocations, &given.routes))?;
            let gateway6 = has(false).then_some(mode::GATEWAY6);
            finish(pair, ns, (host, gateway6), (pod, mode::address6(allocations)))?;
            equip::equip(conf, (ns, pair), (host, &near), pod)?;
            complete(conf, pair, (host, &near), (&pair.host, None), allocations)?;
            success.interfaces.extend(pair.interfaces(&near, path));
            success.ips = allocations
                .iter()
                .map(|allocation| Ip {
                    address: mode::alone(allocation.ip.ip()),
                    gateway: allocation.gateway,
                    interface: Some(1),
                })
                .collect();
        }
        Mode::Bridge(wanted) => {
            let routes = bridge::routes(wanted, allocations, &given.routes)?;
            if wanted.is_gateway {
                forwarding::ensure(has(true), has(false))?;
            }
            let ready = bridge::ensure(host, wanted, conf.mtu, allocations)?;
            let master = Some(ready.bridge.index);
            let near = create(conf, ns, pair, (host, master), has(false))?;
            let bridged = bridge::bridged(wanted, pair, allocations.is_empty());
            guard::admit(&pair.host, &bridged, &mode::ips(allocations))?;
            bridge::wire_host(host, near.index, wanted, &ready)?;
            pod.together(|pod| bridge::wire_pod(pod, pair, wanted, allocations, &routes))?;
            if wanted.detect_duplicates {
                bridge::await_unique(pod, &mut ns.visit(Watch::open)??, pair)?;
            }
            if !wanted.disabled {
                finish(pair, ns, (host, None), (pod, mode::address6(allocations)))?;
                if !allocations.is_empty() {
                    bridge::announce(ns, pod, pair, &ready, allocations)?;
                }
            }
            equip::equip(conf, (ns, pair), (host, &near), pod)?;
            let device = &ready.gateway.as_ref().unwrap_or(&ready.bridge).name;
            complete(conf, pair, (host, &near), (device, Some(bridged)), allocations)?;
            success.interfaces.push(bridge::interface(&ready.bridge));
            success.interfaces.extend(pair.interfaces(&near, path));
            let own = ready.gateway.filter(|gateway| gateway.index != ready.bridge.index);
            success.interfaces.extend(own.iter().map(bridge::interface));
            success.routes = routes;
            success.ips = allocations
                .iter()
                .map(|allocation| Ip {
                    address: allocation.ip,
                    gateway: allocation.gateway,
                    interface: Some(2),
                })
                .collect();
        }
        Mode::Ipvlan(_) => return Err(Failure::new(code::INTERNAL, "mode ipvlan has no pair")),
    }
    Ok(success)
}

/// Creates the pair, hardens both sides, attaches what proxyd has for pods; nothing is up.
fn create(
    conf: &Conf,
    ns: &NetNs,
    pair: &Pair,
    (host, master): (&mut Socket, Option<u32>),
    ipv6: bool,
) -> Result<Link, Failure> {
    pair.create(host, ns, conf.mtu, master)?;
    let near = veth::find(host, &pair.host)?;
    pair.harden_host(host, near.index, ipv6)?;
    pair.harden_pod(ns, ipv6)?;
    if conf.mode == Mode::Ptp {
        heddle_bpf::attach_pod(&conf.bpf_root, &pair.host, near.index).map_err(Failure::kernel)?;
    }
    Ok(near)
}

/// Waits until packets pass.
fn finish(
    pair: &Pair,
    ns: &NetNs,
    (host, host6): (&mut Socket, Option<Ipv6Addr>),
    (pod, pod6): (&mut Socket, Option<Ipv6Addr>),
) -> Result<(), Failure> {
    let outside = Side { ns: None, socket: host, address6: host6 };
    let inside = Side { ns: Some(ns), socket: pod, address6: pod6 };
    pair.await_ready(outside, inside)
}

/// What is left when packets pass: masquerading, host ports, and the mark, last of all. `device` is the one by which the
/// pod's packets reach the host.
fn complete(
    conf: &Conf,
    pair: &Pair,
    (host, near): (&mut Socket, &Link),
    (device, bridged): (&str, Option<Bridged>),
    allocations: &[Allocation],
) -> Result<(), Failure> {
    let ips = mode::ips(allocations);
    let group = (conf.masquerade && !ips.is_empty()).then(|| Group::of(conf, allocations));
    if let Some(group) = &group {
        masquerade::enter(&pair.host, &ips, group)?;
    }
    hostport::publish(&conf.run_dir, &conf.host_ports, pair, device, &ips)?;
    let masquerade = group.map(|group| group.id);
    let ips = if bridged.is_some() || masquerade.is_some() { ips } else { Vec::new() };
    pair.complete(host, near.index, &Holdings { ips, bridged, masquerade })
}
