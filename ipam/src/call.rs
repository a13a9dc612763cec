//! The commands of the specification.

use std::net::IpAddr;
use std::time::Duration;

use heddle_ipam::{Machine, Namespace, Request, Store, boot_id, resolv};
use heddle_netlink::Socket;
use heddle_spec::program::{self, Call};
use heddle_spec::{Command, Dns, Environment, Failure, Ip, Owner, Success, code, valid_attachments};
use serde_json::{Map, Value};

use crate::conf::{Conf, Place};

/// How long another program may hold the lock before we give up. Kubelet's own limit is minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers a call.
pub fn serve(call: &Call) -> Result<Option<Value>, Failure> {
    let done = match (call.command, &call.environment) {
        (Command::Add, Some(environment)) => {
            let conf = Conf::new(&call.object, call.version)?;
            program::check_output()?;
            let success = add(environment, &conf)?;
            let Err(lost) = program::deliver(&success.to_json(call.version)) else { return Ok(None) };
            // Who did not hear of the addresses will not give them back.
            del(&environment.owner, &Place::new(&call.object)?)?;
            Err(Failure::new(code::IO, format!("{}; the addresses were taken back", lost.msg)))
        }
        (Command::Del, Some(environment)) => del(&environment.owner, &Place::new(&call.object)?),
        (Command::Check, Some(environment)) => {
            check(environment, &Conf::new(&call.object, call.version)?, &call.object)
        }
        (Command::Gc, _) => gc(&call.object),
        (Command::Status, _) => status(&Conf::new(&call.object, call.version)?),
        _ => Err(Failure::new(code::INTERNAL, "a command without its parameters")),
    };
    done.map(|()| None)
}

fn add(environment: &Environment, conf: &Conf) -> Result<Success, Failure> {
    let pool = &conf.pool;
    let ips: Vec<IpAddr> = environment.requested.iter().chain(&conf.requested).copied().collect();
    pool.check_requests(&ips)?;
    let dns = dns(conf)?;
    let namespace = environment.netns.as_deref().and_then(Namespace::at);
    let request =
        Request { owner: &environment.owner, sets: &pool.sets, ips: &ips, namespace: namespace.as_ref() };
    let store = Store::open(&pool.data_dir, &conf.network, &boot_id()?, pool.durable)?;
    let mut socket = Socket::open()?;
    // Whoever made the interface of a dead pod has no part in this: only its addresses are ours to free.
    let mut clear = |dead: &Owner| {
        // One that cannot be freed is not freed; what that means for this call, the call finds out.
        store.lock(PATIENCE).and_then(|locked| locked.release(dead)).is_ok()
    };
    let given = store.lease(PATIENCE, &request, &mut Machine(&mut socket), &mut clear)?;
    let ips = given.iter().map(|one| Ip { address: one.ip, gateway: Some(one.gateway), interface: None });
    Ok(Success { ips: ips.collect(), routes: pool.routes.clone(), dns, ..Success::default() })
}

fn dns(conf: &Conf) -> Result<Dns, Failure> {
    Ok(conf.pool.resolv_conf.as_deref().map(resolv::read).transpose()?.unwrap_or_default())
}

/// Frees what `owner` holds. A network that never gave an address is no error.
fn del(owner: &Owner, place: &Place) -> Result<(), Failure> {
    if let Some(store) = Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        store.lock(PATIENCE)?.release(owner)?;
    }
    Ok(())
}

/// Whether the interface still holds an address of each range set, and those that `prevResult` says.
fn check(environment: &Environment, conf: &Conf, object: &Map<String, Value>) -> Result<(), Failure> {
    let owner = &environment.owner;
    let different = |what: String| Err(Failure::new(code::KERNEL, what));
    let store = Store::open_existing(&conf.pool.data_dir, &conf.network, &boot_id()?)?;
    let held = store.map(|store| store.lock(PATIENCE)?.held(owner)).transpose()?.unwrap_or_default();
    for set in &conf.pool.sets {
        if !held.iter().any(|ip| set.range_of(*ip).is_some()) {
            return different(format!("{owner} has no address of {set}"));
        }
    }
    let said = object.get("prevResult").and_then(|result| result.get("ips")).and_then(Value::as_array);
    for ip in said.into_iter().flatten().filter_map(|ip| ip.get("address")?.as_str()) {
        let Some(ip) = ip.split('/').next().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
        // A chain may have other addresses, from elsewhere.
        if conf.pool.sets.iter().any(|set| set.range_of(ip).is_some()) && !held.contains(&ip) {
            return different(format!("{ip} is not leased to {owner}"));
        }
    }
    Ok(())
}

/// Frees what belongs to no interface that the runtime knows, and what is left of writers that were killed.
fn gc(object: &Map<String, Value>) -> Result<(), Failure> {
    let place = Place::new(object)?;
    let valid = valid_attachments(object)?;
    if let Some(store) = Store::open_existing(&place.data_dir, &place.network, &boot_id()?)? {
        store.lock(PATIENCE)?.collect(&valid)?;
    }
    Ok(())
}

/// Whether an ADD would succeed now.
fn status(conf: &Conf) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: code::NOT_AVAILABLE, ..failure };
    let pool = &conf.pool;
    let asked = || -> Result<(), Failure> {
        dns(conf)?;
        let store = Store::open(&pool.data_dir, &conf.network, &boot_id()?, pool.durable)?;
        let mut socket = Socket::open()?;
        Ok(store.check_room(PATIENCE, &pool.sets, &mut Machine(&mut socket))?)
    };
    asked().map_err(unavailable)
}
