//! A host, the plugins of one subject, and the little of a runtime that the specification's section 3 asks for.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Result, bail, ensure};
use heddle_netlink::addr::{self, Addr, Scope};
use heddle_netlink::link::{self, AddrGen, Change, Link, Operational, VethEnd};
use heddle_netlink::route::{self, Route};
use heddle_netlink::{NetNs, Socket, Watch};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::bench::{Answer, Host, Pod};
use super::list::List;
use super::subject::{Part, Subject, Who};
use super::traffic::DEADLINE;

/// Debian's package containernetworking-plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// A host on which a subject is checked.
pub struct Stage {
    pub host: Host,
    pub subject: Subject,
    /// Where a runtime looks for the plugins first.
    bin: TempDir,
    /// Pods that live as long as the stage.
    kept: Mutex<Vec<Pod>>,
}

/// A machine that is not the host, on a wire of its own.
#[derive(Debug)]
pub struct Outside {
    pub ns: NetNs,
}

/// The host's and the other machine's addresses on that wire.
pub const HOST4: &str = "192.0.2.1";
pub const OUTSIDE4: &str = "192.0.2.2";
pub const HOST6: &str = "2001:db8:1::1";
pub const OUTSIDE6: &str = "2001:db8:1::2";

impl Stage {
    pub fn new(subject: Subject) -> Self {
        let bin = tempfile::tempdir().unwrap();
        for (name, program) in [("heddle", "heddle"), ("heddle-ipam", "heddle-ipam"), ("loopback", "heddle")]
        {
            symlink(heddle_lab::bin(program), bin.path().join(name)).unwrap();
        }
        Self { host: Host::new(), subject, bin, kept: Mutex::default() }
    }

    pub fn ours(&self) -> bool {
        self.subject.who == Who::Ours
    }

    pub fn ptp(&self) -> bool {
        self.subject.part == Part::Ptp
    }

    /// The configuration that checks begin with: one IPv4 range, a default route.
    pub fn list(&self) -> List {
        let mut plugin = match (self.subject.part, self.subject.who) {
            (Part::Ptp, Who::Ours) => json!({"type": "heddle", "mode": "ptp"}),
            (Part::Ptp, Who::Theirs) => json!({"type": "ptp"}),
            (Part::Bridge, Who::Ours) => json!({"type": "heddle", "mode": "bridge"}),
            (Part::Bridge, Who::Theirs) => json!({"type": "bridge"}),
            (Part::Loopback, _) => json!({"type": "loopback"}),
            (Part::Ipam, _) => json!({"type": "any"}),
        };
        if self.ours() && self.subject.part != Part::Ipam {
            plugin["runDir"] = json!(self.bin.path().join("run"));
        }
        if self.subject.part == Part::Bridge {
            plugin["bridge"] = json!("br0");
            plugin["isGateway"] = json!(true);
        }
        if self.subject.part != Part::Loopback {
            plugin["ipam"] = json!({
                "type": self.ipam(), "dataDir": self.host.data_dir(),
                "ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
            });
        }
        List { version: "1.0.0".into(), name: "net".into(), plugins: vec![plugin], runtime: Map::new() }
    }

