//! Host ports: ports of the node that lead to ports of a pod (capability `portMappings`).
//!
//! One static rule set for all pods ([`rules`]); a mapping is an element of its maps, which says in its comment whose it
//! is. All elements of a pod come in one transaction or not at all, and none is ever put in another's place.

mod flows;
mod record;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use heddle_netlink::nft::{Batch, Entry, Nft, port};
use heddle_netlink::{Socket, link};
use heddle_spec::{Failure, Network, Owner, code};

use crate::cmd::PATIENCE;
use crate::conf::{HostPorts, On};
use crate::veth::{PREFIX, Pair};
use record::{Port, Record, Records};
use rules::{FAMILY, PLACES, Place, TABLE};

/// How often a transaction is tried again that others' changes have made impossible.
const ATTEMPTS: usize = 5;

/// Publishes the ports of a pod. Does nothing if there are none. `device` is the one by which its packets reach the
/// host: its host side, or its bridge. Of `addresses`, the first of each family counts.
///
/// # Errors
/// Code 7 if a mapping fits none of the pod's addresses, 104 if another pod has one of the ports; then nothing has
/// changed.
pub fn publish(
    run_dir: &Path,
    conf: &HostPorts,
    pair: &Pair,
    device: &str,
    addresses: &[IpAddr],
) -> Result<(), Failure> {
    if conf.mappings.is_empty() {
        return Ok(());
    }
    let record = plan(conf, pair, device, addresses)?;
    let records = Records::open(run_dir, PATIENCE)?;
    let mut nft = Nft::open()?;
    // What an earlier ADD left that was killed.
    withdraw_locked(&records, &mut nft, &pair.host)?;
    records.write(&pair.host, &record)?;
    let done = insert(&records, &mut nft, &pair.host, &record).and_then(|()| flows::forget_others(&record));
    done.inspect_err(|_| drop(withdraw_locked(&records, &mut nft, &pair.host)))
}

/// Withdraws all that a pod has published. Costs one look at the file system if that is nothing.
pub fn withdraw(run_dir: &Path, pair: &Pair) -> Result<(), Failure> {
    if !Records::has(run_dir, &pair.host)? {
        return Ok(());
    }
    let Some(records) = Records::open_existing(run_dir, PATIENCE)? else { return Ok(()) };
    match records.read(&pair.host)? {
        // An interface of the same name that another network gave.
        Some(record) if record.network != pair.network.as_str() => Ok(()),
        _ => withdraw_locked(&records, &mut Nft::open()?, &pair.host),
    }
}

/// Withdraws what pods of this network have published that are not among `valid`.
pub fn collect(run_dir: &Path, network: &Network, valid: &BTreeSet<Owner>) -> Result<(), Failure> {
    let mut nft = Nft::open()?;
    let mut dead: BTreeSet<String> = BTreeSet::new();
    let records = Records::open_existing(run_dir, PATIENCE)?;
    if let Some(records) = &records {
        for (host, record) in records.all(namespace()?)? {
            let owner = Owner::new(&record.container, &record.ifname).ok();
            if record.network == network.as_str() && owner.is_none_or(|owner| !valid.contains(&owner)) {
                dead.insert(host);
            }
        }
    }
    // Elements whose record is lost.
    for place in PLACES {
        let Some(entries) = nft.entries(FAMILY, TABLE, place.set())? else { break };
        let of_dead = |entry: &Entry| {
            holder_in(entry, network).filter(|(_, owner)| !valid.contains(owner)).map(|(host, _)| host)
        };
        dead.extend(entries.iter().filter_map(of_dead));
    }
    let mut result = Ok(());
    for host in dead {
        let withdrawn = match &records {
            Some(records) if records.contains(&host)? => withdraw_locked(records, &mut nft, &host),
            _ => sweep(&mut nft, &host),
        };
        result = result.and(withdrawn);
    }
    result
}

/// Compares the kernel's state with what the pod is to have.
///
/// # Errors
/// Code 101 for the first difference.
pub fn check(run_dir: &Path, conf: &HostPorts, pair: &Pair, addresses: &[IpAddr]) -> Result<(), Failure> {
    if conf.mappings.is_empty() {
        return Ok(());
    }
    let mut nft = Nft::open()?;
    if !nft.missing(&rules::ruleset()?)?.is_empty() {
        return Err(Failure::new(code::KERNEL, "the nf_tables rules of host ports are not there"));
    }
    // By which device the pod's packets come, ADD knew.
    let record = match Records::open_existing(run_dir, PATIENCE)? {
        Some(records) => records.read(&pair.host)?,
        None => None,
    };
    let record = record
        .ok_or_else(|| Failure::new(code::KERNEL, "host ports: there is no record of what ADD published"))?;
    for (place, wanted) in plan(conf, pair, &record.device, addresses)?.entries(&pair.host) {
        let found = nft.entry(FAMILY, TABLE, place.set(), &wanted.key)?;
        if found.as_ref().is_none_or(|found| found.data != wanted.data || host_of(found) != pair.host) {
            let what = format!("an element of {} in table {FAMILY} {TABLE}", place.set());
            let how = if found.is_some() { "is not this pod's" } else { "is not there" };
            return Err(Failure::new(code::KERNEL, format!("host ports: {what} {how}")));
        }
    }
    Ok(())
}

