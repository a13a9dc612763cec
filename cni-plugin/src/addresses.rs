//! The pods' addresses, wherever they come from: from ranges that are ours to give from, or from a program that the
//! configuration names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use heddle_ipam::{Machine, Namespace, Pool, Request, Store, Turn, resolv};
use heddle_netlink::{NetNs, Socket, link};
use heddle_spec::program::{self, Call};
use heddle_spec::{Command, Dns, Environment, Failure, Owner, Route, Success, code};
use ipnetwork::IpNetwork;

use crate::cmd::{PATIENCE, boot_id, del};
use crate::conf::{Conf, Ipam, Place};
use crate::delegate::Delegate;
use crate::veth::Pair;

/// More addresses than this for one interface are a mistake.
const MOST: usize = 16;

/// An address that a pod was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The address and the prefix length of its subnet.
    pub ip: IpNetwork,
    /// From our own ranges there always is one.
    pub gateway: Option<IpAddr>,
}

impl From<heddle_ipam::Allocation> for Allocation {
    fn from(own: heddle_ipam::Allocation) -> Self {
        Self { ip: own.ip, gateway: Some(own.gateway) }
    }
}

/// All that a pod was given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub allocations: Vec<Allocation>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// Gives a pod its addresses. If that fails, it has none. `host` and `pod` are the two sides' sockets, `ns` the
/// pod's namespace.
pub fn take(
    environment: &Environment,
    conf: &Conf,
    call: &Call,
    (host, pod, ns): (&mut Socket, &Socket, &NetNs),
) -> Result<Given, Failure> {
    match &conf.ipam {
        Ipam::None => Ok(Given::default()),
        Ipam::BuiltIn(pool) => {
            let requested: Vec<IpAddr> =
                environment.requested.iter().chain(&conf.requested).copied().collect();
            pool.check_requests(&requested)?;
            let dns = pool.resolv_conf.as_deref().map(resolv::read).transpose()?.unwrap_or_default();
            let namespace = environment.netns.as_deref().and_then(|path| Namespace::of(path, ns, pod));
            let request = Request {
                owner: &environment.owner,
                sets: &pool.sets,
                ips: &requested,
                namespace: namespace.as_ref(),
            };
            let store = Store::open(&pool.data_dir, &conf.network, &boot_id()?, pool.durable)?;
            let mut clear = |dead: &Owner| clear(dead, conf, call);
            let own = store.lease(PATIENCE, &request, &mut Machine(host), &mut clear)?;
            let allocations = own.into_iter().map(Allocation::from).collect();
            Ok(Given { allocations, routes: pool.routes.clone(), dns })
        }
        Ipam::Delegate(name) => {
            let delegate = find(name)?;
            let answer = delegate.add(&call.input, call.version)?;
            given(answer)
                .map_err(|reason| Failure::new(code::DELEGATE, format!("{name}: its answer: {reason}")))
                .inspect_err(|_| drop(delegate.call(Command::Del, &call.input)))
        }
    }
}

/// Clears away a pod whose namespace is gone and whose address is needed: all that DEL would. Not if the host's side of
/// it is there: then its own side is there too, whatever became of the namespace.
fn clear(dead: &Owner, conf: &Conf, call: &Call) -> bool {
    let pair = Pair::new(&conf.network, dead, None);
    let alive = Socket::open().and_then(|mut host| link::by_name(&mut host, &pair.host));
    if !alive.is_ok_and(|alive| alive.is_none()) {
        return false;
    }
    let cleared = Place::new(&call.object).and_then(|place| {
        // Who works on it now has a reason to, and our own pod is waiting: it is not waited for.
        let store = Store::open(&place.data_dir, &place.network, &boot_id()?, false)?;
        let _turn = store.turn(dead, Duration::ZERO)?;
        del::del(&Environment::of(dead.clone()), &place, None)
    });
    cleared.is_ok()
}

/// Whether every range has an address for one more pod.
pub fn check_room(conf: &Conf, pool: &Pool) -> Result<(), Failure> {
    if let Some(path) = &pool.resolv_conf {
        resolv::read(path)?;
    }
    let store = Store::open(&pool.data_dir, &conf.network, &boot_id()?, pool.durable)?;
    Ok(store.check_room(PATIENCE, &pool.sets, &mut Machine(&mut Socket::open()?))?)
}

/// Takes them back: what is built in gives up what this owner holds, in whichever way the configuration has
/// changed since, and the delegate is told.
pub fn give_back(environment: &Environment, place: &Place, call: Option<&Call>) -> Result<(), Failure> {
    let own = release(environment, place);
    match (&place.delegate, call) {
        (Some(name), Some(call)) => own.and(find(name)?.call(Command::Del, &call.input)),
        _ => own,
    }
}

fn release(environment: &Environment, place: &Place) -> Result<(), Failure> {
    if let Some(store) = Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        store.lock(PATIENCE)?.release(&environment.owner)?;
    }
    Ok(())
}

/// Waits until nobody else works on this interface: an ADD and a DEL of it that a runtime runs at once take turns, as
/// long as the leases are ours. With `needed` it is an error if that cannot be; without, what can be deleted is.
pub fn turn(place: &Place, owner: &Owner, needed: bool) -> Result<Option<Turn>, Failure> {
    if place.delegate.is_some() {
        return Ok(None);
    }
    let store = match needed {
        true => Store::open(&place.data_dir, &place.network, &boot_id()?, false).map(Some),
        false => Store::open_existing(&place.data_dir, &place.network, &boot_id()?),
    };
    let turn = store.and_then(|store| store.map(|store| store.turn(owner, PATIENCE)).transpose());
    match turn {
        Err(error) if !needed && !matches!(error, heddle_ipam::Error::Locked { .. }) => Ok(None),
        turn => Ok(turn?),
    }
}

/// Passes CHECK, GC or STATUS on, where there is somebody to pass it on to.
pub fn pass_on(delegate: Option<&str>, call: &Call) -> Result<(), Failure> {
    delegate.map_or(Ok(()), |name| find(name)?.call(call.command, &call.input))
}

fn find(name: &str) -> Result<Delegate, Failure> {
    Delegate::find(name, &program::variable("CNI_PATH").unwrap_or_default())
}

/// What a delegate answered, if a pod can have it.
fn given(answer: Success) -> Result<Given, String> {
    if answer.ips.is_empty() {
        return Err("there is no address in it".into());
    }
    if answer.ips.len() > MOST {
        return Err(format!("there are more than {MOST} addresses in it"));
    }
    let mut seen = BTreeSet::new();
    let mut allocations = Vec::new();
    for ip in answer.ips {
        if !can_be_a_pods(ip.address.ip()) {
            return Err(format!("no pod can have the address {}", ip.address));
        }
        if !seen.insert(ip.address.ip()) {
            return Err(format!("the address {} is in it twice", ip.address.ip()));
        }
        if ip.gateway == Some(ip.address.ip()) {
            return Err(format!("{} is its own gateway", ip.address.ip()));
        }
        allocations.push(Allocation { ip: ip.address, gateway: ip.gateway });
    }
    let routes = answer.routes.into_iter().map(masked).collect::<Result<_, _>>()?;
    Ok(Given { allocations, routes, dns: answer.dns })
}

/// The kernel takes no route with bits beyond its prefix.
fn masked(route: Route) -> Result<Route, String> {
    let dst = IpNetwork::new(route.dst.network(), route.dst.prefix()).map_err(|error| error.to_string())?;
    Ok(Route { dst, ..route })
}

/// The same as of our own ranges.
fn can_be_a_pods(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.octets().first() == Some(&0))
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some())
        }
    }
}
