//! A host, and calls of either program.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use heddle_netlink::{NetNs, Socket, link};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's package containernetworking-plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Ours,
    Reference,
}

impl Program {
    pub const BOTH: [Self; 2] = [Self::Ours, Self::Reference];

    pub fn other(self) -> Self {
        if self == Self::Ours { Self::Reference } else { Self::Ours }
    }

    pub fn path(self) -> PathBuf {
        match self {
            Self::Ours => heddle_lab::bin("heddle-ipam"),
            Self::Reference => reference("host-local"),
        }
    }
}

/// A plugin of the reference set.
pub fn reference(name: &str) -> PathBuf {
    let program = Path::new(REFERENCE).join(name);
    assert!(program.exists(), "{} is missing: install containernetworking-plugins", program.display());
    program
}

/// A host: a network namespace, in which loopback is up, and a directory for leases.
pub struct Host {
    pub ns: NetNs,
    dir: TempDir,
}

/// What a program answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub json: Value,
    pub stdout: String,
}

impl Answer {
    /// The code of the error object; 0 for success.
    pub fn code(&self) -> u64 {
        if self.success { 0 } else { self.json["code"].as_u64().unwrap_or(u64::MAX) }
    }

    pub fn msg(&self) -> &str {
        self.json["msg"].as_str().unwrap_or_default()
    }

    /// The addresses of a result of 0.3.0 or newer, without prefix lengths.
    pub fn ips(&self) -> Vec<String> {
        let list = self.json["ips"].as_array().unwrap_or_else(|| panic!("no ips in {self:?}"));
        list.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }
}

impl Host {
    pub fn new() -> Self {
        let ns = NetNs::create().unwrap();
        let mut socket = Socket::open_in(&ns).unwrap();
        let lo = link::by_name(&mut socket, "lo").unwrap().unwrap();
        link::set_up(&mut socket, lo.index).unwrap();
        Self { ns, dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the network `net`.
    pub fn lease(&self, name: &str) -> PathBuf {
        self.path("networks/net").join(name)
    }

    /// A configuration in the newest version that the reference plugins of the distribution speak.
    pub fn conf(&self, ranges: Value) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "any",
            "ipam": { "type": "heddle-ipam", "ranges": ranges, "dataDir": self.path("networks") }
        })
    }

    pub fn small(&self) -> Value {
        self.conf(json!([[{"subnet": "10.1.0.0/29"}]]))
    }

    pub fn dual(&self) -> Value {
        self.conf(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]))
    }

    /// Starts `program` for `container`, whose namespace is this host's unless `variables` say otherwise.
    pub fn start(
        &self,
        program: &Path,
        command: &str,
        container: &str,
        conf: &Value,
        variables: &[(&str, &str)],
    ) -> Child {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd());
        let mut process = Command::new(program);
        process.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process.envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", REFERENCE),
        ]);
        process.envs(variables.iter().copied());
        let mut child = self.ns.run(|| process.spawn()).unwrap().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A plugin that has seen enough closes its end.
        drop(stdin.write_all(conf.to_string().as_bytes()));
        child
    }

    pub fn call_with(
        &self,
        program: Program,
        command: &str,
        container: &str,
        conf: &Value,
        variables: &[(&str, &str)],
    ) -> Answer {
        finish(self.start(&program.path(), command, container, conf, variables))
    }

    pub fn call(&self, program: Program, command: &str, container: &str, conf: &Value) -> Answer {
        self.call_with(program, command, container, conf, &[])
    }

    /// ADD, which must succeed; the addresses.
    pub fn add(&self, program: Program, container: &str, conf: &Value) -> Vec<String> {
        let answer = self.call(program, "ADD", container, conf);
        assert!(answer.success, "{program:?} ADD {container}: {answer:?}");
        answer.ips()
    }

    /// DEL, which must succeed and say nothing.
    pub fn del(&self, program: Program, container: &str, conf: &Value) {
        let answer = self.call(program, "DEL", container, conf);
        assert!(answer.success && answer.stdout.is_empty(), "{program:?} DEL {container}: {answer:?}");
    }

    /// The addresses that are leased, as the files say.
    pub fn leases(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.lease("")) else { return BTreeSet::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Our notes.
    pub fn notes(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.lease(".heddle")) else { return 0 };
        entries.filter(|entry| entry.as_ref().unwrap().file_name().len() == 32).count()
    }
}

pub fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    Answer {
        success: output.status.success(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
    }
}
