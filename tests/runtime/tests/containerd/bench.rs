//! A node with containerd on it, that has settled; and what must be left when all pods are gone again.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use heddle_lab::{Ask, Lab, Place, Snapshot, eventually, skip};
use heddle_runtime::{Containerd, Error, Plan, Pod, Result};
use serde_json::{Value, json};

/// Where the servers in the pods listen.
pub const PORT: u16 = 8080;

/// How long may pass until what containerd does by itself is done.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What vxland writes, in the version that containerd 1.6 speaks.
pub fn conflist() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "heddle",
        "plugins": [{
            "type": "heddle",
            "mode": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
            "capabilities": { "portMappings": true, "bandwidth": true },
        }],
    })
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
        Self::with(&conflist())
    }

    /// With another network.
    pub fn with(conflist: &Value) -> Result<Option<Self>> {
        if let Some(why) = Containerd::missing() {
            skip(&why);
            return Ok(None);
        }
        let lab = Lab::builder().nodes(1).threaded(false).build()?;
        let containerd = Containerd::start(&lab, conflist)?;
        // The first pod of a node leaves what stays for good: the directories of containerd and of the leases,
        // the rules that all pods share.
        let first = containerd.run_pod(&Plan::new("first"), PORT)?;
        containerd.stop(&first.id)?;
        containerd.remove(&first.id)?;
        let mut bench = Self { containerd, before: Snapshot::default(), lab };
        bench.before = bench.snapshot()?;
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
        let own = |line: &String| line.contains("/var/lib/containerd/");
        let left = || -> heddle_lab::Result<Vec<String>> {
            let after = self.snapshot().map_err(|e| heddle_lab::Error::Oracle(e.to_string()))?;
            let mut left: Vec<_> =
                self.before.changes(&after).into_iter().filter(|line| !own(line)).collect();
            left.extend(self.processes()?.into_iter().map(|process| format!("+ process {process}")));
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

    /// The leases, cached results and named network namespaces of the node.
    pub fn files(&self) -> Result<Vec<String>> {
        let snapshot = Snapshot::of(&self.lab)?;
        let dirs = ["/var/lib/cni/networks/heddle/", "/var/lib/cni/results/", "/run/netns/"];
        let notes = ["/lock", "/last_reserved_ip.", "/.heddle", "/boot"];
        let files = snapshot.section("n1 files").filter(|file| {
            !file.ends_with('/')
                && dirs.iter().any(|dir| file.starts_with(dir))
                && !notes.iter().any(|note| file.contains(note))
        });
        Ok(files.map(str::to_owned).collect())
    }
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

/// Asks the server of `pod` over both families, from `place`.
pub fn ask(place: &Place, pod: &Pod) -> Result<()> {
    for v4 in [true, false] {
        answered_by(place, (pod.ip(v4), PORT), &pod.plan.name)?;
    }
    Ok(())
}

/// The server at `to` is that of the pod `name`.
pub fn answered_by(place: &Place, to: (IpAddr, u16), name: &str) -> Result<()> {
    let reply = Ask::new(to).limit(Duration::from_secs(20)).tcp(place)?;
    if reply.server == name {
        return Ok(());
    }
    Err(Error::new(format!("reach {name} at {}", to.0), format!("{} answered", reply.server)))
}

/// Prints a figure on the test's output.
pub fn figure(what: &str, since: Instant) {
    println!("{what}: {:.2} s", since.elapsed().as_secs_f64());
}
