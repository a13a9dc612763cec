//! A node with containerd on it, that has settled; and what must be left when all pods are gone again.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use heddle_lab::{Ask, Cmd, Lab, Place, Snapshot, eventually, skip};
use heddle_runtime::cri::proto::{Nothing, PortMapping, StatusResponse};
use heddle_runtime::{Containerd, Error, Plan, Pod, Result};
use serde_json::{Value, json};

/// The bridge of the configuration that has one. It stays, with its address, when the pods are gone.
pub const BRIDGE: &str = "br0";

/// Where the servers in the pods listen.
pub const PORT: u16 = 8080;

/// How long may pass until what containerd does by itself is done.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The page that tells users what to paste.
const PAGE: &str = include_str!("../../../../docs/runtimes.md");

/// The configuration that the page gives, word for word.
pub fn conflist() -> Value {
    let (_, rest) = PAGE.split_once("```json\n").expect("the page has a configuration");
    let (text, _) = rest.split_once("```").expect("it has an end");
    serde_json::from_str(text).expect("what can be pasted is JSON")
}

/// The reference plugin that passes on what it is given, when it is told nothing else.
pub const IDLE: &str = "/usr/lib/cni/tuning";

/// Puts `program` where containerd finds the plugin `tail`.
pub fn put_tail(containerd: &Containerd, program: &Path) -> Result<()> {
    let tail = containerd.plugins().join("tail");
    drop(fs::remove_file(&tail));
    symlink(program, &tail).map_err(|e| Error::new("put a chained plugin in its place", e))
}

/// A lab of one node with containerd.
pub struct Bench {
    pub containerd: Containerd,
    before: Snapshot,
    /// Last, so that it is dropped last.
    pub lab: Lab,
}

impl Bench {
    /// `None`: this machine cannot; the test has been shown as skipped.
    pub fn start() -> Result<Option<Self>> {
        Self::with(&conflist(), |_| Ok(()))
    }

    /// With [`chain`]; `tail` is there and does nothing.
    pub fn chained() -> Result<Option<Self>> {
        Self::with(&chain(), |containerd| put_tail(containerd, Path::new(IDLE)))
    }

    /// With a network of the test's own. `prepare` is called before the first pod.
    pub fn with(conflist: &Value, prepare: impl FnOnce(&Containerd) -> Result<()>) -> Result<Option<Self>> {
        if let Some(why) = Containerd::missing() {
            skip(&why);
            return Ok(None);
        }
        let lab = Lab::builder().nodes(1).threaded(false).build()?;
        let containerd = Containerd::start(&lab, Some(conflist))?;
        prepare(&containerd)?;
        let mut bench = Self { containerd, before: Snapshot::default(), lab };
        // The first pod of a node leaves what stays for good: directories of containerd and of the leases, the
        // rules that all pods share, and that the node forwards (a router answers to anycast addresses).
        bench.before = bench.snapshot()?;
        let ports = vec![tcp(30000, "")];
        let first = bench.containerd.run_pod(&Plan { ports, ..Plan::new("first") }, PORT)?.id;
        bench.containerd.stop(&first)?;
        bench.containerd.remove(&first)?;
        let lasting = ["+ n1 files: ", "+ n1 nftables: ", "+ n1 routes6: anycast "];
        let of_bridge = |line: &str| line.contains(BRIDGE);
        bench.settles(|line| !lasting.iter().any(|kind| line.starts_with(kind)) && !of_bridge(line))?;
        // The kernel looks whether the bridge's own address is taken, and tells nobody when it has.
        let tentative = || Ok(bench.lab.node(1).run("ip -6 addr show tentative")?.trim().is_empty());
        eventually("the bridge's address settled", LIMIT, tentative)?;
        assert_eq!(bench.leases()?, Vec::<String>::new());
        bench.before = bench.snapshot()?;
        let elements = bench.before.section("n1 nftables").find(|line| line.contains("elements = "));
        assert_eq!(elements, None, "sets and maps hold nothing without pods");
        Ok(Some(bench))
    }

    /// A pod whose server answers the node, as kubelet's readiness probe would have it.
    pub fn pod(&self, plan: &Plan) -> Result<Pod> {
        let pod = self.containerd.run_pod(plan, PORT)?;
        eventually("the server of a pod listening", LIMIT, || {
            match Ask::new((pod.ip(true), PORT)).limit(LIMIT).tcp(self.lab.node(1)) {
                Err(e) if e.kind() == Some(ErrorKind::ConnectionRefused) => Ok(false),
                answer => answer.map(|_| true),
            }
        })?;
        Ok(pod)
    }