/// What is to be in force for a pod.
fn plan(conf: &HostPorts, pair: &Pair, device: &str, addresses: &[IpAddr]) -> Result<Record, Failure> {
    let of_family = |v4: bool| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
    let mut ports = Vec::new();
    for mapping in &conf.mappings {
        let (v4, v6, host_ip) = match mapping.on {
            On::Any => (true, true, None),
            On::Family { v4 } => (v4, !v4, None),
            On::One(ip) => (ip.is_ipv4(), ip.is_ipv6(), Some(ip)),
        };
        let before = ports.len();
        for address in [of_family(true).filter(|_| v4), of_family(false).filter(|_| v6)].into_iter().flatten()
        {
            ports.push(Port {
                protocol: mapping.protocol,
                host_ip,
                host_port: mapping.host_port,
                address,
                port: mapping.container_port,
            });
        }
        if ports.len() == before {
            let key = format!("runtimeConfig.portMappings[{}].hostIP", mapping.position);
            let reason = "the pod has no address of its family";
            return Err(Failure::new(code::INVALID_CONFIG, format!("{key}: {reason}")));
        }
    }
    // `0.0.0.0` and no address at all mean the same port of IPv4.
    ports.sort_by_key(|port| (port.protocol, port.host_port, port.host_ip, port.address, port.port));
    ports.dedup();
    let same = |a: &Port, b: &Port| {
        (a.protocol, a.host_port, a.host_ip, a.address.is_ipv4())
            == (b.protocol, b.host_port, b.host_ip, b.address.is_ipv4())
    };
    if let Some([one, _]) = ports.array_windows().find(|[a, b]| same(a, b)) {
        let what = format!("{} port {} is there twice", one.protocol, one.host_port);
        return Err(Failure::new(code::INVALID_CONFIG, format!("runtimeConfig.portMappings: {what}")));
    }
    Ok(Record {
        namespace: namespace()?,
        network: pair.network.as_str().to_owned(),
        container: pair.owner.container().to_owned(),
        ifname: pair.owner.ifname().to_owned(),
        device: device.to_owned(),
        snat: conf.snat,
        masquerade_all: conf.masquerade_all,
        ports,
    })
}

/// Puts a record in force, and, where the rules were gone, all others with it.
fn insert(records: &Records, nft: &mut Nft, host: &str, record: &Record) -> Result<(), Failure> {
    let mut restore = true;
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        let others = match rules::ensure(nft, &mut batch)? && restore {
            true => records.all(record.namespace)?,
            false => Vec::new(),
        };
        add(&mut batch, &record.entries(host), true);
        for (other, record) in others.iter().filter(|(other, _)| other != host) {
            add(&mut batch, &record.entries(other), false);
        }
        match nft.commit(&batch) {
            Ok(()) => return Ok(()),
            Err(error) if error.already_exists() || error.errno() == Some(nix::errno::Errno::EBUSY) => {
                match holder(nft, record, host, &others)? {
                    Some(holder) => evict(records, nft, &holder)?,
                    // Not one of ours stands in the way: others stand in each other's.
                    None => restore = false,
                }
            }
            // Somebody flushed what was there a moment ago.
            Err(error) if error.not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::new(
        code::TRY_LATER,
        "the nf_tables rules of host ports change faster than they can be made",
    ))
}

fn add(batch: &mut Batch, entries: &[(Place, Entry)], exclusive: bool) {
    for place in PLACES {
        let own: Vec<_> = entries.iter().filter(|(at, _)| *at == place).map(|(_, e)| e.clone()).collect();
        if !own.is_empty() {
            batch.add_entries(FAMILY, TABLE, place.set(), &own, exclusive);
        }
    }
}

/// Whose element stands in the way of a record.
struct Holder {
    /// The name of its host side, if it is a pod's.
    host: Option<String>,
    /// What the error says of it.
    who: String,
    what: String,
}

