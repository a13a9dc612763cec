//! The pod's veth pair: names, Ethernet addresses, birth, hardening, end.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use heddle_netlink::link::{self, AddrGen, Change, Link, Operational, VethEnd};
use heddle_netlink::route::{self, Filter, TABLE_LOCAL};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{DisplayMac, MacAddr, NetNs, Socket, Watch};

use crate::elements;
use crate::mark::{Holdings, Mark};
use heddle_spec::{Failure, Interface, Network, Owner, code};

/// What the names of all host sides begin with; the spoofing rule knows pods by it.
pub const PREFIX: &str = "hdl";

/// The names and addresses of a pod's pair, computed from what it belongs to, so that DEL finds it
/// without having been told anything.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `hdl` and 12 hexadecimal digits: 15 characters, as long as a name can be.
    pub host: String,
    pub host_mac: MacAddr,
    pub pod: String,
    pub pod_mac: MacAddr,
    pub network: Network,
    pub owner: Owner,
}

impl Pair {
    /// `mac` is the pod's Ethernet address, if it is not to be computed too.
    pub fn new(network: &Network, owner: &Owner, mac: Option<MacAddr>) -> Self {
        let hash = hash(owner);
        let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
        Self {
            host: format!("{PREFIX}{:012x}", hash & 0xffff_ffff_ffff),
            // Locally administered, unicast; the two differ in the first byte.
            host_mac: [0x06, b, c, d, e, f ^ a],
            pod: owner.ifname().to_owned(),
            pod_mac: mac.unwrap_or([0x02, b, c, d, e, f ^ a]),
            network: network.clone(),
            owner: owner.clone(),
        }
    }

    /// The mark on a device, if it is that of this pair.
    pub fn mark(&self, near: &Link) -> Option<Mark> {
        near.alias.as_deref().and_then(Mark::parse).filter(|mark| mark.is_of(&self.network, &self.owner))
    }

    /// Creates the pair, the pod's side directly in its namespace, the host's side as a port of the bridge
    /// `master`. Both sides are down.
    pub fn create(
        &self,
        host: &mut Socket,
        pod_ns: &NetNs,
        mtu: Option<u32>,
        master: Option<u32>,
    ) -> Result<(), Failure> {
        let near = VethEnd { name: &self.host, mac: Some(self.host_mac), mtu, ns: None, master };
        let far = VethEnd { name: &self.pod, mac: Some(self.pod_mac), mtu, ns: Some(pod_ns), master: None };
        link::create_veth(host, &near, &far).map_err(|error| {
            let code = if error.already_exists() { code::EXISTS } else { code::KERNEL };
            Failure::new(code, error.to_string())
        })
    }

    /// Clears away what an earlier ADD for the same interface left when it was killed.
    ///
    /// # Errors
    /// Code 102 if there is a complete pair, or the pod has an interface of this name from elsewhere.
    pub fn clear(&self, host: &mut Socket, pod: &mut Socket) -> Result<(), Failure> {
        let near = link::by_name(host, &self.host)?;
        let far = link::by_name(pod, &self.pod)?;
        // Somebody else's words count as complete, too.
        let is_complete =
            |near: &Link| near.alias.is_some() && self.mark(near).is_none_or(|mark| mark.complete);
        if near.as_ref().is_some_and(is_complete) {
            return Err(Failure::new(code::EXISTS, format!("{} is attached already", self.owner))
                .with_details(format!("its host side is {}; DEL comes before another ADD", self.host)));
        }
        if let Some(far) = far
            && near.as_ref().is_none_or(|near| near.peer != Some(far.index))
        {
            return Err(Failure::new(
                code::EXISTS,
                format!("the namespace has an interface {} already", self.pod),
            ));
        }
        match near {
            Some(near) => {
                link::delete(host, near.index)?;
                elements::dismiss(&self.host)
            }
            None => Ok(()),
        }
    }

