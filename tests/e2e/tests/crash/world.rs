//! A host with a pod that lives through everything, a pod to which it happens, and what must be left at the end.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use heddle_lab::trace::{self, Call, Fate};
use heddle_netlink::{addr, link};
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};

pub struct World {
    pub host: Host,
    pub conf: Value,
    /// To whom it happens.
    pub pod: Pod,
    /// Who must not notice.
    pub other: Pod,
    /// What it was answered.
    other_result: Answer,
    /// What is there without `pod`.
    before: BTreeSet<String>,
}

/// The configuration for a pod that is not the one to whom it happens: a port of the node is one pod's.
fn of(pod: &Pod, conf: &Value) -> Value {
    let mut conf = conf.clone();
    let ports = conf.pointer_mut("/runtimeConfig/portMappings").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        port["hostPort"] = json!(9000 + pod.id.len());
    }
    conf
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    pub answer: Answer,
    pub status: ExitStatus,
}

impl Outcome {
    pub fn killed(&self) -> bool {
        self.status.signal() == Some(nix::libc::SIGKILL)
    }
}

impl World {
    /// Pods in a mode.
    pub fn new(conf: impl Fn(&Host) -> Value) -> Self {
        Self::prepared(|_| {}, conf)
    }

    /// The same on a host that something is done to first.
    pub fn prepared(first: impl Fn(&Host), conf: impl Fn(&Host) -> Value) -> Self {
        let host = Host::new();
        first(&host);
        let conf = conf(&host);
        let (pod, other) = (Pod::new("abc"), Pod::new("other"));
        host.add(&pod, &conf);
        let other_result = host.add(&other, &of(&other, &conf));
        host.del(&pod, &conf);
        let mut world = Self { host, conf, pod, other, other_result, before: BTreeSet::new() };
        world.before = world.state();
        world
    }

    pub fn ptp() -> Self {
        Self::new(Host::conf)
    }

    pub fn bridge() -> Self {
        Self::new(|host| {
            let mut conf = host.conf();
            conf["mode"] = json!("bridge");
            conf["bridge"] = json!("br0");
            conf["isDefaultGateway"] = json!(true);
            conf["ipam"]["routes"] = json!([]);
            conf
        })
    }

    /// With everything that the plugin does beside interfaces and addresses: host ports, limits, tuning.
    pub fn equipped() -> Self {
        Self::new(|host| {
            let mut conf = host.conf();
            conf["runDir"] = json!(host.data_dir().with_file_name("run"));
            conf["runtimeConfig"] = json!({
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                    {"hostPort": 8080, "containerPort": 53, "protocol": "udp", "hostIP": "0.0.0.0"},
                ],
                "bandwidth": {"ingressRate": 50_000_000, "egressRate": 50_000_000},
            });
            conf["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
            conf["promisc"] = json!(true);
            conf
        })
    }

    /// All that a pod can leave behind on the host.
    pub fn state(&self) -> BTreeSet<String> {
        let mut state = self.host.state();
        for kind in ["ports", "ipvlan"] {
            if let Ok(records) = std::fs::read_dir(self.host.data_dir().with_file_name("run").join(kind)) {
                state.extend(records.map(|record| format!("record {:?}", record.unwrap().file_name())));
            }
        }
        let rules = self.host.ns.run(|| Command::new("nft").args(["-s", "list", "ruleset"]).output());
        let rules = String::from_utf8(rules.unwrap().unwrap().stdout).unwrap();
        let mut table = "";
        for line in rules.lines() {
            if line.starts_with("table") {
                table = line;
            }
            state.insert(format!("nft {table} {line}"));
        }
        state
    }

    /// Nothing of the pod is left, and the other one is as it was.
    pub fn assert_clean(&self, what: &str) {
        self.assert_host_clean(what);
        let links: Vec<_> =
            link::list(&mut self.pod.socket()).unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo"], "{what}: left in the pod");
    }

    pub fn assert_host_clean(&self, what: &str) {
        let now = self.state();
        let more: Vec<_> = now.difference(&self.before).collect();
        let less: Vec<_> = self.before.difference(&now).collect();
        assert!(more.is_empty() && less.is_empty(), "{what}: left {more:?}, lost {less:?}");
    }

    /// The other pod has what it had.
    pub fn assert_other_lives(&self) {
        assert_eq!(self.ips_of(&self.other), self.other_result.ips().into_iter().collect());
        let mut conf = of(&self.other, &self.conf);
        conf["prevResult"] = self.other_result.json.clone();
        let answer = self.host.call(&self.other, "CHECK", &conf);
        assert!(answer.success, "{answer:?}");
    }

    /// The addresses that the pod's interface has, whatever the leases say.
    pub fn ips_of(&self, pod: &Pod) -> BTreeSet<String> {
        let mut socket = pod.socket();
        let Some(link) = link::by_name(&mut socket, "eth0").unwrap() else { return BTreeSet::new() };
        let all = addr::list(&mut socket, Some(link.index)).unwrap();
        let lasting = all.iter().map(|addr| addr.ip.ip().to_string()).filter(|ip| !ip.starts_with("fe80"));
        lasting.collect()
    }

    /// A pod that comes now gets addresses that nobody has.
    pub fn assert_no_address_twice(&self, what: &str) {
        let late = Pod::new("late");
        let mut held = self.ips_of(&self.pod);
        held.extend(self.other_result.ips());
        let conf = of(&late, &self.conf);
        let answer = self.host.add(&late, &conf);
        for ip in answer.ips() {
            assert!(!held.contains(&ip), "{what}: {ip} is held twice");
        }
        self.host.del(&late, &conf);
    }

    /// GC as a runtime calls it that knows the other pod only.
    pub fn gc(&self) -> Answer {
        self.host.call(&self.pod, "GC", &self.gc_conf())
    }

    pub fn gc_conf(&self) -> Value {
        let mut conf = self.conf.clone();
        conf["cni.dev/valid-attachments"] = json!([{"containerID": self.other.id, "ifname": "eth0"}]);
        conf
    }

    /// Runs the plugin, each of its system calls as `fate` says.
    pub fn traced(&self, command: &str, conf: &Value, fate: impl FnMut(&Call) -> Fate + Send) -> Outcome {
        self.traced_with(Host::variables(&self.pod, command), conf, fate)
    }

    /// The same with exactly these variables.
    pub fn traced_with(
        &self,
        variables: Vec<(String, String)>,
        conf: &Value,
        fate: impl FnMut(&Call) -> Fate + Send,
    ) -> Outcome {
        let mut program = Command::new(heddle_lab::bin("heddle"));
        program.env_clear().envs(variables);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = conf.to_string();
        // Whoever starts it must follow it, from the thread inside.
        let run = self.host.ns.run(|| trace::trace(&mut program, input.as_bytes(), fate));
        let run = run.unwrap().unwrap();
        let stdout = String::from_utf8(run.stdout).unwrap();
        let answer = Answer {
            success: run.status.success(),
            json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
            stdout,
            stderr: String::from_utf8_lossy(&run.stderr).into_owned(),
        };
        Outcome { answer, status: run.status }
    }

    /// Kills the plugin before its K-th system call. `false`: it came to its end before.
    pub fn killed_at(&self, k: usize, command: &str, conf: &Value) -> bool {
        let fate = |call: &Call| if call.index == k { Fate::Kills } else { Fate::Passes };
        let outcome = self.traced(command, conf, fate);
        assert!(outcome.killed() || outcome.answer.success, "{command} {k}: {outcome:?}");
        outcome.killed()
    }
}
