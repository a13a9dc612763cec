//! What the allocator asks of the machine it runs on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use heddle_netlink::Socket;
use heddle_netlink::route::{self, Kind};
use nix::errno::Errno;

use crate::{Result, holders};

/// What the host's network namespace knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    None,
    /// It is the host's own, or the broadcast address of one of its networks.
    Own,
    /// There is a route to it alone: it is wired to somebody, whatever the leases say.
    Wired,
}

/// The machine, as far as addresses go.
pub trait Surroundings {
    /// What the host knows of `ip`.
    fn usage(&mut self, ip: IpAddr) -> Result<Use>;

    /// The living network namespaces that have one of these inodes, with their cookies; without, where it cannot
    /// be told. `None`: not all namespaces can be seen from here.
    fn living(&mut self, inodes: &BTreeSet<u64>) -> Option<BTreeMap<u64, Option<u64>>>;
}

/// The real machine, seen from the network namespace that the program runs in.
#[derive(Debug)]
pub struct Machine<'a>(pub &'a mut Socket);

impl Surroundings for Machine<'_> {
    /// One question to the kernel, whatever the number of routes and addresses.
    fn usage(&mut self, ip: IpAddr) -> Result<Use> {
        match route::matching(self.0, ip) {
            Ok(route) => Ok(match route.kind {
                Kind::Local | Kind::Broadcast | Kind::Anycast => Use::Own,
                Kind::Unicast if route.dst.prefix() == if ip.is_ipv4() { 32 } else { 128 } => Use::Wired,
                _ => Use::None,
            }),
            Err(error) => match error.errno() {
                // No route, or one that says there is no way: unreachable, blackhole, prohibit.
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL | Errno::EACCES) => {
                    Ok(Use::None)
                }
                // A kernel without IPv6 has no use for its addresses.
                Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Ok(Use::None),
                _ => Err(error.into()),
            },
        }
    }

    fn living(&mut self, inodes: &BTreeSet<u64>) -> Option<BTreeMap<u64, Option<u64>>> {
        holders::living(inodes)
    }
}

#[cfg(test)]
mod tests {
    use heddle_netlink::addr::{self, Addr};
    use heddle_netlink::link::{self, VethEnd};
    use heddle_netlink::{NetNs, Watch, route::Route};

    use super::*;

    #[test]
    fn the_kernel_says_whose_an_address_is() {
        let ns = NetNs::create().unwrap();
        let mut socket = Socket::open_in(&ns).unwrap();
        let mut watch = ns.run(Watch::open).unwrap().unwrap();
        let (near, far) =
            (VethEnd { name: "near", ..VethEnd::default() }, VethEnd { name: "far", ..VethEnd::default() });
        link::create_veth(&mut socket, &near, &far).unwrap();
        let index = link::by_name(&mut socket, "near").unwrap().unwrap().index;
        for name in ["near", "far", "lo"] {
            let index = link::by_name(&mut socket, name).unwrap().unwrap().index;
            link::set_up(&mut socket, index).unwrap();
        }
        for own in ["10.1.0.1/24", "fd00:1::1/64"] {
            addr::add(&mut socket, &Addr { nodad: true, ..Addr::new(index, own.parse().unwrap()) }).unwrap();
        }
        for pod in ["10.1.0.9/32", "10.2.0.9/32", "fd00:2::9/128"] {
            route::add(&mut socket, &Route::on_link(pod.parse().unwrap(), index)).unwrap();
        }
        let none = Route { kind: Kind::Unreachable, ..Route::new("10.3.0.0/24".parse().unwrap()) };
        route::add(&mut socket, &none).unwrap();
        let mut machine = Machine(&mut socket);
        // The kernel puts the host's own IPv6 addresses into its table a moment after they were added.
        let own = || Ok(machine.usage("fd00:1::1".parse().unwrap()).unwrap() == Use::Own);
        assert!(watch.until(std::time::Duration::from_secs(10), own).unwrap());
        for (ip, wanted) in [
            ("10.1.0.1", Use::Own),
            ("10.1.0.255", Use::Own),
            ("10.1.0.2", Use::None),
            ("10.1.0.9", Use::Wired),
            ("10.2.0.9", Use::Wired),
            ("10.3.0.9", Use::None),
            ("10.4.0.9", Use::None),
            ("127.0.0.1", Use::Own),
            ("fd00:1::1", Use::Own),
            ("fd00:1::2", Use::None),
            ("fd00:2::9", Use::Wired),
            ("fd00:3::9", Use::None),
        ] {
            assert_eq!(machine.usage(ip.parse().unwrap()).unwrap(), wanted, "{ip}");
        }
    }
}
