//! The kernel parameters that the overlay needs: forwarding, and router advertisements in spite of it.
//!
//! A node that forwards ignores router advertisements, and loses the default route that it learned from
//! one at the moment when forwarding is switched on (`rt6_purge_dflt_routers`), unless the device's
//! `accept_ra` is 2. So devices that live on them get that first. Nothing is written that is right already;
//! what was written is recorded with what was there before, and put back by `vxland cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use heddle_netlink::route::{self, Filter};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{Error, Socket, link};
use serde::{Deserialize, Serialize};

use crate::handoff;
use crate::state::Family;

/// Routes learned from router advertisements (`RTPROT_RA`).
const PROTOCOL_RA: u8 = 9;
const RECORD: &str = "vxland.sysctl.json";

#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error("cannot {operation} the record of kernel parameters {}: {source}", .path.display())]
    Record { operation: &'static str, path: PathBuf, source: io::Error },
}

/// A parameter that vxland wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub was: String,
    pub is: String,
}

/// What vxland wrote, by parameter, since the machine was started: it is kept in the run directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// By family.
    pub forwarding: BTreeMap<Family, Written>,
    /// `accept_ra`, by device.
    pub advertisements: BTreeMap<String, Written>,
}

fn forwarding(family: Family) -> Key {
    match family {
        Family::V4 => Key::new(["net", "ipv4", "ip_forward"]),
        Family::V6 => Key::ipv6_conf("all", "forwarding"),
    }
}

fn accept_ra(device: &str) -> Key {
    Key::ipv6_conf(device, "accept_ra")
}

/// A parameter's value; `None` where there is none (no IPv6, or the device is gone).
fn value(key: &Key) -> Result<Option<String>, Error> {
    match sysctl::read(key) {
        Ok(value) => Ok(Some(value)),
        Err(error) if sysctl::is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The families that this node forwards packets of.
pub fn forwarded() -> Result<BTreeSet<Family>, Error> {
    let mut families = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        if value(&forwarding(family))?.is_some_and(|value| value != "0") {
            families.insert(family);
        }
    }
    Ok(families)
}

/// The devices whose router advertisements would go unheard if the node forwarded IPv6: `uplink`, and those
/// that routes were learned on. Where the node forwards already and not because of us, that is how its
/// administrator wants it: none.
pub fn endangered(
    socket: &mut Socket,
    uplink: &str,
    dir: &Path,
) -> Result<BTreeSet<String>, ForwardingError> {
    let forwards = value(&forwarding(Family::V6))?.is_some_and(|value| value != "0");
    if forwards && !Record::read(dir)?.forwarding.contains_key(&Family::V6) {
        return Ok(BTreeSet::new());
    }
    let learned = route::list(socket, &Filter { protocol: Some(PROTOCOL_RA), ..Filter::default() })?;
    let learned: BTreeSet<u32> = learned.into_iter().filter_map(|route| route.link).collect();
    let mut devices = BTreeSet::new();
    for link in link::list(socket)? {
        let lives_on_them = link.name == uplink || learned.contains(&link.index);
        if lives_on_them && value(&accept_ra(&link.name))?.as_deref() == Some("1") {
            devices.insert(link.name);
        }
    }
    Ok(devices)
}

/// Has `device` accept router advertisements even while the node forwards.
pub fn keep_advertisements(device: &str, dir: &Path) -> Result<(), ForwardingError> {
    let was = value(&accept_ra(device))?;
    if was.as_deref() == Some("1") {
        let written = Written { was: "1".into(), is: "2".into() };
        Record::add(dir, |record| {
            record.advertisements.entry(device.to_owned()).or_insert(written);
        })?;
        sysctl::write(&accept_ra(device), "2")?;
        tracing::info!(
            device,
            "accept_ra set to 2: router advertisements stay heard while this node forwards"
        );
    }
    Ok(())
}

/// Has this node forward packets.
pub fn switch_on(family: Family, dir: &Path) -> Result<(), ForwardingError> {
    if forwarded()?.contains(&family) {
        return Ok(());
    }
    let written = Written { was: "0".into(), is: "1".into() };
    Record::add(dir, |record| {
        record.forwarding.entry(family).or_insert(written);
    })?;
    sysctl::write(&forwarding(family), "1")?;
    tracing::info!(%family, "forwarding switched on");
    Ok(())
}

/// Puts back what is recorded, where nobody changed it since, and forgets it. Returns what was put back.
/// Forwarding goes first: advertisements must not go unheard in between.
pub fn restore(dir: &Path) -> Result<Vec<String>, ForwardingError> {
    let record = Record::read(dir)?;
    let forwarding = record.forwarding.iter().map(|(family, written)| (forwarding(*family), written));
    let advertisements = record.advertisements.iter().map(|(device, written)| (accept_ra(device), written));
    let mut restored = Vec::new();
    for (key, written) in forwarding.chain(advertisements) {
        if value(&key)?.as_ref() == Some(&written.is) {
            sysctl::write(&key, &written.was)?;
            restored.push(format!("{key} = {}", written.was));
        }
    }
    let path = dir.join(RECORD);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ForwardingError::Record { operation: "remove", path, source })
        }
        _ => Ok(restored),
    }
}