fn holder(
    nft: &mut Nft,
    record: &Record,
    host: &str,
    others: &[(String, Record)],
) -> Result<Option<Holder>, Failure> {
    for (place, wanted) in record.entries(host) {
        let in_force = nft.entry(FAMILY, TABLE, place.set(), &wanted.key)?;
        let recorded = || {
            let others = others.iter().filter(|(other, _)| other != host);
            let mut entries = others.flat_map(|(other, record)| record.entries(other));
            entries.find(|(at, entry)| *at == place && entry.key == wanted.key).map(|(_, entry)| entry)
        };
        let Some(found) = in_force.or_else(recorded) else { continue };
        let mut words = found.comment.split(' ');
        let host = words.next().filter(|host| host.starts_with(PREFIX)).map(str::to_owned);
        let who = match (&host, words.next(), words.next(), words.next()) {
            (Some(_), Some(network), Some(container), Some(ifname)) => {
                format!("{ifname} of container {container} (network {network})")
            }
            _ => format!("an element of {} that is no pod's ({:?})", place.set(), found.comment),
        };
        return Ok(Some(Holder { host, who, what: what(place, &found.key) }));
    }
    Ok(None)
}

/// What an element holds, for messages.
fn what(place: Place, key: &[u8]) -> String {
    let name = |number| match number {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    match (place, port::parse_key(key)) {
        (Place::Any { .. }, Some((_, protocol, number))) => format!("{} port {number}", name(protocol)),
        (Place::One { .. }, Some((Some(ip), protocol, number))) => {
            format!("{} port {number} of {ip}", name(protocol))
        }
        _ => format!("a key of {}", place.set()),
    }
}

/// Makes room if the holder is gone, as after a DEL that never came.
fn evict(records: &Records, nft: &mut Nft, holder: &Holder) -> Result<(), Failure> {
    if let Some(host) = &holder.host
        && link::by_name(&mut Socket::open()?, host)?.is_none()
    {
        withdraw_locked(records, nft, host)?;
        // Without a record, as when somebody loads at boot the rules that he saved before.
        return sweep(nft, host);
    }
    Err(Failure::new(
        code::PORT_TAKEN,
        format!("runtimeConfig.portMappings: {} is held by {}", holder.what, holder.who),
    ))
}

/// Takes a pod's elements out, then forgets the flows to it, then its record.
fn withdraw_locked(records: &Records, nft: &mut Nft, host: &str) -> Result<(), Failure> {
    match records.read(host)? {
        Some(record) => {
            if record.namespace == namespace()? {
                let keys =
                    record.entries(host).into_iter().map(|(place, entry)| (place, entry.key)).collect();
                delete(nft, host, keys)?;
                flows::forget_own(&record)?;
            }
        }
        // There is none, or it cannot be understood.
        None if !records.contains(host)? => return Ok(()),
        None => sweep(nft, host)?,
    }
    records.remove(host)
}

/// Takes out all elements that say that they are this pod's.
fn sweep(nft: &mut Nft, host: &str) -> Result<(), Failure> {
    let mut keys = Vec::new();
    for place in PLACES {
        let Some(entries) = nft.entries(FAMILY, TABLE, place.set())? else { break };
        keys.extend(entries.into_iter().filter(|e| host_of(e) == host).map(|entry| (place, entry.key)));
    }
    delete(nft, host, keys)
}

/// Deletes those of the elements that are this pod's.
fn delete(nft: &mut Nft, host: &str, keys: Vec<(Place, Vec<u8>)>) -> Result<(), Failure> {
    let mut failed = None;
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        for (place, key) in &keys {
            let found = nft.entry(FAMILY, TABLE, place.set(), key)?;
            if found.is_some_and(|found| host_of(&found) == host) {
                batch.delete_elements(FAMILY, TABLE, place.set(), std::slice::from_ref(key));
            }
        }
        match nft.commit(&batch) {
            Ok(()) => return Ok(()),
            // Somebody else deleted one of them in between.
            Err(error) if error.not_found() => failed = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// The first word of an element's comment: the name of its pod's host side.
fn host_of(entry: &Entry) -> &str {
    entry.comment.split(' ').next().unwrap_or_default()
}

/// Host side and owner of an element, if it is of a pod of this network.
fn holder_in(entry: &Entry, network: &Network) -> Option<(String, Owner)> {
    let mut words = entry.comment.split(' ');
    let host = words.next().filter(|host| host.starts_with(PREFIX))?;
    if words.next()? != network.as_str() {
        return None;
    }
    let owner = Owner::new(words.next()?, words.next()?).ok()?;
    // What was cut off at the end would be another owner.
    (Pair::new(network, &owner, None).host == host).then(|| (host.to_owned(), owner))
}

fn namespace() -> Result<u64, Failure> {
    Ok(Socket::open()?.namespace_cookie()?)
}
