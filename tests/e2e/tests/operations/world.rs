//! A host on which operations are carried out, and what each has to come to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use heddle_netlink::{Watch, link};
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};
use super::model::{Holds, Model, Theirs};
use super::op::{Id, NETS, Op, PODS, THEIRS};
use super::program::{self, Disturbance, Ended};
use super::surroundings::{self, DISK};

/// Debian's package containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni/host-local";
/// Pods that fit into a network: 10.N.0.2 to 10.N.0.6.
const ROOM: usize = 5;

/// How often what came out.
pub type Counts = Mutex<BTreeMap<String, usize>>;

pub struct World {
    pub(super) host: Host,
    pub(super) model: Model,
    /// The living namespaces.
    pub(super) pods: BTreeMap<u8, Pod>,
    /// The host's devices of our interfaces, as far as they are known.
    pub(super) devices: BTreeMap<Id, String>,
    boot: u64,
    pub(super) steps: usize,
}

pub type Outcome = Result<(), String>;

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

    pub(super) fn ifname(id: Id) -> String {
        format!("eth{}", id.net)
    }

    pub(super) fn container(pod: u8) -> String {
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
        program::run(&self.host, &self.variables(command, id), conf, disturbance)
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
        if ended.failed && self.model.full && before == Holds::Nothing {
            // Two faults at once: the full disk may have been the first, and the call one of taking back.
            self.model.set(id, Holds::Perhaps);
        }
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
