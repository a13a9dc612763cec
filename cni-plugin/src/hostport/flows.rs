//! Flows of UDP that the kernel has tracked before a host port changed.
//!
//! UDP has no end: a client that goes on sending from its port would stay with the address that the first packet was
//! translated to, or not translated at all, for as long as it sends. A new TCP connection comes from a new port.

use heddle_netlink::conntrack::{Conntrack, Flow};
use heddle_netlink::{Absent, Error, Socket, addr};
use heddle_spec::Failure;
use nix::errno::Errno;

use super::record::{Port, Record};
use crate::conf::Protocol;

const UDP: u8 = Protocol::Udp.number();

/// Forgets the flows that were opened to one of the record's ports and lead elsewhere than it says. To be called when
/// it is in force.
pub fn forget_others(record: &Record) -> Result<(), Failure> {
    let mut own = None;
    for ports in by_family(record) {
        forget(&ports, |flow| {
            // A port of one address comes before the same port of all.
            let of_port = ports.iter().filter(|port| port.host_port == flow.port);
            let exact = of_port.clone().find(|port| port.host_ip == Some(flow.destination));
            let Some(port) = exact.or_else(|| of_port.clone().find(|port| port.host_ip.is_none())) else {
                return Ok(false);
            };
            if flow.replies_from == port.address {
                return Ok(false);
            }
            if exact.is_some() {
                return Ok(true);
            }
            // What the host only forwards may use the same port.
            if own.is_none() {
                let all = addr::list(&mut Socket::open()?, None)?;
                own = Some(all.into_iter().map(|addr| addr.ip.ip()).collect::<Vec<_>>());
            }
            Ok(own.as_ref().is_some_and(|own| own.contains(&flow.destination)))
        })?;
    }
    Ok(())
}

/// Forgets the flows that lead to the record's pod. To be called when it is no longer in force.
pub fn forget_own(record: &Record) -> Result<(), Failure> {
    for ports in by_family(record) {
        forget(&ports, |flow| {
            let mut same = ports.iter().filter(|port| port.host_port == flow.port);
            Ok(same.any(|port| port.address == flow.replies_from))
        })?;
    }
    Ok(())
}

/// The ports of UDP, where there are any.
fn by_family(record: &Record) -> impl Iterator<Item = Vec<&Port>> {
    [true, false].into_iter().filter_map(|v4| {
        let of_family = |port: &&Port| port.protocol == Protocol::Udp && port.address.is_ipv4() == v4;
        let ports: Vec<&Port> = record.ports.iter().filter(of_family).collect();
        (!ports.is_empty()).then_some(ports)
    })
}

/// Forgets flows that were opened to ports of one family.
fn forget(ports: &[&Port], mut stale: impl FnMut(&Flow) -> Result<bool, Error>) -> Result<(), Failure> {
    let Some(first) = ports.first() else { return Ok(()) };
    // The kernel walks through its whole table for each question (8 ms with 262,144 buckets): one for all ports.
    let same = ports.iter().all(|port| port.host_port == first.host_port);
    let mut tracked = Conntrack::open()?;
    let flows = match tracked.opened_to(first.address.is_ipv4(), UDP, same.then_some(first.host_port)) {
        // A kernel without netlink access to its flows: as with the reference plugin, they run out.
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => return Ok(()),
        other => other?,
    };
    for flow in flows {
        if stale(&flow)? {
            tracked.forget(&flow).or_absent()?;
        }
    }
    Ok(())
}
