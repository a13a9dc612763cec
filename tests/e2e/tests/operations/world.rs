//! A host on which operations are carried out, and what is looked at after each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use heddle_lab::trace::{self, Fate};
use heddle_netlink::route::{self, Filter};
use heddle_netlink::{Watch, addr, link};
use nix::errno::Errno as Number;
use nix::libc;
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};
use super::model::{Holds, Model, Theirs};
use super::op::{Errno, Id, NETS, Op, PODS, THEIRS};
use super::surroundings::{self, DISK};

/// Debian's package containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni/host-local";
/// Pods that fit into a network: 10.N.0.2 to 10.N.0.6.
const ROOM: usize = 5;
/// The rules are read as text, which takes longer than an operation.
const RULES_EVERY: usize = 25;

/// How often what came out.
pub type Counts = Mutex<BTreeMap<String, usize>>;

pub struct World {
    host: Host,
    model: Model,
    /// The living namespaces.
    pods: BTreeMap<u8, Pod>,
    /// The host's devices of our interfaces, as far as they are known.
    devices: BTreeMap<Id, String>,
    boot: u64,
    steps: usize,
}

/// How a command ended.
struct Ended {
    answer: Answer,
    killed: bool,
    /// A call was made to fail.
    failed: bool,
}

/// When a command is disturbed, and how.
#[derive(Clone, Copy)]
enum Disturbance {
    None,
    Kill(u16),
    Fail(u16, Errno),
}

type Outcome = Result<(), String>;

impl World {
    /// Plays these on a fresh host, and takes all away in the end.
    pub fn play(ops: &[Op], counts: &Counts) -> Outcome {
        let mut world = Self::new();
        let before = world.settled()?;
        for (n, op) in ops.iter().enumerate() {
            let what = world.step(op).map_err(|why| format!("{n}: {op:?}: {why}"))?;
            *counts.lock().unwrap().entry(format!("{} {what}", op.kind())).or_default() += 1;
            world.invariants().map_err(|why| format!("{n}: after {op:?} ({what}): {why}"))?;
        }
        world.end(&before).map_err(|why| format!("in the end: {why}"))
    }

    fn new() -> Self {
        surroundings::empty();
        surroundings::set_boot(0);
        let (model, boot) = (Model::default(), 0);
        Self { host: Host::new(), model, pods: BTreeMap::new(), devices: BTreeMap::new(), boot, steps: 0 }
    }