    /// The host side, hardened before it is up: whatever a pod sends, it configures nothing here. It gets
    /// no address by itself either. From here on it says whose it is.
    ///
    /// With `ipv6`, IPv6 is there even where the host switches it off for new devices.
    pub fn harden_host(&self, host: &mut Socket, index: u32, ipv6: bool) -> Result<(), Failure> {
        if ipv6 {
            set(&Key::ipv6_conf(&self.host, "disable_ipv6"), "0")?;
        }
        let mark = Mark::begin(&self.network, &self.owner)?;
        let change = Change {
            addr_gen: Some(AddrGen::None),
            accept_redirects4: Some(false),
            alias: Some(mark.as_str()),
            ..Change::default()
        };
        if let Err(error) = link::change(host, index, &change) {
            // A kernel without IPv6, or with IPv6 off: nothing to harden.
            if ipv6_is_there() {
                return Err(error.into());
            }
            link::change(host, index, &Change { addr_gen: None, ..change })?;
        }
        if !ipv6 {
            // Without IPv6 there is nothing to listen with, and one file to write in place of three.
            return set_ipv6(&self.host, "disable_ipv6", "1");
        }
        for name in ["accept_ra", "autoconf", "accept_redirects"] {
            set_ipv6(&self.host, name, "0")?;
        }
        Ok(())
    }

    /// The pod's side: it listens to the host, not to router advertisements of other pods.
    pub fn harden_pod(&self, ns: &NetNs, ipv6: bool) -> Result<(), Failure> {
        ns.visit(|| {
            if ipv6 {
                set(&Key::ipv6_conf(&self.pod, "disable_ipv6"), "0")?;
            }
            for name in ["accept_ra", "autoconf", "accept_redirects"] {
                set_ipv6(&self.pod, name, "0")?;
            }
            Ok(())
        })?
    }

    /// Waits until both sides send and receive.
    ///
    /// Two workers of the kernel come after us. Of a pair, the end that came up first had no carrier, and what
    /// it sends is dropped until net/core/link_watch.c has seen that it has one now. And an IPv6 address is
    /// in use only when net/ipv6/addrconf.c has put its route into the table `local`, also without duplicate
    /// address detection. Usually both have been there by the time we ask; a request for a link makes the
    /// first one hurry (since Linux 6.8).
    pub fn await_ready<'a>(&self, host: Side<'a>, pod: Side<'a>) -> Result<(), Failure> {
        // The first worker sleeps for up to a second. If it takes longer, the pod is none the worse for it.
        let deadline = Instant::now() + Duration::from_secs(2);
        for (name, Side { ns, socket, address6 }) in [(&self.host, host), (&self.pod, pod)] {
            let mut ready = || {
                let Some(link) = link::by_name(socket, name)? else { return Ok(true) };
                if link.operational != Operational::Up {
                    return Ok(false);
                }
                let Some(address) = address6 else { return Ok(true) };
                let local = Filter { table: Some(TABLE_LOCAL), link: Some(link.index), ..Filter::default() };
                let routes = route::list(socket, &local)?;
                Ok(routes
                    .iter()
                    .any(|route| route.dst.ip() == IpAddr::V6(address) && route.dst.prefix() == 128))
            };
            if !ready()? {
                // Asked again as soon as it listens: nothing is missed in between.
                let left = deadline.saturating_duration_since(Instant::now());
                listen(ns)?.until(left, ready)?;
            }
        }
        Ok(())
    }

    /// Marks the pair as complete, and writes down what it has in nf_tables.
    pub fn complete(&self, host: &mut Socket, index: u32, holdings: &Holdings) -> Result<(), Failure> {
        let mark = Mark::finish(&self.network, &self.owner, holdings);
        Ok(link::change(host, index, &Change { alias: Some(mark.as_str()), ..Change::default() })?)
    }

    /// Deletes the pair, if it is there and ours. `before` is called with what is written on it when it is found.
    pub fn delete(&self, host: &mut Socket, before: impl FnOnce(Option<&Mark>)) -> Result<Deleted, Failure> {
        let Some(near) = link::by_name(host, &self.host)? else { return Ok(Deleted::Nothing) };
        let mark = self.mark(&near);
        if near.alias.is_some() && mark.is_none() {
            return Ok(Deleted::Foreign);
        }
        before(mark.as_ref());
        match link::delete(host, near.index) {
            // The namespace died in between, and the pair with it.
            Err(error) if !error.not_found() => Err(error.into()),
            _ => Ok(Deleted::Pair),
        }
    }

    /// Leaves the pair, if it is there and ours, to the pod's namespace, which is about to go: it is down, and with that
    /// its addresses, routes and neighbours are gone. It counts as incomplete from now on, so that another ADD, or
    /// GC, clears it away.
    pub fn leave(&self, host: &mut Socket, before: impl FnOnce(Option<&Mark>)) -> Result<Deleted, Failure> {
        let Some(near) = link::by_name(host, &self.host)? else { return Ok(Deleted::Nothing) };
        let mark = self.mark(&near);
        if near.alias.is_some() && mark.is_none() {
            return Ok(Deleted::Foreign);
        }
        before(mark.as_ref());
        let left = Mark::begin(&self.network, &self.owner)?;
        let change = Change { up: Some(false), alias: Some(&left), ..Change::default() };
        match link::change(host, near.index, &change) {
            Err(error) if !error.not_found() => Err(error.into()),
            _ => Ok(Deleted::Pair),
        }
    }

    /// What ADD answers of both sides.
    pub fn interfaces(&self, near: &Link, sandbox: &Path) -> [Interface; 2] {
        let side = |name: &str, mac: MacAddr, sandbox: Option<String>| Interface {
            name: name.to_owned(),
            mac: DisplayMac(mac).to_string(),
            mtu: Some(near.mtu),
            sandbox,
            ..Interface::default()
        };
        [
            side(&self.host, self.host_mac, None),
            side(&self.pod, self.pod_mac, Some(sandbox.display().to_string())),
        ]
    }
}

