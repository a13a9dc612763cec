//! The records, and what they say together.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heddle_model::host_port::loopback;
use heddle_model::subnet::hostile;
use heddle_model::{FrontendAddr, HostPort, Object, Problem, Protocol, Slice, What};
use serde::Deserialize;

use crate::directory::{Directory, Identity};
use crate::watch::Changes;

/// All records of a directory.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    namespace: Option<u64>,
    /// By host side of the pod.
    files: BTreeMap<String, File>,
    /// Why the directory itself cannot be read.
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    identity: Option<Identity>,
    record: Option<Record>,
    problem: Option<String>,
}

/// What is used of a record; the plugin writes more.
#[derive(Debug, Deserialize)]
struct Record {
    /// Cookie of the network namespace that the ports are of.
    namespace: u64,
    network: String,
    #[serde(rename = "containerID")]
    container: String,
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    protocol: Proto,
    /// The one address of the node that it is of.
    #[serde(rename = "hostIP", default)]
    host_ip: Option<IpAddr>,
    host_port: u16,
    address: IpAddr,
    port: u16,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl From<Proto> for Protocol {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Self::Tcp,
            Proto::Udp => Self::Udp,
            Proto::Sctp => Self::Sctp,
        }
    }
}

impl Records {
    pub fn new(path: &Path, namespace: Option<u64>) -> Self {
        Self { path: path.to_owned(), namespace, files: BTreeMap::new(), problem: None }
    }

    /// Reads what changed. `busy` names files that somebody is writing, as the plugin never does: they are left for
    /// later.
    pub fn scan(
        &mut self,
        directory: &Directory,
        changes: &Changes,
        busy: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        let names = directory.names(record_name)?;
        self.problem = None;
        self.files.retain(|name, _| names.contains(name));
        for name in names.into_iter().filter(|name| !busy(name)) {
            let file = self.files.entry(name.clone()).or_default();
            let again = changes.all || changes.names.contains(OsStr::new(&name));
            match directory.read(&name, file.identity.filter(|_| !again)) {
                Ok(None) => {}
                Ok(Some(found)) => *file = File::new(found.identity, &found.text),
                // Gone since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => drop(self.files.remove(&name)),
                Err(error) => {
                    *file = File { problem: Some(format!("cannot read it: {error}")), ..File::default() }
                }
            }
        }
        Ok(())
    }

    /// The directory cannot be read; what its files said stands.
    pub fn unreadable(&mut self, error: &io::Error) {
        self.problem = Some(format!("host ports are not followed: cannot read the directory: {error}"));
    }

    pub fn slice(&self) -> Slice {
        let mut slice = Slice::default();
        let mut problems = BTreeSet::new();
        let mut report = |path: &Path, what: What| {
            problems.insert(Problem::new(Object::Input(path.display().to_string()), what));
        };
        if let Some(problem) = &self.problem {
            report(&self.path, What::Said(problem.clone()));
        }
        let mut ours = Vec::new();
        for (name, file) in &self.files {
            if let Some(problem) = &file.problem {
                report(&self.path.join(name), What::Said(problem.clone()));
            }
            let record = file.record.as_ref().filter(|record| Some(record.namespace) == self.namespace);
            ours.extend(record.map(|record| (file.modified(), name, record)));
        }
        // The youngest first.
        ours.sort_by_key(|(modified, name, _)| Reverse((*modified, *name)));
        let mut holders: BTreeMap<FrontendAddr, &String> = BTreeMap::new();
        for (_, name, record) in ours {
            for (at, published) in record.on_loopback(name) {
                let skipped = match at {
                    None => {
                        let HostPort { address, port, .. } = published;
                        let what = "a port that is 0, or an address that is no pod's";
                        format!("port of {address}:{port} skipped: {what}")
                    }
                    Some(at) => match holders.entry(at) {
                        Entry::Vacant(free) => {
                            free.insert(name);
                            slice.host_ports.insert(at, Arc::new(published));
                            continue;
                        }
                        Entry::Occupied(holder) => {
                            format!("port {at} skipped: {} has published it since", holder.get())
                        }
                    },
                };
                report(&self.path.join(name), What::Said(skipped));
            }
        }
        slice.problems = problems;
        slice
    }
}

/// The name of a record is that of a device; hidden files are none.
fn record_name(name: &OsStr) -> Option<&str> {
    name.to_str().filter(|name| !name.starts_with('.'))
}

impl File {
    fn new(identity: Identity, bytes: &[u8]) -> Self {
        let (record, problem) = match serde_json::from_slice(bytes) {
            Ok(record) => (Some(record), None),
            Err(error) => (None, Some(format!("no record of host ports: {error}"))),
        };
        Self { identity: Some(identity), record, problem }
    }

    fn modified(&self) -> (i64, i64) {
        self.identity.map_or((0, 0), |identity| identity.modified())
    }
}

impl Record {
    /// The ports that are on loopback, and where; `None` for what cannot be a port of a pod.
    fn on_loopback(&self, host: &str) -> Vec<(Option<FrontendAddr>, HostPort)> {
        let id = self.container.get(..12).unwrap_or(&self.container);
        let of = |port: &Port| {
            let sound = port.host_port != 0 && port.port != 0 && hostile(port.address).is_none();
            let at = sound.then(|| loopback(port.address, port.host_port, port.protocol.into()));
            let owner = format!("{}/{id}:{host}", self.network);
            (at, HostPort { owner, address: port.address, port: port.port })
        };
        let ports: Vec<_> = self.ports.iter().filter(|port| port.host_ip.is_none()).map(of).collect();
        let mut seen = BTreeSet::new();
        ports.into_iter().filter(|(at, _)| at.is_none_or(|at| seen.insert(at))).collect()
    }
}
