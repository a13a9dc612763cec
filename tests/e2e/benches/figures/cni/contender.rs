//! A plugin with a configuration, and a pod to call it for.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heddle_lab::bin_dir;
use heddle_lab::trace::{self, Fate};
use heddle_lab::usage::{self, Used};
use heddle_netlink::{NetNs, Socket, link};
use serde_json::{Value, json};

use super::REFERENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
}

impl Verb {
    pub const BOTH: [Self; 2] = [Self::Add, Self::Del];

    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// A network namespace with an id.
pub struct Pod {
    pub ns: NetNs,
    id: String,
}

impl Pod {
    pub fn new(id: String) -> Result<Self> {
        let ns = NetNs::create()?;
        let mut socket = Socket::open_in(&ns)?;
        // As a runtime leaves it.
        if let Some(lo) = link::by_name(&mut socket, "lo")? {
            link::set_up(&mut socket, lo.index)?;
        }
        Ok(Self { ns, id })
    }
}

pub struct Contender {
    pub label: String,
    program: PathBuf,
    config: Value,
}

impl Contender {
    /// Our plugin, with what is in `more` beside what all are configured with. Each has ranges of its own.
    pub fn heddle(label: &str, range: u8, leases: &Path, more: &Value) -> Self {
        Self::new(label, "heddle", bin_dir().join("heddle"), range, leases, more)
    }

    /// A plugin of the reference, with `host-local`.
    pub fn reference(kind: &str, label: &str, range: u8, leases: &Path, more: &Value) -> Self {
        Self::new(label, kind, Path::new(REFERENCE).join(kind), range, leases, more)
    }

    fn new(label: &str, kind: &str, program: PathBuf, range: u8, leases: &Path, more: &Value) -> Self {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": format!("net-{range}"), "type": kind,
            "ipam": {
                "type": "host-local", "dataDir": leases,
                "ranges": [[{ "subnet": format!("10.{range}.0.0/16") }]],
            },
        });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        Self { label: label.into(), program, config }
    }

    /// The same, with leases that a power cut spares.
    pub fn durable(mut self) -> Self {
        self.config["ipam"]["durable"] = json!(true);
        self
    }

    fn command(&self, verb: Verb, pod: &Pod) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            // The reference looks for iptables.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb.word())
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", format!("/proc/{}/fd/{}", std::process::id(), pod.ns.as_raw_fd()))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .stderr(Stdio::null());
        command
    }

    /// Calls it in the namespace that the calling thread is in.
    pub fn call(&self, verb: Verb, pod: &Pod) -> Result<Used> {
        let used = usage::measure(&mut self.command(verb, pod), self.config.to_string().as_bytes())
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.check(verb, used.status.success(), &used.stdout)?;
        Ok(used)
    }

    /// KiB that it takes at once, without the programs that it starts.
    pub fn peak(&self, verb: Verb, pod: &Pod) -> Result<u64> {
        let mut command = self.command(verb, pod);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let traced =
            trace::trace(&mut command, self.config.to_string().as_bytes(), |_| Fate::PassesAsTheRest)?;
        self.check(verb, traced.status.success(), &traced.stdout)?;
        Ok(traced.peak)
    }

    fn check(&self, verb: Verb, success: bool, stdout: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(stdout);
        ensure!(success, "{} {}: {}", self.label, verb.word(), text.trim());
        if verb == Verb::Add {
            let answer: Value = serde_json::from_str(&text).context("ADD answered no JSON")?;
            ensure!(answer["ips"][0]["address"].is_string(), "ADD answered no address: {answer}");
        }
        Ok(())
    }
}