impl Record {
    /// The record in `dir`; empty if there is none.
    pub fn read(dir: &Path) -> Result<Self, ForwardingError> {
        let path = dir.join(RECORD);
        let failed = |path, source| ForwardingError::Record { operation: "read", path, source };
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(path, error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(failed(path, source)),
        }
    }

    /// Adds to the record before the parameter is written: who is killed in between puts back too much
    /// rather than too little.
    fn add(dir: &Path, add: impl FnOnce(&mut Self)) -> Result<(), ForwardingError> {
        let mut record = Self::read(dir)?;
        add(&mut record);
        let path = dir.join(RECORD);
        let failed = |source| ForwardingError::Record { operation: "write", path: path.clone(), source };
        let text = serde_json::to_string(&record).map_err(|error| failed(error.into()))?;
        handoff::write_atomically(&path, &text, 0o600).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};
    use std::os::fd::AsRawFd;

    use heddle_netlink::link::VethEnd;
    use heddle_netlink::{NetNs, route};
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
        sockopt,
    };

    use super::*;
    use crate::fake::{settle, settle_link};

    /// A node with an uplink, and the router at its other end.
    struct Site {
        node: NetNs,
        router: NetNs,
        run: tempfile::TempDir,
    }

    impl Site {
        fn new() -> Self {
            let site = Self {
                node: NetNs::create().unwrap(),
                router: NetNs::create().unwrap(),
                run: tempfile::tempdir().unwrap(),
            };
            site.node
                .run(|| {
                    let far = VethEnd { name: "eth0", ns: Some(&site.router), ..VethEnd::default() };
                    let near = VethEnd { name: "eth0", ..VethEnd::default() };
                    link::create_veth(&mut Socket::open().unwrap(), &near, &far).unwrap();
                })
                .unwrap();
            for ns in [&site.node, &site.router] {
                ns.run(|| {
                    // Addresses usable at once, and no solicitation of its own in between.
                    for (name, value) in [("accept_dad", "0"), ("router_solicitations", "0")] {
                        sysctl::write(&Key::ipv6_conf("eth0", name), value).unwrap();
                    }
                    let mut socket = Socket::open().unwrap();
                    let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
                    link::set_up(&mut socket, index).unwrap();
                })
                .unwrap();
            }
            for ns in [&site.node, &site.router] {
                settle_link(ns, "eth0");
            }
            site
        }

        /// Sends a router advertisement (RFC 4861 section 4.2) for `seconds`.
        fn advertise(&self, seconds: u16) {
            self.router
                .run(|| {
                    let index = link::by_name(&mut Socket::open().unwrap(), "eth0").unwrap().unwrap().index;
                    let raw =
                        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6)
                            .unwrap();
                    setsockopt(&raw, sockopt::Ipv6MulticastHops, &255).unwrap();
                    let [high, low] = seconds.to_be_bytes();
                    // Type, code, checksum (the kernel's), hop limit, flags, lifetime, two timers.
                    let message = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
                    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                    let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, index));
                    sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
                })
                .unwrap();
        }

        fn on_node<T: Send>(&self, work: impl FnOnce(&mut Socket, &Path) -> T + Send) -> T {
            self.node.run(|| work(&mut Socket::open().unwrap(), self.run.path())).unwrap()
        }

        /// Whether the node has a default route from an advertisement.
        fn has_default_route(&self) -> bool {
            let filter = Filter { protocol: Some(PROTOCOL_RA), ..Filter::default() };
            self.on_node(|socket, _| route::list(socket, &filter).unwrap())
                .iter()
                .any(|route| route.dst.prefix() == 0)
        }

        /// Waits until the default route is there: the packet may still be on the way.
        fn await_default_route(&self) {
            settle(&self.node, |_| self.has_default_route());
        }

        fn accept_ra(&self) -> String {
            self.on_node(|_, _| sysctl::read(&accept_ra("eth0")).unwrap())
        }
    }

    #[test]
    fn the_uplinks_default_route_stays_and_is_renewed_while_the_node_forwards() {
        let site = Site::new();
        site.advertise(1800);
        site.await_default_route();
        let before = site.on_node(|socket, run| {
            let devices = endangered(socket, "eth0", run).unwrap();
            assert_eq!(devices, ["eth0".to_owned()].into());
            for device in &devices {
                keep_advertisements(device, run).unwrap();
            }
            let before = forwarded().unwrap();
            switch_on(Family::V4, run).unwrap();
            switch_on(Family::V6, run).unwrap();
            assert_eq!(forwarded().unwrap(), [Family::V4, Family::V6].into());
            assert_eq!(endangered(socket, "eth0", run).unwrap(), [].into());
            before
        });
        assert!(site.has_default_route(), "the route survives the switch");
        assert_eq!(site.accept_ra(), "2");
        // An advertisement with lifetime 0 takes the route away, the next one brings it back: both heard.
        site.advertise(0);
        site.advertise(1800);
        site.await_default_route();
        // Twice is once.
        let record = site.on_node(|_, run| {
            switch_on(Family::V6, run).unwrap();
            keep_advertisements("eth0", run).unwrap();
            Record::read(run).unwrap()
        });
        assert_eq!(record.advertisements["eth0"], Written { was: "1".into(), is: "2".into() });

        // All as before, and in an order in which the route stays.
        let restored = site.on_node(|_, run| restore(run).unwrap());
        assert_eq!(restored.last().unwrap(), "net/ipv6/conf/eth0/accept_ra = 1");
        assert_eq!(site.accept_ra(), "1");
        assert_eq!(site.on_node(|_, _| forwarded().unwrap()), before);
        assert_eq!(site.on_node(|_, run| restore(run).unwrap()), [""; 0]);
    }

    #[test]
    fn without_the_care_the_default_route_is_lost() {
        let site = Site::new();
        site.advertise(1800);
        site.await_default_route();
        site.on_node(|_, run| switch_on(Family::V6, run).unwrap());
        assert!(!site.has_default_route(), "if the kernel keeps it now, this module has lost its purpose");
    }

    #[test]
    fn an_uplink_that_comes_back_is_cared_for_again_but_an_administrators_choice_is_left_alone() {
        let site = Site::new();
        site.on_node(|socket, run| {
            // Somebody else switched it on: whoever did that knows about advertisements.
            sysctl::write(&forwarding(Family::V6), "1").unwrap();
            assert_eq!(endangered(socket, "eth0", run).unwrap(), [].into());
            sysctl::write(&forwarding(Family::V6), "0").unwrap();
            switch_on(Family::V6, run).unwrap();
            assert_eq!(endangered(socket, "eth0", run).unwrap(), ["eth0".to_owned()].into());
            sysctl::write(&accept_ra("eth0"), "0").unwrap();
            assert_eq!(endangered(socket, "eth0", run).unwrap(), [].into());
            keep_advertisements("eth0", run).unwrap();
            assert_eq!(sysctl::read(&accept_ra("eth0")).unwrap(), "0", "only 1 becomes 2");
        });
    }
}