    /// The same with an IPv6 range besides.
    pub fn dual(&self) -> List {
        let mut list = self.list();
        let ipam = &mut list.plugins[0]["ipam"];
        ipam["ranges"] = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]]);
        ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        list
    }

    fn ipam(&self) -> &'static str {
        if self.ours() && self.subject.part == Part::Ipam { "heddle-ipam" } else { "host-local" }
    }

    /// `CNI_PATH`.
    pub fn path(&self) -> String {
        let own = self.bin.path().display();
        if self.ours() { format!("{own}:{REFERENCE}") } else { format!("{REFERENCE}:{own}") }
    }

    /// A directory of this stage that comes first in `CNI_PATH` for ours, and last for theirs.
    pub fn bin(&self) -> &Path {
        self.bin.path()
    }

    /// Where a runtime finds the plugin of `conf`.
    fn program(&self, conf: &Value) -> PathBuf {
        let kind = match self.subject.part {
            Part::Ipam => conf["ipam"]["type"].as_str().unwrap_or(self.ipam()),
            _ => conf["type"].as_str().unwrap(),
        };
        let here = self.bin.path().join(kind);
        if self.ours() && here.exists() { here } else { Path::new(REFERENCE).join(kind) }
    }

    /// `CNI_IFNAME` where a check does not say otherwise.
    pub fn ifname(&self) -> &'static str {
        if self.subject.part == Part::Loopback { "lo" } else { "eth0" }
    }

    pub fn variables(&self, pod: &Pod, command: &str, ifname: &str) -> Vec<(String, String)> {
        [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &pod.path()),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", &self.path()),
            // The reference plugins run iptables and nft.
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Runs the plugin of `conf` with exactly these variables and this input.
    pub fn raw(&self, conf: &Value, variables: &[(String, String)], input: &[u8]) -> Answer {
        self.host.run(&mut Command::new(self.program(conf)), variables, input)
    }

    /// Runs one plugin with its finished configuration.
    pub fn plugin(&self, pod: &Pod, command: &str, ifname: &str, conf: &Value) -> Answer {
        self.raw(conf, &self.variables(pod, command, ifname), conf.to_string().as_bytes())
    }

    /// As [`Self::plugin`] with `CNI_ARGS`.
    pub fn with_args(&self, pod: &Pod, command: &str, list: &List, args: &str) -> Answer {
        let conf = list.conf(0, None);
        let mut variables = self.variables(pod, command, self.ifname());
        variables.push(("CNI_ARGS".into(), args.into()));
        self.raw(&conf, &variables, conf.to_string().as_bytes())
    }

    /// ADD of all plugins in order; the answer of the last, or of the first that failed.
    pub fn try_add_as(&self, pod: &Pod, ifname: &str, list: &List) -> Answer {
        let mut answer: Option<Answer> = None;
        for n in 0..list.plugins.len() {
            let conf = list.conf(n, answer.as_ref().map(|answer| &answer.json));
            let next = self.plugin(pod, "ADD", ifname, &conf);
            let failed = !next.success;
            answer = Some(next);
            if failed {
                break;
            }
        }
        answer.unwrap()
    }

    pub fn try_add(&self, pod: &Pod, list: &List) -> Answer {
        self.try_add_as(pod, self.ifname(), list)
    }

    /// ADD, which must succeed; the result.
    pub fn add(&self, pod: &Pod, list: &List) -> Result<Value> {
        self.add_as(pod, self.ifname(), list)
    }

    pub fn add_as(&self, pod: &Pod, ifname: &str, list: &List) -> Result<Value> {
        let answer = self.try_add_as(pod, ifname, list);
        ensure!(answer.success, "ADD fails: {}", said(&answer));
        Ok(answer.json)
    }

    /// ADD for a pod that stays.
    pub fn add_one(&self, id: &str, list: &List) -> Result<Value> {
        let pod = Pod::new(id);
        let result = self.add(&pod, list);
        self.kept.lock().unwrap().push(pod);
        result
    }

    /// Waits until no address of these namespaces is looked for elsewhere any more (RFC 4862, section 5.4).
    pub fn await_addresses(&self, pods: &[&Pod]) -> Result<()> {
        for ns in pods.iter().map(|pod| &pod.ns).chain([&self.host.ns]) {
            let mut watch = ns.run(Watch::open).unwrap().unwrap();
            let mut socket = Socket::open_in(ns).unwrap();
            let met = watch.until(DEADLINE, || {
                Ok(addr::list(&mut socket, None)?.iter().all(|a| !a.tentative || a.scope != Scope::Universe))
            });
            ensure!(met.unwrap(), "an address stays tentative");
        }
        Ok(())
    }

    /// DEL of all plugins in reverse order.
    pub fn try_del(&self, pod: &Pod, list: &List, previous: Option<&Value>) -> Answer {
        self.try_del_as(pod, self.ifname(), list, previous)
    }

    pub fn try_del_as(&self, pod: &Pod, ifname: &str, list: &List, previous: Option<&Value>) -> Answer {
        let mut answer = None;
        for n in (0..list.plugins.len()).rev() {
            let next = self.plugin(pod, "DEL", ifname, &list.conf(n, previous));
            let failed = !next.success;
            answer = Some(next);
            if failed {
                break;
            }
        }
        answer.unwrap()
    }

    /// DEL, which must succeed and say nothing.
    pub fn del(&self, pod: &Pod, list: &List, previous: Option<&Value>) -> Result<()> {
        let answer = self.try_del(pod, list, previous);
        ensure!(answer.success, "DEL fails: {}", said(&answer));
        ensure!(answer.stdout.trim().is_empty(), "DEL writes to standard output");
        Ok(())
    }

    /// CHECK of all plugins in order, as far as they succeed.
    pub fn check(&self, pod: &Pod, list: &List, result: &Value) -> Answer {
        let mut answer = None;
        for n in 0..list.plugins.len() {
            let next = self.plugin(pod, "CHECK", self.ifname(), &list.conf(n, Some(result)));
            let failed = !next.success;
            answer = Some(next);
            if failed {
                break;
            }
        }
        answer.unwrap()
    }

    /// STATUS of the first plugin.
    pub fn status(&self, list: &List) -> Answer {
        self.command("STATUS", &list.conf(0, None))
    }

    /// GC of the first plugin.
    pub fn gc(&self, list: &List, valid: &[(&str, &str)]) -> Answer {
        let mut conf = list.conf(0, None);
        let attachments = valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}));
        conf["cni.dev/valid-attachments"] = attachments.collect();
        self.command("GC", &conf)
    }

    /// ADD of one plugin whose answer nobody reads: whether it ends with success.
    pub fn unheard(&self, pod: &Pod, conf: &Value) -> bool {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(self.program(conf));
        command.env_clear().envs(self.variables(pod, "ADD", self.ifname()));
        command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::null());
        let mut child = self.host.ns.run(|| command.spawn()).unwrap().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child.wait().unwrap().success()
    }

    /// With port mappings: a capability of ours, another plugin of theirs.
    pub fn with_ports(&self, mut list: List, mappings: Value) -> List {
        if self.ours() {
            return list.capability("portMappings", mappings);
        }
        list.plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}));
        list.runtime.insert("portMappings".into(), mappings);
        list
    }

    /// A command that is about no container.
    pub fn command(&self, command: &str, conf: &Value) -> Answer {
        let variables = [
            ("CNI_COMMAND".to_owned(), command.to_owned()),
            ("CNI_PATH".to_owned(), self.path()),
            ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ];
        self.raw(conf, &variables, conf.to_string().as_bytes())
    }

    /// A pod comes and goes, so that what the first one of a host leaves for all is there.
    pub fn settle(&self, list: &List) -> Result<()> {
        let first = Pod::new("first");
        let result = self.add(&first, list)?;
        self.del(&first, list, Some(&result))
    }

    /// All that can be left behind: links, addresses, routes, neighbours, leases, rules with their sets, queueing.
    pub fn state(&self) -> BTreeSet<String> {
        let mut state = self.host.state();
        // Rules have numbers, which change; here they have their text.
        state.retain(|line| !line.starts_with("rule ") && !line.ends_with("/.heddle/turns"));
        for command in ["nft -s list ruleset", "tc qdisc show"] {
            let mut words = command.split(' ');
            let mut command = Command::new(words.next().unwrap());
            let output = self.host.ns.run(|| command.args(words).output()).unwrap().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            state.extend(text.lines().map(|line| line.trim().to_owned()));
        }
        state
    }

    /// The leases, without what else is kept beside them.
    pub fn leases(&self) -> Vec<String> {
        let leases = self.host.leases().into_iter();
        let addresses = leases.filter_map(|path| path.rsplit_once('/').map(|(_, name)| name.to_owned()));
        addresses.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    /// Whether nothing of a pod is left: what is there more than `before`.
    pub fn nothing_more_than(&self, before: &BTreeSet<String>) -> Result<()> {
        let now = self.state();
        match now.difference(before).next() {
            None => Ok(()),
            Some(left) => bail!("left behind: {left}"),
        }
    }

    /// Wires another machine to the host, which knows its way to pods.
    pub fn outside(&self) -> Outside {
        let ns = NetNs::create().unwrap();
        let mut host = self.host.socket();
        let (near, far) = (
            VethEnd { name: "up0", ..VethEnd::default() },
            VethEnd { name: "eth0", ns: Some(&ns), ..VethEnd::default() },
        );
        link::create_veth(&mut host, &near, &far).unwrap();
        let mut far = Socket::open_in(&ns).unwrap();
        for (socket, name, own) in [
            (&mut host, "up0", [HOST4, HOST6, "fe80::1"]),
            (&mut far, "eth0", [OUTSIDE4, OUTSIDE6, "fe80::2"]),
        ] {
            let index = link::by_name(socket, name).unwrap().unwrap().index;
            // No link-local address that would be looked for elsewhere first, for a second or two.
            let quiet = Change { addr_gen: Some(AddrGen::None), ..Change::default() };
            link::change(socket, index, &quiet).unwrap();
            link::set_up(socket, index).unwrap();
            for ip in own {
                let prefix = if ip.contains(':') { 64 } else { 24 };
                let ip = format!("{ip}/{prefix}").parse().unwrap();
                addr::add(socket, &Addr { nodad: true, ..Addr::new(index, ip) }).unwrap();
            }
        }
        let index = link::by_name(&mut far, "eth0").unwrap().unwrap().index;
        for (dst, via) in [("10.0.0.0/8", HOST4), ("fd00::/8", HOST6)] {
            let way =
                Route { gateway: via.parse().ok(), link: Some(index), ..Route::new(dst.parse().unwrap()) };
            route::add(&mut far, &way).unwrap();
        }
        // Until the kernel has seen the carrier of both ends, packets are lost.
        let up = |socket: &mut Socket, name| -> heddle_netlink::Result<bool> {
            Ok(link::by_name(socket, name)?.is_some_and(|link| link.operational == Operational::Up))
        };
        let mut inside = self.host.ns.run(Watch::open).unwrap().unwrap();
        let mut beyond = ns.run(Watch::open).unwrap().unwrap();
        assert!(inside.until(DEADLINE, || up(&mut host, "up0")).unwrap());
        assert!(beyond.until(DEADLINE, || up(&mut far, "eth0")).unwrap());
        Outside { ns }
    }

    /// The host's end of a pod's pair, by the result.
    pub fn host_side(&self, result: &Value) -> Result<Link> {
        let mut socket = self.host.socket();
        let told = result["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
        for one in told.iter().filter(|one| one["sandbox"].as_str().is_none_or(str::is_empty)) {
            let link = link::by_name(&mut socket, one["name"].as_str().unwrap()).unwrap();
            if let Some(link) = link.filter(|link| link.kind.as_deref() == Some("veth")) {
                return Ok(link);
            }
        }
        bail!("the result tells no host side")
    }

    /// Waits until the host's end of a pod's pair is gone.
    pub fn await_end(&self, result: &Value) -> Result<()> {
        let Ok(near) = self.host_side(result) else { return Ok(()) };
        let mut watch = self.host.ns.run(Watch::open).unwrap().unwrap();
        let mut socket = self.host.socket();
        let gone = watch.until(DEADLINE, || Ok(link::by_index(&mut socket, near.index)?.is_none())).unwrap();
        ensure!(gone, "the host side stays");
        Ok(())
    }

    /// `text` without the names that are others at every run: paths of this run, random names of devices.
    pub fn without_names(&self, text: &str) -> String {
        let data = self.host.data_dir();
        let own = data.parent().unwrap().display().to_string();
        let text = text.replace(&own, "DIR").replace(&self.bin.path().display().to_string(), "BIN");
        text.split(' ').map(steady).collect::<Vec<_>>().join(" ")
    }
}

/// A word without what is accidental in it.
fn steady(word: &str) -> String {
    let mut word = word.to_owned();
    let own = format!("/proc/{}/fd/", std::process::id());
    while let Some(start) = word.find(&own) {
        let digits = word[start + own.len()..].bytes().take_while(u8::is_ascii_digit).count();
        word.replace_range(start..start + own.len() + digits, "NETNS");
    }
    if let Some(start) = word.find("veth") {
        let digits = word[start + 4..].bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits == 8 {
            word.replace_range(start + 4..start + 12, "*");
        }
    }
    word
}

/// What an answer says, for a person.
pub fn said(answer: &Answer) -> String {
    match answer.msg() {
        "" => format!("no error object ({})", answer.stderr.lines().next().unwrap_or_default()),
        msg => msg.to_owned(),
    }
}

/// The addresses of a result, without prefix lengths.
pub fn ips(result: &Value) -> Vec<IpAddr> {
    let list = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap())
        .collect()
}

/// The device `name` of a pod.
pub fn device(pod: &Pod, name: &str) -> Result<Link> {
    match link::by_name(&mut pod.socket(), name).unwrap() {
        Some(link) => Ok(link),
        None => bail!("the pod has no interface {name}"),
    }
}
