//! CHECK of a pod's device: is it as ADD left it?

use std::path::Path;

use heddle_netlink::link::{self, Link};
use heddle_netlink::{DisplayMac, Socket, addr};
use heddle_spec::program::Call;
use heddle_spec::{Environment, Failure, Ip, Success, code};

use super::{Device, guard, master, own_addresses};
use crate::addresses;
use crate::cmd::add::open_namespace;
use crate::cmd::check::{different, leased, of_interface, routes};
use crate::conf::{Conf, Ipam, Ipvlan};
use crate::tuning;

/// Compares the pod with the configuration and with `prevResult`.
///
/// # Errors
/// Code 101 for the first difference; code 7 if the master is not what it has to be.
pub fn check(
    environment: &Environment,
    conf: &Conf,
    wanted: &Ipvlan,
    (call, previous): (&Call, &Success),
) -> Result<(), Failure> {
    let ns = open_namespace(environment.netns.as_deref().unwrap_or(Path::new("")))?;
    let device = Device::new(&conf.network, &environment.owner)?;
    let (mut host, mut pod) = (Socket::open()?, Socket::open_in(&ns)?);
    let far = link::by_name(&mut pod, &device.name)?
        .ok_or_else(|| different(format!("there is no interface {}", device.name)))?;
    compare(&device, &far, wanted, conf.mtu, previous)?;
    let near = if wanted.in_container { &mut pod } else { &mut host };
    // Who was before it in the chain is not known any more: what is not named is not looked for.
    if wanted.master.is_some() {
        let master = master::find(near, wanted, None)?;
        if far.peer != Some(master.index) {
            return Err(different(format!("{} is not on {}", far.name, master.name)));
        }
    }
    let own: Vec<&Ip> = of_interface(previous, &device.name).collect();
    let present = addr::list(&mut pod, Some(far.index))?;
    let leased = leased(environment, conf)?;
    for ip in &own {
        let address = ip.address.ip();
        if !present.iter().any(|addr| addr.ip.ip() == address) {
            return Err(different(format!("{} has not the address {}", far.name, ip.address)));
        }
        if leased.as_ref().is_some_and(|leased| !leased.contains(&address)) {
            return Err(different(format!("{address} is not leased to {}", environment.owner)));
        }
    }
    let ips = own_addresses(&device, own.iter().map(|ip| ip.address.ip()));
    let mac = far.mac.unwrap_or_default();
    if !guard::is_there(&ns, &device.name, mac, &ips)? {
        return Err(different("the nf_tables rules against spoofed addresses are not there".into()));
    }
    routes(&mut pod, &far, conf, previous)?;
    tuning::check(&conf.tuning, &ns, &far)?;
    let delegate = match &conf.ipam {
        Ipam::Delegate(name) => Some(name.as_str()),
        Ipam::None | Ipam::BuiltIn(_) => None,
    };
    addresses::pass_on(delegate, call)
}

fn compare(
    device: &Device,
    far: &Link,
    wanted: &Ipvlan,
    mtu: Option<u32>,
    previous: &Success,
) -> Result<(), Failure> {
    let Some(mode) = far.ipvlan else {
        return Err(different(format!("{} is no ipvlan device", far.name)));
    };
    if far.alias.as_ref() != Some(&device.complete) {
        return Err(different(format!("{} is not marked as that of {}", far.name, device.complete)));
    }
    if mode != wanted.mode {
        return Err(different(format!("{} is in mode {mode}, not {}", far.name, wanted.mode)));
    }
    if !far.up {
        return Err(different(format!("{} is down", far.name)));
    }
    let told = previous.interfaces.iter().find(|told| told.name == far.name && told.sandbox.is_some());
    let told = told.ok_or_else(|| {
        Failure::new(code::KERNEL, format!("prevResult does not know the pod's interface {}", far.name))
    })?;
    let mac = far.mac.map(|mac| DisplayMac(mac).to_string()).unwrap_or_default();
    if !told.mac.is_empty() && !told.mac.eq_ignore_ascii_case(&mac) {
        return Err(different(format!("{} has the Ethernet address {mac}, not {}", far.name, told.mac)));
    }
    match told.mtu.or(mtu) {
        Some(mtu) if mtu != far.mtu => {
            Err(different(format!("{} has the MTU {}, not {mtu}", far.name, far.mtu)))
        }
        _ => Ok(()),
    }
}