/// What was found where a pair was to be deleted.
#[derive(Debug)]
pub enum Deleted {
    Nothing,
    Pair,
    /// A device of its name that is another network's.
    Foreign,
}

/// One side of a pair, to be waited for.
#[derive(Debug)]
pub struct Side<'a> {
    /// `None`: the host's.
    pub ns: Option<&'a NetNs>,
    /// A socket of the same namespace.
    pub socket: &'a mut Socket,
    /// The IPv6 address that this side was given.
    pub address6: Option<Ipv6Addr>,
}

/// Listens on the host, or in a pod's namespace.
fn listen(ns: Option<&NetNs>) -> heddle_netlink::Result<Watch> {
    ns.map_or_else(Watch::open, |ns| ns.visit(Watch::open)?)
}

/// The device called `name`, which was just made.
pub fn find(socket: &mut Socket, name: &str) -> Result<Link, Failure> {
    link::by_name(socket, name)?
        .ok_or_else(|| Failure::new(code::KERNEL, format!("cannot find link {name}: it is gone again")))
}

/// FNV-1a over id and name, its bits mixed (the finalizer of MurmurHash3): FNV alone hardly moves the upper
/// bits of the last characters.
fn hash(owner: &Owner) -> u64 {
    let bytes = owner.container().bytes().chain([0]).chain(owner.ifname().bytes());
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn set(key: &Key, value: &str) -> Result<(), Failure> {
    Ok(sysctl::write(key, value)?)
}

/// Sets a parameter of IPv6, if there is IPv6.
pub fn set_ipv6(device: &str, name: &str, value: &str) -> Result<(), Failure> {
    match sysctl::write(&Key::ipv6_conf(device, name), value) {
        Err(error) if sysctl::is_missing(&error) && !ipv6_is_there() => Ok(()),
        other => Ok(other?),
    }
}

pub fn ipv6_is_there() -> bool {
    sysctl::read(&Key::ipv6_conf("all", "disable_ipv6")).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pair(container: &str, ifname: &str) -> Pair {
        Pair::new(&Network::new("net").unwrap(), &Owner::new(container, ifname).unwrap(), None)
    }

    #[test]
    fn fault_060_names_of_a_million_containers_differ() {
        let mut seen = HashSet::new();
        for n in 0..1_000_000u32 {
            let owner = Owner::new(&format!("{n:x}"), "eth0").unwrap();
            assert!(seen.insert(hash(&owner) & 0xffff_ffff_ffff), "{n}");
        }
    }

    #[test]
    fn a_pair_is_named_as_the_kernel_allows() {
        let a = pair("abc", "eth0");
        assert_eq!(a.host.len(), 15);
        assert!(link::name_is_valid(&a.host) && a.host.starts_with(PREFIX));
        assert_eq!(a.host, pair("abc", "eth0").host, "the same every time");
        assert_ne!(a.host, pair("abc", "eth1").host);
        assert_ne!(a.host_mac, a.pod_mac);
        for mac in [a.host_mac, a.pod_mac] {
            assert_eq!(mac[0] & 3, 2, "locally administered and unicast");
        }
    }
}