    /// The configuration of a network for one pod.
    fn conf_for(id: Id) -> Value {
        let mut conf = Self::conf(id.net);
        if id.net == 0 {
            let port = 20_000 + u16::from(id.pod);
            conf["runtimeConfig"]["portMappings"] =
                json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
        } else {
            conf["runtimeConfig"]["bandwidth"] = json!({"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000});
        }
        conf
    }

    /// The configuration of a network.
    fn conf(net: u8) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": format!("net{net}"), "type": "heddle", "mtu": 1450,
            "runDir": format!("{DISK}/run"),
            "ipam": {
                "type": "host-local", "dataDir": format!("{DISK}/leases"),
                "ranges": [[{"subnet": format!("10.{net}.0.0/29")}], [{"subnet": format!("fd0{net}::/64")}]],
                "routes": []
            },
            "ipMasq": true, "capabilities": {"portMappings": true, "bandwidth": true}
        });
        if net == 0 {
            conf["mode"] = json!("ptp");
        } else {
            conf["mode"] = json!("bridge");
            conf["bridge"] = json!("br0");
            conf["isGateway"] = json!(true);
            conf["macspoofchk"] = json!(true);
        }
        conf
    }

    fn ifname(id: Id) -> String {
        format!("eth{}", id.net)
    }

    fn container(pod: u8) -> String {
        format!("pod-{pod}")
    }

    /// The pod with its namespace, which it is given if it has none.
    fn pod(&mut self, pod: u8) -> &Pod {
        self.pods.entry(pod).or_insert_with(|| Pod::new(&Self::container(pod)))
    }

    fn variables(&self, command: &str, id: Id) -> Vec<(String, String)> {
        let path = self.pods.get(&id.pod).map(Pod::path).unwrap_or_default();
        [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", Self::container(id.pod)),
            ("CNI_NETNS", path),
            ("CNI_IFNAME", Self::ifname(id)),
            ("CNI_PATH", "/usr/lib/cni".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Runs the plugin.
    fn call(&self, command: &str, id: Id, conf: &Value, disturbance: Disturbance) -> Result<Ended, String> {
        let variables = self.variables(command, id);
        let input = conf.to_string();
        let (at, fate) = match disturbance {
            Disturbance::None => {
                let answer = self.host.raw(&variables, input.as_bytes());
                return Self::sane(Ended { answer, killed: false, failed: false });
            }
            Disturbance::Kill(at) => (at, Fate::Kills),
            Disturbance::Fail(at, errno) => (at, Fate::Fails(number(errno))),
        };
        let mut program = Command::new(heddle_lab::bin("heddle"));
        program.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut done = false;
        let run = self.host.ns.run(|| {
            trace::trace(&mut program, input.as_bytes(), |call| {
                if done {
                    Fate::PassesAsTheRest
                } else if call.index < at.into()
                    || (matches!(fate, Fate::Fails(_)) && never_fails(call.number))
                {
                    Fate::Passes
                } else {
                    done = true;
                    fate
                }
            })
        });
        let run = run.unwrap().map_err(|error| format!("cannot follow the plugin: {error}"))?;
        let stdout = String::from_utf8(run.stdout).unwrap();
        let answer = Answer {
            success: run.status.success(),
            json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
            stdout,
            stderr: String::from_utf8_lossy(&run.stderr).into_owned(),
        };
        let killed = run.status.signal().is_some();
        Self::sane(Ended { answer, killed, failed: done && !killed })
    }

    fn sane(ended: Ended) -> Result<Ended, String> {
        if ended.answer.stderr.contains("panicked") {
            return Err(format!("it panicked: {}", ended.answer.stderr));
        }
        Ok(ended)
    }

    /// Carries one out, and says what came of it.
    fn step(&mut self, op: &Op) -> Result<&'static str, String> {
        use Disturbance::{Fail, Kill, None};
        self.steps += 1;
        match *op {
            Op::Add(id) => self.add(id, None),
            Op::KillAdd(id, at) => self.add(id, Kill(at)),
            Op::FailAdd(id, at, errno) => self.add(id, Fail(at, errno)),
            Op::Del(id) => self.del(id, None),
            Op::KillDel(id, at) => self.del(id, Kill(at)),
            Op::FailDel(id, at, errno) => self.del(id, Fail(at, errno)),
            Op::Gc { net, valid } => self.gc(net, valid, None),
            Op::KillGc { net, valid, at } => self.gc(net, valid, Kill(at)),
            Op::FailGc { net, valid, at, errno } => self.gc(net, valid, Fail(at, errno)),
            Op::Check(id) => self.check(id),
            Op::Status { net } => self.status(net),
            Op::Fill => {
                surroundings::fill();
                self.model.full = true;
                Ok("")
            }
            Op::Free => {
                surroundings::free();
                self.model.full = false;
                Ok("")
            }
            Op::Reboot => Ok(self.reboot()),
            Op::Die { pod } => {
                for net in 0..NETS {
                    self.model.doubt(Id { net, pod });
                }
                Ok(if self.pods.remove(&pod).is_some() { "of a pod" } else { "of nobody" })
            }
            Op::Unplug(id) => Ok(self.unplug(id)),
            Op::TheirAdd { pod } => self.their_add(pod),
            Op::TheirDel { pod } => self.their_del(pod),
        }
    }

    fn add(&mut self, id: Id, disturbance: Disturbance) -> Result<&'static str, String> {
        self.pod(id.pod);
        let taken = self.leases(id.net)?.keys().filter(|ip| ip.is_ipv4()).count();
        let stale = self.model.is_stale(id.net);
        let ended = self.call("ADD", id, &Self::conf_for(id), disturbance)?;
        let before = self.model.holds(id).clone();
        let known = matches!(before, Holds::All(_));
        if ended.killed {
            if !known {
                self.model.set(id, Holds::Perhaps);
            }
            return Ok("killed");
        }
        let answer = ended.answer;
        if answer.success {
            if let Holds::All(result) = &before
                && result["ips"] != answer.json["ips"]
            {
                return Err(format!("a second ADD gives other addresses: {answer:?}"));
            }
            self.model.swept(id.net);
            let device = answer.json["interfaces"].as_array().into_iter().flatten();
            let device = device.filter_map(|one| one["name"].as_str()).find(|name| name.starts_with("hdl"));
            self.devices.insert(id, device.ok_or_else(|| format!("no host side: {answer:?}"))?.to_owned());
            self.model.set(id, Holds::All(answer.json));
            return Ok("succeeded");
        }
        let expected = match answer.code() {
            102 => known || before == Holds::Perhaps,
            100 => taken >= ROOM && !stale,
            _ => self.model.full,
        };
        if !expected && !ended.failed {
            return Err(format!("it fails ({taken} addresses taken, it held {before:?}): {answer:?}"));
        }
        Ok(match answer.code() {
            _ if ended.failed => "failed by a call",
            100 => "found no address",
            _ => "failed",
        })
    }

    fn del(&mut self, id: Id, disturbance: Disturbance) -> Result<&'static str, String> {
        let ended = self.call("DEL", id, &Self::conf_for(id), disturbance)?;
        if ended.killed {
            self.model.doubt(id);
            return Ok("killed");
        }
        if ended.answer.success {
            self.model.swept(id.net);
            self.model.set(id, Holds::Nothing);
            if let Some(pod) = self.pods.get(&id.pod)
                && link::by_name(&mut pod.socket(), &Self::ifname(id)).unwrap().is_some()
            {
                return Err("the pod still has its interface".into());
            }
            return Ok("succeeded");
        }
        self.model.doubt(id);
        if ended.failed {
            return Ok("failed by a call");
        }
        if self.model.full && self.model.is_stale(id.net) {
            return Ok("failed");
        }
        Err(format!("it fails: {:?}", ended.answer))
    }

    fn gc(&mut self, net: u8, mask: u16, disturbance: Disturbance) -> Result<&'static str, String> {
        let mine: Vec<Id> = (0..PODS).map(|pod| Id { net, pod }).collect();
        let is_valid = |bit: u8| mask & (1 << bit) != 0;
        let mut valid = vec![json!({"containerID": "unknown", "ifname": "eth0"})];
        for id in mine.iter().filter(|id| is_valid(id.pod)) {
            valid.push(json!({"containerID": Self::container(id.pod), "ifname": Self::ifname(*id)}));
        }
        for pod in (0..THEIRS).filter(|pod| is_valid(8 + pod)) {
            valid.push(json!({"containerID": format!("their-{pod}"), "ifname": "eth0"}));
        }
        let mut conf = Self::conf(net);
        conf["cni.dev/valid-attachments"] = json!(valid);
        let ended = self.call("GC", Id { net, pod: 0 }, &conf, disturbance)?;
        let stale = self.model.is_stale(net);
        let certain = !ended.killed && ended.answer.success;
        if certain {
            self.model.swept(net);
        }
        for id in mine.into_iter().filter(|id| !is_valid(id.pod)) {
            if certain {
                self.model.set(id, Holds::Nothing);
            } else {
                self.model.doubt(id);
            }
        }
        for pod in (0..THEIRS).filter(|pod| net == 0 && !is_valid(8 + pod)) {
            if certain {
                self.model.theirs.insert(pod, Theirs::Nothing);
            } else if *self.model.their(pod) != Theirs::Nothing {
                self.model.theirs.insert(pod, Theirs::Perhaps);
            }
        }
        let expected = certain || ended.killed || ended.failed || (self.model.full && stale);
        if !expected {
            return Err(format!("it fails: {:?}", ended.answer));
        }
        Ok(match ended {
            _ if certain => "succeeded",
            Ended { killed: true, .. } => "killed",
            Ended { failed: true, .. } => "failed by a call",
            _ => "failed",
        })
    }

    fn check(&mut self, id: Id) -> Result<&'static str, String> {
        let mut conf = Self::conf_for(id);
        let known = match self.model.holds(id) {
            Holds::All(result) => {
                conf["prevResult"] = result.clone();
                true
            }
            _ => {
                conf["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": []});
                false
            }
        };
        let nothing = *self.model.holds(id) == Holds::Nothing;
        let answer = self.call("CHECK", id, &conf, Disturbance::None)?.answer;
        if known && !answer.success {
            return Err(format!("it fails: {answer:?}"));
        }
        if nothing && answer.success {
            return Err("it succeeds where nothing is attached".into());
        }
        Ok(if answer.success { "succeeded" } else { "failed" })
    }

    fn status(&mut self, net: u8) -> Result<&'static str, String> {
        let taken = self.leases(net)?.keys().filter(|ip| ip.is_ipv4()).count();
        let answer = self.call("STATUS", Id { net, pod: 0 }, &Self::conf(net), Disturbance::None)?.answer;
        if !answer.success && answer.code() != 50 {
            return Err(format!("it fails with another code than 50: {answer:?}"));
        }
        if !answer.success && taken < ROOM && !self.model.full {
            return Err(format!("{taken} addresses are taken: {answer:?}"));
        }
        Ok(if answer.success { "succeeded" } else { "failed" })
    }

    fn reboot(&mut self) -> &'static str {
        self.pods.clear();
        self.host = Host::new();
        self.boot += 1;
        surroundings::set_boot(self.boot);
        drop(fs::remove_dir_all(Path::new(DISK).join("run")));
        self.model.reboot();
        ""
    }

    fn unplug(&mut self, id: Id) -> &'static str {
        let Some(device) = self.devices.get(&id) else { return "of nobody" };
        let gone = link::delete_by_name(&mut self.host.socket(), device);
        if gone.is_err() {
            return "of nobody";
        }
        self.model.doubt(id);
        "of a pod"
    }

    /// Runs the reference plugin for one of its own pods, in network 0.
    fn theirs(&self, command: &str, pod: u8) -> Answer {
        let mut conf = Self::conf(0);
        conf["cniVersion"] = json!("1.0.0");
        let variables = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", format!("their-{pod}")),
            ("CNI_NETNS", "/nowhere".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/usr/lib/cni".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        self.host.run(&mut Command::new(REFERENCE), &variables, conf.to_string().as_bytes())
    }

    fn their_add(&mut self, pod: u8) -> Result<&'static str, String> {
        // It leaves an empty lease for ever where the disk is full: that is known, and not our business.
        if self.model.full {
            return Ok("not tried");
        }
        let taken = self.leases(0)?.keys().filter(|ip| ip.is_ipv4()).count();
        let answer = self.theirs("ADD", pod);
        if answer.success {
            let ips = answer.ips().iter().map(|ip| ip.parse().unwrap()).collect();
            self.model.theirs.insert(pod, Theirs::Leased(ips));
            return Ok("succeeded");
        }
        if taken < ROOM && *self.model.their(pod) == Theirs::Nothing {
            return Err(format!("it fails, {taken} addresses are taken: {answer:?}"));
        }
        Ok("failed")
    }

    fn their_del(&mut self, pod: u8) -> Result<&'static str, String> {
        let answer = self.theirs("DEL", pod);
        if !answer.success {
            return Err(format!("it fails: {answer:?}"));
        }
        self.model.theirs.insert(pod, Theirs::Nothing);
        Ok("succeeded")
    }

    /// The leases of a network: address, and who has it.
    fn leases(&self, net: u8) -> Result<BTreeMap<IpAddr, String>, String> {
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
    fn invariants(&self) -> Outcome {
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
    fn check_rules(&self) -> Outcome {
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

    /// All that is there after a pod of each network came and went.
    fn settled(&mut self) -> Result<BTreeSet<String>, String> {
        for net in 0..NETS {
            let id = Id { net, pod: 0 };
            self.add(id, Disturbance::None)?;
            self.del(id, Disturbance::None)?;
        }
        self.pods.clear();
        Ok(self.remains())
    }

    fn remains(&self) -> BTreeSet<String> {
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

    /// Takes all away, as a runtime would that knows of nothing any more: nothing may be left.
    fn end(&mut self, before: &BTreeSet<String>) -> Outcome {
        surroundings::free();
        self.model.full = false;
        for net in 0..NETS {
            self.gc(net, 0, Disturbance::None)?;
        }
        self.invariants()?;
        for pod in 0..THEIRS {
            self.their_del(pod)?;
        }
        self.settled()?;
        self.check_rules()?;
        // The kernel takes a dead namespace's devices away when it finds the time.
        let mut watch = self.host.ns.run(Watch::open).unwrap().unwrap();
        drop(watch.until(Duration::from_secs(10), || Ok(self.remains() == *before)));
        let now = self.remains();
        match (now.difference(before).next(), before.difference(&now).next()) {
            (None, None) => Ok(()),
            (left, lost) => Err(format!("left {left:?}, lost {lost:?}")),
        }
    }
}

fn number(errno: Errno) -> Number {
    match errno {
        Errno::NoSpace => Number::ENOSPC,
        Errno::Io => Number::EIO,
        Errno::NoMemory => Number::ENOMEM,
        Errno::TooManyFiles => Number::EMFILE,
        Errno::ReadOnly => Number::EROFS,
    }
}

/// Calls of the runtime library: they cannot fail, or nothing can be done then.
fn never_fails(call: libc::c_long) -> bool {
    const NEVER: [libc::c_long; 24] = [
        libc::SYS_brk,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prctl,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_futex,
        libc::SYS_sched_getaffinity,
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_mprotect,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_close,
    ];
    NEVER.contains(&call)
}
