//! STATUS: is the node ready for pods?
//!
//! Ready means that an ADD would succeed: there are addresses, and leases can be written (or the delegate is ready);
//! forwarding is on or can be switched on. And that pods, those that are there too, reach the pods of other nodes:
//! the overlay's device, if the configuration names one (`vxland` does), is there and up. No daemon is asked for:
//! what a daemon has put into the kernel works without it.

use heddle_ipam::Pool;
use heddle_netlink::{Socket, link};
use serde_json::Value;

use crate::conf::{Conf, Ipam, Mode};
use crate::mode::ipvlan;
use crate::veth::PREFIX;
use crate::{addresses, forwarding};
use heddle_spec::program::Call;
use heddle_spec::{Failure, code};

/// Says whether the node is ready.
///
/// # Errors
/// Code 50 if no ADD would succeed, 51 if moreover (or instead) pods that are there may not be reached; those of the
/// configuration, and a delegate's own.
pub fn status(conf: &Conf, call: &Call) -> Result<(), Failure> {
    overlay(call)?;
    if let Mode::Ipvlan(wanted) = &conf.mode {
        ipvlan::status(conf, wanted)?;
    }
    let unavailable = |failure: Failure| Failure { code: code::NOT_AVAILABLE, ..failure };
    match &conf.ipam {
        Ipam::None => {}
        Ipam::BuiltIn(pool) => {
            forwarding(conf, pool)?;
            addresses::check_room(conf, pool).map_err(unavailable)?;
        }
        Ipam::Delegate(name) => {
            addresses::pass_on(Some(name), call).map_err(|failure| match failure.code {
                code::DELEGATE => unavailable(failure),
                _ => failure,
            })?;
        }
    }
    Ok(())
}

/// The key `overlay`: the device that leads to other nodes.
fn overlay(call: &Call) -> Result<(), Failure> {
    let name = match call.object.get("overlay") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(name)) if link::name_is_valid(name) => name,
        Some(_) => {
            return Err(Failure::new(code::INVALID_CONFIG, "overlay: it is not the name of an interface"));
        }
    };
    let limited =
        |what: &str| Err(Failure::new(code::LIMITED, format!("the overlay's device {name} {what}")));
    match link::by_name(&mut Socket::open()?, name)? {
        None => limited("is not there: pods of other nodes are not reached (does vxland run?)"),
        Some(device) if !device.up => limited("is down: pods of other nodes are not reached"),
        Some(_) => Ok(()),
    }
}

/// Off is no fault where ADD can switch it on; where it cannot, pods that are there are cut off.
fn forwarding(conf: &Conf, pool: &Pool) -> Result<(), Failure> {
    if !(conf.mode == Mode::Ptp || matches!(&conf.mode, Mode::Bridge(bridge) if bridge.is_gateway)) {
        return Ok(());
    }
    let has = |v4: bool| pool.sets.iter().any(|set| set.is_ipv4() == v4);
    let Err(failure) = forwarding::check(has(true), has(false)) else { return Ok(()) };
    let links = link::list(&mut Socket::open()?)?;
    let pods = links.iter().any(|link| link.name.starts_with(PREFIX));
    Err(Failure { code: if pods { code::LIMITED } else { code::NOT_AVAILABLE }, ..failure })
}