    /// Without what is containerd's own business: its database, its threads.
    fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot::of(&self.lab)?.without(&["tasks"]))
    }

    /// The oracle: nothing of a pod is left. No link, route, rule, lease, cached result, namespace, mount, process,
    /// cgroup.
    pub fn assert_no_leak(&self) -> Result<()> {
        self.settles(|_| true)
    }

    /// The same of what is ours: no link, address, route, neighbour, rule, queue, lease, record. A containerd that was
    /// killed before it had written anything down leaves more than it ever finds again: shims and their containers,
    /// mounts, directories.
    pub fn assert_no_leak_of_ours(&self) -> Result<()> {
        let theirs = ["+ process ", "+ n1 mounts: ", "+ n1 cgroups: "];
        let file = |line: &str| line.strip_prefix("+ n1 files: ").map(str::to_owned);
        let ours = ["/var/lib/cni/networks/", "/run/heddle/"];
        self.settles(|line| match file(line) {
            Some(file) => ours.iter().any(|dir| file.starts_with(dir)),
            None => !theirs.iter().any(|kind| line.starts_with(kind)),
        })
    }

    /// Nothing that `counts` is there that was not there before the pods, or the reverse.
    fn settles(&self, counts: impl Fn(&str) -> bool) -> Result<()> {
        let left = || -> heddle_lab::Result<Vec<String>> {
            let after = self.snapshot().map_err(|e| heddle_lab::Error::Oracle(e.to_string()))?;
            let mut left = self.before.changes(&after);
            left.extend(self.processes()?.into_iter().map(|process| format!("+ process {process}")));
            // containerd's own database; and what others unmount on this machine is gone here, too.
            let own = |line: &str| line.contains("/var/lib/containerd/");
            let gone = |line: &str| line.starts_with("- ") && line.contains(" mounts: ");
            left.retain(|line| {
                !own(line) && !gone(line) && !line.starts_with("+ client mounts: ") && counts(line)
            });
            Ok(left)
        };
        // containerd goes on tidying up after it has answered, and tells nobody when it is done.
        eventually("a node as it was before its pods", LIMIT, || match left()? {
            left if left.is_empty() => Ok(true),
            left => Err(heddle_lab::Error::Oracle(left.join("\n    "))),
        })?;
        Ok(())
    }

    /// The programs that run on the node, but containerd and those that the Lab runs.
    fn processes(&self) -> heddle_lab::Result<BTreeSet<String>> {
        let snapshot = Snapshot::of(&self.lab)?;
        let tasks = snapshot.section("n1 tasks").filter_map(|task| task.split_once(' '));
        Ok(tasks
            .filter(|(_, name)| *name != "containerd")
            .map(|(pid, name)| format!("{pid} {name}"))
            .collect())
    }

    /// What CRI-O calls after its start and containerd 1.6 never: GC, with these sandboxes as all that is valid.
    pub fn gc(&self, valid: &[&str]) -> Result<()> {
        let list = conflist();
        let mut conf = list["plugins"][0].clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = json!("1.1.0");
        let attachment = |id: &&str| json!({ "containerID": id, "ifname": "eth0" });
        conf["cni.dev/valid-attachments"] = valid.iter().map(attachment).collect();
        let plugins = self.containerd.plugins();
        let gc = Cmd::new(plugins.join("heddle")).env("CNI_COMMAND", "GC").env("CNI_PATH", plugins);
        self.lab.node(1).run(gc.stdin(conf.to_string()))?;
        Ok(())
    }

    /// The leases of the node, whatever the network is called.
    pub fn leases(&self) -> Result<Vec<String>> {
        let dir = self.lab.node(1).path("/var/lib/cni/networks");
        let networks = fs::read_dir(dir).map_err(|e| Error::new("read the networks", e))?;
        let entries =
            networks.flatten().flat_map(|network| fs::read_dir(network.path()).into_iter().flatten());
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(names.filter(|name| name.parse::<IpAddr>().is_ok()).collect())
    }
}

/// [`conflist`] with one more plugin after ours, whose file is `tail`.
pub fn chain() -> Value {
    let mut list = conflist();
    let plugins = list["plugins"].as_array_mut().expect("it is a list");
    plugins.push(json!({ "type": "tail" }));
    list
}

/// Does `work` for all `items` at the same time, as kubelet does for its pods.
pub fn at_once<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (index, item) in items.iter().enumerate() {
            let (work, results) = (&work, &results);
            scope.spawn(move || {
                let result = work(item);
                results.lock().expect("nobody panics with it").push((index, result));
            });
        }
    });
    let mut results = results.into_inner().expect("nobody panics with it");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Asks the server of `pod` at each of its addresses, from `place`.
pub fn ask(place: &Place, pod: &Pod) -> Result<()> {
    pod.ips.iter().try_for_each(|ip| answered_by(place, (*ip, PORT), &pod.plan.name))
}

/// The server at `to` is that of the pod `name`.
pub fn answered_by(place: &Place, to: (IpAddr, u16), name: &str) -> Result<()> {
    let reply = Ask::new(to).limit(Duration::from_secs(20)).tcp(place)?;
    if reply.server == name {
        return Ok(());
    }
    Err(Error::new(format!("reach {name} at {}", to.0), format!("{} answered", reply.server)))
}

/// What containerd tells kubelet of a condition: `RuntimeReady`, `NetworkReady`.
pub fn ready(containerd: &Containerd, condition: &str) -> Result<bool> {
    let answer: StatusResponse = containerd.cri().call("Status", &Nothing {})?;
    let conditions = answer.status.unwrap_or_default().conditions;
    Ok(conditions.iter().any(|one| one.kind == condition && one.status))
}

/// A TCP port of the node that leads to a pod's server.
pub fn tcp(host_port: u16, host_ip: &str) -> PortMapping {
    let host_ip = host_ip.to_owned();
    PortMapping { protocol: 0, container_port: PORT.into(), host_port: host_port.into(), host_ip }
}

/// Prints a figure on the test's output.
pub fn figure(what: &str, since: Instant) {
    println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
}
