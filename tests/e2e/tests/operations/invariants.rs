//! What must be true of a world at any time, and what is left of it in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use heddle_netlink::route::{self, Filter};
use heddle_netlink::{addr, link};

use super::model::{Holds, Model, Theirs};
use super::op::{Id, NETS, PODS, THEIRS};
use super::surroundings::{self, DISK};
use super::world::{Outcome, World};

/// The rules are read as text, which takes longer than an operation.
const RULES_EVERY: usize = 25;

impl World {
    /// The leases of a network: address, and who has it.
    pub fn leases(&self, net: u8) -> Result<BTreeMap<IpAddr, String>, String> {
        let mut leases = BTreeMap::new();
        let dir = PathBuf::from(format!("{DISK}/leases/net{net}"));
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry.map_err(|error| error.to_string())?;
            let name = entry.file_name().into_string().unwrap();
            if let Ok(ip) = name.parse() {
                let content = fs::read_to_string(entry.path()).map_err(|error| error.to_string())?;
                leases.insert(ip, content.trim().replace("\r\n", " "));
            } else if !matches!(name.as_str(), "lock" | ".heddle") && !name.starts_with("last_reserved_ip.") {
                return Err(format!("a file {name} among the leases"));
            }
        }
        Ok(leases)
    }

    /// What must be true at any time.
    pub fn invariants(&self) -> Outcome {
        let mut holders: BTreeMap<IpAddr, Id> = BTreeMap::new();
        for (id, holds) in &self.model.ours {
            for ip in Model::addresses(holds) {
                if let Some(other) = holders.insert(ip, *id) {
                    return Err(format!("{ip} is that of {other:?} and of {id:?}"));
                }
            }
        }
        for net in 0..NETS {
            self.check_leases(net)?;
        }
        self.check_devices()?;
        if self.steps.is_multiple_of(RULES_EVERY) { self.check_rules() } else { Ok(()) }
    }

    fn check_leases(&self, net: u8) -> Outcome {
        let leases = self.leases(net)?;
        for pod in 0..PODS {
            let id = Id { net, pod };
            let name = format!("{} {}", Self::container(pod), Self::ifname(id));
            let has: BTreeSet<IpAddr> =
                leases.iter().filter(|(_, holder)| **holder == name).map(|(ip, _)| *ip).collect();
            match self.model.holds(id) {
                Holds::Nothing if !has.is_empty() => {
                    return Err(format!("{id:?} holds {has:?}, and is not attached"));
                }
                all @ Holds::All(_) if has != Model::addresses(all) => {
                    return Err(format!("{id:?} holds {has:?}, not {:?}", Model::addresses(all)));
                }
                _ => {}
            }
        }
        for pod in (0..THEIRS).filter(|_| net == 0) {
            let name = format!("their-{pod} eth0");
            let has: BTreeSet<IpAddr> =
                leases.iter().filter(|(_, holder)| **holder == name).map(|(ip, _)| *ip).collect();
            match self.model.their(pod) {
                Theirs::Nothing if !has.is_empty() => return Err(format!("their pod {pod} holds {has:?}")),
                Theirs::Leased(ips) if has != *ips => {
                    return Err(format!("their pod {pod} holds {has:?}, not {ips:?}"));
                }
                _ => {}
            }
        }
        let known = |holder: &str| {
            (0..PODS)
                .any(|pod| holder == format!("{} {}", Self::container(pod), Self::ifname(Id { net, pod })))
                || (0..THEIRS).any(|pod| holder == format!("their-{pod} eth0"))
        };
        match leases.iter().find(|(_, holder)| !known(holder)) {
            Some((ip, holder)) => Err(format!("{ip} is leased to {holder:?}")),
            None => Ok(()),
        }
    }

    /// The devices of pods, and the routes to them.
    fn check_devices(&self) -> Outcome {
        let mut socket = self.host.socket();
        let links = link::list(&mut socket).map_err(|error| error.to_string())?;
        let may: BTreeSet<_> = self.model.may_have_device().collect();
        let unknown = may.iter().any(|id| !self.devices.contains_key(id));
        let names: BTreeSet<_> =
            may.iter().filter_map(|id| self.devices.get(id)).map(String::as_str).collect();
        for link in &links {
            let fixed = matches!(link.name.as_str(), "lo" | "uplink" | "switch" | "br0");
            if !fixed && !names.contains(link.name.as_str()) && !unknown {
                return Err(format!("a device without an owner: {} ({:?})", link.name, link.alias));
            }
        }
        for (id, holds) in self.model.ours.iter().filter(|(_, holds)| matches!(holds, Holds::All(_))) {
            let device = self.devices.get(id).and_then(|name| links.iter().find(|link| link.name == *name));
            let Some(device) = device else { return Err(format!("{id:?} has no device on the host")) };
            if id.net == 0 {
                let routes =
                    route::list(&mut socket, &Filter { link: Some(device.index), ..Filter::default() });
                let routes = routes.map_err(|error| error.to_string())?;
                for ip in Model::addresses(holds) {
                    if !routes.iter().any(|route| route.dst.ip() == ip) {
                        return Err(format!("no route leads to {ip} of {id:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// No rule or element names a device that nobody has.
    pub fn check_rules(&self) -> Outcome {
        let may: BTreeSet<_> = self.model.may_have_device().collect();
        if may.iter().any(|id| !self.devices.contains_key(id)) {
            return Ok(());
        }
        let names: BTreeSet<_> = may.iter().filter_map(|id| self.devices.get(id)).collect();
        let rules = self.rules();
        let named = rules.split("hdl").skip(1).map(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
            format!("hdl{digits}")
        });
        match named.filter(|name| name.len() == 15).find(|name| !names.contains(name)) {
            Some(name) => Err(format!("a rule for {name}, which nobody has")),
            None => Ok(()),
        }
    }

    fn rules(&self) -> String {
        let list = || Command::new("nft").args(["-s", "list", "ruleset"]).output();
        String::from_utf8(self.host.ns.run(list).unwrap().unwrap().stdout).unwrap()
    }

    /// All that is there, by names that are the same on every host.
    pub fn remains(&self) -> BTreeSet<String> {
        let mut socket = self.host.socket();
        let mut all = BTreeSet::new();
        let names: BTreeMap<u32, String> =
            link::list(&mut socket).unwrap().into_iter().map(|link| (link.index, link.name)).collect();
        all.extend(names.values().map(|name| format!("device {name}")));
        let addresses = addr::list(&mut socket, None).unwrap();
        all.extend(
            addresses
                .iter()
                .filter(|a| !a.ip.to_string().starts_with("fe80"))
                .map(|a| format!("address {}", a.ip)),
        );
        let routes = route::list(&mut socket, &Filter::default()).unwrap();
        let lasting =
            routes.iter().filter(|r| !["fe80", "ff00"].iter().any(|p| r.dst.to_string().starts_with(p)));
        all.extend(lasting.map(|r| format!("route {} {:?}", r.dst, r.link.and_then(|n| names.get(&n)))));
        all.extend(self.rules().lines().map(|line| format!("rule {}", line.trim())));
        let mut files = Vec::new();
        surroundings::files(Path::new(DISK), &mut files);
        let lasting = files.into_iter().filter(|file| !file.contains("/last_reserved_ip."));
        all.extend(lasting.map(|file| format!("file {file}")));
        all
    }
}
