//! The work of the reference plugin `loopback`: the pod's `lo` is up.
//!
//! containerd calls that plugin for every sandbox, beside any network. Heddle does its work when the program
//! is called by the file name `loopback`, or the configuration says `"type": "loopback"`. `CNI_IFNAME` counts
//! for nothing: there is one such interface.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;

use heddle_netlink::{NetNs, Socket, addr, link};
use heddle_spec::program::Call;
use heddle_spec::{Command, Environment, Failure, Interface, Ip, Network, Success, code};
use serde_json::Value;

use crate::cmd::add::open_namespace;
use crate::conf;

/// The name of the plugin, and of its only interface.
const PLUGIN: &str = "loopback";
const DEVICE: &str = "lo";

/// Whether this plugin is meant and not `heddle`. `program` is what it was called as (`argv[0]`).
pub fn is_meant(program: Option<&OsStr>, call: &Call) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name());
    name == Some(OsStr::new(PLUGIN)) || call.object.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// Answers a call. GC has nothing to collect: the device lives and dies with its namespace. STATUS needs nothing
/// that could be missing.
pub fn serve(call: &Call) -> Result<Option<Value>, Failure> {
    match (call.command, &call.environment) {
        (Command::Add, Some(environment)) => add(environment, call).map(Some),
        (Command::Del, Some(environment)) => del(environment).map(|()| None),
        (Command::Check, Some(environment)) => check(environment, call).map(|()| None),
        _ => Ok(None),
    }
}

fn add(environment: &Environment, call: &Call) -> Result<Value, Failure> {
    Network::of(&call.object)?;
    let previous = conf::previous(&call.object, call.version)?;
    let path = environment.netns.as_deref().unwrap_or(Path::new(""));
    let mut socket = Socket::open_in(&open_namespace(path)?)?;
    let found = device(&mut socket)?;
    if !found.up {
        link::set_up(&mut socket, found.index)?;
    }
    let addresses = addr::list(&mut socket, Some(found.index))?;
    if let Some(strange) = addresses.iter().find(|addr| !addr.ip.ip().is_loopback()) {
        return Err(Failure::new(
            code::KERNEL,
            format!("{DEVICE} has {}, which is no loopback address", strange.ip),
        ));
    }
    // What was done before in the chain is passed on as it is.
    if let Some(previous) = previous {
        return Ok(previous.to_json(call.version));
    }
    let first = |v4: bool| addresses.iter().find(|addr| addr.ip.is_ipv4() == v4);
    let ips = [first(true), first(false)].into_iter().flatten();
    let success = Success {
        interfaces: vec![Interface {
            name: DEVICE.into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: Some(path.display().to_string()),
            ..Interface::default()
        }],
        ips: ips.map(|addr| Ip { address: addr.ip, gateway: None, interface: Some(0) }).collect(),
        ..Success::default()
    };
    Ok(success.to_json(call.version))
}

/// Down again, where there still is something. Never on the host.
fn del(environment: &Environment) -> Result<(), Failure> {
    let Some(ns) = environment.netns.as_ref().and_then(|path| NetNs::open(path).ok()) else { return Ok(()) };
    if ns == NetNs::current()? {
        return Ok(());
    }
    let mut socket = Socket::open_in(&ns)?;
    let found = device(&mut socket)?;
    Ok(link::set_down(&mut socket, found.index)?)
}

fn check(environment: &Environment, call: &Call) -> Result<(), Failure> {
    Network::of(&call.object)?;
    let different = |what: String| Failure::new(code::KERNEL, what);
    let previous = conf::previous(&call.object, call.version)?.unwrap_or_default();
    let ns = open_namespace(environment.netns.as_deref().unwrap_or(Path::new("")))?;
    let mut socket = Socket::open_in(&ns)?;
    let found = device(&mut socket)?;
    if !found.up {
        return Err(different(format!("{DEVICE} is down")));
    }
    let present: Vec<IpAddr> =
        addr::list(&mut socket, Some(found.index))?.iter().map(|addr| addr.ip.ip()).collect();
    let own = previous.ips.iter().filter(|ip| ip.address.ip().is_loopback());
    match own.map(|ip| ip.address).find(|address| !present.contains(&address.ip())) {
        Some(address) => Err(different(format!("{DEVICE} has not the address {address}"))),
        None => Ok(()),
    }
}

fn device(socket: &mut Socket) -> Result<link::Link, Failure> {
    link::by_name(socket, DEVICE)?
        .ok_or_else(|| Failure::new(code::KERNEL, format!("the namespace has no interface {DEVICE}")))
}
