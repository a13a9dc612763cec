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

/// Forgets the flows that were opened to one of the record's ports and lead elsewhere than it says. To be called when
/// it is in force.
pub fn forget_others(record: &Record) -> Result<(), Failure> {
    let mut own = None;
    forget(record, |port, flow| {
        if flow.replies_from == port.address {
            return Ok(false);
        }
        if let Some(host_ip) = port.host_ip {
            return Ok(flow.destination == host_ip);
        }
        // What the host only forwards may use the same port.
        if own.is_none() {
            let all = addr::list(&mut Socket::open()?, None)?;
            own = Some(all.into_iter().map(|addr| addr.ip.ip()).collect::<Vec<_>>());
        }
        Ok(own.as_ref().is_some_and(|own| own.contains(&flow.destination)))
    })
}

/// Forgets the flows that lead to the record's pod. To be called when it is no longer in force.
pub fn forget_own(record: &Record) -> Result<(), Failure> {
    forget(record, |port, flow| Ok(flow.replies_from == port.address))
}

fn forget(
    record: &Record,
    mut stale: impl FnMut(&Port, &Flow) -> Result<bool, Error>,
) -> Result<(), Failure> {
    let mut ports = record.ports.iter().filter(|port| port.protocol == Protocol::Udp).peekable();
    if ports.peek().is_none() {
        return Ok(());
    }
    let mut tracked = Conntrack::open()?;
    for port in ports {
        let number = port.protocol.number();
        let flows = match tracked.opened_to(port.address.is_ipv4(), number, port.host_port) {
            // A kernel without netlink access to its flows: as with the reference plugin, they run out.
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => return Ok(()),
            other => other?,
        };
        for flow in flows {
            if stale(port, &flow)? {
                tracked.forget(&flow).or_absent()?;
            }
        }
    }
    Ok(())
}
